from testkit.backend_specification import BackendSpecification


class TestOnnxRuntime(BackendSpecification):
    backend = "onnxruntime"
