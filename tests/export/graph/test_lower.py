"""Lowering of networks with all forms of outputs and inputs, and the errors of those that cannot be exported."""

import numpy as np
import pytest
import torch
from torch import nn

from mtlc.errors import UserError, VerificationError
from mtlc.export import export_bundle
from mtlc.export.graph.lower import lower
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session
from mtlc.tasks.task import TaskSpec


class Shaped(nn.Module):
    """One linear layer for each output; `shape` arranges them."""

    def __init__(self, shape, count=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 2) for _ in range(count))
        self.shape = shape

    def forward(self, x):
        return self.shape(*(layer(x) for layer in self.layers))


def program(module, tasks, example=None, **kwargs):
    torch.manual_seed(1)
    specs = tuple(TaskSpec(name, "l1", "rmse", output=output) for name, output in tasks.items())
    return Program(module, specs, example or {"x": torch.zeros(2, 4)}, ModelSource("tests:network"), **kwargs)


@pytest.mark.parametrize(
    ("shape", "tasks", "ignored"),
    [
        (lambda a, b, c: (a, b, c), {"one": "0", "two": "1", "three": "2"}, ()),
        (lambda a, b, c: (a, b, c), {"three": "2", "one": "0"}, ("1",)),
        (lambda a, b, c: {"p": a, "q": [b, c]}, {"late": "q.1", "p": None, "early": "q.0"}, ()),
        (lambda a, b, c: a + b + c, {"all": ""}, ()),
        (lambda a, b, c: {"a": a, "same": a, "x": b + c}, {"same": None, "a": None, "x": None}, ()),
    ],
    ids=["tuple", "tuple in another order", "nested", "tensor", "one tensor twice, and a task called as the input"],
)
def test_forms_of_outputs(tmp_path, shape, tasks, ignored):
    torch.manual_seed(0)
    made = program(Shaped(shape), tasks, ignored_outputs=ignored)
    x = torch.randn(5, 4)
    report = export_bundle(made, tmp_path / "b", samples={"x": x})
    twins = {"same", "a"} & set(tasks)
    assert {task for task, entry in report["verification"].items() if entry["vacuous"]} == twins
    with Session(tmp_path / "b") as session, torch.inference_mode():
        for task, tensor in made.outputs({"x": x}).items():
            np.testing.assert_allclose(session.run(x.numpy(), task)[task], tensor.numpy(), rtol=1e-5, atol=1e-6)


class TwoInputs(nn.Module):
    """`depth` needs both inputs, `age` the second only, `raw` is an input as it is, `fixed` reads no values."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, image, lidar):
        fixed = torch.arange(3.0).repeat(image.shape[0], 1)
        return {"depth": self.linear(image) * lidar, "age": lidar * 2, "raw": image, "fixed": fixed}


def test_several_inputs_and_outputs_that_no_layer_makes(tmp_path):
    example = {"image": torch.zeros(1, 4), "lidar": torch.zeros(1, 1)}
    made = program(TwoInputs(), {"depth": None, "age": None, "raw": None, "fixed": None}, example)
    samples = {"image": torch.randn(4, 4), "lidar": torch.randn(4, 1)}
    report = export_bundle(made, tmp_path / "b", samples=samples)
    assert "the same for all samples" in report["verification"]["fixed"]["vacuous"]
    assert report["verification"]["raw"]["vacuous"] is None
    arrays = {name: tensor.numpy() for name, tensor in samples.items()}
    with Session(tmp_path / "b") as session:
        assert session.programs("age") == ("head-age",)
        np.testing.assert_array_equal(session.run(arrays, "age")["age"], 2 * arrays["lidar"])
        np.testing.assert_array_equal(session.run(arrays, ["raw", "fixed"])["raw"], arrays["image"])
        with pytest.raises(UserError, match="input 'lidar' has shape \\(3, 1\\), the bundle takes \\(batch, 1\\)"):
            session.run({"image": arrays["image"], "lidar": arrays["lidar"][:3]})
        with pytest.raises(UserError, match="the bundle has 2 inputs: give a dict with image, lidar"):
            session.run(arrays["image"])


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner = Applied(function)

    def forward(self, x):
        return self.inner(x)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def boom(x):
    raise ValueError("no such thing\nand more")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * 2 if x.sum() > 0 else x, "its control flow depends on the data"),
        (lambda x: x.reshape(2, -1), "its code fixes the batch size"),
        (lambda x: torch.special.bessel_j0(x), "bessel_j0 has no ONNX form (layer 'inner', Applied)"),
        (boom, "ValueError: no such thing (layer 'inner', Applied)"),
    ],
    ids=["branch", "batch", "operator", "raise"],
)
def test_networks_that_cannot_be_exported(function, message, capfd):
    with pytest.raises(UserError) as caught:
        lower(program(Inner(function), {"y": ""}))
    assert str(caught.value).startswith("[export] Inner cannot be exported: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_branch_on_the_batch_size_is_found_by_verification(tmp_path):
    """The exporter follows the branch for batches above 1 and says nothing."""
    made = program(Applied(lambda x: x + 1 if x.shape[0] == 1 else x), {"y": ""})
    with pytest.raises(VerificationError, match="task 'y', batch 1: the bundle differs"):
        export_bundle(made, tmp_path / "b", samples={"x": torch.randn(3, 4)})
    assert not (tmp_path / "b").exists()


class Windows(nn.Module):
    """The window attention of transformers' Swin, whose table of position biases is learned."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import SwinConfig, SwinModel

        sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4}
        self.backbone, self.head = SwinModel(SwinConfig(**sizes)), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.backbone(x).last_hidden_state)


def test_attention_keeps_the_layout_that_it_was_exported_with(tmp_path):
    torch.manual_seed(0)
    network = Windows().eval()
    program = Program(
        network, (TaskSpec("a", "l1", "rmse", output=""),), {"x": torch.zeros(2, 3, 32, 32)}, ModelSource("")
    )
    x = torch.randn(3, 3, 32, 32)
    report = export_bundle(program, tmp_path / "bundle", samples={"x": x})
    with Session(report["path"]) as session, torch.no_grad():
        found = session.run({"x": x.numpy()})["a"]
        assert np.abs(found - network(x).numpy()).max() < 1e-5
