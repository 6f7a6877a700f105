"""The partition, on graphs written by hand and on random ones."""

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mtlc.export.graph.lower import Lowered
from mtlc.export.graph.partition import partition

WEIGHT = np.array([[2.0, 1.0], [0.0, 1.0]], np.float32)


def lowered(nodes, outputs, dims=("batch", 2)) -> Lowered:
    """A graph on the input ``x``; ``w`` is a weight. All tensors have the same shape."""
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)  # noqa: E731
    made = [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes]
    inner = [info(output) for _, _, output in nodes if output not in outputs.values()]
    graph = helper.make_graph(
        made,
        "g",
        [info("x")],
        [info(o) for o in outputs.values()],
        [numpy_helper.from_array(WEIGHT, "w")],
        value_info=inner,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return Lowered(model, ("x",), outputs)


def summary(parts):
    return {part.name: [node.output[0] for node in part.model.graph.node] for part in parts}


def run(parts, x, task):
    """What the runtime does: the programs of the task, in order. Returns all tensors, and the names of the programs."""
    values, ran = {"x": x}, []
    for part in parts:
        if task in part.tasks:
            onnx.checker.check_model(part.model)
            session = onnxruntime.InferenceSession(part.model.SerializeToString(), providers=["CPUExecutionProvider"])
            values.update(
                zip(part.outputs, session.run(list(part.outputs), {n: values[n] for n in part.inputs}), strict=True)
            )
            ran.append(part.name)
    return values, ran


def test_two_tasks_share_what_the_third_does_not():
    r"""
    x ─ t ─┬─ s ─┬─ a
           │     └─ b
           └─ c
    """
    nodes = [
        ("MatMul", ["x", "w"], "t"),
        ("MatMul", ["t", "w"], "s"),
        ("MatMul", ["s", "w"], "a"),
        ("Relu", ["s"], "b"),
        ("MatMul", ["t", "t2"], "c"),
    ]
    nodes.insert(1, ("Relu", ["w"], "t2"))
    graph = lowered(nodes, {"A": "a", "B": "b", "C": "c"})
    parts = partition(graph)
    assert summary(parts) == {
        "trunk": ["t"],
        "shared-A+B": ["s"],
        "head-A": ["a"],
        "head-B": ["b"],
        "head-C": ["t2", "c"],
    }
    assert [part.tasks for part in parts] == [("A", "B", "C"), ("A", "B"), ("A",), ("B",), ("C",)]
    x = np.array([[1.0, -1.0], [0.5, 3.0]], np.float32)
    values, ran = run(parts, x, "C")
    assert ran == ["trunk", "head-C"]
    np.testing.assert_allclose(values["c"], x @ WEIGHT @ WEIGHT)
    values, ran = run(parts, x, "A")
    assert ran == ["trunk", "shared-A+B", "head-A"]
    np.testing.assert_allclose(values["a"], x @ WEIGHT @ WEIGHT @ WEIGHT)


def test_a_shared_part_without_multiplications_goes_to_its_readers():
    nodes = [
        ("MatMul", ["x", "w"], "t"),
        ("Relu", ["t"], "s"),
        ("Neg", ["s"], "s2"),
        ("MatMul", ["s", "w"], "a"),
        ("MatMul", ["s2", "w"], "b"),
        ("Abs", ["t"], "c"),
    ]
    parts = partition(lowered(nodes, {"A": "a", "B": "b", "C": "c"}))
    assert summary(parts) == {"trunk": ["t"], "head-A": ["s", "a"], "head-B": ["s", "s2", "b"], "head-C": ["c"]}


def test_constants_are_copied_to_their_readers():
    nodes = [
        ("Transpose", ["w"], "wt"),
        ("MatMul", ["x", "wt"], "t"),
        ("MatMul", ["t", "wt"], "a"),
        ("MatMul", ["t", "wt"], "b"),
    ]
    parts = partition(lowered(nodes, {"A": "a", "B": "b"}, dims=(2, 2)))
    assert summary(parts) == {"trunk": ["wt", "t"], "head-A": ["wt", "a"], "head-B": ["wt", "b"]}
    assert [part.inputs for part in parts] == [("x",), ("t",), ("t",)]


def test_an_output_that_another_task_reads():
    nodes = [("MatMul", ["x", "w"], "a"), ("MatMul", ["a", "w"], "b")]
    parts = partition(lowered(nodes, {"A": "a", "B": "b"}))
    assert summary(parts) == {"trunk": ["a"], "head-B": ["b"]}
    assert run(parts, np.ones((1, 2), np.float32), "A")[1] == ["trunk"]


def test_networks_that_share_nothing():
    nodes = [("MatMul", ["x", "w"], "a"), ("Relu", ["x"], "b")]
    parts = partition(lowered(nodes, {"A": "a", "B": "b"}))
    assert summary(parts) == {"head-A": ["a"], "head-B": ["b"]}


def test_what_no_task_needs_is_dropped():
    nodes = [("MatMul", ["x", "w"], "t"), ("Relu", ["t"], "dead"), ("Neg", ["t"], "a")]
    assert summary(partition(lowered(nodes, {"A": "a"}))) == {"network": ["t", "a"]}


def test_one_program_for_one_task_or_when_fused():
    nodes = [("MatMul", ["x", "w"], "t"), ("Relu", ["t"], "a"), ("Neg", ["t"], "b")]
    graph = lowered(nodes, {"A": "a", "B": "b"})
    (part,) = partition(graph, fuse=True)
    assert (part.name, part.inputs, part.outputs, part.tasks) == ("network", ("x",), ("a", "b"), ("A", "B"))


def test_names_taken_by_inner_graphs_count_as_read():
    """The branch of an If reads the trunk's tensor from outside."""
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 2))  # noqa: E731
    branch = helper.make_graph([helper.make_node("Neg", ["t"], ["r"])], "branch", [], [info("r")])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("If", ["yes"], ["a"], then_branch=branch, else_branch=branch),
        helper.make_node("Relu", ["t"], ["b"]),
    ]
    weights = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("a"), info("b")], weights, value_info=[info("t")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    parts = partition(Lowered(model, ("x",), {"A": "a", "B": "b"}))
    assert [(part.name, part.inputs) for part in parts] == [("trunk", ("x",)), ("head-A", ("t",)), ("head-B", ("t",))]
    x = np.array([[1.0, 2.0]], np.float32)
    np.testing.assert_allclose(run(parts, x, "A")[0]["a"], -(x @ WEIGHT))


def test_a_long_name_is_shortened():
    tasks = {f"task_with_a_long_name_{i}": f"o{i}" for i in range(5)}
    nodes = [("MatMul", ["x", "w"], "t"), ("MatMul", ["t", "w"], "s")]
    nodes += [("Relu", ["s" if i < 4 else "t"], f"o{i}") for i in range(5)]
    assert [part.name for part in partition(lowered(nodes, tasks))][:2] == ["trunk", "shared-1"]


@st.composite
def random_graphs(draw):
    """A graph of 2 to 10 nodes, each on tensors made before it, and 2 to 4 tasks on any of its tensors."""
    names, nodes = ["x", "w"], []
    for index in range(draw(st.integers(2, 10))):
        operator = draw(st.sampled_from(["MatMul", "Add", "Relu", "Neg"]))
        count = 2 if operator in ("MatMul", "Add") else 1
        nodes.append((operator, [draw(st.sampled_from(names)) for _ in range(count)], f"n{index}"))
        names.append(f"n{index}")
    made = [output for _, _, output in nodes]
    outputs = draw(st.lists(st.sampled_from(made), min_size=2, max_size=4, unique=True))
    return nodes, {f"T{i}": name for i, name in enumerate(outputs)}


@settings(max_examples=40, deadline=None)
@given(random_graphs())
def test_any_graph_keeps_its_numbers_and_each_task_its_own_nodes(drawn):
    nodes, outputs = drawn
    graph = lowered(nodes, outputs, dims=(2, 2))
    x = np.array([[0.5, -1.0], [0.25, 0.75]], np.float32)
    session = onnxruntime.InferenceSession(graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip(outputs, session.run(list(outputs.values()), {"x": x}), strict=True))
    parts = partition(graph)
    for task, tensor in outputs.items():
        values, ran = run(parts, x, task)
        np.testing.assert_allclose(values[tensor], expected[task], rtol=1e-5, atol=1e-6)
        wanted, needed = {tensor}, set()
        for _, inputs, output in reversed(nodes):
            if output in wanted:
                needed.add(output)
                wanted |= set(inputs)
        ran_nodes = {node.output[0] for part in parts if part.name in ran for node in part.model.graph.node}
        assert ran_nodes == needed
