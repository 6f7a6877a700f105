"""Runs again only what a change of weights touches: a network as a graph whose activations are kept.

`ActivationGraph` traces the network once with `torch.export`, keeps the activations of every calibration batch, and
answers "what are the outputs with these weights instead?" by running only the nodes that depend on the changed weights.

                     kept here | run again: the suffix
    image --> conv1 --> relu --|--> conv2* --> relu --> head-a --> output a      * weights changed
                               |

The kept activations are those that a suffix reads from outside itself. Which suffixes there will be is said before
(`plan`). Where they would take more memory than there is, only those are kept that save most work for their bytes
(`mtlc.compress.pagcp.kept_activations`); the others are computed again from these, to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import flop_registry

from mtlc.compress.channels.exported_network import exported_graph, last_uses, writes_in_place
from mtlc.compress.pagcp.kept_activations import GraphWork, worth_keeping

Overrides = Mapping[str, Tensor]


class ActivationGraph:
    """The network's graph at one batch size.

    Raises `UserError` for a network that `torch.export` refuses; the caller falls back to whole forwards.
    `work` counts multiply-accumulates done, in units of one whole forward of one batch. After `plan`, `kept_bytes` of
    the `read_bytes` that trials read are kept, and a trial runs again `run_again` of a forward's work on average.
    """

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...], budget_bytes: int) -> None:
        # Any operator in place would let a trial write over the kept activations.
        traced = exported_graph(module, example, writes_in_place)
        # The graph is not called as a module. Its nodes are run one by one below, so that a run can start in the
        # middle.
        self._nodes = [n for n in traced.graph.nodes if n.op in ("call_function", "output")]
        self._inputs = [n for n in traced.graph.nodes if n.op == "placeholder"]
        self._weights = {n: str(n.target) for n in traced.graph.nodes if n.op == "get_attr"}
        # A tied weight has a node for each of its names: each must find its tensor.
        state = dict(traced.named_parameters(remove_duplicate=False)) | dict(
            traced.named_buffers(remove_duplicate=False)
        )
        self._constants = {n: state.get(name, None) for n, name in self._weights.items()}
        # Tensors that the forward makes itself are attributes of the traced module, neither parameters nor buffers.
        for node, value in self._constants.items():
            if value is None:
                self._constants[node] = fx.graph_module._get_attr(traced, str(node.target))
        self._macs = {n: _node_macs(n) for n in self._nodes}
        self.total_macs = sum(self._macs.values())
        self._budget, self._batch_count = budget_bytes, 0
        self._kept: list[dict[fx.Node, Any]] = []
        self._read: set[fx.Node] = set()  # what is kept of a batch
        self.kept_bytes = self.read_bytes = 0
        self.run_again = 0.0
        self.work = 0.0
        self._channels_last = True
        self._constants = {n: _channels_last(v) for n, v in self._constants.items()}
        # Constants are the weights at the start of the round and never change. Committed weights come in as overrides.
        self._last_use = last_uses(self._nodes)

    @property
    def weight_names(self) -> set[str]:
        return set(self._weights.values())

    def plan(self, groups: Iterable[Iterable[str]], batches: int) -> None:
        """Say before batches are added how many there will be, and which groups of weights will change.

        What the trials read is kept as far as the budget goes.
        """
        numbers = {node: number for number, node in enumerate(self._nodes)}
        trials = []
        for names in groups:
            nodes = self.touched(names)
            inside = set(nodes)
            # The frontier of the suffix: what it reads of activations that its own weights leave as they were.
            trials.append({numbers[s] for n in nodes for s in n.all_input_nodes if s in numbers and s not in inside})
        graph = GraphWork(
            [[numbers[s] for s in n.all_input_nodes if s in numbers] for n in self._nodes],
            [self._macs[n] + _elements(n) for n in self._nodes],  # operators without MACs take time too
            [_bytes(n) * batches for n in self._nodes],
        )
        # A trial that passed and one that runs may each hold as much again.
        kept = worth_keeping(graph, trials, self._budget // 3)
        self._read = {self._nodes[number] for number in kept}
        self._batch_count = batches
        read = {number for trial in trials for number in trial}
        self.kept_bytes = sum(graph.sizes[number] for number in kept)
        self.read_bytes = sum(graph.sizes[number] for number in read)
        again = [graph.cost(graph.run_again(trial, kept)) for trial in trials]
        self.run_again = sum(again) / len(again) / graph.cost(range(len(self._nodes))) if again else 0.0

    def add_batch(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run a batch in full and keep the planned activations; returns the outputs."""
        values = self._values(inputs)
        try:
            self._run(self._nodes, values, {}, keep=self._read)
        # Found out with the first batch; from then on all batches and weights keep the layout that works.
        except RuntimeError:  # a view that only fits the contiguous layout
            if not self._channels_last:
                raise
            self._channels_last = False
            self._constants = {n: v.contiguous() if isinstance(v, Tensor) else v for n, v in self._constants.items()}
            values = self._values(inputs)
            self._run(self._nodes, values, {}, keep=self._read)
        # Inputs are kept as well: a suffix that begins at the first layer reads them.
        self._kept.append({n: v for n, v in values.items() if n in self._read or n in self._inputs})
        return tuple(fx.node.map_arg(self._nodes[-1].args[0], lambda node: values[node]))

    def touched(self, names: Iterable[str]) -> list[fx.Node]:
        """The nodes that depend on the named weights, in order."""
        names = set(names)
        dirty: set[fx.Node] = {n for n, name in self._weights.items() if name in names}
        order = []
        # The nodes are in topological order, so one walk finds all dependants: sources come before what reads them.
        for node in self._nodes:
            if any(source in dirty for source in node.all_input_nodes):
                dirty.add(node)
                order.append(node)
        return order

    def to_run(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """`nodes`, and what they read that is not kept, with all that this takes; in order."""
        needed = set(nodes)
        order = []
        for node in reversed(self._nodes):
            if node in needed:
                needed |= {s for s in node.all_input_nodes if s.op == "call_function" and s not in self._read}
                order.append(node)
        return order[::-1]

    def fits_between(self, parts: Sequence[Sequence[fx.Node]]) -> bool:
        """Whether what later parts read of earlier ones, of all batches, may stay in memory between them."""
        made: set[fx.Node] = set()
        crossing: set[fx.Node] = set()
        for part in parts:
            crossing |= {s for node in part for s in node.all_input_nodes if s in made}
            made |= set(part)
        return sum(map(_bytes, crossing - self._read)) * self._batch_count <= self._budget // 3

    def share(self, nodes: Sequence[fx.Node]) -> float:
        """The share of a whole forward's MACs that `nodes` take."""
        return sum(self._macs[n] for n in nodes) / self.total_macs if self.total_macs else 1.0

    def touched_outputs(self, nodes: Sequence[fx.Node]) -> list[int]:
        """The positions of the network's outputs that depend on `nodes`."""
        output, dirty = self._nodes[-1], set(nodes)
        return [i for i, source in enumerate(output.args[0]) if source in dirty]

    def leading_to(self, output: int, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Those of `nodes` that the output at a position depends on, in order."""
        needed: set[fx.Node] = {self._nodes[-1].args[0][output]}
        # Backwards for the same reason: when a node is reached, all that read it have already said so.
        for node in reversed(nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return [node for node in nodes if node in needed and node.op != "output"]

    def begin(self, batch: int) -> dict[fx.Node, Any]:
        """Values of a batch over its kept ones: `advance` fills them, part by part."""
        return _Layered(self._kept[batch])

    def advance(
        self, values: dict[fx.Node, Any], nodes: Sequence[fx.Node], later: Sequence[fx.Node], weights: Overrides
    ) -> None:
        """Run `nodes` under `weights`; what the `later` nodes read and what a batch keeps is not released.

        `weights` differ from the committed ones only in what these nodes and later ones depend on.
        """
        self._run(nodes, values, weights, keep=self._read | {s for node in later for s in node.all_input_nodes})

    def output(self, values: Mapping[fx.Node, Any], position: int) -> Tensor:
        """The output at a position, from the values of a batch."""
        result: Tensor = values[self._nodes[-1].args[0][position]]
        return result

    def fresh(self, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """What `adopt` takes of a batch's values."""
        return {node: value for node, value in values.items() if node in self._read}

    def adopt(self, batch: int, values: Mapping[fx.Node, Any]) -> None:
        """Bring a batch's kept activations up to date with weights that become the committed ones."""
        self._kept[batch].update(values)

    def _values(self, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
        laid_out = [_channels_last(t) if self._channels_last else t for t in inputs]
        return dict(zip(self._inputs, laid_out, strict=True))

    def _run(self, nodes: Sequence[fx.Node], values: Any, weights: Overrides, keep: Collection[fx.Node] = ()) -> None:
        """Run `nodes` in order into `values`; what nobody reads later is released, unless it is to be kept."""

        # A trial's weight before the round's own. Tensors are looked up late, so that nothing is copied for a trial.
        def look_up(node: fx.Node) -> Any:
            if node in self._weights:
                return weights.get(self._weights[node], self._constants[node])
            return values[node]

        for node in nodes:
            if node.op == "output":
                continue
            arguments = fx.node.map_arg(node.args, look_up)
            keywords = fx.node.map_arg(node.kwargs, look_up)
            values[node] = node.target(*arguments, **keywords)  # type: ignore[operator]
            self.work += self._macs[node] / self.total_macs if self.total_macs else 1.0 / len(self._nodes)
            # `_last_use` is of the whole graph. A node outside `nodes` may still want a value; `keep` names those.
            for source in self._last_use.get(node, ()):
                if source not in keep:
                    values.pop(source, None)


def _channels_last(value: Any) -> Any:
    """Images and kernels in the layout in which CPU convolutions are fastest.

    By 1.5 times, measured on the zoo's network.
    """
    is_image = isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()
    return value.contiguous(memory_format=torch.channels_last) if is_image else value


def _bytes(node: fx.Node) -> int:
    """The size of a node's result."""
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _elements(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0


class _Layered(dict[Any, Any]):
    """Fresh values over kept ones, without copying the kept dictionary."""

    def __init__(self, below: Mapping[fx.Node, Any]) -> None:
        super().__init__()
        self._below = below

    def __missing__(self, key: fx.Node) -> Any:
        return self._below[key]


def _node_macs(node: fx.Node) -> float:
    """Multiply-accumulates of a node: convolutions and linear layers from shapes, the rest from torch's counters."""
    if node.op != "call_function":
        return 0.0
    value, target = node.meta.get("val"), node.target
    name = getattr(target, "__name__", "")
    shapes = [
        s.meta["val"].shape if isinstance(s, fx.Node) and isinstance(s.meta.get("val"), Tensor) else None
        for s in node.args
    ]
    # Every output element takes one product per weight of its filter: (inputs / groups) · taps.
    if isinstance(value, Tensor) and name.startswith(("conv1d", "conv2d", "conv3d")) and shapes[1] is not None:
        return float(value.numel() * math.prod(shapes[1][1:]))
    if isinstance(value, Tensor) and name.startswith("linear") and shapes[1] is not None:
        return float(value.numel() * shapes[1][-1])
    if isinstance(value, Tensor) and name.startswith("matmul") and shapes[0] is not None:
        return float(value.numel() * shapes[0][-1])
    if (
        name.startswith("scaled_dot_product_attention")
        and shapes[0] is not None
        and shapes[1] is not None
        and shapes[2] is not None
    ):
        # For each query and key: a product as wide as a query (Q·Kᵀ), then one as wide as a value (scores · V).
        queries, width = math.prod(shapes[0][:-1]), shapes[0][-1] + shapes[2][-1]
        return float(queries * shapes[1][-2] * width)
    counter = flop_registry.get(getattr(target, "_overloadpacket", None))
    if counter is None or not isinstance(value, Tensor):
        return 0.0
    arguments = fx.node.map_arg(node.args, lambda n: n.meta["val"])
    keywords = fx.node.map_arg(node.kwargs, lambda n: n.meta["val"])
    # torch counts operations, a multiplication and an addition each; here one multiply-accumulate is one.
    result: float = counter(*arguments, **keywords, out_val=value) / 2
    return result


def apart(parts: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Each part without what an earlier one holds."""
    seen: set[Any] = set()
    result = []
    for part in parts:
        result.append([item for item in part if item not in seen])
        seen.update(part)
    return result
