"""`scripts/run_on_arm.py`: what it runs, what it takes for a difference, and the runtime on an emulated Arm core."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arm_root
import numpy as np
import pytest
import run_on_arm
from arm_compare import compare, difference, same_messages
from testkit.hand_bundle import payloads, slim_manifest, slim_payloads, write

from mtlc.errors import Unavailable, UserError, VerificationError
from mtlc.runtime import Session

DEFAULT = {"name": "default", "encoder": {}, "decoders": {}, "tasks": ["a"], "macs": None, "metrics": {}}


def results(**found: Any) -> dict[str, Any]:
    return {"bundles": {"b": [{"configuration": DEFAULT} | found]}}


@pytest.fixture
def folders(tmp_path):
    """Outputs of two machines for the one case of bundle b, whose task a gives 1, 2, −4 here and 1, 2.5, −4 there."""
    for name, middle in (("host", 2.0), ("arm", 2.5)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "outputs.npz", **{"b/0/a": np.array([1.0, middle, -4.0], np.float32)})
    return tmp_path / "host", tmp_path / "arm"


def test_a_difference_is_relative_to_the_largest_value():
    assert difference(np.float32([1, 2, -4]), np.float32([1, 2.5, -4]), "t") == (0.5, 0.125)
    assert difference(np.float32([0, 0]), np.float32([0, 0]), "t") == (0, 0)
    assert difference(np.float32([0, 0]), np.float32([0, 1]), "t") == (1, np.inf)
    assert difference(np.uint8([1]), np.uint8([2]), "t") == (1, 1)  # 1 − 2 is 255 in uint8


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.zeros((2, 3), np.float64), r"t: float64 \(2, 3\) on Arm, float32 \(2, 3\) on this machine"),
        (np.zeros((3, 2), np.float32), r"t: float32 \(3, 2\) on Arm"),
        (np.full((2, 3), np.nan, np.float32), "t: not all numbers are finite"),
    ],
)
def test_what_cannot_be_compared_is_an_error(found, message):
    with pytest.raises(VerificationError, match=message):
        difference(np.zeros((2, 3), np.float32), found, "t")


def test_compare_counts_by_task_and_refuses_what_is_over_the_tolerance(folders):
    found = compare("b", [{"tasks": None}], results(), results(), folders, 0.2)
    tasks = {"a": {"max_abs": 0.5, "max_rel": 0.125, "arrays": 1, "constant": 0}}
    assert found == {"cases": 1, "configurations": ["default"], "tasks": tasks}
    with pytest.raises(
        VerificationError, match=r"b: task 'a', all tasks: Arm differs by 1\.2e-01 of the largest value"
    ):
        compare("b", [{"tasks": None}], results(), results(), folders, 0.1)


def test_compare_refuses_what_only_one_machine_does(folders):
    case = [{"tasks": ["a"]}]
    with pytest.raises(VerificationError, match="b: a fails on Arm only: no memory"):
        compare("b", case, results(), results(error=["UserError", "no memory"]), folders, 1)
    with pytest.raises(UserError, match="b: a: wrong shape"):
        compare("b", case, results(error=["UserError", "wrong shape"]), results(), folders, 1)
    with pytest.raises(VerificationError, match="b: a runs in another configuration on Arm"):
        compare("b", case, results(), results(configuration=DEFAULT | {"macs": 1}), folders, 1)
    np.savez(folders[1] / "outputs.npz", **{"b/0/other": np.zeros(1)})
    with pytest.raises(VerificationError, match="b: the outputs on Arm are not those of this machine"):
        compare("b", case, results(), results(), folders, 1)


def test_messages_must_be_the_same():
    def said(error: str, line: str = "error: x\n", code: int = 2) -> dict[str, Any]:
        commands = [{"arguments": ["profile"], "code": code, "stderr": line}]
        return {"bundles": {"r": [{"error": ["UserError", error]}]}, "commands": commands}

    assert same_messages(["r"], said("e"), said("e")) == ["UserError: e", "exit 2: error: x"]
    two = said("e", "error: x\nTraceback\n")
    crash = said("e", code=1)
    for here, there in ((said("e"), said("f")), (said("e"), said("e", "error: y\n")), (two, two), (crash, crash)):
        with pytest.raises(VerificationError, match="this machine gives"):
            same_messages(["r"], here, there)


def test_all_tasks_each_alone_some_and_every_configuration_are_run(bundle, slim_bundle):
    with Session(bundle) as session:
        cases = run_on_arm.cases_of(session)
    assert [case["tasks"] for case in cases] == [None, ["plus"], ["square"], ["less"], ["square", "less"]]
    with Session(slim_bundle) as session:
        cases = run_on_arm.cases_of(session)
    assert [case["tasks"] for case in cases[:3]] == [None, ["near"], ["far"]]
    budget = {"budget": "50%", "prefer": {"near": 2.0, "far": 1.0}}
    assert [case["configure"] for case in cases[3:]] == [{"name": "small"}, budget]


def test_inputs_are_drawn_as_the_bundle_takes_them(make_bundle):
    with Session(make_bundle()) as session:
        drawn = run_on_arm.draw_inputs(session)
    assert (drawn["x"].dtype, drawn["x"].shape) == (np.uint8, (2, 20, 20, 3))
    assert drawn["x"].std() > 70  # uniform: 73.9


def test_without_qemu_the_check_is_unavailable(bundle, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_on_arm.main([str(bundle)]) == 5
    said = (
        "error: qemu-aarch64-static is not installed: install qemu-user-static "
        "(Debian: apt-get install qemu-user-static)"
    )
    assert capsys.readouterr().err.splitlines() == [said]


@pytest.fixture
def some_qemu(monkeypatch):
    monkeypatch.setattr(arm_root, "emulator", lambda: Path("qemu-aarch64-static"))


def test_bad_input_is_one_line_before_anything_is_fetched(some_qemu, bundle, capsys, tmp_path):
    given = tmp_path / "in.npz"
    np.savez(given, y=np.zeros(1))
    for arguments, message in (
        ([tmp_path / "none"], "no such bundle"),
        ([bundle, "--cpu", "cortex-a67"], "no such core 'cortex-a67'; did you mean 'cortex-a76'?"),
        ([bundle, "--inputs", given], "no array for the input 'x'; there are y"),
        ([bundle, "--inputs", tmp_path / "none.npz"], "holds no arrays by name"),
    ):
        assert run_on_arm.main([*map(str, arguments), "--root", str(tmp_path / "root")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert not (tmp_path / "root").exists()


def test_a_package_that_cannot_be_had_leaves_nothing(some_qemu, monkeypatch, tmp_path):
    monkeypatch.setattr(arm_root, "PACKAGES", ("no-such-package",))
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    with pytest.raises(Unavailable, match="cannot be had: apt-get: E: Unable to locate package"):
        arm_root.prepare(tmp_path / "root", "cortex-a76")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_runtime_that_crashes_is_a_failed_check(tmp_path):
    with pytest.raises(VerificationError, match="the runtime ends with -6 on arm"):
        run_on_arm._run(tmp_path, "arm", [sys.executable, "-c", "import os; os.abort()"], "")


def test_the_emulated_machine_has_the_versions_of_this_one_and_no_compiler():
    pins = arm_root.base_install()
    assert f"onnxruntime=={version('onnxruntime')}" in pins
    assert f"numpy=={version('numpy')}" in pins
    assert not any(pin.startswith("torch") for pin in pins)


def test_cpuinfo_names_the_emulated_core():
    lines = dict(
        line.split("\t: ") for line in arm_root.cpuinfo(arm_root.CORES["cortex-a76"]).splitlines() if "\t: " in line
    )
    assert (lines["CPU part"], lines["CPU variant"], lines["CPU revision"]) == ("0xd0b", "0x4", "1")
    assert "asimddp" in lines["Features"].split()


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory):
    """Everything in one emulated process. Skipped without qemu; where CI is set, qemu that is there must work."""
    try:
        arm_root.emulator()
    except Unavailable as missing:
        pytest.skip(str(missing))
    from arm_bundles import cnn_bundles, m3vit_bundles

    folder = tmp_path_factory.mktemp("arm")
    bundles = cnn_bundles(folder) | m3vit_bundles(folder, ("queue", "masked"))
    bundles["plain"] = write(folder / "plain", payloads())
    bundles["slim"] = write(folder / "slim", slim_payloads(), slim_manifest())
    try:
        return run_on_arm.check_on_arm(bundles)
    except Unavailable as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_outputs_on_arm_are_those_of_this_machine(on_arm):
    assert on_arm["kind"] == "emulated: outputs, no timing"
    assert on_arm["arm"]["machine"] == "aarch64"
    assert on_arm["arm"]["onnxruntime"] == on_arm["host"]["onnxruntime"]
    assert set(on_arm["bundles"]) == {"cnn", "cnn-pruned", "m3vit-queue", "m3vit-masked", "plain", "slim"}
    for name, bundle in on_arm["bundles"].items():
        for task, seen in bundle["tasks"].items():
            assert seen["max_rel"] <= 1e-5, (name, task)
            assert seen["constant"] == 0, (name, task)
            assert seen["arrays"] >= 2, (name, task)
    exact = [seen["max_abs"] for name in ("plain", "slim") for seen in on_arm["bundles"][name]["tasks"].values()]
    assert exact == [0] * 5  # one rounding each: the same everywhere
    assert on_arm["bundles"]["slim"]["configurations"] == ["default", "small", "50%"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_messages_on_arm_are_those_of_this_machine(on_arm):
    said = "\n".join(on_arm["messages"])
    assert len(on_arm["messages"]) == 7
    assert "BundleError: damaged: weights.bin was altered or damaged: its SHA-256 is not the manifest's" in said
    assert "no task 'nosuch'; known: depth, edge, normals, sal, semseg" in said
    assert "exit 2: error: none.png: no such picture" in said
