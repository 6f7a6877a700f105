"""Names from bundles and checkpoints reach the terminal escaped: in errors, in what verbs print, in logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import helper
from testkit.hand_bundle import graph

from mtlc.cli import main
from mtlc.commands.output import log_line
from mtlc.errors import UserError
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks.task import TaskSpec

HOSTILE = "a\x1b[31m\x1b]0;x\x07\nerror: b\u202ec"
SHOWN = r"a\x1b[31m\x1b]0;x\x07\nerror: b\u202ec"


def mtlc(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def shown(text: str) -> str:
    """The text, after it was seen to be lines that a terminal shows as they are."""
    assert all(line.isprintable() for line in text.splitlines())
    return text


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["programs"][0].update(name=HOSTILE, inputs=["no"]),
        lambda m: m["programs"][0].update(inputs=[HOSTILE]),
        lambda m: m["tasks"].update({HOSTILE: {}}),
        lambda m: m["tasks"]["plus"].update(output=HOSTILE),
        lambda m: m.update(engines={HOSTILE: {}}),
        lambda m: m["files"].update({HOSTILE: {}}),
        lambda m: m.update(dimensions={HOSTILE: []}),
        lambda m: m["programs"][0].update(constants={HOSTILE: -1}),
        lambda m: m["configurations"].append({"name": HOSTILE, "programs": ["no"]}),
    ],
)
def test_a_manifest_that_is_refused(make_bundle, edit):
    result = mtlc("inspect", make_bundle(edit=edit))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert r"\x1b[31m" in shown(result.stderr)


def test_a_bundle_that_is_shown(make_bundle):
    def edit(m: dict) -> None:
        m["programs"][0]["name"] = HOSTILE
        m["tasks"]["plus"].update(metric=HOSTILE, unit=HOSTILE)
        m["configurations"][0]["programs"][0] = HOSTILE

    path = make_bundle(edit=edit)
    plain = mtlc("inspect", path)
    assert plain.exit_code == 0
    assert f"program   {SHOWN}: trunk.onnx" in shown(plain.stdout)
    assert json.loads(shown(mtlc("inspect", path, "--json").stdout))["programs"][0]["name"] == HOSTILE
    np.savez(path.parent / "x.npz", x=np.zeros((1, 3, 20, 20), np.float32))
    for verb in (["profile", path, "--rounds", 1], ["infer", path, "--input", path.parent / "x.npz"]):
        result = mtlc(*verb)
        shown(result.stdout)
        shown(result.stderr)


def test_a_checkpoint_that_is_shown_or_refused(tmp_path):
    source = ModelSource("mtlc.zoo:mtl_resnet", {"tasks": ["depth"], "widths": [8], "depths": [1], "decoder_width": 8})
    program = Program(source.build(), (TaskSpec("depth", "l1", "rmse"),), {"image": torch.zeros(2, 3, 16, 16)}, source)
    program.save(tmp_path / "program")
    path = tmp_path / "program" / "program.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"factory": HOSTILE}))
    result = mtlc("inspect", tmp_path)
    assert result.exit_code == 0
    assert f"factory   {SHOWN}" in shown(result.stdout)
    with pytest.raises(UserError) as caught:
        Program.load(tmp_path / "program")
    shown(str(caught.value))


def test_a_log_line(capsys):
    log_line(HOSTILE)
    assert capsys.readouterr().err == f"  {SHOWN}\n"


def test_a_traceback(make_bundle):
    path = make_bundle(edit=lambda m: m["programs"][0].update(inputs=[HOSTILE]))
    assert "Traceback" in shown(mtlc("inspect", path, "--debug").stderr)


def test_what_a_backend_says_of_a_node(make_bundle, capfd):
    """onnxruntime's own log would print the name as it is."""
    reshape = helper.make_node("Reshape", ["t", "shape"], ["plus"], name=HOSTILE)
    shape = helper.make_tensor("shape", 7, [1], [7])
    path = make_bundle({"head-plus.onnx": graph("plus", [reshape], ["t"], ["plus"], [shape])})
    with Session(path) as session, pytest.raises(UserError, match="program 'head-plus' failed") as caught:
        session.run(np.zeros((2, 3, 20, 20), np.float32), "plus")
    shown(str(caught.value))
    assert capfd.readouterr() == ("", "")


def test_paths(tmp_path: Path):
    result = mtlc("inspect", tmp_path / "a\x1b[31mb")
    assert result.exit_code == 2
    assert r"a\x1b[31mb" in shown(result.stderr)
