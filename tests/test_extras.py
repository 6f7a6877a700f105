"""The list of optional packages, against what `pyproject.toml` says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mtlc.extras import BY_MODULE, PACKAGES, missing_extra

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
EXTRAS = ("compress", "images", "onnx", "openvino", "package", "tensorrt", "ray", "shards", "tracking", "video")


def names(requirements: list[str]) -> set[str]:
    found = [re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements]
    return {match[0].lower() for match in found if match}


def test_the_base_install_brings_what_the_list_says() -> None:
    assert names(PROJECT["dependencies"]) == {package.name for package in PACKAGES if not package.extra}


def test_each_extra_brings_what_the_list_says() -> None:
    brought = {extra: names(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS}
    for package in PACKAGES:
        assert not package.extra or package.name in brought[package.extra], package
    assert set().union(*brought.values()) == {package.name for package in PACKAGES if package.extra}


def test_no_other_extra_brings_packages_that_are_not_in_the_list() -> None:
    assert set(PROJECT["optional-dependencies"]) == {*EXTRAS, "all", "dev", "conformance"}


def test_an_error_names_the_package_and_the_command() -> None:
    assert str(missing_extra("PIL")) == "Pillow is not installed: pip install 'mtlc[images]'"
    assert str(missing_extra("onnx", extra="tensorrt")) == "onnx is not installed: pip install 'mtlc[tensorrt]'"
    assert "numpy" not in BY_MODULE
