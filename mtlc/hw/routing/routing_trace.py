"""Records where the tokens of each frame go in a network that runs, or draws it from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtlc.errors import UserError, nearest
from mtlc.files import atomic_file, check_plain
from mtlc.hw.routing.moe_vit_shape import MoeVit
from mtlc.log import tracked

if TYPE_CHECKING:
    from mtlc.program.program import Program

Route = np.ndarray
"""(N, K) int: the experts of each token in the router's order, −1 for a place that none fills."""


@dataclass(frozen=True)
class Frame:
    """One image run for one task, with a route for each layer of experts."""

    task: str
    layers: tuple[Route, ...]


@dataclass(frozen=True)
class RoutingTrace:
    """Frames by task, and where they are from."""

    frames: Mapping[str, tuple[Frame, ...]]
    source: str

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.frames)

    def sequence(self, tasks: Sequence[str]) -> list[Frame]:
        """A frame for each of `tasks` in time, each task's own frames in turn."""
        taken = dict.fromkeys(self.frames, 0)
        found = []
        for task in tasks:
            if task not in self.frames:
                raise UserError(f"the routing trace has no task {task!r}{nearest(task, self.frames)}")
            # Each task goes through its own frames in a circle, however often the others come.
            own = self.frames[task]
            found.append(own[taken[task] % len(own)])
            taken[task] += 1
        return found

    def usage(self, task: str, layer: int, experts: int) -> np.ndarray:
        """(E,): the mean number of a frame's tokens that each expert of the layer gets."""
        chosen = np.concatenate([frame.layers[layer].ravel() for frame in self.frames[task]])
        return np.bincount(chosen[chosen >= 0], minlength=experts) / len(self.frames[task])

    def check(self, network: MoeVit) -> None:
        """Raises `UserError` if the trace is of another network: layers, tokens, top-k or experts that differ."""
        if not self.frames or not all(self.frames.values()):
            raise UserError("the routing trace holds no frame")
        for task, frames in self.frames.items():
            for frame in frames:
                check_frame(frame, network, task)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` that `load` reads."""
        arrays = {
            f"{task}/{index}/{layer}": route
            for task, frames in self.frames.items()
            for index, frame in enumerate(frames)
            for layer, route in enumerate(frame.layers)
        }
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, source=np.array(self.source), **arrays)  # type: ignore[arg-type]


def load(path: Path) -> RoutingTrace:
    """A trace that `RoutingTrace.save` wrote. Raises `UserError` for any other file."""
    found: dict[str, dict[int, dict[int, Route]]] = {}
    check_plain(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            source = str(arrays["source"])
            for name in arrays.files:
                if name != "source":
                    task, frame, layer = name.rsplit("/", 2)
                    found.setdefault(task, {}).setdefault(int(frame), {})[int(layer)] = arrays[name]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # BadZipFile and others of the readers, KeyError and others of another content
        raise UserError(f"{path}: not a routing trace that mtlc wrote ({type(error).__name__})") from None
    return RoutingTrace(
        {
            task: tuple(Frame(task, tuple(frame[i] for i in sorted(frame))) for _, frame in sorted(frames.items()))
            for task, frames in found.items()
        },
        source,
    )


def check_frame(frame: Frame, network: MoeVit, task: str) -> None:
    """Raises `UserError` unless the frame's routes are of this network."""
    moe = network.moe_blocks
    if len(frame.layers) != len(moe):
        raise UserError(
            f"the routing trace is of another network: task {task!r} has {len(frame.layers)} layers of experts, "
            f"not {len(moe)}"
        )
    for route, index in zip(frame.layers, moe, strict=True):
        block = network.blocks[index]
        shape = (network.tokens, block.top_k)
        if route.shape != shape:
            raise UserError(
                f"the routing trace is of another network: task {task!r}, block {index} has places {route.shape}, "
                f"not {shape} (tokens, top-k)"
            )
        if route.size and (route.max() >= block.experts or route.min() < -1):
            wrong = int(route.max() if route.max() >= block.experts else route.min())
            raise UserError(
                f"the routing trace is of another network: task {task!r}, block {index} names expert {wrong}, "
                f"but there are {block.experts}"
            )


def synthetic(
    network: MoeVit, tasks: Sequence[str] = ("task",), seed: int = 0, skew: float = 0.0, frames: int = 1
) -> RoutingTrace:
    """Random routes: K distinct experts for each token, independent of its neighbours.

    `skew` 0 is uniform; otherwise expert popularity falls as rank^(−skew), in an order that each task and layer has of
    its own. Raises `UserError` for a negative skew or no frame.
    """
    if skew < 0 or frames < 1 or not tasks:
        raise UserError(f"skew = {skew}, frames = {frames}: skew must not be negative, and one frame is the least")
    generator = np.random.default_rng(seed)
    made = {}
    for task in tasks:
        # One order for all frames of a task: popular experts stay popular, as in a network.
        orders = [generator.permutation(network.blocks[index].experts) for index in network.moe_blocks]
        made[task] = tuple(
            Frame(
                task,
                tuple(
                    _draw(generator, network.tokens, network.blocks[index].top_k, order, skew)
                    for index, order in zip(network.moe_blocks, orders, strict=True)
                ),
            )
            for _ in range(frames)
        )
    return RoutingTrace(made, f"synthetic, seed {seed}, skew {skew:g}")


def _draw(generator: np.random.Generator, tokens: int, top_k: int, order: np.ndarray, skew: float) -> Route:
    # The K largest of log p + Gumbel noise are a sample without replacement.
    logits = -skew * np.log(1 + np.arange(len(order)))
    noisy = logits + generator.gumbel(size=(tokens, len(order)))
    return order[np.argsort(-noisy, axis=1, kind="stable")[:, :top_k]].astype(np.int16)


def record(program: Program, images: Sequence[object], tasks: Sequence[str] | None = None) -> RoutingTrace:
    """Run `program` on images (3, H, W) one at a time for each task, and note where every token goes.

    Raises `UserError` for a network without experts, and for a router that gives NaN.
    """
    import torch

    from mtlc.moe.layers import moe_layers, observing

    layers = moe_layers(program.module)
    if not layers:
        raise UserError("[model] the network has no mixture of experts, so there is no routing to record")
    name, *others = program.inputs
    if others:
        raise UserError(
            f"[model] the network reads {', '.join(program.inputs)}: routing is recorded for one input only"
        )
    found: dict[str, tuple[Frame, ...]] = {}
    program.module.eval()
    for task in tasks or program.task_names:
        if task not in program.task_names:
            raise UserError(f"the network has no task {task!r}{nearest(task, program.task_names)}")
        frames = []
        for image in tracked(images, f"routing of {task}"):
            with torch.inference_mode(), observing(layers) as routed:
                program.outputs({name: torch.as_tensor(image)[None]}, (task,))
            frames.append(Frame(task, tuple(routed.index(layer.path).numpy().astype(np.int16) for layer in layers)))
        found[task] = tuple(frames)
    return RoutingTrace(found, f"recorded on {len(images)} images")
