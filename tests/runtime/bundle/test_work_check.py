"""What a graph may compute: no loops, and no tensor made of a few bytes that fills the memory."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from testkit.hand_bundle import SHAPE, external, manifest, payloads, write

from mtlc.errors import BundleError
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle.work_check import MAX_BYTES

MOST = MAX_BYTES // 4


def node(operator: str, inputs: list[str], output: str = "made", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def head(nodes: list[onnx.NodeProto], **stored: object) -> bytes:
    """A program whose `nodes` make something beside what it is for."""
    tensors = [
        v if isinstance(v, TensorProto) else numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()
    ]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)] for name in ("s", "less")]
    graph = helper.make_graph([*nodes, helper.make_node("Identity", ["s"], ["less"])], "g", *ports, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def body(**extra: object) -> onnx.GraphProto:
    return helper.make_graph([], "body", [], [])


LARGE = {
    "a constant of 4 GB": ([node("ConstantOfShape", ["n"])], {"n": ints(1 << 30)}),
    "of two axes": ([node("ConstantOfShape", ["n"])], {"n": ints(1 << 15, 1 << 15)}),
    "by a Constant": ([node("Constant", [], "n", value=numpy_helper.from_array(ints(1 << 40))),
                       node("ConstantOfShape", ["n"])], {}),
    "by value_ints": ([node("Constant", [], "n", value_ints=[1 << 20, 1 << 20]), node("ConstantOfShape", ["n"])], {}),
    "by a product": ([node("Mul", ["n", "n"], "m"), node("ConstantOfShape", ["m"])], {"n": ints(1 << 20)}),
    "by Concat": ([node("Concat", ["n", "n"], "m", axis=0), node("ConstantOfShape", ["m"])], {"n": ints(1 << 20)}),
    "by a power": ([node("Pow", ["n", "n"], "m"), node("ConstantOfShape", ["m"])], {"n": ints(60)}),
    "a broadcast": ([node("Expand", ["s", "n"])], {"n": ints(1 << 20, 1, 1 << 10, 1)}),
    "repeats": ([node("Tile", ["s", "n"])], {"n": ints(1 << 10, 1 << 10, 1 << 10, 1)}),
    "a range": ([node("Range", ["a", "b", "c"])], {"a": np.int64(0), "b": np.int64(1 << 40), "c": np.int64(1)}),
    "a range backwards": ([node("Range", ["a", "b", "c"])],
                          {"a": np.int64(0), "b": np.int64(-(1 << 40)), "c": np.int64(-1)}),
    "a range of fractions": ([node("Range", ["a", "b", "c"])],
                             {"a": np.float32(0), "b": np.float32(1), "c": np.float32(1e-20)}),
    "noise": ([node("RandomNormal", [], shape=[1 << 20, 1 << 20])], {}),
    "padding": ([node("Pad", ["s", "n"])], {"n": ints(0, 0, 0, 0, 0, 0, 0, 1 << 40)}),
    "a resize to a size": ([node("Resize", ["s", "", "", "n"])], {"n": ints(1, 3, 1 << 20, 1 << 20)}),
    "a resize by scales": ([node("Resize", ["s", "", "n"])], {"n": np.array([1, 1, 1e6, 1e6], np.float32)}),
    "many classes": ([node("OneHot", ["i", "n", "v"])],
                     {"i": ints(0), "n": ints(1 << 40), "v": np.array([0, 1], np.float32)}),
    "int32": ([node("Cast", ["n"], "m", to=7), node("ConstantOfShape", ["m"])], {"n": np.array([1 << 30], np.int32)}),
    "many of them": ([node("ConstantOfShape", ["n"], f"made{index}") for index in range(5)], {"n": ints(MOST // 4)}),
    "a size that is not followed": ([node("Gather", ["n", "i"], "m"), node("ConstantOfShape", ["m"])],
                                    {"n": ints(1 << 40, 1), "i": ints(0)}),
    "a wide convolution": ([node("AveragePool", ["s"], kernel_shape=[1, 1], pads=[0, 0, 1 << 30, 0])], {}),
    "a stretched convolution": ([node("ConvTranspose", ["s", "w"], strides=[1 << 30, 1])],
                                {"w": np.ones((3, 1, 1, 1), np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("what", LARGE)
def test_a_tensor_that_a_few_bytes_make_large(make_bundle, what):
    nodes, stored = LARGE[what]
    with pytest.raises(BundleError) as caught:
        open_bundle(make_bundle({"head-less.onnx": head(nodes, **stored)}))
    operator = nodes[-1].op_type
    assert f"head-less.onnx: an operator {operator} " in str(caught.value)
    assert "which the runtime does not take" in str(caught.value)


def test_a_shape_in_the_file_of_weights_is_followed(tmp_path):
    files = payloads()
    shape = external("n", "weights.bin", offset=len(files["weights.bin"]), length=8)
    shape.ClearField("dims")
    shape.dims.append(1)
    shape.data_type = TensorProto.INT64
    files["weights.bin"] += ints(1 << 40).tobytes()
    files["head-less.onnx"] = head([node("ConstantOfShape", ["n"])], n=shape)
    with pytest.raises(BundleError, match=r"an operator ConstantOfShape makes a tensor of 1\.1e\+12 numbers"):
        open_bundle(write(tmp_path / "b", files, manifest(files)))


@pytest.mark.parametrize("operator", ["Loop", "Scan", "SequenceMap"])
@pytest.mark.parametrize("inside", [False, True])
def test_what_repeats_a_graph(make_bundle, operator, inside):
    loop = node(operator, ["n", "yes"], body=body(), **({"num_scan_inputs": 1} if operator == "Scan" else {}))
    stored = {"n": np.int64(1 << 62), "yes": np.bool_(True)}
    if inside:
        branch = helper.make_graph([loop], "branch", [], [helper.make_tensor_value_info("made", 1, None)])
        loop = helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)
    with pytest.raises(BundleError, match=f"an operator {operator} repeats a graph"):
        open_bundle(make_bundle({"head-less.onnx": head([loop], **stored)}))


def test_sizes_from_outside_a_branch_are_known_in_it(make_bundle):
    made = helper.make_graph(
        [node("ConstantOfShape", ["n"])], "branch", [], [helper.make_tensor_value_info("made", 1, None)]
    )
    choice = helper.make_node("If", ["yes"], ["out"], then_branch=made, else_branch=made)
    with pytest.raises(BundleError, match="ConstantOfShape makes a tensor of"):
        open_bundle(make_bundle({"head-less.onnx": head([choice], n=ints(1 << 40), yes=np.bool_(True))}))


def test_a_constant_that_is_not_stored(make_bundle):
    huge = TensorProto(name="n", data_type=TensorProto.FLOAT, dims=[1 << 30], float_data=[1.0])
    with pytest.raises(BundleError, match=r"Constant says to have 1\.07e\+09 numbers, which are not stored"):
        open_bundle(make_bundle({"head-less.onnx": head([node("Abs", ["n"])], n=huge)}))


@pytest.mark.parametrize("stored", [True, False])
def test_a_sparse_constant_counts_as_a_whole_one(make_bundle, stored):
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(ints(0), "i"), [1 << 40])
    if stored:
        model = onnx.load_from_string(head([node("Abs", ["v"])]))
        model.graph.sparse_initializer.append(sparse)
        text = model.SerializeToString()
    else:
        text = head([node("Constant", [], "v", sparse_value=sparse)])
    with pytest.raises(BundleError, match=r"Constant makes a tensor of 1\.1e\+12 numbers"):
        open_bundle(make_bundle({"head-less.onnx": text}))


def test_an_operator_that_reads_what_comes_later(make_bundle):
    nodes = [node("ConstantOfShape", ["m"]), node("Mul", ["n", "n"], "m")]
    with pytest.raises(BundleError, match="ConstantOfShape reads what is computed after it"):
        open_bundle(make_bundle({"head-less.onnx": head(nodes, n=ints(1 << 20))}))


ALLOWED = {
    "a constant at the limit": ([node("ConstantOfShape", ["n"])], {"n": ints(MOST)}),
    "no size": ([node("ConstantOfShape", ["n"])], {"n": np.zeros(0, np.int64)}),
    "of the batch": ([node("Shape", ["s"], "n"), node("ConstantOfShape", ["n"])], {}),
    "a broadcast": ([node("Shape", ["s"], "n"), node("Expand", ["s", "n"])], {}),
    "a range": ([node("Range", ["a", "b", "c"])], {"a": np.int64(0), "b": np.int64(64), "c": np.int64(1)}),
    "a resize": ([node("Resize", ["s", "", "n"])], {"n": np.array([1, 1, 2, 2], np.float32)}),
    "padding": ([node("Pad", ["s", "n"])], {"n": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    "weights that are computed": ([node("Expand", ["w", "n"], "e"), node("Add", ["e", "e"])],
                                  {"w": np.ones((1, 3), np.float32), "n": ints(3, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("what", ALLOWED)
def test_what_a_network_needs(make_bundle, x, what):
    nodes, stored = ALLOWED[what]
    path = make_bundle({"head-less.onnx": head(nodes, **stored)})
    if what == "a constant at the limit":
        open_bundle(path).close()
    else:
        with Session(path) as session:
            np.testing.assert_array_equal(session.run(x, "less")["less"], 4 * x * x)


def test_many_listed_numbers_are_not_followed_and_not_refused(tmp_path):
    """Numbers of three bytes each: the first 64 of them do not end where a power of two does."""
    listed = helper.make_tensor("n", TensorProto.INT64, [400], [100_000] * 400)
    assert len(listed.int64_data) == 400
    files = payloads() | {"head-less.onnx": head([node("Identity", ["n"])], n=listed)}
    open_bundle(write(tmp_path / "many", files, manifest(files))).close()
