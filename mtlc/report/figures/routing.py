"""Draws heat maps of routing: layer × expert × task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from mtlc.report.figures.svg import BEFORE, PAGE, svg
from mtlc.results.routing import RoutedNetwork


def shares(side: RoutedNetwork, task: str) -> np.ndarray:
    """(layers, most experts of a layer): the percentage of a sample's tokens that go to each expert.

    NaN past a layer's last.
    """
    layers = side.layers
    found = np.full((len(layers), max(layer.experts for layer in layers)), np.nan)
    for row, layer in enumerate(layers):
        found[row, : layer.experts] = 100 * np.array(layer.tasks[task].tokens_per_expert) / layer.tokens
    return found


@matplotlib.rc_context(PAGE)
def routing_maps(side: RoutedNetwork, maps: Sequence[tuple[str, str]], top: float, label: str) -> str:
    """Layers × experts, a map for each (task, title): the share of the tokens that each expert gets.

    Grey is an expert that is gone. `top` is the percentage at the end of the scale, one for all figures compared.
    """
    layers = side.layers
    experts = max(layer.experts for layer in layers)
    gone = np.ones((len(layers), experts), bool)
    for row, layer in enumerate(layers):
        gone[row, layer.present] = gone[row, layer.experts :] = False
    width = 3.2 + len(maps) * max(1.3, 0.1 * experts)
    figure = Figure(figsize=(max(width, 5.0), 0.95 + 0.26 * len(layers)), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    mesh: Any = None
    for column, (axis, (task, title)) in enumerate(zip(axes, maps, strict=True)):
        values = np.ma.masked_array(shares(side, task), gone | np.isnan(shares(side, task)))
        # A picture of one pixel a cell: as shapes, a few thousand cells would take a quarter of the page.
        cells: Any = {"interpolation": "none", "aspect": "auto", "extent": (0, experts, len(layers), 0)}
        mesh = axis.imshow(values, cmap="YlOrRd", norm=PowerNorm(0.5, 0, top), **cells)
        axis.imshow(np.ma.masked_array(np.zeros(gone.shape), ~gone), cmap=ListedColormap([BEFORE]), alpha=0.45, **cells)
        axis.set_title(title, fontsize=10)
        ticks = np.arange(0, experts, max(1, experts // 4))
        axis.set_xticks(ticks + 0.5, [str(tick) for tick in ticks])
        axis.set_yticks(np.arange(len(layers)) + 0.5, [layer.layer[-34:] if column == 0 else "" for layer in layers])
        axis.tick_params(length=0, labelsize=9)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[len(maps) // 2].set_xlabel("expert")
    bar = figure.colorbar(mesh, ax=list(axes), fraction=0.03, pad=0.015, aspect=20)
    bar.set_label("% of the tokens")
    bar.outline.set_visible(False)
    return svg(figure, label)
