"""Reads a network as the graph of operators that `torch.export` makes of it, with the names of its weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from mtlc.errors import UserError, one_line
from mtlc.program.modes import evaluating
from mtlc.program.outputs import tensors_in


class ExportedNetwork:
    """The nodes of one network at the shapes of one example.

    `weights` are the names of parameters and buffers by their nodes; a tensor that the forward makes itself, or keeps
    as a plain attribute, is one of `constants`. Names of tied weights are all the first of them.
    """

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...]) -> None:
        """Raises `UserError` for a network that `torch.export` refuses."""
        traced = exported_graph(module, example, _writes_elsewhere)
        self.example = example
        self.inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        self.nodes = [node for node in traced.graph.nodes if node.op == "call_function"]
        self.output = next(node for node in traced.graph.nodes if node.op == "output")
        first = _first_names(module)
        self.weights: dict[fx.Node, str] = {}
        self.constants: dict[fx.Node, Any] = {}
        for node in traced.graph.nodes:
            if node.op != "get_attr":
                continue
            name = str(node.target)
            if name in first:
                self.weights[node] = first[name]
            else:
                self.constants[node] = fx.graph_module._get_attr(traced, name)
        self.values = {name: tensor for name, tensor in _tensors(module) if first[name] == name}
        self._last_use = last_uses([*self.nodes, self.output])

    def arguments(self) -> dict[fx.Node, Any]:
        """What the graph starts from: the example's tensors, the weights and the constants."""
        inputs = {node: tensor.clone() for node, tensor in zip(self.inputs, self.example, strict=False)}
        return {**inputs, **{node: self.values[name] for node, name in self.weights.items()}, **self.constants}

    def done_after(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values nothing needs after this one."""
        return self._last_use.get(node, [])


def layer_of(node: fx.Node) -> str:
    """The path of the innermost module whose forward holds the node; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def operator_name(node: fx.Node) -> str:
    """The operator without namespace and overload, such as ``conv2d``."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet).rpartition(".")[2] if packet is not None else getattr(node.target, "__name__", str(node.target))


def applied(node: fx.Node, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The node's operator on values. A view becomes a reshape: kernels give other strides than the trace was told."""
    target: Any = node.target
    if operator_name(node) in ("view", "_unsafe_view"):
        return arguments[0].reshape(arguments[1])
    return target(*arguments, **named)


def exported_graph(module: nn.Module, example: tuple[Tensor, ...], spoils: Callable[[fx.Node], bool]) -> fx.GraphModule:
    """The graph that `torch.export` makes of a network in evaluation mode at the shapes of an example.

    If an operator `spoils` it by what it writes in place, the graph is made free of all such operators. Raises
    `UserError` for a network that `torch.export` refuses.
    """
    # A refusal is expected and answered by the caller; torch would print its whole account of it.
    log = logging.getLogger("torch.export")
    was_disabled, log.disabled = log.disabled, True
    try:
        # Tensors that are made in inference mode stay inference tensors, which a trace cannot use: clones are none.
        with torch.inference_mode(False), evaluating(module), warnings.catch_warnings(action="ignore"):
            exported = _traced(module, tuple(t.clone() for t in example))
            if any(spoils(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})
            # A guard would be one more node, which calls a module.
            traced = exported.module(check_guards=False)
    except Exception as error:  # torch.export has no common error class
        raise UserError(f"torch.export refuses the network ({one_line(error)})") from error
    finally:
        log.disabled = was_disabled
    assert isinstance(traced, fx.GraphModule)
    return traced


def _traced(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    # The exporter takes dicts and tuples only for outputs; a hook, unlike a wrapper, leaves the layers their names.
    hook = module.register_forward_hook(lambda _module, _inputs, output: tuple(tensors_in(output)))
    try:
        return _exported(module, example)
    finally:
        hook.remove()


def _exported(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(module, example, strict=False)
    except Exception:  # of no common class; what the second attempt raises is told
        # Experts sort their tokens where nobody asks for gradients, in sizes that depend on the data.
        with torch.enable_grad():
            return torch.export.export(module, example, strict=False)


def writes_in_place(node: fx.Node) -> bool:
    """Whether an operator changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


_FRESH = (
    "conv",
    "linear",
    "batch_norm",
    "group_norm",
    "layer_norm",
    "instance_norm",
    "add",
    "mul",
    "cat",
    "bmm",
    "matmul",
)


def _writes_elsewhere(node: fx.Node) -> bool:
    """Whether an operator in place may change what another tensor shows.

    An activation of what a layer has just made does not: it is taken as it is, since to make a whole network free of
    operators in place takes longer than to export it.
    """
    if not writes_in_place(node):
        return False
    source = node.args[0] if node.args else None
    fresh = isinstance(source, fx.Node) and operator_name(source).startswith(_FRESH) and len(source.users) == 1
    return not (fresh and torch.Tag.pointwise in getattr(node.target, "tags", ()))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _first_names(module: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _tensors(module)}


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each node the results of others that nobody reads after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last[source] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if source.op == "call_function":
            uses.setdefault(node, []).append(source)
    return uses
