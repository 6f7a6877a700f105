"""Messages are one line that a terminal shows as it is, however names in them were chosen; what another library raised
keeps its reason; and paths that no text can hold are refused.
"""

from __future__ import annotations

import difflib
import os
import pickle

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mtlc.cli import main
from mtlc.errors import LONGEST, BundleError, MtlcError, UserError, check_utf8, escaped, nearest, one_line, reason
from mtlc.runtime import Session

HOSTILE = "a\x1b[2J\x1b]0;x\x07\r\nb\u202ec\x9b31m\ud800\u2028d"
"""Clears the screen, sets the window's title, overwrites the line, turns the text's direction; half of a character."""


def test_what_a_terminal_would_act_on_is_written_out():
    assert escaped(HOSTILE) == r"a\x1b[2J\x1b]0;x\x07\r\nb\u202ec\x9b31m\ud800\u2028d"
    assert escaped("depth · 1 µs – é 深") == "depth · 1 µs – é 深"
    assert escaped(escaped(HOSTILE)) == escaped(HOSTILE)


@pytest.mark.parametrize("kind", [MtlcError, BundleError])
def test_errors_are_escaped_wherever_they_are_shown(kind):
    error = kind(f"no task {HOSTILE}")
    assert str(error) == f"no task {escaped(HOSTILE)}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert one_line(ValueError(HOSTILE)) == r"ValueError: a\x1b[2J\x1b]0;x\x07"


def test_a_message_has_an_end():
    error = str(BundleError("files." + "x" * 1_000_000 + ": say what to do"))
    assert len(error) == LONGEST
    assert error.startswith("files.xxx")
    assert error.endswith("x: say what to do")
    assert len(one_line(ValueError("y" * 1_000_000))) == LONGEST


def test_the_nearest_name_costs_little_however_long_and_many_names_are(monkeypatch):
    """What a comparison costs grows with the product of the two lengths."""
    compared = []
    found = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda a, b, n: compared.append((a, b)) or found(a, b, n))
    assert nearest("dept", ["depth", "x" * 100_000, *map(str, range(100_000))]).startswith("; known: 0, 1, 10, ")
    assert nearest("dept", ["depth", "x" * 100_000]) == "; did you mean 'depth'?"
    nearest("x" * 100_000 + "y", ["x" * 100_000] * 20)
    assert [(a, len(b)) for a, b in compared] == [("dept", 2000), ("dept", 1)]
    many = nearest("none", [f"task{i:04}" for i in range(1000)])
    assert many.endswith("task0099 and 900 more")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\nb", "a"),
        ("", "RuntimeError"),
        ("  \n x", "x"),
        ("Exception from src/cpp/core.cpp:105:\nException from src/reader.cpp:188:\nUnable to read the model.\n\n",
         "Unable to read the model."),
        ("Exception from a.cpp:1:\nCheck 'false' failed at b.cpp:2:\nFrontEnd API failed with OpConversionFailure:\n"
         "Model wasn't fully converted.\nSummary:\n-- No conversion rule found for operations: Foo-19\n"
         "To facilitate the conversion of unsupported operations, refer to …\n",
         "No conversion rule found for operations: Foo-19"),
        ("Exception from a.cpp:1:\nModel wasn't fully converted. Failed operations detailed log:\n"
         "-- Resize-19 with a message:\nCheck '(false)' failed at c.cpp:91:\nWhile validating ONNX node 'y':\n"
         "this mode is not supported\n\nSummary:\n-- Conversion is failed for: Resize-19\n",
         "Resize-19: this mode is not supported"),
        ("Check 'a <= b' failed at src/x.hpp:65:\nWhile validating node 'MatMul y':\nIncompatible dimension\n",
         "Incompatible dimension"),
        ("Exception from a.cpp:1:\n[CPU] Reshape node with name 'y' Check 'n <= 1' failed at b.cpp:77:\nconflicts\n",
         "[CPU] Reshape node with name 'y': conflicts"),
        ("Exception from src/core.cpp:105:\n", "Exception from src/core.cpp:105:"),
    ],
)  # fmt: skip
def test_the_reason_in_one_line(text, told):
    error = RuntimeError(text)
    assert reason(error) == told
    assert one_line(error) == (told if told == "RuntimeError" else f"RuntimeError: {told}")


def head(nodes, stored=(), opset=19) -> bytes:
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 20, 20])] for name in ("s", "less")]
    graph = helper.make_graph(nodes, "g", *ports, list(stored))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def test_openvinos_own_words_reach_the_user(make_bundle):
    """That it cannot convert a mode of Resize; and, when it runs, which node does not fit."""
    pytest.importorskip("openvino")
    sizes = numpy_helper.from_array(np.array([1, 3, 20, 20], np.int64), "n")
    attributes = {"coordinate_transformation_mode": "half_pixel_symmetric", "mode": "linear"}
    resize = onnx.helper.make_node("Resize", ["s", "", "", "n"], ["less"], **attributes)
    path = make_bundle({"head-less.onnx": head([resize], [sizes])})
    with pytest.raises(UserError) as caught, Session(path, "openvino") as session:
        session.load()
    assert "cannot load program 'head-less': Resize-19: half_pixel_symmetric" in str(caught.value)
    assert "Exception from" not in str(caught.value)


def test_a_program_that_fails_when_it_runs_says_where(tmp_path, bundle):
    pytest.importorskip("openvino")
    from testkit.hand_bundle import manifest, payloads, write

    shape = numpy_helper.from_array(np.array([7, -1], np.int64), "n")
    nodes = [
        helper.make_node("Reshape", ["s", "n"], ["flat"]),
        helper.make_node("Shape", ["s"], ["shape"]),
        helper.make_node("Reshape", ["flat", "shape"], ["less"]),
    ]
    files = payloads() | {"head-less.onnx": head(nodes, [shape])}
    path = write(tmp_path / "b", files, manifest(files))
    for backend in ("openvino", "auto"):
        with pytest.raises(UserError) as caught, Session(path, backend) as session:
            session.run(np.zeros((1, 3, 20, 20), np.float32))  # 1200 numbers are no rows of 7
        assert "program 'head-less' failed: " in str(caught.value)
        assert "reshape" in str(caught.value).lower()
        assert "Exception from" not in str(caught.value)
        assert "\n" not in str(caught.value)


STRANGE = os.fsdecode(b"caf\xe9")


def test_a_name_that_is_not_utf8_is_said_in_ascii():
    assert escaped(STRANGE) == r"caf\xe9"
    assert escaped("café") == "café"
    check_utf8("café")
    with pytest.raises(UserError, match=r"^a/caf\\xe9: its name is not UTF-8, .*: rename it$"):
        check_utf8(f"a/{STRANGE}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", STRANGE],
        ["run", f"{STRANGE}.toml"],
        ["infer", "b", "--out", STRANGE],
        ["verify", f"--job={STRANGE}"],
    ],
)
def test_every_verb_refuses_a_path_that_is_not_utf8(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert r"caf\xe9" in line
    assert "is not UTF-8" in line


def test_a_session_refuses_one_before_a_backend_sees_it(bundle):
    strange = bundle.rename(bundle.with_name(STRANGE))
    with pytest.raises(UserError, match=r"caf\\xe9: its name is not UTF-8"):
        Session(strange)
