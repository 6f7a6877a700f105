"""``mtlc init --from``: the job that is written for a network and its data, by what their tensors look like."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from mtlc.cli import main
from mtlc.workflows.guessed_tasks import guess_alone, guess_pair, guess_tasks

MAP, ROW = (4, 8, 12), (4,)


def classes(count: int, shape: tuple[int, ...] = MAP) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % count


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dim=1)


def boxes(classes: int) -> torch.Tensor:
    return torch.tensor([[[0.0, 0, 8, 8, 0], [4, 4, 16, 16, classes - 1]]] * 4)


@pytest.mark.parametrize(
    ("output", "label", "name", "loss", "metric"),
    [
        ((4, 5, 8, 12), classes(5), "seg", "cross_entropy", "miou"),
        ((4, 5, 8, 12), classes(5).int(), "seg", "cross_entropy", "miou"),
        ((4, 7), classes(7, ROW), "scene", "cross_entropy", "accuracy"),
        ((4, 3, 8, 12), unit(4, 3, 8, 12), "n", "normals_l1", "mean_angle"),
        ((4, 3, 8, 12), 2 * unit(4, 3, 8, 12), "n", "mse", "mse"),
        ((4, 1, 8, 12), 1 + torch.rand(4, 1, 8, 12), "depth", "l1", "rmse"),
        ((4, 1, 8, 12), torch.randn(4, 1, 8, 12), "flow", "mse", "mse"),
        ((4, 2), torch.randn(4, 2), "angles", "mse", "mse"),
        ((4, 1, 8, 12), classes(2, (4, 1, 8, 12)), "lanes", "balanced_bce", "max_jaccard"),
        ((4, 1, 8, 12), classes(2, (4, 1, 8, 12)).float(), "edge", "edge_bce", "odsf"),
    ],
)
def test_what_an_output_and_a_label_look_like(output, label, name, loss, metric):
    guess = guess_pair(torch.randn(output), label, name, "out", (8, 12))
    assert (guess.loss, guess.metric, guess.ignore) == (loss, metric, None)


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ((4, 5, 8, 12), classes(6)),  # more classes than scores
        ((4, 5, 4, 6), classes(5)),  # another size
        ((4, 1, 8, 12), torch.rand(4, 8, 12)),  # an axis is missing
        ((4, 5, 8, 12), classes(5).float()),  # class numbers are integers
        ((4, 1), torch.rand(4)),
    ],
)
def test_what_no_loss_takes_together_is_not_guessed(output, label):
    assert guess_pair(torch.randn(output), label, "x", "x", (8, 12)) is None


@pytest.mark.parametrize(("value", "ignore"), [(255, None), (254, 254), (-1, -1), (-100, -100)])
def test_what_is_no_label(value, ignore):
    label = classes(5)
    label[0, 0] = value
    assert guess_pair(torch.randn(4, 5, 8, 12), label, "seg", "seg", None).ignore == ignore
    label[0, 1] = 77
    assert guess_pair(torch.randn(4, 5, 8, 12), label, "seg", "seg", None) is None


@pytest.mark.parametrize(("columns", "objectness"), [(8, None), (7, False)])
def test_a_detector_by_its_points(columns, objectness):
    points = 8 * 12 + 4 * 6  # strides 4 and 8 of 32 x 48
    guess = guess_pair(torch.randn(4, points, columns), boxes(3), "boxes", "0", (32, 48))
    expected = {"kind": "detection", "size": [32, 48], "strides": [4, 8]}
    assert guess.loss == "simota"
    assert guess.postprocess == expected | ({} if objectness is None else {"objectness": objectness})
    assert guess_pair(torch.randn(4, points + 1, columns), boxes(3), "boxes", "0", (32, 48)) is None


def test_labels_go_with_outputs_of_their_name_and_else_with_those_that_fit():
    outputs = {"a": torch.randn(4, 1, 8, 12), "depth": torch.randn(4, 1, 8, 12), "2": torch.randn(4, 5, 8, 12)}
    labels = {"heat": torch.randn(4, 1, 8, 12), "depth": 1 + torch.rand(4, 1, 8, 12), "y": classes(5)}
    found = guess_tasks(outputs, labels, (8, 12), named=True)
    assert [(task.name, task.output, task.target) for task in found.tasks] == [
        ("a", "a", "heat"), ("depth", "depth", "depth"), ("y", "2", "y"),
    ]  # fmt: skip
    # The label that fits one output only is not left without it.
    first = guess_tasks(
        {"0": torch.randn(4, 2), "1": torch.randn(4, 3)}, {"x": classes(2, ROW), "y": classes(3, ROW)}, None, False
    )
    assert [(task.name, task.output) for task in first.tasks] == [("classification", "0"), ("classification2", "1")]
    left = guess_tasks({"0": torch.randn(4, 2)}, {"y": torch.rand(4, 9)}, None, True)
    assert (left.tasks, left.unused_outputs, left.unused_labels) == ([], ["0"], ["y"])


def test_outputs_alone():
    outputs = {
        "seg": torch.randn(2, 9, 8, 8), "normal": torch.randn(2, 3, 8, 8), "edges": torch.randn(2, 1, 8, 8),
        "z": torch.randn(2, 1, 8, 8), "age": torch.randn(2, 1),
        "tokens": torch.randn(2, 7, 5), "n": torch.ones(2).int(),
    }  # fmt: skip
    found = guess_alone(outputs, (8, 8))
    assert {task.name: task.guess.loss for task in found.tasks} == {
        "seg": "cross_entropy", "normal": "normals_l1", "edges": "edge_bce", "z": "l1", "age": "mse",
    }  # fmt: skip
    assert found.unused_outputs == ["tokens", "n"]


CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.heads = nn.ModuleDict({"seg": nn.Conv2d(8, classes, 1), "depth": nn.Conv2d(8, 1, 1)})
        self.scene = nn.Linear(8, 4)

    def forward(self, x):
        features = self.stem(x)
        found = {name: head(features) for name, head in self.heads.items()}
        return found | {"scene": self.scene(features.mean((2, 3)))}


def net(classes):
    return Net(classes)


def seeded(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(classes)


class Positional(Net):
    def forward(self, x):
        return tuple(super().forward(x).values())


def positional():
    return Positional(5)


class Two(Net):
    def forward(self, image, extra):
        return super().forward(image)["depth"] + extra[:, :, None, None]


def two():
    return Two(5)


class Rows(torch.utils.data.Dataset):
    def __init__(self, count, form):
        self.count, self.form = count, form
        self.identity = f"{count} {form}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        seg = torch.randint(0, 5, (16, 16), generator=draw)
        seg[0] = -1
        sample = {
            "rgb": torch.rand(3, 16, 16, generator=draw), "mask": seg,
            "scene": int(torch.randint(0, 4, (), generator=draw)), "depth": 1 + torch.rand(1, 16, 16, generator=draw),
            "file": "a.png",
        }
        if self.form == "tuple":
            return sample["rgb"], sample["mask"], sample["depth"], torch.tensor(sample["scene"])
        return sample


def rows(form="dict"):
    return Rows(24, form), Rows(8, form)


def loaders():
    return tuple(torch.utils.data.DataLoader(one, batch_size=4) for one in rows("tuple"))


def few():
    return [(torch.rand(3, 16, 16), torch.rand(9))] * 20, [(torch.rand(3, 16, 16), torch.rand(9))] * 4


def broken():
    raise ValueError("no such disk")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a module of its own, whose name no other test's module has."""
    name = f"mine_{abs(hash(tmp_path)) % 10**9}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def module(folder: Path) -> str:
    return next(folder.glob("mine_*.py")).stem


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def test_a_job_of_a_network_and_data_that_plans(folder):
    name = module(folder)
    made = mtlc("init", "--from", f"{name}.py:net", "--arg", "classes=5", "--data", f"{name}.py:rows")
    assert made.stdout == "job.toml\n"
    assert "a sample also holds 'file'" in made.stderr
    assert "does not run" not in made.stderr
    job = tomllib.loads(Path("job.toml").read_text())
    assert job["model"] == {
        "factory": f"{name}:net", "weights": "weights.safetensors", "inputs": ["rgb"], "args": {"classes": 5},
    }  # fmt: skip
    drop = {"max_drop": "3%"}
    assert job["tasks"] == {
        "seg": {"loss": "cross_entropy", "metric": "miou", "target": "mask", "ignore": -1} | drop,
        "scene": {"loss": "cross_entropy", "metric": "accuracy"} | drop,
        "depth": {"loss": "l1", "metric": "rmse"} | drop,
    }
    assert job["data"] == {"factory": f"{name}:rows"}
    assert "# ? -1 is taken for no label" in Path("job.toml").read_text()
    plan = mtlc("plan", "job.toml").stdout
    assert "seg: cross_entropy, miou, may lose 3%" in plan

    before = Path("job.toml").read_bytes()
    refused = mtlc("init", "--from", f"{name}:seeded", "--data", f"{name}:rows", code=2)
    assert refused.stderr == "error: job.toml exists; --force overwrites it\n"
    assert Path("job.toml").read_bytes() == before
    # A factory that gives the same weights every time needs no training first.
    mtlc("init", "--from", f"{name}:seeded", "--data", f"{name}:rows", "--force")
    assert "weights" not in tomllib.loads(Path("job.toml").read_text())["model"]


def test_samples_and_outputs_without_names(folder):
    name = module(folder)
    mtlc("init", "--from", f"{name}:positional", "--data", f"{name}:loaders")
    job = tomllib.loads(Path("job.toml").read_text())
    assert {task: (one["output"], one["loss"]) for task, one in job["tasks"].items()} == {
        "segmentation": ("0", "cross_entropy"),
        "regression": ("1", "l1"),
        "classification": ("2", "cross_entropy"),
    }
    assert "inputs" not in job["model"]
    mtlc("plan", "job.toml")


def test_a_network_alone_is_tried_on_random_numbers(folder):
    name = module(folder)
    made = mtlc("init", "--from", f"{name}:seeded")
    assert "the network runs on 3x224x224; --input says another" in made.stderr
    assert "warning: the data are random" in made.stderr
    mtlc("init", "--from", f"{name}:seeded", "--input", "3x16x16", "--force")
    job = tomllib.loads(Path("job.toml").read_text())
    assert job["data"]["factory"] == "mtlc.zoo:random_samples"
    assert job["data"]["args"]["inputs"] == {"image": [3, 16, 16]}
    assert job["data"]["args"]["labels"]["seg"] == {"kind": "classes", "shape": [16, 16], "classes": 5}
    assert "64 train, 16 calibration, 16 validation" in mtlc("plan", "job.toml").stdout


def test_several_inputs(folder):
    name = module(folder)
    asked = mtlc("init", "--from", f"{name}:two", code=2).stderr
    assert "--input: the network takes image, extra: say the shape of each, such as --input image=3x256x256" in asked
    mtlc("init", "--from", f"{name}:two", "--input", "image=3x16x16", "--input", "extra=1")
    job = tomllib.loads(Path("job.toml").read_text())
    assert job["model"]["inputs"] == ["image", "extra"]
    assert job["tasks"]["regression"]["output"] == ""
    mtlc("plan", "job.toml")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--from", "@"), "error: --from @: write module:factory or path/to/file.py:factory"),
        (("--from", "@:nt"), "has no 'nt'; did you mean 'net'?"),
        (("--from", "@:net"), "error: --from @:net: the factory needs 'classes': give it with --arg classes=VALUE"),
        (("--from", "no_such:net"), "no module 'no_such' (looked in the job's folder and on sys.path)"),
        (("--from", "no.py:net"), "error: --from no.py:net: no file no.py"),
        (("--from", "/etc/hostname:net"), "error: --from /etc/hostname:net: /etc/hostname is no Python file"),
        (("--from", "@:seeded", "--arg", "classes"), "error: --arg classes: write KEY=VALUE, such as --arg classes=21"),
        (("--from", "@:seeded", "--arg", "width=3"), "raised TypeError: seeded() got an unexpected keyword argument"),
        (("--from", "@:rows"), "returned tuple: it must return an nn.Module"),
        (("--from", "@:seeded", "--input", "3y4"), "error: --input 3y4: write NAME=SIZES of one sample"),
        (("--from", "@:seeded", "--input", "1x16x16"), "--input: the network does not run on image (2, 1, 16, 16)"),
        (("--from", "@:seeded", "--data", "@:broken"), "--data = '@:broken' raised ValueError: no such disk"),
        (("--from", "@:seeded", "--data", "@:net"), "error: --data @:net: the factory needs 'classes'"),
        (("--from", "@:seeded", "--data", "@:few"), "no label fits an output that mtlc has a loss for: outputs 'seg'"),
        (("--from", "@:seeded", "--data", "@:rows", "--input", "3x4x4"), "--input is for a network without data"),
        (("--data", "@:rows"), "error: --data goes with --from, which names the network"),
        (("--from", "@.py:seeded", "elsewhere"), "the file must lie in the folder of the job, elsewhere, or below"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_file(folder, arguments, line):
    name = module(folder)
    shown = mtlc("init", *(one.replace("@", name) for one in arguments), code=2).stderr.splitlines()
    assert line.replace("@", name) in shown[-1]
    assert shown[-1].startswith("error: ")
    assert not list(folder.rglob("job.toml"))
