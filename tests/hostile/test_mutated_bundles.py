"""Damaged and hostile bundles are refused in one line or run: the short form of ``scripts/mutate_bundles.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_mutations import KINDS, MANIFEST, mutate, parse, read_folder, repaired, serialised
from mutate_bundles import FAULTS, OUTCOMES, ROOT, Child, Tally, main, own_sources, trials
from testkit.hand_bundle import payloads

from mtlc.errors import BundleError
from mtlc.runtime import open_bundle

MEGABYTES, SECONDS = 4096, 120
"""Of the process that opens mutants; the time is for a machine that is busy with other tests."""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_no_mutant_is_a_fault(backend, tmp_path):
    """60 of them, on each backend; and the changes reach what they are meant for: some run, some are refused."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    tally = Tally()
    for seed, source, kind, outcome, detail in trials(
        _sources(tmp_path, backend), Child(backend, MEGABYTES, SECONDS), range(60)
    ):
        tally.add(kind, outcome, detail, source.name, seed)
    found = tally.to_dict()
    assert found["faults"] == []
    assert found["mutants"] == 60
    assert min(found["outcomes"]["refused"], found["outcomes"]["equal"]) >= 5


def _sources(folder: Path, backend: str) -> list[Path]:
    """Made in a process of its own for the fake TensorRT, which takes the real one's place."""
    if backend != "tensorrt":
        return own_sources(folder, backend)
    code = (
        "import sys; from pathlib import Path; from mutate_bundles import own_sources\n"
        "own_sources(Path(sys.argv[1]), 'tensorrt')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT / "scripts", check=True)
    return [folder / "engines"]


def test_a_seed_gives_the_same_mutant(bundle):
    files = read_folder(bundle)
    made = [(m.kind, m.files, m.archive) for m in (mutate(files, seed) for seed in range(200))]
    assert made == [(m.kind, m.files, m.archive) for m in (mutate(files, seed) for seed in range(200))]
    assert {kind for kind, _, _ in made} == set(KINDS)
    assert sum(files != (changed or {}) for _, changed, _ in made) > 180


def test_a_change_of_a_payload_reaches_the_parser(bundle, tmp_path):
    """Its checksum is repaired: no mutant of a graph is refused for its SHA-256."""
    files, said = read_folder(bundle), []
    for seed in range(300):
        mutant = mutate(files, seed)
        if mutant.kind != "fields of a graph" or mutant.archive is not None:
            continue
        mutant.write(tmp_path / f"{seed}")
        try:
            with open_bundle(tmp_path / f"{seed}"):
                said.append("")
        except BundleError as error:
            said.append(str(error))
    assert len(said) > 20
    assert not [line for line in said if "SHA-256" in line or "the manifest says" in line]
    assert 0 < said.count("") < len(said)


def test_messages_are_written_as_they_were_read():
    for name, data in payloads().items():
        if name.endswith(".onnx"):
            assert serialised(parse(data)) == data
    assert parse(b"\x0b") is None
    assert parse(b"\x0a\x05x") is None


def child(tmp_path: Path, code: str, seconds: float = SECONDS) -> Child:
    """One that is a program of the test's."""
    made = Child("onnxruntime", MEGABYTES, seconds)
    script = tmp_path / "child.py"
    script.write_text(f"import json, os, signal, sys\nfor line in sys.stdin:\n    {code}\n")
    made._command[1] = str(script)
    return made


def test_each_fault_is_told_from_the_others(bundle, tmp_path):
    for code, outcome, detail in (
        ("print(json.dumps({'outcome': 'raw', 'detail': 'KeyError'}), flush=True)", "raw", "KeyError"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crash", "exit code -11"),
        ("os._exit(7)", "crash", "exit code 7"),
    ):
        assert child(tmp_path, code).ask(bundle, bundle) == (outcome, detail)
    assert child(tmp_path, "signal.pause()", 0.5).ask(bundle, bundle) == ("timeout", "no answer in 0.5 s")


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda files: None, "equal"),
        (lambda files: files.update({"weights.bin": files["weights.bin"][:-4] + b"\0\0\x80\x44"}), "other"),
        (lambda files: files.update({MANIFEST: b"{"}), "refused"),
    ],
)
def test_what_a_bundle_computes_is_compared(bundle, tmp_path, change: Callable[[dict[str, bytes]], Any], outcome):
    files = read_folder(bundle)
    change(files)
    if outcome != "refused":
        repaired(files)
    (tmp_path / "changed").mkdir()
    for name, data in files.items():
        (tmp_path / "changed" / name).write_bytes(data)
    asked = Child("onnxruntime", MEGABYTES, SECONDS)
    try:
        assert asked.ask(tmp_path / "changed", bundle)[0] == outcome
    finally:
        asked.stop()


def test_the_result_has_what_a_fault_needs_to_be_made_again(bundle, tmp_path, capsys):
    tally = Tally({}, [])
    tally.add("zip, its bytes", "crash", "exit code -11", "plain", 7)
    assert tally.to_dict()["faults"] == [
        {"source": "plain", "seed": 7, "kind": "zip, its bytes", "outcome": "crash", "detail": "exit code -11"}
    ]
    out = tmp_path / "result.json"
    out.write_text('{"openvino": {"mutants": 1}}')
    assert main([str(bundle), "--count", "3", "--out", str(out), "--keep", str(tmp_path / "kept")]) == 0
    found = json.loads(out.read_text())
    assert found["openvino"] == {"mutants": 1}
    assert found["onnxruntime"]["mutants"] == 3
    assert Counter(found["onnxruntime"]["outcomes"]).total() == 3
    assert set(found["onnxruntime"]["outcomes"]) == set(OUTCOMES) > set(FAULTS)
    assert len(list((tmp_path / "kept").iterdir())) == 3
    assert json.loads(capsys.readouterr().out)["onnxruntime"]["mutants"] == 3
