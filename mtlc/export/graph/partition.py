"""Splits an ONNX graph into programs: a trunk that all tasks share, and heads that single tasks need.

The *signature* of a node is the set of tasks whose output depends on it. Nodes of one signature form a program: the
trunk (all tasks), a head for each task, and something in between for what some tasks share. A task then runs exactly
the programs whose signature contains it.

The *stage* of a node tells programs of one signature apart. Where the trunk takes the task as an input (the selector),
what does not depend on it is the stem, stage 0, and runs once however many tasks are asked; the rest is the trunk,
which runs once for each. A node that must stand alone (an expert layer whose weights the runtime holds) has a stage of
its own, and what follows it a later one.

The programs form a DAG without a further check: whoever needs a node needs everything the node reads, so along every
edge the signature of the producer contains that of the consumer, and the stage does not fall. Between two programs one
of the two changes strictly. Ordering programs by falling signature size, then by stage, is therefore a topological
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from mtlc.errors import UserError
from mtlc.export.graph.expert_operators import DOMAIN, expert_layer
from mtlc.export.graph.lower import Lowered

MAC_OPERATORS = frozenset(
    [
        "Attention",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "LSTM",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "MoE",
        "MultiHeadAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QMoE",
        "RNN",
    ]
)
RANDOM_OPERATORS = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)


@dataclass(frozen=True)
class Part:
    """One program of the partition. `tasks` is its signature, in the order of the network's tasks.

    `selected` says that its numbers depend on the selector. `expert_layer` is the name of the expert layer that it is,
    if it is one.
    """

    name: str
    model: ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tasks: tuple[str, ...]
    selected: bool = False
    expert_layer: str | None = None


Key = tuple[frozenset[str], int]


def partition(lowered: Lowered, fuse: bool = False) -> list[Part]:
    """The programs of a network in topological order; one program if `fuse` or if there is one task.

    Nodes that depend on weights alone are copied into every program that reads them. A shared program without
    multiplications is not worth a call of its own: its nodes are copied into the programs that read it. Weights appear
    in every program that uses them; `mtlc.export.bundle.write_bundle` stores them once. Expert layers that were not
    expanded (`mtlc.export.graph.expert_operators.expand`) become programs of their own.
    """
    graph = lowered.model.graph
    nodes, reads = list(graph.node), [node_reads(node) for node in graph.node]
    # Which tasks need a node is found backwards from the outputs, its stage forwards from the selector. Together they
    # are the program that it belongs to:
    #
    #     image --> [ stem ] --> [ trunk ] --+--> [ head-a ]      needed by     a and b: stem, trunk
    #               stage 0       ^ stage 1  |    stage 1                       a: head-a
    #     selector ---------------+          +--> [ head-b ]                    b: head-b
    signatures = _signatures(nodes, reads, lowered.outputs)
    stages = _stages(nodes, reads, lowered.selector)
    results = set(lowered.outputs.values())
    groups: dict[Key, set[int]] = {}
    if (fuse or len(lowered.outputs) == 1) and not any(stages):
        groups[frozenset(lowered.outputs), 0] = {index for index, signature in enumerate(signatures) if signature}
    else:
        # What depends on weights alone belongs to no one at first: as a program it would only hand weights over.
        constants = _constant_nodes(graph, nodes, reads)
        for index, signature in enumerate(signatures):
            if signature and (index not in constants or results & set(nodes[index].output)):
                groups.setdefault((signature, stages[index]), set()).add(index)
        # After the merging, for it may have brought readers of constants into other programs.
        _merge_trivial(groups, nodes, reads, results)
        _copy_constants(groups, nodes, reads, constants)
    position = {task: index for index, task in enumerate(lowered.outputs)}
    order = sorted(groups, key=lambda key: (-len(key[0]), sorted(position[task] for task in key[0]), key[1]))
    return _parts(lowered, [(key, sorted(groups[key])) for key in order], nodes, reads)


def node_reads(node: NodeProto) -> set[str]:
    """The tensors that a node reads, those that its inner graphs take from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names |= _captured(inner)
    return names - {""}


def _captured(graph: GraphProto) -> set[str]:
    defined = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    used = {o.name for o in graph.output}
    for node in graph.node:
        used |= node_reads(node)
        defined |= set(node.output)
    return used - defined


def _signatures(
    nodes: Sequence[NodeProto], reads: Sequence[set[str]], outputs: Mapping[str, str]
) -> list[frozenset[str]]:
    """The tasks that need each node. Nodes are in topological order, as ONNX demands."""
    needed: dict[str, frozenset[str]] = {tensor: frozenset({task}) for task, tensor in outputs.items()}
    signatures: list[frozenset[str]] = [frozenset()] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        # Nobody needs it if this is empty: such a node comes into no program.
        signature = frozenset().union(*(needed.get(name, frozenset()) for name in nodes[index].output))
        signatures[index] = signature
        for name in reads[index]:
            needed[name] = needed.get(name, frozenset()) | signature
    return signatures


def _stages(nodes: Sequence[NodeProto], reads: Sequence[set[str]], selector: str | None) -> list[int]:
    """The stage of each node; all 0 without a selector and without expert layers."""
    reached: dict[str, int] = {} if selector is None else {selector: 1}
    layers: dict[str, set[str]] = {}  # an expanded expert layer stays whole: what all its nodes read
    for node, names in zip(nodes, reads, strict=True):
        if layer := expert_layer(node):
            layers.setdefault(layer, set()).update(names)
    stages = []
    for node, names in zip(nodes, reads, strict=True):
        layer = expert_layer(node)
        # Never less than the stage of anything it reads, so that stages rise along every path.
        before = max((reached.get(name, 0) for name in (layers[layer] if layer else names)), default=0)
        alone = node.domain == DOMAIN
        stages.append(before + 1 if alone else before)
        for name in node.output:
            # The layer alone takes one stage, and what reads it comes after that one.
            reached[name] = before + 2 if alone else before
    return stages


def _constant_nodes(graph: GraphProto, nodes: Sequence[NodeProto], reads: Sequence[set[str]]) -> set[int]:
    constant = {i.name for i in graph.initializer}
    found = set()
    for index, node in enumerate(nodes):
        if reads[index] <= constant and node.op_type not in RANDOM_OPERATORS:
            found.add(index)
            constant |= set(node.output)
    return found


def _merge_trivial(
    groups: dict[Key, set[int]], nodes: Sequence[NodeProto], reads: Sequence[set[str]], results: set[str]
) -> None:
    """Copy shared groups without multiplications into their consumers, in place.

    From small signatures to large, so that the consumers of a group are final when the group is looked at.
    """
    # The case that this is for: a Reshape between the trunk and two heads, which is a program without a product.
    #
    #     trunk --> reshape --+--> head-a            trunk --+--> reshape, head-a
    #                         +--> head-b                    +--> reshape, head-b
    for key in sorted(groups, key=lambda key: (len(key[0]), -key[1])):
        own = groups[key]
        made = {name for index in own for name in nodes[index].output}
        # A program that gives an output stays: its output would be made twice otherwise, and belong to none.
        if made & results or any(_worth_a_call(nodes[index]) for index in own):
            continue
        consumers = [
            other for other, indices in groups.items() if other != key and any(reads[i] & made for i in indices)
        ]
        if any(nodes[index].domain == DOMAIN for other in consumers for index in groups[other]):
            continue  # an expert layer is nothing but itself
        for consumer in consumers:
            # Of the group only what this consumer depends on; its other nodes may be another consumer's.
            groups[consumer] |= _ancestors_within(own, groups[consumer], nodes, reads)
        del groups[key]


def _worth_a_call(node: NodeProto) -> bool:
    inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
    return node.domain == DOMAIN or inner or node.op_type in MAC_OPERATORS or node.op_type in RANDOM_OPERATORS


def _ancestors_within(
    candidates: set[int], readers: Iterable[int], nodes: Sequence[NodeProto], reads: Sequence[set[str]]
) -> set[int]:
    """The nodes among `candidates` that `readers` depend on."""
    wanted = set().union(*(reads[index] for index in readers))
    found = set()
    # From last to first: a node's readers have been looked at before it.
    for index in sorted(candidates, reverse=True):
        if wanted & set(nodes[index].output):
            found.add(index)
            wanted |= reads[index]
    return found


def _copy_constants(
    groups: dict[Key, set[int]], nodes: Sequence[NodeProto], reads: Sequence[set[str]], constants: set[int]
) -> None:
    for indices in groups.values():
        if any(nodes[index].domain == DOMAIN for index in indices):
            continue  # its weights are read from the graph, not computed
        indices |= _ancestors_within(constants, indices, nodes, reads)


@dataclass(frozen=True)
class _Group:
    """The nodes of one program, in the order of the graph, and the tensors that they touch.

    A tensor of `outside` is neither made by the group nor a weight: another program or the caller hands it in.
    """

    signature: frozenset[str]
    stage: int
    nodes: list[NodeProto]
    made: set[str]
    used: set[str]
    outside: set[str]

    @property
    def expert_node(self) -> NodeProto | None:
        return next((node for node in self.nodes if node.domain == DOMAIN), None)


def _parts(
    lowered: Lowered,
    groups: list[tuple[Key, list[int]]],
    nodes: Sequence[NodeProto],
    reads: Sequence[set[str]],
) -> list[Part]:
    """A program for every group of nodes, in the order given.

    The graph is cut at the tensors that one group makes and another reads; these become inputs and outputs::

                                  +--> head-a --> output of task a
        image --> trunk --(cut)---+
                                  +--> head-b --> output of task b
    """
    graph, tasks = lowered.model.graph, tuple(lowered.outputs)
    weights: dict[str, TensorProto] = {i.name: i for i in graph.initializer}
    values: dict[str, ValueInfoProto] = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
    found = [_group(key, indices, nodes, reads, set(weights)) for key, indices in groups]
    names = _part_names([key for key, _ in groups], tasks, [group.expert_node is not None for group in found])
    parts: list[Part] = []
    emitted: set[str] = set()  # a task's output that is constant may have been copied into several programs
    for index, (name, group) in enumerate(zip(names, found, strict=True)):
        others = [other for place, other in enumerate(found) if place != index]
        outputs = _outputs(group, others, lowered.outputs, emitted)
        emitted.update(outputs)
        inputs = _inputs(group, values)
        program = _program(lowered.model, name, group, inputs, outputs, weights, values)
        layer = group.expert_node
        if layer is not None:  # the runtime knows tokens, choices and scores by their order
            inputs = [tensor for tensor in layer.input if tensor in group.outside]
        parts.append(
            Part(
                name, program, tuple(inputs), tuple(outputs), tuple(task for task in tasks if task in group.signature),
                lowered.selector is not None and group.stage > 0, None if layer is None else layer.name,
            )
        )  # fmt: skip
    return parts


def _group(
    key: Key, indices: Sequence[int], nodes: Sequence[NodeProto], reads: Sequence[set[str]], weights: set[str]
) -> _Group:
    made = {name for index in indices for name in nodes[index].output if name}
    used: set[str] = set().union(*(reads[index] for index in indices))
    return _Group(*key, [nodes[index] for index in indices], made, used, used - made - weights)


def _outputs(group: _Group, others: Sequence[_Group], results: Mapping[str, str], emitted: set[str]) -> list[str]:
    """What the group makes that another one reads or that is a task's output, as far as no program gives it already."""
    wanted: set[str] = set().union(*(other.outside for other in others))
    wanted |= {tensor for task, tensor in results.items() if task in group.signature}
    return [name for node in group.nodes for name in node.output if name in wanted and name not in emitted]


def _inputs(group: _Group, values: Mapping[str, ValueInfoProto]) -> list[str]:
    """The tensors that the group takes from outside, in the order of the graph. Each needs a type to be an input."""
    if untyped := group.outside - values.keys():
        raise UserError(f"[export] the tensor {min(untyped)!r} between two programs has no type")
    return [name for name in values if name in group.outside]


def _program(
    model: ModelProto,
    name: str,
    group: _Group,
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Mapping[str, TensorProto],
    values: Mapping[str, ValueInfoProto],
) -> ModelProto:
    """The ONNX model of one group. Our operator set is declared only where an expert layer uses it."""
    has_experts = group.expert_node is not None
    program = ModelProto(
        ir_version=model.ir_version,
        opset_import=[item for item in model.opset_import if item.domain != DOMAIN or has_experts],
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    program.functions.extend(model.functions)
    program.graph.name = name
    program.graph.node.extend(group.nodes)
    program.graph.initializer.extend(weights[n] for n in weights if n in group.used)
    program.graph.input.extend(values[n] for n in inputs)
    program.graph.output.extend(values.get(n) or onnx.helper.make_empty_tensor_value_info(n) for n in outputs)
    edge = {*inputs, *outputs}
    program.graph.value_info.extend(values[n] for n in values if n in group.made and n not in edge)
    return program


def _part_names(keys: Sequence[Key], tasks: Sequence[str], layers: Sequence[bool]) -> list[str]:
    """``trunk``, ``head-<task>``, ``shared-<task>+<task>``; ``network`` if alone. No task name has - or +.

    A trunk in stages begins with the ``stem``; programs of one name are numbered, expert layers (`layers`) apart.
    """
    if len(keys) == 1:
        return ["network"]
    whole = [len(signature) == len(tasks) for signature, _ in keys]
    names = []
    for index, (signature, stage) in enumerate(keys):
        if layers[index]:
            names.append("experts")
        elif whole[index]:
            names.append("stem" if stage == 0 and whole.count(True) > 1 else "trunk")
        elif len(signature) == 1:
            names.append(f"head-{next(iter(signature))}")
        else:
            name = f"shared-{'+'.join(task for task in tasks if task in signature)}"
            names.append(name if len(name) <= 60 else f"shared-{index}")
    return [
        name if names.count(name) == 1 else f"{name}-{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]
