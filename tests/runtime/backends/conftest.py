from __future__ import annotations

from collections.abc import Mapping

import pytest
from testkit.backend_samples import Case, make_cases, make_int8, make_int8_widths


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    return make_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="session")
def int8_cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    """By target: float32 outputs in symmetric INT8 for TensorRT, and in a range every processor computes rightly."""
    folder = tmp_path_factory.mktemp("int8")
    return {target: make_int8(folder, target) for target in ("x86", "tensorrt")}


@pytest.fixture(scope="session")
def int8_widths(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The slimmable network in INT8, in a range that every processor computes rightly."""
    return make_int8_widths(tmp_path_factory.mktemp("int8-widths"))
