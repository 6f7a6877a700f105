"""Runs bundles on this machine and on an emulated Arm core, and compares what comes out.

    python scripts/run_on_arm.py BUNDLE... [--inputs FILE.npz] [--cpu cortex-a76] [--out FILE.json]

The emulated machine is Debian's arm64 Python with the aarch64 wheels of onnxruntime and what else mtlc needs without
any extra, under qemu's user emulation: the runtime's own code and the library that a board would run. Outputs are
compared, all tasks together and each alone, in every configuration of a bundle that has several; and so are the
messages for a damaged bundle, an unknown task and an unknown configuration. Emulation says nothing about time.

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
from arm_compare import compare, same_messages

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

    `inputs` are arrays by input name, for every bundle; uint8 pictures (N, H, W, 3) are preprocessed by the runtime on
    either machine. None draws them. `folder` holds the prepared root. Returns ``{"kind", "host", "arm", "tolerance",
    "bundles", "messages"}``, where ``bundles`` is what `arm_compare.compare` gives for each. Raises `VerificationError`
    naming the first thing that differs, and `Unavailable` or `UserError` as `mtlc.runtime` and `arm_root.prepare` do.
    """
    arm_root.emulator()
    arm_root.find_core(core)
    with TemporaryDirectory(prefix="mtlc-arm-") as scratch:
        work = Path(scratch)
        asked = _write_cases(work, bundles, inputs)
        arm = arm_root.prepare(folder or arm_root.cache_folder(), core, _log)
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
            "messages": [said.replace(f"{work}/", "") for said in same_messages(asked["refused"], here, there)],
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
    drawn: dict[str, np.ndarray] = {}
    for info in manifest.inputs:
        shape = (BATCH, *info.shape[1:])
        sizes = [size for size in shape if isinstance(size, int)]
        if info.dtype != "float32" or len(sizes) < len(shape):
            raise UserError(f"input {info.name!r} {info.shape} of {info.dtype} cannot be drawn: give --inputs FILE.npz")
        if manifest.preprocessing is None:
            drawn[info.name] = rng.standard_normal(sizes, np.float32)
        else:
            drawn[info.name] = rng.integers(0, 256, (BATCH, *sizes[2:], 3), dtype=np.uint8)
    return drawn


def _write_cases(work: Path, bundles: Mapping[str, Path], inputs: Arrays | None) -> dict[str, Any]:
    """``cases.json`` and the inputs, for both machines; what was written."""
    asked: dict[str, Any] = {"bundles": {}, "refused": [], "commands": []}
    for name, path in bundles.items():
        with Session(path, threads=1) as session:
            given = draw_inputs(session) if inputs is None else _chosen(session, inputs)
            cases = cases_of(session)
        np.savez(work / f"{name}.npz", **given)  # type: ignore[arg-type]
        asked["bundles"][name] = {"path": str(path.absolute()), "inputs": f"{name}.npz", "cases": cases}
    first, path = next(iter(bundles.items()))
    damaged = _damaged(path, work / "damaged")
    wrong: list[dict[str, Any]] = [
        {"tasks": ["nosuch"]},
        {"tasks": []},
        {"configure": {"name": "nosuch"}, "tasks": None},
    ]
    opened: list[dict[str, Any]] = [{"tasks": None}]
    for name, where, cases in (("damaged", damaged, opened), ("wrong", path.absolute(), wrong)):
        asked["bundles"][f"refused {name}"] = {"path": str(where), "inputs": f"{first}.npz", "cases": cases}
        asked["refused"].append(f"refused {name}")
    for arguments in (
        ["profile", damaged],
        ["profile", path.absolute(), "--task", "nosuch"],
        ["infer", path.absolute(), "none.png"],
    ):
        asked["commands"].append([*map(str, arguments)])
    (work / "cases.json").write_text(json.dumps(asked))
    return asked


def _chosen(session: Session, inputs: Arrays) -> dict[str, np.ndarray]:
    """Those of `inputs` that the bundle takes."""
    names = [info.name for info in session.manifest.inputs]
    for name in names:
        if name not in inputs:
            raise UserError(f"no array for the input {name!r}; there are {', '.join(inputs) or 'none'}")
    return {name: inputs[name] for name in names}


def _damaged(bundle: Path, copy: Path) -> Path:
    """A copy of the bundle in which one bit of the largest file is wrong."""
    if bundle.is_dir():
        shutil.copytree(bundle, copy)
        victim = max(
            (path for path in copy.iterdir() if path.name != "manifest.json"), key=lambda path: path.stat().st_size
        )
    else:
        victim = Path(shutil.copyfile(bundle, copy))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    return copy


def _run(work: Path, name: str, python: Sequence[str], path: str) -> dict[str, Any]:
    """What `python` found, running the cases with `path` beside mtlc. Its outputs are in ``work/name``."""
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


def _log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def text(found: Mapping[str, Any]) -> str:
    """The result for people."""
    arm, host = found["arm"], found["host"]
    lines = [
        f"{arm['cpu']} (qemu {arm['qemu']}, onnxruntime {arm['onnxruntime']}) "
        f"against {host['machine']} ({host['onnxruntime']})"
    ]
    for name, bundle in found["bundles"].items():
        lines.append(f"{name}: {bundle['cases']} runs, configurations {', '.join(bundle['configurations'])}")
        for task, seen in bundle["tasks"].items():
            note = f", {seen['constant']} constant: they say little" if seen["constant"] else ""
            lines.append(
                f"  {task:12} largest relative difference {seen['max_rel']:.1e} of {seen['arrays']} arrays{note}"
            )
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
    inputs = None
    try:
        if given.inputs is not None:
            inputs = _read_inputs(given.inputs)
        found = check_on_arm(
            _named(given.bundle), inputs=inputs, folder=given.root, core=given.cpu, tolerance=given.tolerance
        )
        if given.out is not None:
            write_json(given.out, found)
    except MtlcError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    print(text(found))
    return 0


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """The bundles by the names of their files, numbered where there are several."""
    numbered = enumerate((path.absolute() for path in paths), 1)
    return {f"{number}-{path.name}" if len(paths) > 1 else path.name: path for number, path in numbered}


def _read_inputs(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: holds no arrays by name ({str(error).splitlines()[0]}); write it by numpy.savez"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
