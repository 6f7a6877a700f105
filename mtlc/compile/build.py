"""``mtlc build``: the engines of a bundle for the GPU that runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.runtime.manifest import Sizes

BATCH = "batch"


def build(
    bundle: Path,
    out: Path,
    precision: str,
    *,
    batch: str | None = None,
    timing_cache: Path | None = None,
    workspace_mib: int | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Build TensorRT engines of all programs; see `mtlc.export.tensorrt.engines.build_engines`.

    `batch` is ``"MIN,OPT,MAX"``, None for what the job that made the bundle says. Raises `UserError` or `Unavailable`.
    """
    from mtlc.export.tensorrt.engines import build_engines

    return build_engines(
        bundle, out, precision,
        dimensions=None if batch is None else {BATCH: _sizes(batch)}, timing_cache=timing_cache,
        workspace_bytes=None if workspace_mib is None else workspace_mib << 20, log=log,
    )  # fmt: skip


def text(result: dict[str, Any]) -> str:
    """What was built, an engine a line."""
    from mtlc.compile.text import table

    rows = [
        (
            engine["file"], f"{engine['bytes'] / 1e6:.2f}", f"{engine['build_seconds']:.1f}",
            len(engine["in_float32"]) if result["precision"] == "fp16" else "-",
        )
        for engine in result["engines"]
    ]  # fmt: skip
    target = result["gpu"] or f"GPUs of compute capability {', '.join(result['compute_capabilities'])}"
    return "\n".join(
        [
            f"{result['out']}: engines for {target}, by {result['module']} {result['version']} (built, not run)",
            "",
            table(("engine", "MB", "seconds", "nodes kept in float32"), rows),
        ]
    )


def _sizes(text: str) -> Sizes:
    parts = text.split(",")
    if len(parts) == 3 and all(part.strip().isdecimal() for part in parts):
        smallest, usual, largest = (int(part) for part in parts)
        if 1 <= smallest <= usual <= largest:
            return Sizes(smallest, usual, largest)
    raise UserError(f"--batch {text}: must be three rising sizes, such as 1,1,8: smallest, usual and largest")
