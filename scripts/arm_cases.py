"""Runs cases with `mtlc.runtime` on whatever machine this is: on the host and under emulation, to be compared.

    python arm_cases.py FOLDER OUT

Reads FOLDER/cases.json and the inputs that it names; writes ``outputs.npz`` (``bundle/case/task`` → array) and
``results.json`` into OUT. Imports the base install of mtlc only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.errors import MtlcError
from mtlc.runtime import Session


def inputs_of(session: Session, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays to feed. uint8 pictures (N, H, W, 3) for a network with preprocessing are preprocessed here."""
    fed = {}
    for name, array in given.items():
        picture = array.dtype == np.uint8 and session.manifest.preprocessing is not None
        fed[name] = np.concatenate([session.preprocess(one) for one in array]) if picture else array
    return fed


def run_case(session: Session, given: dict[str, np.ndarray], case: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What happened, and the outputs by task. An error that a user would see is a result like any other."""
    try:
        if case.get("configure") is not None:
            session.configure(**case["configure"])
        outputs = session.run(inputs_of(session, given), tasks=case["tasks"])
    except MtlcError as error:
        return {"error": [type(error).__name__, str(error)]}, {}
    return {"configuration": dataclasses.asdict(session.configuration)}, outputs


def run_command(arguments: list[str]) -> dict[str, Any]:
    """``mtlc`` with these arguments, in this process: its exit code and what it says on stderr."""
    from mtlc.cli import main

    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    return {"arguments": arguments, "code": code, "stderr": said.getvalue()}


def main(folder: Path, out: Path) -> None:
    asked = json.loads((folder / "cases.json").read_text())
    arrays: dict[str, np.ndarray] = {}
    bundles: dict[str, Any] = {}
    for name, bundle in asked["bundles"].items():
        given = dict(np.load(folder / bundle["inputs"]))
        found = bundles[name] = []
        try:
            session = Session(bundle["path"], threads=1)
        except MtlcError as error:
            found += [{"error": [type(error).__name__, str(error)]} for _ in bundle["cases"]]
            continue
        with session:
            for number, case in enumerate(bundle["cases"]):
                result, outputs = run_case(session, given, case)
                found.append(result)
                arrays |= {f"{name}/{number}/{task}": array for task, array in outputs.items()}
    # Asked before the command line, which may import more than the runtime does.
    compilers = sorted({"torch", "onnx", "pydantic"} & set(sys.modules))
    import onnxruntime

    results = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime_library": str(Path(onnxruntime.__file__).parent),
        "telemetry_off": os.environ.get("ORT_DISABLE_TELEMETRY") == "1",
        "compilers_imported": compilers,
        "bundles": bundles,
        "commands": [run_command(arguments) for arguments in asked["commands"]],
    }
    np.savez(out / "outputs.npz", **arrays)  # type: ignore[arg-type]
    (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
