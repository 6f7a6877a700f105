"""Lists the operators that a network runs, with their shapes, MACs, parameters and bytes: its workload.

A multiply–accumulate (MAC) is counted for convolutions, linear layers, matrix products and both products of attention;
norms, activations, pooling and the like count none. `workload` reads a `Program` with fake tensors, so nothing is
computed; `onnx_workload` reads an ONNX file by shape inference. A standard operator without a rule counts none and is
named as assumed; a kernel of another library without one is an error, never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A parameter tensor that an operator reads. Its name tells shared tensors apart from equal ones."""

    name: str
    elements: int
    bytes: int


@dataclass(frozen=True)
class Operator:
    """One operator at one place in the network.

    `name` is the path of the module that runs it ("" is the network itself). `kind` is one of "conv", "linear",
    "matmul", "attention", "recurrent", "norm", "activation", "pool", "resize", "reduction", "elementwise", "gather",
    "copy" or "custom". `activation_bytes` is what it reads and writes besides parameters. `assumed` is the operator's
    own name where there is no rule for it: that it multiplies nothing is taken for granted.
    """

    name: str
    kind: str
    macs: int
    weights: tuple[Weight, ...]
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    activation_bytes: int
    assumed: str | None = None

    @property
    def parameters(self) -> int:
        """Elements of the parameter tensors that it reads."""
        return sum(weight.elements for weight in self.weights)

    @property
    def parameter_bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights)

    @property
    def channels(self) -> int | None:
        """Output channels of a convolution (N, C, …) or features of a linear layer (…, C); None for other kinds."""
        if self.kind == "conv":
            return self.output_shape[1]
        return self.output_shape[-1] if self.kind == "linear" else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "macs": self.macs,
            "parameters": self.parameters,
            "parameter_bytes": self.parameter_bytes,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "output_shape": list(self.output_shape),
            "activation_bytes": self.activation_bytes,
        }


@dataclass(frozen=True)
class Workload:
    """The operators in execution order, and the peak of live activation bytes (`mtlc.hw.cost.liveness`).

    `sources` holds, for each operator, the places of those whose results it reads; -1 is the network's first input, -2
    the second, and so on. `results` says which operators write the outputs, by task. Both are empty where the flow is
    not known: of an ONNX file.
    """

    operators: tuple[Operator, ...]
    peak_activation_bytes: int
    sources: tuple[tuple[int, ...], ...] = ()
    results: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @cached_property
    def macs(self) -> int:
        return sum(operator.macs for operator in self.operators)

    @cached_property
    def parameters(self) -> int:
        """Parameter elements that the outputs depend on; a tensor that several operators share counts once."""
        return sum(weight.elements for weight in self._distinct_weights())

    @cached_property
    def parameter_bytes(self) -> int:
        return sum(weight.bytes for weight in self._distinct_weights())

    def assumed(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """By name and kind of each operator without a rule, the module paths that run it, in order of first use."""
        found: dict[tuple[str, str], dict[str, None]] = {}
        for operator in self.operators:
            if operator.assumed is not None:
                found.setdefault((operator.assumed, operator.kind), {})[operator.name] = None
        return {key: tuple(paths) for key, paths in found.items()}

    def by_layer(self) -> dict[str, Operator]:
        """One entry per module path, in order of first use: its operators merged.

        MACs and bytes add up, shared weights count once, kind and shapes are those of its costliest operator.
        """
        groups: dict[str, list[Operator]] = {}
        for operator in self.operators:
            groups.setdefault(operator.name, []).append(operator)
        return {name: _merged(group) for name, group in groups.items()}

    def to_dict(self) -> dict[str, Any]:
        """The totals and the operators as JSON values, marked as modelled: counted, not measured."""
        return {
            "kind": "modelled",
            "macs": self.macs,
            "parameters": self.parameters,
            "parameter_bytes": self.parameter_bytes,
            "peak_activation_bytes": self.peak_activation_bytes,
            "operators": [operator.to_dict() for operator in self.operators],
        }

    def _distinct_weights(self) -> Iterable[Weight]:
        return {weight.name: weight for operator in self.operators for weight in operator.weights}.values()


def _merged(group: list[Operator]) -> Operator:
    main = max(group, key=lambda operator: (operator.macs, prod(operator.output_shape)))
    weights = {weight.name: weight for operator in group for weight in operator.weights}
    return Operator(
        main.name,
        main.kind,
        sum(operator.macs for operator in group),
        tuple(weights.values()),
        main.input_shapes,
        main.output_shape,
        sum(operator.activation_bytes for operator in group),
    )
