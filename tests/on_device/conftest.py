"""Tests on a made-up device run in a process of their own, which `tests/test_on_device.py` starts.

Once the device is registered torch's engine has threads for it, and other tests could not fork any more.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("MTLC_ON_DEVICE") else ["test_*.py"]
