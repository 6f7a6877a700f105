"""What ``--configuration`` asks of a bundle, checked before anything runs."""

from __future__ import annotations

from pathlib import Path

from mtlc.errors import UserError, nearest
from mtlc.runtime import Manifest


def check_configuration(path: Path, manifest: Manifest, name: str) -> None:
    """Raise `UserError` unless the bundle at `path` can run in the configuration called `name`."""
    if manifest.widths is None:
        if name != "default":
            raise UserError(
                f"{path}: has no configuration {name!r}: it runs at one width only (`mtlc slim` makes bundles of several): "
                "leave out --configuration"
            )
        return
    known = [configuration.name for configuration in manifest.configurations]
    if name not in known:
        raise UserError(f"{path}: no configuration {name!r}{nearest(name, known)}")
