"""Takes back what torch's `DataLoader` does to a process when it has workers: a handler for the end of any child.

It would run in all that the caller does next, whichever process of his ends, and raise there what a worker died of.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data._utils import signal_handling


@contextmanager
def child_handler_kept() -> Iterator[None]:
    """After the block the process does at the end of a child what it did before. Elsewhere than in the main thread
    nothing can be taken back.
    """
    on_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if on_main else None
    try:
        yield
    finally:
        if on_main and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
            signal_handling._SIGCHLD_handler_set = False  # torch sets it once, and is told that it is gone
