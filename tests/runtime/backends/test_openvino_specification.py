from collections.abc import Mapping
from dataclasses import replace

import pytest
from testkit.backend_samples import Case
from testkit.backend_specification import BackendSpecification

pytest.importorskip("openvino")


class TestOpenVINO(BackendSpecification):
    backend = "openvino"


class TestOpenVINOFromIR(BackendSpecification):
    backend = "openvino"

    @pytest.fixture(scope="class")
    @classmethod
    def cases(
        cls, cases: Mapping[str, Case], tmp_path_factory: pytest.TempPathFactory
    ) -> Mapping[str, Case]:  # what the session's fixture made, with the IR of every program
        from mtlc.export.openvino.ir import write_ir

        folder = tmp_path_factory.mktemp("ir")
        made = {}
        for name, case in cases.items():
            write_ir(case.path, folder / case.path.name)
            made[name] = replace(case, path=folder / case.path.name)
        return made
