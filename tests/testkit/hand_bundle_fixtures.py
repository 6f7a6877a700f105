"""Gives tests the bundles of `hand_bundle` as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from testkit.hand_bundle import manifest, payloads, slim_manifest, slim_payloads, write


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", payloads())


@pytest.fixture
def slim_bundle(tmp_path: Path) -> Path:
    """The slimmable network of `hand_bundle`."""
    return write(tmp_path / "slim", slim_payloads(), slim_manifest())


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle with some payloads replaced (checksums are right), or with a manifest of one's own."""

    def make(changed: dict[str, bytes] | None = None, edit: Callable[[dict], object] | None = None) -> Path:
        files = payloads() | (changed or {})
        described = manifest(files)
        if edit is not None:
            edit(described)
        return write(tmp_path / "made", files, described)

    return make
