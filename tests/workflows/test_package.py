"""A package runs as it lies, wherever it lies; what does not fit is refused, and leaves what was there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import arm_root
import numpy as np
import pytest
from testkit.hand_bundle import manifest, payloads, write
from testkit.native_library import ENGINE, Native

from mtlc.errors import Unavailable, UserError, VerificationError
from mtlc.export.package import library
from mtlc.export.package.target import TARGETS, find_target
from mtlc.runtime import Session
from mtlc.runtime.random_inputs import random_inputs
from mtlc.workflows import package as workflow
from mtlc.workflows.package import package

pytest.importorskip("elftools")
HERE = next((target for target in TARGETS.values() if target.is_this_machine()), None)
if HERE is None:
    pytest.skip("packages are for Linux on x86-64 and aarch64", allow_module_level=True)
OTHER = next(target for target in TARGETS.values() if target != HERE)
ELF_MACHINE = {"linux-x86_64": b"\x3e\x00", "linux-aarch64": b"\xb7\x00"}


@pytest.fixture
def built(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not compiled again: the one of the tests is installed."""

    def install(target, into, work, compiler, log):
        subprocess.run(["cmake", "--install", native.folder, "--prefix", into], check=True, capture_output=True)
        library._without_links(into)
        return "cc"

    monkeypatch.setattr(workflow, "build_library", install)
    monkeypatch.delenv("MTLC_ONNXRUNTIME", raising=False)


def shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MTLC_ONNXRUNTIME"}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.usefixtures("built")
def test_it_runs_where_it_is_moved_to_and_gives_the_same_bits(bundle: Path, tmp_path: Path) -> None:
    (bundle / "notes.txt").write_text("not the bundle's")
    result = package(bundle, tmp_path / "made")
    moved = tmp_path / "with a space" / "it's"
    moved.parent.mkdir()
    (tmp_path / "made").rename(moved)

    assert result.target == HERE.name
    assert result.tried == {"plus": 0.0, "square": 0.0, "less": 0.0}
    files = [path for path in moved.rglob("*") if path.is_file()]
    assert result.files == len(files)
    assert not any(path.is_symlink() for path in moved.rglob("*"))
    assert not (moved / "bundle" / "notes.txt").exists()
    assert shell(moved, "sha256sum -c --quiet SHA256SUMS").returncode == 0
    listed = {line[66:] for line in (moved / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.relative_to(moved).as_posix() for path in files} - {"SHA256SUMS"}
    assert result.bytes["engine"] == ENGINE.stat().st_size
    assert 100_000 < result.bytes["library"] < 200_000
    assert shell(tmp_path, f"{shell_quoted(moved / 'run.sh')} check").stdout == "the bundle is whole\n"
    timed = json.loads(shell(moved, "./run.sh bench --runs 3 --json").stdout)
    assert timed["runs"] == 3
    described = json.loads((moved / "package.json").read_text())
    assert str(tmp_path) not in (moved / "package.json").read_text()
    assert described["glibc"] == result.glibc
    assert (moved / "licences" / "LICENSE").read_text().startswith("MIT License")


def shell_quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


@pytest.mark.usefixtures("built")
def test_a_zip_and_its_folder_make_the_same_package(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bundle.mtlc", "w") as archive:
        for path in sorted(bundle.iterdir()):
            archive.write(path, path.name)
    package(bundle, tmp_path / "one")
    package(tmp_path / "bundle.mtlc", tmp_path / "two")
    assert (tmp_path / "one" / "SHA256SUMS").read_text() == (tmp_path / "two" / "SHA256SUMS").read_text()


@pytest.mark.usefixtures("built")
def test_without_an_engine_it_says_so_and_takes_the_boards(bundle: Path, tmp_path: Path) -> None:
    result = package(bundle, tmp_path / "made", with_engine=False)
    assert (result.engine, result.tried, result.bytes["engine"]) == (None, None, 0)
    assert result.bytes["all"] < 2_000_000
    assert "MTLC_ONNXRUNTIME" in (tmp_path / "made" / "README.md").read_text()
    assert not (tmp_path / "made" / "licences").exists()
    ran = shell(tmp_path / "made", f"MTLC_ONNXRUNTIME={ENGINE} ./run.sh bench --runs 2")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.usefixtures("built")
def test_an_engine_of_a_wheel(bundle: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "onnxruntime-1-cp311-cp311-linux.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(ENGINE, f"onnxruntime/capi/{ENGINE.name}")
        archive.writestr("onnxruntime/LICENSE", "the licence")
        archive.writestr("onnxruntime/../../LICENSE", "not taken")
    result = package(bundle, tmp_path / "made", engine=str(wheel))
    assert result.engine == wheel.name
    assert (tmp_path / "made" / "licences" / "LICENSE").read_text() == "the licence"
    assert result.tried is not None


@pytest.mark.usefixtures("built")
def test_a_package_is_replaced_and_no_other_folder(bundle: Path, tmp_path: Path) -> None:
    package(bundle, tmp_path / "made", with_engine=False)
    package(bundle, tmp_path / "made", with_engine=False)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is a folder with other files in it"):
        package(bundle, home)
    with pytest.raises(UserError, match="lies in the bundle"):
        package(bundle, bundle / "package")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        package(bundle, tmp_path / "file")
    assert (home / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("built")
def test_what_fails_leaves_the_old_package(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(bundle, tmp_path / "made")
    before = (tmp_path / "made" / "SHA256SUMS").read_text()
    monkeypatch.setattr(workflow, "RUN", "#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(VerificationError, match="the package does not run: broken"):
        package(bundle, tmp_path / "made")
    assert (tmp_path / "made" / "SHA256SUMS").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "made"]


@pytest.mark.usefixtures("built")
def test_another_result_than_pythons_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = workflow.random_inputs
    calls = []

    def others(described, batch):
        """The Python side, which is first, gets its inputs; the files for the package are of twice the values."""
        calls.append(batch)
        return given(described, batch)

    save = np.save
    monkeypatch.setattr(workflow, "random_inputs", others)
    monkeypatch.setattr(workflow.np, "save", lambda path, array: save(path, 2 * array))
    with pytest.raises(VerificationError, match=r"task 'plus': the package's output differs by .* of its largest"):
        package(bundle, tmp_path / "made")
    assert calls == [1]
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.so", None, "no such file"),
        ("text.so", b"no library", "is no shared library for Linux"),
        ("cut.so", "cut", "is no shared library for Linux"),
        ("other.so", "other", f"is for another processor .* than {HERE.name}"),
        ("program", "program", "is not onnxruntime: it has no OrtGetApiBase"),
        ("text.whl", b"no zip", "cannot be read as a wheel"),
        ("empty.whl", "empty wheel", "has no libonnxruntime.so"),
    ],
)
def test_engines_that_are_none(bundle: Path, tmp_path: Path, name: str, content: object, message: str) -> None:
    path, program = tmp_path / name, Path(shutil.which("true")).read_bytes()
    if content == "empty wheel":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("torch/LICENSE", "")
    elif content == "other":
        path.write_bytes(program[:18] + ELF_MACHINE[OTHER.name] + program[20:])
    elif content is not None:
        path.write_bytes({"cut": program[:200], "program": program}.get(content, content))
    with pytest.raises(UserError, match=message) as raised:
        package(bundle, tmp_path / "made", engine=str(path))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("built")
def test_a_library_for_another_machine_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^cc: compiles for another processor .* than {OTHER.name}"):
        package(bundle, tmp_path / "made", OTHER.name, with_engine=False)


@pytest.mark.usefixtures("built")
def test_an_engine_that_pip_cannot_get(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match=rf"onnxruntime==.* for {OTHER.name} cannot be had .*--engine.*--no-engine"):
        package(bundle, tmp_path / "made", OTHER.name)


def test_mistakes_that_are_seen_before_anything_is_built(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "made"
    with pytest.raises(UserError, match=r"--target linux-arm64: no such target; did you mean .linux-aarch64"):
        package(bundle, out, "linux-arm64")
    with pytest.raises(UserError, match="--engine: belongs to a package with an engine"):
        package(bundle, out, engine="x.so", with_engine=False)
    with pytest.raises(UserError, match="--compiler no-such-cc -O2: no such program"):
        package(bundle, out, compiler="no-such-cc -O2")
    with pytest.raises(UserError, match="--compiler 'cc: No closing quotation"):
        package(bundle, out, compiler="'cc")
    with pytest.raises(UserError, match="false: cannot build libmtlc: "):
        package(bundle, out, compiler="false")
    monkeypatch.setattr(library, "_find", lambda _: None)
    with pytest.raises(Unavailable, match=r"CMake is not installed: pip install 'mtlc\[package\]'"):
        package(bundle, out)
    assert not out.exists()


def test_experts_outside_the_graphs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = payloads()
    made = write(tmp_path / "bundle", files, manifest(files))
    monkeypatch.setattr(workflow, "_check_runs", _with_experts(workflow._check_runs))
    with pytest.raises(UserError, match=r"has experts outside its graphs.*experts = \"queue\""):
        package(made, tmp_path / "made", with_engine=False)


def _with_experts(check):
    from dataclasses import replace
    from types import SimpleNamespace

    return lambda described, bundle: check(
        replace(described, programs=(SimpleNamespace(experts=object()), *described.programs)), bundle
    )


def test_which_compiler_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_spec", lambda name: object())
    assert library.find_compiler(OTHER)[1:] == ["-m", "ziglang", "cc", "-target", f"{OTHER.machine}-linux-gnu.2.28"]
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    monkeypatch.setattr(library.shutil, "which", lambda name, path=None: f"/bin/{name}")
    assert library.find_compiler(HERE) == ["/bin/cc"]
    assert library.find_compiler(OTHER) == [f"/bin/{OTHER.machine}-linux-gnu-gcc"]
    monkeypatch.setattr(library.shutil, "which", lambda name, path=None: None)
    with pytest.raises(Unavailable, match=f"no C compiler for {OTHER.name}: .*{OTHER.machine}-linux-gnu-gcc"):
        library.find_compiler(OTHER)
    assert find_target(None) == HERE


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> arm_root.Arm:
    try:
        return arm_root.prepare(arm_root.cache_folder(), "cortex-a76")
    except Unavailable as error:
        pytest.skip(f"no emulated Arm core: {error}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("compiler", [None, "aarch64-linux-gnu-gcc"])
def test_a_package_for_arm_gives_this_machines_numbers(
    slim_bundle: Path, tmp_path: Path, arm: arm_root.Arm, compiler: str | None
) -> None:
    if compiler is not None and shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} found: install gcc-aarch64-linux-gnu")
    if compiler is None:
        pytest.importorskip("ziglang")
    result = package(slim_bundle, tmp_path / "made", "linux-aarch64", compiler=compiler)
    assert result.tried is None
    if compiler is None:
        assert result.glibc == "2.28"
    with Session(slim_bundle) as session:
        given = random_inputs(session.manifest, 2)
        options = []
        for name, array in given.items():
            np.save(tmp_path / f"{name}.npy", array)
            options += ["--input", f"{name}={tmp_path / name}.npy"]
        for configuration in session.configurations:
            session.configure(configuration)
            expected = session.run(given)
            done = subprocess.run(
                [arm.emulator, "-cpu", arm.core.name, "-L", arm.root, tmp_path / "made" / "bin" / "mtlc-run", "infer",
                 tmp_path / "made" / "bundle", *options, "--out", tmp_path / configuration,
                 "--configuration", configuration],
                env={"MTLC_ONNXRUNTIME": str(tmp_path / "made" / "lib" / "libonnxruntime.so")},
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            for task, array in expected.items():
                made = np.load(tmp_path / configuration / f"{task}.npy")
                np.testing.assert_array_equal(made, array)  # one rounding each: the same everywhere
