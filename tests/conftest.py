"""One thread for every test: numbers that are compared bit for bit must not depend on how work was split."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is imported anywhere

# What is built once for all runs, such as simulations of Verilog, is kept; what a run measures is not the next one's.
CACHE = Path(__file__).parent.parent / ".mtlc-cache"
os.environ["XDG_CACHE_HOME"] = str(CACHE)
shutil.rmtree(CACHE / "mtlc" / "latency", ignore_errors=True)
