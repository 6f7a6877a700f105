"""The check of ONNX files sees what a parser of protobuf sees; what two parsers could read in two ways is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from testkit.hand_bundle import external, graph, info, payloads, plus_head

from mtlc.errors import BundleError
from mtlc.runtime.bundle import wire_format
from mtlc.runtime.bundle.graph_check import MESSAGES, check_graph

BYTES_BY_NAME = {"weights.bin": 4800}
_VARINTS = {3, 4, 5, 8, 13, 14}  # int64, uint64, int32, bool, uint32, enum of descriptor.proto
_WIRE = {1: wire_format.BITS64, 2: wire_format.BITS32, 9: wire_format.BYTES, 11: wire_format.BYTES,
         12: wire_format.BYTES} | dict.fromkeys(_VARINTS, wire_format.VARINT)  # fmt: skip


def varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def field(number: int, content: bytes, above: int = 0) -> bytes:
    """A length-delimited field. `above` is put into the bits of the tag from 32 on."""
    return varint(above << 32 | number << 3 | 2) + varint(len(content)) + content


def accept(path: Path, data: bytes) -> None:
    (path / "g.onnx").write_bytes(data)
    check_graph(path / "g.onnx", BYTES_BY_NAME)


def refuse(path: Path, data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        accept(path, data)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_fields_are_those_of_onnx(message):
    known = {}
    for one in getattr(onnx, message).DESCRIPTOR.fields:
        bits = _WIRE[one.type]
        if one.is_repeated:
            bits |= wire_format.REPEATED | wire_format.BYTES  # numbers may be packed
        known[one.number] = bits
    assert MESSAGES[message] == known


@pytest.mark.parametrize("above", [1, 2, 8, 1 << 30])
def test_a_field_behind_the_bits_that_protobuf_drops(tmp_path, above):
    """A function, a node of a foreign domain and a path that other parsers would see."""
    head = payloads()["head-less.onnx"]
    function = helper.make_function("my.domain", "Evil", ["a"], ["b"], [], []).SerializeToString()
    refuse(tmp_path, head + field(25, function, above), "not a whole ONNX file")
    node = helper.make_node("Evil", ["t"], ["r"], domain="my.domain").SerializeToString()
    hidden = onnx.ModelProto.FromString(head)
    hidden.graph.ClearField("node")
    body = hidden.graph.SerializeToString() + field(1, node, above)
    hidden.ClearField("graph")
    refuse(tmp_path, hidden.SerializeToString() + field(7, body), "not a whole ONNX file")
    weight = external("w", "weights.bin")
    place = onnx.StringStringEntryProto(key="location", value="/etc/passwd").SerializeToString()
    model = onnx.ModelProto.FromString(plus_head(weight))
    model.graph.ClearField("initializer")
    body = model.graph.SerializeToString() + field(5, weight.SerializeToString() + field(13, place, above))
    model.ClearField("graph")
    refuse(tmp_path, model.SerializeToString() + field(7, body), "not a whole ONNX file")


def test_a_number_of_a_field_that_is_not_canonical(tmp_path):
    """Six bytes of a tag are more than protobuf reads; five with zeros in front are the same number to all."""
    head = payloads()["head-less.onnx"]
    refuse(tmp_path, head + b"\xb2\x80\x80\x80\x80\x00\x00", "not a whole ONNX file")
    accept(tmp_path, head + b"\xb2\x80\x80\x80\x00\x00")  # doc_string, empty


def test_a_message_that_is_there_twice_is_not_merged(tmp_path):
    """Protobuf merges both tensors: an offset of one and a length of the other lie beyond the end of the file."""

    def tensor(**place: int) -> bytes:
        made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="location", value="weights.bin")
        for key, value in place.items():
            made.external_data.add(key=key, value=str(value))
        return made.SerializeToString()

    attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR).SerializeToString()
    attribute += field(5, tensor(offset=4796)) + field(5, tensor(length=4796))
    node = helper.make_node("Constant", [], ["w"]).SerializeToString() + field(5, attribute)
    model = onnx.ModelProto.FromString(graph("g", [], ["t"], ["w"], []))
    body = model.graph.SerializeToString() + field(1, node)
    model.ClearField("graph")
    refuse(tmp_path, model.SerializeToString() + field(7, body), "field 5 twice")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "1_0", "is not a number"),
        ("offset", " 1", "is not a number"),
        ("length", "+1", "is not a number"),
        ("length", "٤", "is not a number"),
        ("length", "-1", "lies beyond the end"),
        ("length", "9" * 20, "is not a number"),
        ("prepacked_1", "x", "'prepacked_1' of where it lies, which the runtime does not know"),
    ],
)
def test_places_that_a_backend_could_read_otherwise(tmp_path, key, value, message):
    weight = external("w", "weights.bin")
    kept = [entry for entry in weight.external_data if entry.key != key]
    del weight.external_data[:]
    weight.external_data.extend(kept)
    weight.external_data.add(key=key, value=value)
    refuse(tmp_path, plus_head(weight), message)


def test_models_with_more_than_a_graph(tmp_path):
    model = onnx.ModelProto.FromString(payloads()["head-less.onnx"])
    model.training_info.add().algorithm.CopyFrom(model.graph)
    refuse(tmp_path, model.SerializeToString(), "graphs for training")
    model.ClearField("training_info")
    model.metadata_props.add(key="ort_config", value='{"session_options": {"enable_profiling": 1}}')
    refuse(tmp_path, model.SerializeToString(), "sets options of onnxruntime")


@pytest.mark.parametrize("version", [1 << 62, 1001, -1])
def test_versions_that_are_none(tmp_path, version):
    """OpenVINO looks for each operator in every version below the one that a file says."""
    model = onnx.ModelProto.FromString(payloads()["head-less.onnx"])
    model.opset_import[0].version = version
    refuse(tmp_path, model.SerializeToString(), "its version of a set of operators, [0-9]+, is not one")
    model = onnx.ModelProto.FromString(payloads()["head-less.onnx"])
    model.ir_version = version
    refuse(tmp_path, model.SerializeToString(), "its version of ONNX's format, [0-9]+, is not one")


def seen(model: onnx.ModelProto) -> bool:
    """Whether every operator is a standard one and every weight lies in weights.bin, by protobuf's own parser."""

    def tensors(at: onnx.GraphProto):
        yield from at.initializer
        for node in at.node:
            for attribute in node.attribute:
                yield attribute.t
                yield from attribute.tensors
                for inner in (attribute.g, *attribute.graphs):
                    yield from tensors(inner)

    def domains(at: onnx.GraphProto):
        for node in at.node:
            yield node.domain
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    yield from domains(inner)

    places = [e.value for t in tensors(model.graph) for e in t.external_data if e.key == "location"]
    return set(places) <= {"weights.bin"} and set(domains(model.graph)) <= {"", "ai.onnx"} and not model.functions


BRANCH = helper.make_graph([helper.make_node("Add", ["t", "w"], ["r"])], "b", [], [info("r")],
                           [external("w", "weights.bin")])  # fmt: skip
SOURCES = [
    payloads()["head-plus.onnx"],
    graph("plus", [helper.make_node("If", ["c"], ["plus"], then_branch=BRANCH, else_branch=BRANCH)], ["t"], ["plus"],
          [helper.make_tensor("c", TensorProto.BOOL, [], [True])]),
    payloads()["head-plus.onnx"].replace(b"weights.bin", b"../../../pw"),
    plus_head(external("w", "weights.bin"), "Evil", "my.domain"),
]  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SOURCES),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=6), st.integers(0, 2)), max_size=4),
)
def test_what_is_accepted_is_what_protobuf_sees(tmp_path, data, edits):
    for place, new, gone in edits:
        at = place % len(data)
        data = data[:at] + new + data[at + gone :]
    try:
        accept(tmp_path, data)
        model = onnx.ModelProto.FromString(data)
    except (BundleError, DecodeError):  # what does not parse, a backend refuses as well
        return
    assert seen(model)
