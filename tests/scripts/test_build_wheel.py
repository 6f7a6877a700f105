"""The wheel is the same wherever it is built, and an empty environment with it runs bundles without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import build_wheel
import pytest
from testkit.places import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel.build(tmp_path_factory.mktemp("wheel"))


def test_neither_clock_nor_umask_nor_what_lies_about_shows(wheel: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    for name in subprocess.run(
        ["git", "-C", str(ROOT), "diff", "--name-only", "HEAD"], check=True, text=True, capture_output=True
    ).stdout.split():  # the clone as this checkout is
        if (ROOT / name).exists():
            (clone / name).write_bytes((ROOT / name).read_bytes())
        else:
            (clone / name).unlink()
    (clone / "mtlc" / "left.toml").write_text("a = 1\n")
    (clone / "build" / "lib" / "mtlc").mkdir(parents=True)
    (clone / "build" / "lib" / "mtlc" / "old.py").write_text("")
    os.utime(clone / "mtlc" / "cli.py", (0, 0))
    (clone / "mtlc" / "cli.py").chmod(0o600)
    before = os.umask(0o077)
    try:
        other = build_wheel.build(tmp_path / "dist", clone)
    finally:
        os.umask(before)
    assert other.name == wheel.name
    assert other.read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_what_the_package_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("mtlc/")}
    command = ["git", "-C", str(ROOT), "ls-files", "mtlc", "native"]
    tracked = subprocess.run(command, check=True, text=True, capture_output=True).stdout.split()
    files = {name for name in tracked if (ROOT / name).is_file()}
    # The C library lies beside the package in a checkout, and in it in a wheel: `mtlc package` builds it from there.
    native = {f"mtlc/{name}" for name in files if name.startswith("native/") and not name.endswith(".clang-tidy")}
    assert len(native) > 50
    assert packed == {name for name in files if name.startswith("mtlc/")} | native


@pytest.mark.slow
def test_in_an_empty_environment(wheel: Path, make_bundle, tmp_path: Path) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, wheel], check=True)

    def run(*arguments: object, code: int = 0) -> str:
        done = subprocess.run(
            [python.parent / "mtlc", *map(str, arguments)], cwd=tmp_path, text=True, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    bundle = make_bundle()
    assert "torch" in json.loads(run("doctor", "--json"))["missing"]
    run("verify", bundle)
    run("bench", bundle, "--rounds", "2")
    assert run("calibrate", "--out", "mine.toml", code=5) == "error: onnx is not installed: pip install 'mtlc[onnx]'\n"
    assert run("plan", "job.toml", code=5) == "error: torch is not installed: pip install 'mtlc[compress]'\n"
    subprocess.run([*install, f"{wheel}[onnx]"], check=True)
    run("calibrate", "--seconds", "0.1", "--out", "mine.toml")
    run("profile", bundle, "--rounds", "2", "--layers")
    assert "torch" in json.loads(run("doctor", "--json"))["missing"]
