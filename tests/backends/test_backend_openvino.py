import pytest
from backend_specification import BackendSpecification

pytest.importorskip("openvino")


class TestOpenVINO(BackendSpecification):
    backend = "openvino"
