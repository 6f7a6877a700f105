"""A real browser for the report."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium. Without one the test is skipped on a developer's machine and fails where CI is set."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium found: the report must be looked at in a browser (apt-get install chromium)")
    pytest.skip("no Chromium found: install one to test the report in a browser")
