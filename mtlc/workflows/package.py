"""Makes a folder to copy to a board, a bundle with all that runs it: ``mtlc package``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

import mtlc
from mtlc.checksums import file_checksum
from mtlc.errors import UserError, VerificationError
from mtlc.export.bundle.publish import check_outside
from mtlc.export.package.engine import LIBRARY, Engine, fetch_engine
from mtlc.export.package.library import build_library
from mtlc.export.package.shared_object import read_shared_object
from mtlc.export.package.target import Target, find_target
from mtlc.export.package.texts import RUN, readme
from mtlc.files import atomic_folder, check_writable, scratch_folder
from mtlc.log import Log
from mtlc.results.package import PackageResult
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle.manifest import Manifest
from mtlc.runtime.bundle.open_bundle import OpenBundle
from mtlc.runtime.bundle.payload_checks import MANIFEST
from mtlc.runtime.random_inputs import random_inputs
from mtlc.workflows.said_by import said_by

DESCRIPTION = "package.json"
SUMS = "SHA256SUMS"
_MINUTES = 10
TOLERANCE = 1e-4
"""Of the largest value: what another build of the engine may round otherwise. With the same build it is nothing."""


def package(
    bundle: str | os.PathLike[str], out: str | os.PathLike[str], target: str | None = None, *,
    engine: str | os.PathLike[str] | None = None, with_engine: bool = True, compiler: str | None = None,
    log: Log | None = None,
) -> PackageResult:  # fmt: skip
    """Make the folder `out`: the bundle, libmtlc, its headers, ``mtlc-run``, onnxruntime, a script and a page.

    Args:
        bundle: a folder or a zip; in the package it is a folder.
        out: replaced if it is a package; any other folder with files in it is refused.
        target: a name of `mtlc.export.package.target.TARGETS`; None for this machine.
        engine: onnxruntime's library for the target, or its wheel. None: the one that is installed here, or for another
            kind of machine the same version from the index that pip is set to.
        with_engine: False leaves it out, for boards that have one.
        compiler: a command that compiles C for the target, such as ``aarch64-linux-gnu-gcc``. None: Zig, else the
            system's.
        log: takes lines about the progress; by default they go to stderr. `mtlc.silent` drops them.

    A package for this kind of machine is run here before it takes its place, and must give what the Python runtime
    gives. Raises `UserError`, `Unavailable`, and `VerificationError` where it gives something else.
    """
    bundle, out, said = Path(bundle), Path(out), said_by(log)
    chosen = find_target(target)
    _check_out(out, bundle)
    if engine is not None and not with_engine:
        raise UserError("--engine: belongs to a package with an engine; leave out --no-engine")
    with open_bundle(bundle) as opened, scratch_folder("package") as work, atomic_folder(out) as folder:
        _check_runs(opened.manifest, bundle)
        found = None
        for part in ("lib", "licences"):
            (folder / part).mkdir()
        if with_engine:  # before the library: what may be wrong with it is soon seen
            given = None if engine is None else Path(engine)
            found = fetch_engine(chosen, given, folder / "lib", folder / "licences", work, said)
        command = build_library(chosen, folder, work, compiler, said)
        glibc = _check_made(folder, chosen, command, found)
        _copy_bundle(opened, folder / "bundle")
        _write_texts(folder, opened.manifest, chosen, found, glibc)
        tried = None
        if found is not None and chosen.is_this_machine():
            said("running it beside the Python runtime")
            tried = _try(folder, bundle, work)
        result = PackageResult(
            bundle=str(bundle), out=str(out), target=chosen.name, compiler=command,
            engine=None if found is None else found.source, glibc=None if glibc is None else f"{glibc[0]}.{glibc[1]}",
            files=sum(path.is_file() for path in folder.rglob("*")) + 2, bytes=_sizes(folder), tried=tried,
        )  # fmt: skip
        here = ("bundle", "out")  # paths of this machine
        described = {key: value for key, value in result.to_dict().items() if key not in here}
        (folder / DESCRIPTION).write_text(
            json.dumps({"mtlc": mtlc.__version__, **described}, indent=1, sort_keys=True) + "\n"
        )
        _write_sums(folder)
    return result


def _check_out(out: Path, bundle: Path) -> None:
    """Raise `UserError` where `out` must not be replaced: ``--out ~`` must not cost anyone a home folder."""
    check_writable(out)
    check_outside(out, bundle)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not ((out / DESCRIPTION).is_file() and (out / SUMS).is_file()):
        raise UserError(f"{out}: is a folder with other files in it; choose a new or empty one")


def _check_runs(manifest: Manifest, bundle: Path) -> None:
    """Refuse what the C library does not run."""
    if any(program.experts for program in manifest.programs):
        raise UserError(
            f"{bundle}: has experts outside its graphs, which the C library does not run; export it with [export] "
            'experts = "queue"'
        )


def _check_made(folder: Path, target: Target, command: str, engine: Engine | None) -> tuple[int, int] | None:
    """The least glibc that all of it runs with. Raises `UserError` where a compiler made something for another
    machine.
    """
    needs = [] if engine is None else [engine.glibc]
    for name in ("lib/libmtlc.so", "bin/mtlc-run"):
        made = read_shared_object(folder / name)
        if made.machine != target.elf_machine:
            raise UserError(f"{command}: compiles for another processor ({made.machine}) than {target.name}")
        needs.append(made.glibc)
    return max((one for one in needs if one is not None), default=None)


def _copy_bundle(opened: OpenBundle, into: Path) -> None:
    """The manifest and what it names, each as it was checked, and nothing else that may lie beside them."""
    for name in (MANIFEST, *opened.manifest.files):
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(opened.file(name), target)


def _write_texts(
    folder: Path, manifest: Manifest, target: Target, engine: Engine | None, glibc: tuple[int, int] | None
) -> None:
    (folder / "run.sh").write_text(RUN)
    (folder / "run.sh").chmod(0o755)
    inputs = [f"{one.name} {one.dtype} ({', '.join(str(size) for size in one.shape)})" for one in manifest.inputs]
    source = None if engine is None else engine.source
    (folder / "README.md").write_text(readme(target, list(manifest.tasks), inputs, source, glibc))
    if not any((folder / "licences").iterdir()):
        (folder / "licences").rmdir()


def _try(folder: Path, bundle: Path, work: Path) -> dict[str, float]:
    """By task, how far the package is from the Python runtime on random inputs, relative to the largest value."""
    inputs, results = work / "inputs", work / "results"
    inputs.mkdir()
    with Session(bundle, backend="onnxruntime") as session:
        given = random_inputs(session.manifest, 1)
        expected = session.run(given)
    options = []
    for number, (name, array) in enumerate(given.items()):
        np.save(inputs / f"{number}.npy", array)
        options += ["--input", f"{name}={inputs / f'{number}.npy'}"]
    # What this process or its user set for another engine must not reach the one that is tried.
    environment = {key: value for key, value in os.environ.items() if key != "MTLC_ONNXRUNTIME"}
    done = subprocess.run(
        [folder / "run.sh", "infer", *options, "--out", results], env=environment, capture_output=True, text=True,
        errors="replace", timeout=60 * _MINUTES,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise VerificationError(f"the package does not run: {said[-1] if said else f'exit code {done.returncode}'}")
    differences = {}
    for task, array in expected.items():
        made = np.load(results / f"{task}.npy", allow_pickle=False)
        if (made.shape, made.dtype) != (array.shape, array.dtype):
            raise VerificationError(
                f"task {task!r}: the package gives {made.dtype} {made.shape}, not {array.dtype} {array.shape}"
            )
        differences[task] = _difference(made, array)
        if differences[task] > TOLERANCE:
            raise VerificationError(
                f"task {task!r}: the package's output differs by {differences[task]:.1e} of its largest value "
                f"(allowed {TOLERANCE:.1e})"
            )
    return differences


def _difference(made: np.ndarray, expected: np.ndarray) -> float:
    if made.size == 0 or np.array_equal(made, expected, equal_nan=made.dtype.kind == "f"):
        return 0.0
    apart = np.abs(made.astype(np.float64) - expected.astype(np.float64)).max()
    return float(apart / max(np.abs(expected.astype(np.float64)).max(), np.finfo(np.float64).tiny))


def _sizes(folder: Path) -> dict[str, int]:
    def size(*paths: Path) -> int:
        return sum(path.stat().st_size for path in paths if path.is_file())

    return {
        "bundle": size(*(folder / "bundle").rglob("*")),
        "library": size(folder / "lib" / "libmtlc.so"),
        "engine": size(folder / "lib" / LIBRARY),
        "all": size(*folder.rglob("*")),
    }


def _write_sums(folder: Path) -> None:
    """What ``sha256sum -c`` reads on the board."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{file_checksum(folder / name)}  {name}\n" for name in files))
