"""The TensorRT backend against the specification: on fakes everywhere, on a real driver and TensorRT where they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from testkit import fake_tensorrt
from testkit.backend_samples import Case
from testkit.backend_specification import CASES, BackendSpecification

from mtlc.errors import Unavailable
from mtlc.export.tensorrt.engines import build_engines
from mtlc.runtime.backends import cuda_driver
from mtlc.runtime.backends.tensorrt_backend import TensorRT
from mtlc.runtime.bundle.manifest import Sizes


def with_engines(cases: Mapping[str, Case], folder: Path) -> dict[str, Case]:
    """The cases with engines in their bundles."""
    made = {}
    for name, case in cases.items():
        build_engines(case.path, folder / case.path.name, "fp32", dimensions={"batch": Sizes(1, 3, 8)})
        made[name] = replace(case, path=folder / case.path.name)
    return made


class OfEngines(BackendSpecification):
    """INT8 is what symmetric quantisation gives, built as such; `cases` skips where nothing can run."""

    __test__ = False
    backend = "tensorrt"

    @pytest.fixture
    def int8(self, cases: Mapping[str, Case], int8_cases: Mapping[str, Case], tmp_path: Path) -> Case:
        made = replace(int8_cases["tensorrt"], path=tmp_path / "engines")
        build_engines(int8_cases["tensorrt"].path, made.path, "int8", dimensions={"batch": Sizes(1, 3, 8)})
        return made

    @pytest.fixture
    def int8_widths(self, cases: Mapping[str, Case]) -> Case:
        pytest.skip("INT8 of several widths is made for onnxruntime and OpenVINO")


class TestTensorRTOnAFake(OfEngines):
    __test__ = True

    @pytest.fixture(scope="class")
    @classmethod
    def cases(cls, cases: Mapping[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Case]]:
        driver = fake_tensorrt.Driver()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_driver.ctypes, "CDLL", lambda name: driver)
            patch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module(driver))
            yield with_engines(cases, tmp_path_factory.mktemp("engines"))


class TestTensorRTHere(OfEngines):
    """Needs a GPU and a TensorRT. Its sums are in another order than torch's."""

    __test__ = True
    tolerance = 1e-4

    @pytest.fixture(scope="session", autouse=True)
    @classmethod
    def here(cls) -> None:
        """Asked before any network is exported for nothing."""
        try:
            TensorRT()
        except Unavailable as error:
            pytest.skip(f"engines are built but not run here: {error}")

    @pytest.fixture(scope="class")
    @classmethod
    def cases(cls, cases: Mapping[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
        masked = {name: case for name, case in cases.items() if name != "experts-queue"}
        return with_engines(masked, tmp_path_factory.mktemp("engines"))

    @pytest.fixture(params=CASES)
    def case(self, request: pytest.FixtureRequest, cases: Mapping[str, Case]) -> Case:
        if request.param not in cases:
            pytest.skip("TensorRT takes no operator whose result's size depends on the data")
        return cases[request.param]
