"""Runs bundles on this machine and on an emulated Arm core, and compares what comes out.

    python scripts/run_on_arm.py BUNDLE... [--inputs FILE.npz] [--cpu cortex-a76] [--out FILE.json]

The emulated machine is Debian's arm64 Python with the aarch64 wheels of onnxruntime and what else mtlc needs without any
extra, under qemu's user emulation: the runtime's own code and the library that a board would run. Outputs are compared,
all tasks together and each alone, in every configuration of a bundle that has several; and so are the messages for a
damaged bundle, an unknown task and an unknown configuration. Emulation says nothing about time.

Exit codes: 4 if anything differs, 5 if qemu or a package is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import arm_cases
import arm_root
import numpy as np

import mtlc
from mtlc.errors import MtlcError, UserError, VerificationError
from mtlc.files import write_json
from mtlc.runtime import Session

KIND = "emulated: outputs, no timing"
TOLERANCE = 1e-5
"""Largest difference of an output relative to its largest absolute value: some 80 roundings of float32."""
BATCH = 2

Arrays = Mapping[str, np.ndarray]


def check_on_arm(
    bundles: Mapping[str, Path],
    *,
    inputs: Arrays | None = None,
    folder: Path | None = None,
    core: str = "cortex-a76",
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Run `bundles`, by a name for each, here and on an emulated `core`, and compare.

    `inputs` are arrays by input name, for every bundle; uint8 pictures (N, H, W, 3) are preprocessed by the runtime on either
    machine. None draws them. `folder` holds the prepared root. Returns ``{"kind", "host", "arm", "tolerance", "bundles",
    "messages"}``, where ``bundles`` is what `compare` gives for each. Raises `VerificationError` naming the first thing that
    differs, and `Unavailable` or `UserError` as `mtlc.runtime` and `arm_root.prepare` do.
    """
    arm = arm_root.prepare(folder or arm_root.cache_folder(), core, _log)
    with TemporaryDirectory(prefix="mtlc-arm-") as scratch:
        work = Path(scratch)
        asked = _write_cases(work, bundles, inputs)
        here = _run(work, "host", [sys.executable], os.environ.get("PYTHONPATH", ""))
        _log(f"running {len(asked['bundles'])} bundles on an emulated {core}; this takes a while")
        there = _run(work, "arm", arm.command(), str(arm.site))
        if (found := there["machine"]) != "aarch64" or not there["onnxruntime_library"].startswith(str(arm.site)):
            raise VerificationError(f"what ran under qemu was {found}, {there['onnxruntime_library']}")
        return {
            "kind": KIND,
            "host": _described(here),
            "arm": _described(there) | {"cpu": core, "qemu": arm.emulator_version()},
            "tolerance": tolerance,
            "bundles": {
                name: compare(name, bundle["cases"], here, there, (work / "host", work / "arm"), tolerance)
                for name, bundle in asked["bundles"].items()
                if name not in asked["refused"]
            },
            "messages": same_messages(asked["refused"], here, there),
        }


def cases_of(session: Session) -> list[dict[str, Any]]:
    """What is run of a bundle: all tasks, each alone, all but the first; then all tasks in every other configuration.

    A bundle with widths is also configured by a budget, which the two machines must take alike.
    """
    tasks = list(session.tasks)
    sets = [None, *([task] for task in tasks), tasks[1:]]
    cases: list[dict[str, Any]] = [{"tasks": asked} for asked in (sets if len(tasks) > 2 else sets[: 1 + len(tasks)])]
    cases += [{"configure": {"name": name}, "tasks": None} for name in session.configurations if name != "default"]
    if session.manifest.widths is not None:
        cases.append({"configure": {"budget": "50%", "prefer": {tasks[0]: 2.0, tasks[-1]: 1.0}}, "tasks": None})
    return cases


def draw_inputs(session: Session, seed: int = 0) -> dict[str, np.ndarray]:
    """`BATCH` samples of noise: uint8 pictures for a network with preprocessing, standard normal numbers otherwise.

    Raises `UserError` for an input that is neither, or whose size the bundle leaves open.
    """
    rng, manifest = np.random.default_rng(seed), session.manifest
    drawn = {}
    for info in manifest.inputs:
        shape = (BATCH, *info.shape[1:])
        if info.dtype != "float32" or not all(isinstance(size, int) for size in shape):
            raise UserError(f"input {info.name!r} {info.shape} of {info.dtype} cannot be drawn: give --inputs FILE.npz")
        if manifest.preprocessing is None:
            drawn[info.name] = rng.standard_normal(shape, np.float32)
        else:
            drawn[info.name] = rng.integers(0, 256, (BATCH, *shape[2:], 3), dtype=np.uint8)
    return drawn


def compare(
    name: str,
    cases: Sequence[Mapping[str, Any]],
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    folders: tuple[Path, Path],
    tolerance: float,
) -> dict[str, Any]:
    """The largest differences by task over all `cases` of the bundle `name`.

    Returns ``{"cases": n, "configurations": [...], "tasks": {task: {"max_abs", "max_rel", "arrays", "constant"}}}``: ``max_rel``
    is relative to the largest absolute value of that array here, ``constant`` counts arrays that a comparison says little
    about. Raises `VerificationError` where a case failed, configurations differ, or a difference is over `tolerance`.
    """
    tasks: dict[str, dict[str, Any]] = {}
    configurations = []
    with np.load(folders[0] / "outputs.npz") as expected, np.load(folders[1] / "outputs.npz") as found:
        if set(expected.files) != set(found.files):
            raise VerificationError(f"{name}: the outputs on Arm are not those of this machine")
        for number, (case, ours, theirs) in enumerate(
            zip(cases, here["bundles"][name], there["bundles"][name], strict=True)
        ):
            for machine, result in (("this machine", ours), ("Arm", theirs)):
                if "error" in result:
                    raise VerificationError(f"{name}: {_said(case)} fails on {machine}: {result['error'][1]}")
            if ours["configuration"] != theirs["configuration"]:
                raise VerificationError(f"{name}: {_said(case)} runs in another configuration on Arm")
            if (label := ours["configuration"]["name"] or str(case["configure"]["budget"])) not in configurations:
                configurations.append(label)
            for key in [key for key in expected.files if key.startswith(f"{name}/{number}/")]:
                task = key.split("/", 2)[2]
                most_abs, most_rel = difference(expected[key], found[key], f"{name}: task {task!r}, {_said(case)}")
                if most_rel > tolerance:
                    raise VerificationError(
                        f"{name}: task {task!r}, {_said(case)}: Arm differs by {most_rel:.1e} of the largest value, "
                        f"more than {tolerance:.1e}"
                    )
                seen = tasks.setdefault(task, {"max_abs": 0.0, "max_rel": 0.0, "arrays": 0, "constant": 0})
                seen["max_abs"], seen["max_rel"] = max(seen["max_abs"], most_abs), max(seen["max_rel"], most_rel)
                seen["arrays"] += 1
                seen["constant"] += bool(np.ptp(expected[key]) == 0)
    return {"cases": len(cases), "configurations": configurations, "tasks": tasks}


def difference(expected: np.ndarray, found: np.ndarray, where: str) -> tuple[float, float]:
    """The largest absolute difference, and that divided by the largest absolute value of `expected`.

    Raises `VerificationError` for another shape or dtype, or a number that is not finite.
    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise VerificationError(
            f"{where}: {found.dtype} {found.shape} on Arm, {expected.dtype} {expected.shape} on this machine"
        )
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise VerificationError(f"{where}: not all numbers are finite")
    most = float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max(initial=0.0))
    largest = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
    return most, 0.0 if most == 0 else most / largest if largest else float("inf")


def same_messages(refused: Sequence[str], here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """The error messages, one of each refused case and command, equal on both machines.

    Raises `VerificationError` where one machine refuses and the other does not, or says something else.
    """
    messages = []
    for name in refused:
        for ours, theirs in zip(here["bundles"][name], there["bundles"][name], strict=True):
            if "error" not in ours or ours != theirs:
                raise VerificationError(f"{name}: this machine gives {ours}, Arm gives {theirs}")
            messages.append(": ".join(ours["error"]))
    for ours, theirs in zip(here["commands"], there["commands"], strict=True):
        lines = ours["stderr"].splitlines()
        if ours != theirs or ours["code"] in (0, 1, None) or len(lines) != 1:
            raise VerificationError(f"mtlc {' '.join(ours['arguments'])}: this machine gives {ours}, Arm gives {theirs}")
        messages.append(f"exit {ours['code']}: {lines[0]}")
    return messages


def _write_cases(work: Path, bundles: Mapping[str, Path], inputs: Arrays | None) -> dict[str, Any]:
    """``cases.json`` and the inputs, for both machines; what was written."""
    asked: dict[str, Any] = {"bundles": {}, "refused": [], "commands": []}
    for name, path in bundles.items():
        with Session(path, threads=1) as session:
            given = draw_inputs(session) if inputs is None else {i.name: inputs[i.name] for i in session.manifest.inputs}
            cases = cases_of(session)
        np.savez(work / f"{name}.npz", **given)  # type: ignore[arg-type]
        asked["bundles"][name] = {"path": str(path.absolute()), "inputs": f"{name}.npz", "cases": cases}
    first, path = next(iter(bundles.items()))
    damaged = _damaged(path, work / "damaged")
    wrong = [{"tasks": ["nosuch"]}, {"tasks": []}, {"configure": {"name": "nosuch"}, "tasks": None}]
    for name, where, cases in (("damaged", damaged, [{"tasks": None}]), ("wrong", path.absolute(), wrong)):
        asked["bundles"][f"refused {name}"] = {"path": str(where), "inputs": f"{first}.npz", "cases": cases}
        asked["refused"].append(f"refused {name}")
    for arguments in (["profile", damaged], ["profile", path.absolute(), "--task", "nosuch"], ["infer", path, "none.png"]):
        asked["commands"].append([*map(str, arguments)])
    (work / "cases.json").write_text(json.dumps(asked))
    return asked


def _damaged(bundle: Path, copy: Path) -> Path:
    """A copy of the bundle in which one bit of the largest file is wrong."""
    if bundle.is_dir():
        shutil.copytree(bundle, copy)
        victim = max((path for path in copy.iterdir() if path.name != "manifest.json"), key=lambda path: path.stat().st_size)
    else:
        victim = Path(shutil.copyfile(bundle, copy))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    return copy


def _run(work: Path, name: str, python: Sequence[str], path: str) -> dict[str, Any]:
    """The cases, run by `python` with `path` as its modules beside mtlc; what it found. Its outputs are in ``work/name``."""
    (work / name).mkdir()
    modules = work / f"{name}-modules"  # mtlc alone: not what else is installed beside it here
    modules.mkdir()
    (modules / "mtlc").symlink_to(Path(mtlc.__file__).parent)
    environment = {
        "PATH": os.defpath, "HOME": str(work), "PYTHONPATH": os.pathsep.join(filter(None, (path, str(modules)))),
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    command = [*python, arm_cases.__file__, str(work), str(work / name)]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise VerificationError(f"the runtime ends with {done.returncode} on {name}: {said}")
    results: dict[str, Any] = json.loads((work / name / "results.json").read_text())
    if results["compilers_imported"] or not results["telemetry_off"]:
        raise VerificationError(
            f"on {name} the runtime imported {results['compilers_imported']}, telemetry off: {results['telemetry_off']}"
        )
    return results


def _described(results: Mapping[str, Any]) -> dict[str, Any]:
    return {key: results[key] for key in ("machine", "python", "numpy", "onnxruntime")}


def _said(case: Mapping[str, Any]) -> str:
    tasks = "all tasks" if case["tasks"] is None else " + ".join(case["tasks"])
    return tasks + (f" with {case['configure']}" if case.get("configure") else "")


def _log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def text(found: Mapping[str, Any]) -> str:
    """The result for people."""
    arm, host = found["arm"], found["host"]
    lines = [f"{arm['cpu']} (qemu {arm['qemu']}, onnxruntime {arm['onnxruntime']}) against {host['machine']} ({host['onnxruntime']})"]
    for name, bundle in found["bundles"].items():
        lines.append(f"{name}: {bundle['cases']} runs, configurations {', '.join(bundle['configurations'])}")
        for task, seen in bundle["tasks"].items():
            note = f", {seen['constant']} constant: they say little" if seen["constant"] else ""
            lines.append(f"  {task:12} largest relative difference {seen['max_rel']:.1e} of {seen['arrays']} arrays{note}")
    return "\n".join([*lines, "the same messages on both:", *(f"  {message}" for message in found["messages"])])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--inputs", type=Path, help="arrays by input name; default: drawn with seed 0")
    parser.add_argument("--cpu", default="cortex-a76", help=f"the core: {', '.join(arm_root.CORES)}")
    parser.add_argument("--root", type=Path, help="where the emulated system is kept; default: the cache folder")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    given = parser.parse_args(arguments)
    try:
        arm_root.emulator()
        found = check_on_arm(
            {f"{number}-{path.name}" if len(given.bundle) > 1 else path.name: path for number, path in enumerate(given.bundle)},
            inputs=None if given.inputs is None else _read_inputs(given.inputs),
            folder=given.root, core=given.cpu, tolerance=given.tolerance,
        )  # fmt: skip
        if given.out is not None:
            write_json(given.out, found)
    except MtlcError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    print(text(found))
    return 0


def _read_inputs(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: holds no arrays by name ({str(error).splitlines()[0]}); write it by numpy.savez") from None


if __name__ == "__main__":
    sys.exit(main())
