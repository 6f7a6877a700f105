"""Draws with matplotlib into SVG text that a page can hold, in the report's colours."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

BEFORE, AFTER, GOOD, BAD = "#8a94a6", "#2f6fdb", "#1a8754", "#c8452d"


# matplotlib writes fixed colours: these two stand for the page's own ink and rules and are replaced in the SVG.
INK, RULE = "#0a0b0c", "#0a0b0d"


PAGE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mtlc",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def picture_uris(pictures: Mapping[str, np.ndarray], limit_bytes: int, samples: int = 4) -> dict[str, list[str]]:
    """Pictures (K, H, W, 3) uint8 as data URIs by name, at most `samples` of each, small enough for `limit_bytes`."""
    # Smaller before fewer: the first that fits the limit.
    for side, count in ((224, samples), (160, samples), (128, samples), (96, samples), (96, 2), (64, 1)):
        uris = {
            name: [_data_uri(picture, side, photo=name == "image") for picture in stack[:count]]
            for name, stack in pictures.items()
        }
        if sum(len(uri) for stack in uris.values() for uri in stack) <= limit_bytes:
            return uris
    return {}


def _data_uri(picture: np.ndarray, side: int, photo: bool) -> str:
    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8))
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    kind = "jpeg" if photo else "png"
    image.save(buffer, kind, **({"quality": 88} if photo else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, axes


def _quiet(axes: Any) -> None:
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _short(name: str, length: int = 34) -> str:
    """The end of a module path, which is what tells layers apart."""
    return name if len(name) <= length else "…" + name[-(length - 1) :]


def svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib counts in points, a page in pixels: 96 to the inch against 72.
    width = float(re.search(r'width="([\d.]+)pt"', text)[1]) * 4 / 3  # type: ignore[index]
    text = re.sub(
        r"<svg\b[^>]*?(viewBox=\"[^\"]+\")[^>]*>",
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \1 role="img" '
        rf'aria-label="{label}" style="width:{width:.0f}px">',
        text, count=1, flags=re.DOTALL,
    )  # fmt: skip
    return text.replace(INK, "currentColor").replace(RULE, "var(--rule)")
