"""Jobs of objects: what each argument may be, and one line for everything that is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from testkit.toy_job import Pictures, Toy
from torch import Tensor, nn

import mtlc
from mtlc.compress.pass_interface import Pass, PassConfig
from mtlc.errors import UserError
from mtlc.job.python_budget import budget_section
from mtlc.job.python_job import python_job
from mtlc.quantity import Quantity
from mtlc.tasks.task import Limit, TaskSpec

TASKS = {"depth": mtlc.Task("l1", "rmse", max_drop=0.02), "semseg": mtlc.Task("cross_entropy", "miou", "1%")}
DATA = (Pictures(20, 0), Pictures(4, 1))


class OwnConfig(PassConfig):
    amount: int = 1


class Own(Pass[OwnConfig]):
    name = "own"

    def run(self, program, context):
        raise NotImplementedError


class Tuple(Toy):
    def forward(self, image: Tensor):
        return tuple(super().forward(image).values())


def job(*model, **changed):
    arguments = {"tasks": TASKS, "train": DATA[0], "validation": DATA[1], "verb": "mtlc.compress", **changed}
    return python_job(model[0] if model else Toy(8), **arguments)


@pytest.mark.parametrize(
    ("given", "section"),
    [
        ("40% MACs", {"macs": "40%"}),
        ("40 % of the MACs", {"macs": "40 %"}),
        ("25 MMACs", {"macs": "25MMACs"}),
        ("3M params", {"params": "3Mparams"}),
        ("3M parameters", {"params": "3Mparams"}),
        ("30% parameters", {"params": "30%"}),
        ("12 ms", {"latency": "12ms"}),
        ("0.5s", {"latency": "0.5s"}),
        ("50% latency", {"latency": "50%"}),
        ("2 MB", {"memory": "2MB"}),
        ("1.5 MiB", {"memory": "1.5MiB"}),
        ({"params": "3M"}, {"params": "3M"}),
        ({"latency": "12ms", "device": "local-cpu"}, {"latency": "12ms", "device": "local-cpu"}),
        (None, None),
    ],
)
def test_budgets(given, section):
    assert budget_section(given) == section
    for kind, text in (section or {}).items():
        if kind != "device":
            assert Quantity.parse(kind, text).value > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("40%", "budget = '40%': of what\\? Give '40%' with a cost, such as \"40% MACs\""),
        ("40% flops", "budget = '40% flops': 'flops' is no cost"),
        ("small", 'budget = \'small\': give "40% MACs", "25 MMACs"'),
        (0.4, 'budget = 0.4: give .*; for a share write "40% MACs"'),
        ({"mac": "40%"}, "budget has 'mac'; did you mean 'macs'"),
    ],
)
def test_budgets_that_cannot_be_read(given, message):
    with pytest.raises(UserError, match=message):
        budget_section(given)


def test_a_job_of_objects_has_what_a_file_would_say():
    made = job(budget="40% MACs", passes=[mtlc.Prune(round_to=16), "finetune", {"name": "calibrate", "samples": 8}])
    assert [(task.name, task.loss, task.max_drop) for task in made.tasks] == [
        ("depth", "l1", Limit(0.02, False)), ("semseg", "cross_entropy", Limit(0.01, True)),
    ]  # fmt: skip
    assert [(step.name, step.where) for step in made.steps] == [
        ("prune", "passes[0] Prune"), ("finetune", "passes[1] Finetune"), ("calibrate", "passes[2] Calibrate"),
    ]  # fmt: skip
    assert made.steps[0].config.round_to == 16
    assert made.file.passes[0] == {"name": "prune", "round_to": 16}
    assert (made.path.name, made.file.model.inputs) == ("Toy", ["image"])
    assert len(made.load_splits().calibration) == 2


def test_outputs_without_names_are_taken_in_the_order_of_the_tasks():
    told: list[str] = []
    assert [task.output_key for task in job(Tuple(8), log=told.append).tasks] == ["0", "1"]
    assert "outputs in the order of the tasks: depth, semseg" in told
    data = [(torch.rand(4), torch.rand(2)) for _ in range(4)]
    found = job(nn.Linear(4, 2), tasks={"y": mtlc.Task(nn.MSELoss, "mse")}, train=data, validation=data)
    assert found.tasks == (
        TaskSpec("y", "torch.nn.modules.loss:MSELoss", "mse", output=""),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": {}}, 'tasks is empty: give a dict, such as \\{"depth": mtlc.Task'),
        ({"tasks": ["depth"]}, "tasks is a list: give a dict"),
        ({"tasks": {"depth": "l1"}}, r"tasks\['depth'\] is a str: give mtlc.Task\(loss, metric\)"),
        ({"tasks": {"depth": mtlc.Task(3, "rmse")}}, r"tasks\['depth'\] loss = 3: give a name, a function"),
        ({"tasks": {"depth": mtlc.Task("l1")}}, r"mtlc.compress: \[tasks.depth\] metric: this key is required"),
        ({"tasks": {"depth": mtlc.Task("l1", "rmse", "lots")}}, r"\[tasks.depth\].*max_drop = 'lots': write a share"),
        ({"tasks": {"a b": mtlc.Task("l1", "rmse", target="depth")}}, "task 'a b': a name is letters"),
        ({"tasks": {"depth": mtlc.Task("l1", "rmse", unit="m")}}, "metric = 'rmse' says itself"),
        ({"passes": ["prnue"]}, r"passes\[0\]: name = 'prnue': no such pass; did you mean 'prune'"),
        ({"passes": [3]}, r"passes\[0\] is a int: give a pass, such as mtlc.Prune\(round_to=16\)"),
        ({"passes": 3}, "passes is a int: give a list"),
        ({"passes": [{"round_to": 3}]}, r"passes\[0\]: has no name"),
        ({"passes": [{"name": "prune", "round": 3}]}, r"passes\[0\]: Prune: round: unknown key; did you mean 'rounds'"),
        ({"passes": [Own()]}, r"passes\[0\]: Own is no pass that mtlc finds by its name 'own'"),
        ({"validation": None}, "validation is missing: give data that no training sees, or all splits at once"),
        ({"inputs": "image"}, r"inputs = 'image': give a list: \['image'\]"),
        ({"inputs": ["rgb"]}, r"inputs: a sample has no 'rgb'; known: depth, image, semseg"),
        ({"sections": {"export": {"archve": True}}}, r"\[export\] archve: unknown key; did you mean 'archive'"),
        ({"sections": {"report": 3}}, r"report is a int: give a dict with the keys of \[report\] in a job"),
        ({"seed": -1}, "mtlc.compress: seed: input should be greater than or equal to 0, not -1"),
        ({"budget": "140% MACs"}, r"\[budget\].*macs = '140%': a share lies between 0% and 100%"),
        ({"train": None}, "train is missing: give data to train on"),
        ({"train": {"train": DATA[0], "validation": None}, "validation": None}, "the split 'validation' is missing"),
        ({"train_lr": -1.0}, "mtlc.compress: train_lr: lr"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_that_names_the_argument(changed, message):
    with pytest.raises(UserError, match=message):
        job(**changed)


def test_code_in_no_file_is_told():
    """As in a notebook: what cannot be compared is run anew."""
    code = (
        "import torch, mtlc\nfrom torch import nn\nfrom mtlc.job.python_job import python_job\n"
        "class Net(nn.Linear): pass\n"
        "data = (torch.rand(20, 4), torch.rand(20, 2))\n"
        "python_job(Net(4, 2), {'y': mtlc.Task('mse', 'mse')}, data, data, verb='v', passes=['prune'], log=print)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "what is defined in __main__ is in no file, so finished steps are not found again" in told
    told_here: list[str] = []
    job(passes=["prune"], log=told_here.append)
    assert not any("in no file" in line for line in told_here)


def test_settings_of_passes():
    with pytest.raises(UserError, match=r"^Prune: round_too: unknown key; did you mean 'round_to'"):
        mtlc.Prune(round_too=8)
    with pytest.raises(UserError, match=r"^Prune: give a config or settings, not both"):
        mtlc.Prune(mtlc.Prune().config, round_to=8)
    assert mtlc.Prune(finetune={"epochs": 2}).config.finetune.epochs == 2
    assert mtlc.Finetune(epochs="auto").config.epochs == "auto"
