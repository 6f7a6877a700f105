"""Records every operator that a network's forward runs, the module that ran it, and the storages that it used."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtlc.hw.cost.aten_costs import cost, is_view
from mtlc.hw.cost.liveness import Step, needed, peak_bytes
from mtlc.hw.cost.workload import Operator, Weight, Workload

IN_PLACE_KINDS = frozenset({"norm", "activation", "elementwise"})


class OperatorRecorder(TorchDispatchMode):
    """Records every operator that reaches the dispatcher, the module that ran it, and the storages that it used."""

    def __init__(self, weights: dict[int, Weight], inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.spans: list[tuple[int, int]] = []
        self.steps: list[Step] = []
        self.sources: list[tuple[int, ...]] = []
        self.sizes: dict[Any, int] = {storage_of(tensor): bytes_of(tensor) for tensor in inputs}
        self.inputs = list(self.sizes)
        self.weights = weights
        self.path = [""]
        self._alive: list[Any] = list(inputs)
        # Who wrote each storage last: an operator's place, or -1, -2, … for the inputs.
        self._writer: dict[Any, int] = {storage: -1 - place for place, storage in enumerate(self.inputs)}

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Within the block the recorder knows which submodule of `module` runs."""
        hooks: list[Any] = []
        for path, submodule in module.named_modules():
            hooks.append(submodule.register_forward_pre_hook(self._entering(path)))
            hooks.append(submodule.register_forward_hook(self._leaving))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _entering(self, path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            self.path.append(path)

        return hook

    def _leaving(self, _module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        # Not called where the module raises: the path then still names the place.
        self.path.pop()

    def where(self) -> str:
        """The module that is running, for messages."""
        return self.path[-1] or "the network's forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Operators of that namespace ask for a tensor's properties; they compute nothing.
        if func.namespace != "prim":
            self._record(func, args, kwargs or {}, out)
        return out

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        reads = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        writes = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)] or _written(func, args, kwargs)
        if not writes:
            return
        # By storage and not by tensor: views of one buffer are one buffer.
        sources = {storage_of(tensor): tensor for tensor in reads}
        targets = {storage_of(tensor): tensor for tensor in writes}
        if is_view(func) and targets.keys() <= sources.keys():
            return  # no work, no memory
        if targets.keys() <= sources.keys() and (not func._schema.is_mutable or torch.Tag.inplace_view in func.tags):
            return  # what turned out to be a view, such as a reshape that had nothing to move
        found = cost(func, args, kwargs, out, not sources.keys().isdisjoint(self.weights), self.where())
        # Storages are told apart by their addresses, which a freed one would hand on to the next.
        self._alive.extend(writes)
        for storage, tensor in targets.items():
            if storage not in sources:
                self.sizes[storage] = tensor.untyped_storage().nbytes()
        activations = [tensor for tensor in reads if storage_of(tensor) not in self.weights]
        start = len(self.steps)
        self._add_steps(found.kind, args, tuple(sources), tuple(targets), writes[0])
        self.spans.append((start, len(self.steps)))
        read_from = (self._writer[storage] for storage in sources if storage in self._writer)
        self.sources.append(tuple(dict.fromkeys(read_from)))
        self._writer.update(dict.fromkeys(targets, len(self.operators)))
        self.operators.append(
            Operator(
                self.path[-1],
                found.kind,
                found.macs,
                tuple(self.weights[storage] for storage in sources if storage in self.weights),
                tuple(tuple(tensor.shape) for tensor in activations),
                tuple(writes[0].shape),
                sum(map(bytes_of, activations)) + bytes_of(writes[0]),
                str(func.overloadpacket) if found.assumed else None,
            )
        )

    def _add_steps(
        self, kind: str, args: tuple[Any, ...], sources: tuple[int, ...], targets: tuple[int, ...], out: Tensor
    ) -> None:
        if kind != "attention":
            self.steps.append(Step(sources, targets, kind in IN_PLACE_KINDS))
            return
        # Attention is exported as two products with the scores between them, and most runtimes store the scores.
        query, key, value = args[:3]
        scores = ("scores", len(self.steps))
        self.sizes[scores] = query.shape[:-1].numel() * key.shape[-2] * out.element_size()
        self.steps.append(Step(tuple(s for s in sources if s != storage_of(value)), (scores,)))
        self.steps.append(Step((scores, storage_of(value)), targets))

    def workload(self, outputs: Mapping[str, Tensor]) -> Workload:
        """What was recorded, without operators that none of the tasks' `outputs` depends on."""
        results = {storage_of(tensor) for tensor in outputs.values()}
        keep = needed(self.steps, results)
        # An operator may be two steps (attention): it counts if any of its steps leads to a result.
        kept = [place for place, (start, stop) in enumerate(self.spans) if any(keep[start:stop])]
        now = {place: index for index, place in enumerate(kept)}
        steps = [step for step, wanted in zip(self.steps, keep, strict=True) if wanted]

        def moved(places: Iterable[int]) -> tuple[int, ...]:
            return tuple(place if place < 0 else now[place] for place in places if place < 0 or place in now)

        return Workload(
            tuple(self.operators[place] for place in kept),
            peak_bytes(steps, self.sizes, self.inputs, results),
            tuple(moved(self.sources[place]) for place in kept),
            tuple(
                (task, moved([self._writer[storage_of(tensor)]] if storage_of(tensor) in self._writer else []))
                for task, tensor in outputs.items()
            ),
        )


@contextmanager
def unfused() -> Iterator[None]:
    """Keep torch from running whole layers as one opaque kernel (the encoder layer's fast path, oneDNN's LSTM)."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # switching oneDNN off warns about its TF32 setting, which is not touched
        with torch.backends.mkldnn.flags(enabled=False):
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                yield
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes into, of one that returns none."""
    given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
    changed = (one for one in func._schema.arguments if one.alias_info is not None and one.alias_info.is_write)
    return [leaf for one in changed for leaf in tree_leaves(given.get(one.name)) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """What tells the storages of tensors apart as long as they live."""
    result: int = tensor.untyped_storage()._cdata
    return result


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
