"""The shipped mixture-of-experts weights are trained, and trained both ways: one for extraction, one not."""

import pytest
import torch
from testkit.places import EXAMPLES

from mtlc.compress.experts.usage import observe
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import fetch
from mtlc.job.job import load_job
from mtlc.moe.layers import moe_layers
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors
from mtlc.zoo import scenes


@pytest.fixture(scope="module")
def splits():
    return scenes(train=64, val=48, calibration=0.5)


def trained(kind: str, splits) -> Program:
    job = load_job(EXAMPLES / f"moe_{kind}.toml")
    program = Program(
        job.source.build().eval(), job.tasks, {"image": fetch(splits.calibration, [0])["image"]}, job.source
    )
    load_tensors(program.module, job.weights)
    return program


@pytest.mark.parametrize(("kind", "fewest", "most"), [("balance", 16, 16), ("dependence", 4, 10)])
def test_what_a_task_uses(kind, fewest, most, splits):
    """Experts that a task sends 1 % of its tokens to, per layer."""
    program = trained(kind, splits)
    routed = observe(program, splits.calibration, 32, 32)
    used = {
        (task, layer.path): int((one.usage(layer.path) >= 0.01).sum())
        for task, one in routed.items()
        for layer in moe_layers(program.module)
    }
    assert len(used) == 9
    assert all(fewest <= count <= most for count in used.values()), used


@pytest.mark.parametrize("kind", ["balance", "dependence"])
def test_unseen_scenes(kind, splits):
    """Far from what a constant gives (README): 3 % mIoU, 1.1 m, 58°."""
    program = trained(kind, splits)
    with torch.inference_mode():
        metrics = evaluate(program, Criteria(program.tasks), splits.validation).metrics
    assert metrics["semseg"] > 45
    assert metrics["depth"] < 0.6
    assert metrics["normals"] < 16
