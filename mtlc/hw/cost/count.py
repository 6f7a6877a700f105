"""Counts the operators, MACs and parameters of a program or an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from mtlc.program.program import Program
from mtlc.hw.cost.workload import Workload


def workload(program: Program, batch: int = 1) -> Workload:
    """The workload of a program's tasks in evaluation mode, for inputs of `batch` samples.

    Shapes are those of the program's example but for the batch. Operators that no task depends on are left out. The
    module is not touched. Raises `UserError` that names the operator and its module where something cannot be costed.
    """
    from mtlc.hw.cost.fake_tensors import trace

    return trace(program, batch)


def onnx_workload(
    model: str | Path | onnx.ModelProto, batch: int = 1, tokens_per_expert: Mapping[str, Sequence[int]] | None = None
) -> Workload:
    """The workload of an ONNX file or model; a symbolic first dimension of an input is taken as `batch`, or as the
    multiple of it that it says (``65*batch``).

    Operators are named by the module path in their metadata where the exporter left one, else by their node name.
    Large weights in external files are not read.

    Queues of experts that mtlc exported run `tokens_per_expert`, given by the layer's path for all experts of the
    layer; a layer that is not given is counted with every place filled. All experts of a layer that runs masked run on
    every token, whatever the routing, and are counted so. Raises `UserError` that names the node where something cannot
    be costed: an operator without a rule, a shape that depends on the data, an inner graph (``If``, ``Loop``,
    ``Scan``).
    """
    from mtlc.hw.cost.onnx_graph import read

    return read(model, batch, tokens_per_expert)


def macs(program: Program) -> int:
    """Multiply–accumulates of one sample. Tens of milliseconds for a network of a hundred layers."""
    return workload(program).macs


def parameters(program: Program) -> int:
    """Elements of all the parameters that the module holds, used or not; a shared one counts once."""
    return program.parameters_count()
