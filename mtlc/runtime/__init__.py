"""Opens a bundle and runs its tasks with numpy and a backend, without torch: the runtime.

>>> from mtlc.runtime import Session
>>> with Session("model.mtlc") as session:
...     depth = session.run(session.preprocess(image), tasks=["depth"])["depth"]

Importing this package imports neither onnxruntime nor any other backend: the first `Session` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.lazy import lazy_names
from mtlc.telemetry import switch_off_onnxruntime

switch_off_onnxruntime()  # before anybody can ask us for a backend

if TYPE_CHECKING:
    from mtlc.runtime.bundle.manifest import Manifest
    from mtlc.runtime.bundle.open_bundle import OpenBundle, open_bundle
    from mtlc.runtime.pictures import picture, read_image, write_png
    from mtlc.runtime.session import Session
    from mtlc.runtime.widths.configurations import ActiveConfiguration
    from mtlc.runtime.widths.governor import Governor

_HOMES = {
    "ActiveConfiguration": ".widths.configurations",
    "Governor": ".widths.governor",
    "Session": ".session",
    "OpenBundle": ".bundle.open_bundle",
    "open_bundle": ".bundle.open_bundle",
    "Manifest": ".bundle.manifest",
    "picture": ".pictures",
    "read_image": ".pictures",
    "write_png": ".pictures",
}

__all__ = [
    "ActiveConfiguration",
    "Governor",
    "Manifest",
    "OpenBundle",
    "Session",
    "open_bundle",
    "picture",
    "read_image",
    "write_png",
]


__getattr__ = lazy_names(__name__, _HOMES)
