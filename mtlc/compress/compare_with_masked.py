"""Compares a network that lost parts with the original whose removed parts are masked, on a few calibration samples.

Surgery rebuilds tensors and attributes of code that mtlc did not write, so what it built is not trusted but run: both
networks get the same samples, and must agree to rounding. They add the same numbers in another order, which moves a
float32 output by about 1e-6 of its largest value, and more where a router or a maximum is nearly undecided. Where
float32 does not agree, both are run in float64: rounding is then below 1e-12, while a row or a channel that was
mistaken for another differs by as much as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.compress.pipeline.checks import EXACT_TOLERANCE
from mtlc.errors import MtlcError, UserError, VerificationError, one_line
from mtlc.moe.layers import MoeLayer, hooking, moe_layers
from mtlc.program.program import Program
from mtlc.results.masked_comparison import MaskedComparison

SAMPLES = 4
"""How many samples are compared, at most."""

_SURELY_WRONG = 1e-3  # of the largest value: no rounding of float32 is as large

Masking = Callable[[Program], AbstractContextManager[Any]]
"""Within the block, the program or a copy of it runs as if the removed parts were not there."""


@dataclass(frozen=True)
class _Call:
    """One call of a layer's experts in the original: its arguments before they are masked, and what it gave."""

    path: str
    arguments: tuple[Any, ...]
    result: Tensor


def unmasked(_program: Program) -> AbstractContextManager[Any]:
    """A masking that masks nothing."""
    return nullcontext()


def compare_with_masked(
    original: Program,
    masking: Masking,
    built: Program,
    batch: Mapping[str, Tensor],
    *,
    experts: bool = False,
    tolerance: float = EXACT_TOLERANCE,
) -> MaskedComparison:
    """How far `built` is from `original` under `masking`, for the tasks that `built` has.

    With `experts` each layer's experts are also compared alone, on the tokens that they get in the original: so a
    difference is seen where it arises. Both programs are put in eval mode, and otherwise left as they are.

    Raises `VerificationError` that names the layer or the task, and `UserError` for a network whose forward is random.
    """
    found = _differences(original, masking, built, batch, experts)
    precision = "float32"
    if _largest(found) > tolerance:
        precise = _in_float64(original, masking, built, batch, experts)
        if precise is not None:
            found, precision = precise, "float64"
    if _largest(found) > tolerance:
        _check_repeats(original, masking, batch)
        raise VerificationError(_complaint(built, found, tolerance, len(next(iter(batch.values())))))
    return MaskedComparison(
        samples=len(next(iter(batch.values()))), precision=precision, tolerance=tolerance, tasks=found[0],
        layers=found[1],
    )  # fmt: skip


_Found = tuple[dict[str, float], dict[str, float]]


def _differences(
    original: Program, masking: Masking, built: Program, batch: Mapping[str, Tensor], experts: bool
) -> _Found:
    """By task, and by layer of experts."""
    names = built.task_names
    calls: list[_Call] = []
    with _recording(original, calls, experts), masking(original):
        wanted = _outputs(original, batch, names)
    layers: dict[str, float] = {}
    left = {layer.path: layer for layer in moe_layers(built.module)} if experts else {}
    for call in calls:
        with torch.no_grad():
            given = _attempt(f"layer {call.path!r}", partial(left[call.path].experts, *call.arguments))
        layers[call.path] = max(layers.get(call.path, 0.0), difference(call.result, given))
    for path, found in layers.items():
        if found > _SURELY_WRONG:  # the network may not even run with it: name the layer first
            return {}, {path: found}
    given = _attempt("[model] the network that was built", lambda: _outputs(built, batch, names))
    return {task: difference(wanted[task], given[task]) for task in wanted}, layers


def _attempt(what: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except MtlcError:
        raise
    except Exception as error:  # the code is another's: it may raise anything
        raise VerificationError(
            f"{what} does not run without what was taken out ({one_line(error)}): "
            "something in it counts on the parts that are gone; leave it out of the pass"
        ) from error


def _outputs(program: Program, batch: Mapping[str, Tensor], tasks: Sequence[str], seed: int = 0) -> dict[str, Tensor]:
    """Outputs in eval mode; a random forward draws the same in every run with the same `seed`."""
    program.module.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return program.outputs(batch, tasks)


@contextmanager
def _recording(program: Program, calls: list[_Call], wanted: bool) -> Iterator[None]:
    """Within the block, note the calls of all layers of experts, if `wanted`."""
    layers = moe_layers(program.module) if wanted else []
    began: list[tuple[str, tuple[Any, ...]]] = []

    def begins(called: Sequence[MoeLayer], args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> None:
        began.append((called[0].path, tuple(arg.clone() for arg in args)))

    def ends(module: nn.Module, _args: object, result: Any) -> None:
        if not any(module is layer.experts for layer in layers):
            return  # a copy, which took the hook along
        path, arguments = began.pop()
        if isinstance(result, Tensor):
            calls.append(_Call(path, arguments, result.clone()))

    with ExitStack() as stack:
        stack.enter_context(hooking(layers, begins))
        for experts in {id(layer.experts): layer.experts for layer in layers}.values():
            stack.callback(experts.register_forward_hook(ends).remove)
        yield


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest value of the first; infinite if they do not
    compare.
    """
    if one.shape != other.shape:
        return float("inf")
    one, other = one.detach().double(), other.detach().double()
    apart = torch.where((one == other) | (one.isnan() & other.isnan()), 0.0, (one - other).abs())
    if apart.numel() == 0:
        return 0.0
    scale = float(torch.where(one.isfinite(), one.abs(), 0.0).max())
    largest = float(apart.nan_to_num(nan=float("inf")).max())
    return largest / scale if scale > 0 else largest


def _in_float64(
    original: Program, masking: Masking, built: Program, batch: Mapping[str, Tensor], experts: bool
) -> _Found | None:
    """The same in float64; None for a network that does not run in it."""
    doubled = [replace(one.clone(), example=_doubled(one.example)) for one in (original, built)]
    for one in doubled:
        one.module.double()
    try:
        return _differences(doubled[0], masking, doubled[1], _doubled(batch), experts)
    except Exception:  # code that names float32 raises whatever it likes; the verdict in float32 then stands
        return None


def _doubled(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def _largest(found: _Found) -> float:
    return max((value for one in found for value in one.values()), default=0.0)


def _check_repeats(original: Program, masking: Masking, batch: Mapping[str, Tensor]) -> None:
    """Raise for a network that does not even agree with itself."""
    with masking(original):
        once, again = (_outputs(original, batch, original.task_names, seed) for seed in (0, 1))
    for task, output in once.items():
        if difference(output, again[task]) > EXACT_TOLERANCE:
            raise UserError(
                f"task {task!r}: the network gives another output each time it runs, so what was built of it cannot be "
                "checked; its forward must not be random in eval mode"
            )


def _complaint(built: Program, found: _Found, tolerance: float, samples: int) -> str:
    tasks, layers = found
    told = f"of the largest value on {samples} calibration samples (allowed: {tolerance:.0e})"
    for path, value in layers.items():
        if value > tolerance:
            kind = next(type(one.inner).__name__ for one in moe_layers(built.module) if one.path == path)
            return (
                f"layer {path!r}: the experts that are left give another result than all of them with the others "
                f"masked, by {value:.2g} {told}; {kind} keeps something for each expert that could not be found"
            )
    task = max(tasks, key=tasks.__getitem__)
    return (
        f"task {task!r}: the network that was built gives another output than the original with the removed parts "
        f"masked, by {tasks[task]:.2g} {told}"
    )
