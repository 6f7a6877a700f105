"""Any ONNX file can be costed from the command line, or is refused by the node that cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, save

from mtlc.cli import main


def written(path: Path, nodes: list, out: list[int | str], domain: str = "") -> Path:
    """A model with x (batch, 3, 8, 8), weights w (4, 3, 3, 3) and the output y."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], [0.5] * 108)],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def inspected(path: Path, *options: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["inspect", str(path), *options])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_a_file_that_is_not_ours(tmp_path):
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="first", pads=[1, 1, 1, 1])
    path = written(
        tmp_path / "net.onnx", [conv, helper.make_node("Relu", ["c"], ["y"], name="act")], ["batch", 4, 8, 8]
    )
    found = json.loads(inspected(path, "--json"))
    assert (found["is"], found["cost"]["macs"], found["cost"]["params"]) == ("ONNX file", 108 * 64, 108)
    assert [(layer["name"], layer["kind"], layer["shape"]) for layer in found["layers"]] == [
        ("first", "conv", [1, 4, 8, 8]), ("act", "activation", [1, 4, 8, 8]),
    ]  # fmt: skip
    assert "6.91 kMACs, 108 parameters" in inspected(path)


@pytest.mark.parametrize(
    ("node", "domain", "words"),
    [
        (helper.make_node("NonZero", ["x"], ["y"], name="where"), "", "where"),
        (helper.make_node("Secret", ["x", "w"], ["y"], name="odd", domain="mine"), "mine", "odd"),
    ],
)
def test_what_cannot_be_costed_is_named_and_never_free(tmp_path, node, domain, words):
    line = inspected(written(tmp_path / "net.onnx", [node], ["n"], domain), code=2)
    assert words in line
    assert len(line.splitlines()) == 1


def test_a_file_that_is_no_onnx(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"not a model")
    assert "net.onnx: not a readable ONNX model" in inspected(tmp_path / "net.onnx", code=2)
