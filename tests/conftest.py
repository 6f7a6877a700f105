"""One thread for every test: numbers that are compared bit for bit must not depend on how work was split."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is imported anywhere
