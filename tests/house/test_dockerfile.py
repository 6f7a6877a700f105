"""The image is made of what is there, needs no torch, and does not run as root. Where docker runs, it checks the file
too."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest
from testkit.places import ROOT


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, comments left out and lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, arguments.strip()) for name, _, arguments in (line.partition(" ") for line in lines)]


def _of(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [arguments for found, arguments in instructions if found == name]


def test_what_is_copied_is_there_and_sent_to_the_builder(instructions: list[tuple[str, str]]) -> None:
    sent = set((ROOT / ".dockerignore").read_text().split())
    copied = [one.split()[:-1] for one in _of(instructions, "COPY") if not one.startswith("--from")]
    assert copied
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert f"!{source}" in sent, source


def test_the_images_and_extras_are_for_every_processor(instructions: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = dict(argument.split("=", 1) for argument in _of(instructions, "ARG"))
    extras = given["EXTRAS"].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()
    needed = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    assert not any(re.match(r"(torch|tensorrt|nncf)\b", one) for one in needed)
    version = re.match(r"(\d+)\.(\d+)-slim", given["PYTHON"])
    assert version is not None
    assert tuple(map(int, version.groups())) >= (3, 11)
    assert all(one.startswith("python:${PYTHON}") for one in _of(instructions, "FROM"))


def test_it_runs_the_command_as_a_user_of_its_own(instructions: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert _of(instructions, "USER")[-1] not in {"root", "0"}
    assert _of(instructions, "ENTRYPOINT") == ['["mtlc"]']
    assert "mtlc" in project["scripts"]
    assert [name for name, _ in instructions][-4:] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]


def test_docker_finds_nothing_wrong() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no docker daemon is here")
    done = subprocess.run(["docker", "build", "--check", str(ROOT)], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
