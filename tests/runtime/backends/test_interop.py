"""What any other tool can do with the ONNX files of a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from testkit.backend_samples import Case
from testkit.backend_specification import CASES, close

from mtlc.export.graph.onnx_names import module_path
from mtlc.runtime import open_bundle


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, cases: Mapping[str, Case]) -> Case:
    return cases[request.param]


def test_files_are_plain_onnx_with_full_shapes(case):
    """They pass the checker, need no operator set but ONNX's own, and every tensor has a type and a rank."""
    with open_bundle(case.path) as opened:
        for file in {program.file for program in opened.manifest.programs}:
            onnx.checker.check_model(str(opened.folder / file), full_check=True)
            model = onnx.load(opened.folder / file, load_external_data=False)
            assert [entry.domain for entry in model.opset_import] == [""]
            assert {node.domain for node in model.graph.node} == {""}
            assert not model.functions
            graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
            shaped = {v.name for v in (*graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")}
            assert shaped >= {name for node in graph.node for name in node.output if name}


def test_nodes_have_readable_names_of_their_own(case):
    """Names are unique in a file, and begin with the module that they were exported from."""
    modules = {
        name for programs in case.programs.values() for p in programs.values() for name, _ in p.module.named_modules()
    }
    with open_bundle(case.path) as opened:
        for file in {program.file for program in opened.manifest.programs}:
            nodes = onnx.load(opened.folder / file, load_external_data=False).graph.node
            names = [node.name for node in nodes]
            assert len(set(names)) == len(names)
            for node in nodes:
                path = module_path(node)
                if path is not None:
                    assert path in modules
                    assert node.name.startswith(path)
                else:
                    assert node.name.rpartition(".")[0] in modules  # what makes a weight of a stored one


def test_plain_onnxruntime_runs_the_files(case):
    """Program after program by their names, without a line of the runtime's."""
    inputs = case.inputs(3)
    with open_bundle(case.path) as opened:
        manifest, values = opened.manifest, dict(inputs)
        wanted = next(c.programs for c in manifest.configurations if c.name == "default")
        for program in (p for p in manifest.programs if p.name in wanted):
            session = onnxruntime.InferenceSession(opened.folder / program.file, providers=["CPUExecutionProvider"])
            feeds = {program.names.get(name, name): values[name] for name in program.inputs}
            feeds |= {name: np.array([value]) for name, value in program.constants.items()}
            made = session.run([program.names.get(name, name) for name in program.outputs], feeds)
            values |= dict(zip(program.outputs, made, strict=True))
        for task, expected in case.expected(inputs).items():
            close(values[manifest.tasks[task].output], expected, 1e-5)
