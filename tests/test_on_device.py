"""Runs the tests of `tests/on_device` in a process of their own: what torch computes on is a made-up device there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from testkit.places import ROOT


@pytest.mark.parametrize(("name", "tests"), [("parts", 15), ("jobs", 8)])
def test_on_the_device(name, tests):
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"tests/on_device/test_{name}.py"]
    environment = os.environ | {"MTLC_ON_DEVICE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None
    assert int(found[1]) >= tests
