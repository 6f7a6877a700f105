"""The readers of manifests, graphs, IR, archives and pictures take an input or refuse it in one line: the short form of
``scripts/fuzz_readers.py``.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from bundle_mutations import flipped
from fuzz_readers import EDITS, TARGETS, Fault, main, read_as_manifest, whole_inputs
from testkit.hostile_sources import write_sources

from mtlc.errors import BundleError
from mtlc.runtime.bundle import manifest_reader

ROUNDS = 150


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sources(tmp_path_factory.mktemp("sources"), "onnxruntime")


IR = b"""<?xml version="1.0"?>
<net name="g" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="?,3" element_type="f32"/></layer>
<layer id="1" name="c" type="Const" version="opset1"><data element_type="f32" shape="3" offset="0" size="12"/></layer>
</layers><edges/></net>
"""


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_damaged_is_taken_or_refused_in_one_line(target, sources):
    """Bytes changed by seed; every whole input is taken, and most damaged ones are not."""
    whole = [IR] if target == "ir" else whole_inputs(target, sources)
    assert whole
    assert not any(TARGETS[target](data) for data in whole)
    refused = 0
    for seed in range(ROUNDS):
        draw = random.Random(seed)
        data = draw.choice(whole)
        for _ in range(draw.choice((1, 2, 5))):
            data = draw.choice((EDITS[target], flipped))(data, draw)
        refused += TARGETS[target](data)
    assert refused > ROUNDS // 5


def test_what_is_no_line_is_a_fault(monkeypatch):
    def refuse(data: bytes) -> None:
        error = BundleError("")
        error.args = ("two\nlines",)
        raise error

    monkeypatch.setattr(manifest_reader, "read_manifest", refuse)
    with pytest.raises(Fault, match="not one line"):
        read_as_manifest(b"")
    monkeypatch.setattr(manifest_reader, "read_manifest", lambda data: {}["x"])
    with pytest.raises(KeyError):
        read_as_manifest(b"")


def test_an_input_is_read_again(tmp_path, capsys):
    (tmp_path / "input").write_bytes(b"{")
    main(["manifest", "--again", str(tmp_path / "input")])
    assert capsys.readouterr().out == "refused\n"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_search_of_a_minute_finds_nothing(target, tmp_path):
    pytest.importorskip("atheris")
    import subprocess
    import sys

    from testkit.places import ROOT, environment

    script = ROOT / "scripts" / "fuzz_readers.py"
    command = [sys.executable, str(script), target, "--", "-max_total_time=60", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cov:" in done.stderr
    assert list(tmp_path.iterdir()) == []
