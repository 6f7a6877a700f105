"""Several processes: the network of one process to rounding, in every kind of training, however a batch is split."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from testkit import processes, tiny_networks
from testkit.tiny_networks import REGRESSION, Fragile, Samples, same_state
from testkit.wide_networks import TASKS, fresh, supernet_of
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.qat import Qat, QatConfig
from mtlc.compress.slimmable.sandwich_training import SlimTrainConfig, train_supernet
from mtlc.compress.training.process_group import ProcessGroup
from mtlc.compress.training.recovery import range_test
from mtlc.compress.training.synchronised_norms import SynchronisedNorms
from mtlc.compress.training.teacher_spread import TeacherSpread
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

SETTINGS = {"epochs": 3, "batch_size": 8, "precision": "float32", "lr": 2e-3}


def chain(seed: int = 7) -> Program:
    return tiny_networks.program("chain", 8, REGRESSION, seed=seed)


DATA = tiny_networks.taught(chain(0), 16, 0)
SPLITS = Splits(DATA, DATA, DATA, identity="test")


def trained(program: Program, splits: Splits = SPLITS, teacher: Program | None = None, **settings) -> Program:
    config = TrainConfig(**{**SETTINGS, **settings})
    train(program, splits, Criteria(program.tasks), config, seed=1, teacher=teacher)
    return program


def furthest(one: nn.Module, other: nn.Module, of: str = "") -> float:
    """The largest difference of two networks' tensors, as a share of the tensor's largest number; of names that end so.

    A bias before a batch norm has no gradient but for rounding, of which AdamW makes steps: leave those out.
    """
    a, b = one.state_dict(), other.state_dict()
    return max(
        float((a[name] - b[name]).abs().max() / a[name].abs().max())
        for name in a
        if name.endswith(of) and a[name].is_floating_point()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": 0.0, "workers": 1},
        {"distill": 1.0, "distill_features": 1.0},
        {"gradient_checkpointing": True},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_two_processes_train_the_network_of_one(settings):
    """To float32's rounding, with batch norms, whose statistics are those of both; bfloat16 rounds to three digits."""
    guide = chain(0) if "distill" in settings else None
    alone = trained(chain(), teacher=guide, **settings)
    both = processes.together(SPLITS, lambda: trained(chain(), teacher=guide, **settings))
    assert furthest(alone.module, both.module) < (0.05 if "precision" in settings else 1e-4)
    assert furthest(alone.module, chain().module) > 0.01


def test_three_processes_whose_shares_differ():
    alone = trained(chain(), batch_size=7)
    both = processes.together(SPLITS, lambda: trained(chain(), batch_size=7), 3)
    assert furthest(alone.module, both.module) < 1e-4


class Drawing(Samples):
    """Noise of torch's generator on every sample, and an augmentation."""

    def batch(self, indices) -> dict[str, Tensor]:
        found = super().batch(indices)
        return {**found, "image": found["image"] + 0.1 * torch.randn(found["image"].shape)}

    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {**batch, "image": batch["image"] * (1 + 0.2 * torch.rand((), generator=generator))}


@pytest.mark.parametrize("augment", [True, False])
def test_data_that_draws_is_drawn_alike(augment):
    data = Drawing(DATA.tensors)
    splits = Splits(data, DATA, DATA, identity="test")
    alone = trained(chain(), splits, augment=augment)
    both = processes.together(splits, lambda: trained(chain(), splits, augment=augment))
    assert furthest(alone.module, both.module) < 1e-4


@pytest.mark.parametrize("most", [12, 3, 0])
def test_labels_that_are_missing(most):
    """A step of which one process has no label of a task, and one of which none has."""
    tensors = DATA.tensors
    lacking = [
        {key: value[i] for key, value in tensors.items() if key != "depth" or i < most} for i in range(len(DATA))
    ]
    splits = Splits(lacking, DATA, DATA, identity="test", labelled={"train": {"depth": most, "semseg": 16}})
    alone = trained(chain(), splits, batch_size=4)
    both = processes.together(splits, lambda: trained(chain(), splits, batch_size=4))
    assert furthest(alone.module, both.module) < 1e-4
    assert torch.equal(both.module.depth.weight, chain().module.depth.weight) == (most == 0)


def test_tasks_per_sample():
    names = ("semseg", "depth", "normals")
    tasks = tuple(TaskSpec(name, "mse", "mse") for name in names)

    def routed() -> Program:
        torch.manual_seed(5)
        kwargs = {
            "tasks": {"semseg": 3, "depth": 1, "normals": 3}, "gate": "multi", "experts": 2, "top_k": 2,
            "image_size": [8, 8], "width": 8, "heads": 2, "blocks": 2, "patch": 4, "head_width": 4, "noise": 0.0,
        }  # fmt: skip
        source = ModelSource("mtlc.zoo:m3vit", kwargs)
        module = source.build()
        return Program(module.eval(), tasks, {"image": torch.zeros(2, 3, 8, 8)}, source)

    data = tiny_networks.taught(routed(), 12, 0)
    splits, settings = Splits(data, data, data, identity="test"), {"tasks_per_sample": 2, "batch_size": 6, "lr": 1e-3}
    alone = trained(routed(), splits, **settings)
    both = processes.together(splits, lambda: trained(routed(), splits, **settings))
    assert furthest(alone.module, both.module, ".weight") < 1e-4
    assert furthest(alone.module, routed().module, ".weight") > 1e-2


@pytest.mark.parametrize("labels", [0.0, 0.5])
def test_the_sandwich(labels):
    data = tiny_networks.taught(supernet_of("grouped").program, 8, 0)
    splits = Splits(data, data, data, identity="test")
    settings = {**SETTINGS, "epochs": 2, "batch_size": 4, "labels": labels, "distill": 0.5, "distill_features": 0.5}

    def run() -> nn.Module:
        supernet = fresh("grouped")
        config, teacher = SlimTrainConfig(**settings), supernet_of("grouped").program
        train_supernet(supernet, splits, Criteria(TASKS), config, teacher=teacher)
        return supernet.program.module

    alone = run()
    assert furthest(alone, processes.together(splits, run), ".weight") < 1e-4
    assert furthest(alone, fresh("grouped").program.module, ".weight") > 1e-2


def test_quantisation_aware_training(tmp_path):
    """Norms are frozen and weights parametrised; numbers at the edge of a step may be rounded to the other side."""
    splits = tiny_networks.taught_splits(chain(0), train=16)

    def run(folder: Path) -> nn.Module:
        context = Context(splits, Criteria(REGRESSION), chain(0), folder)
        config = QatConfig(epochs=1, batch_size=8, lr=1e-3, target="x86-vnni", calibration_samples=4)
        return Qat(config).run(chain(0), context).program.module

    alone, both = run(tmp_path / "1"), processes.together(splits, lambda: run(tmp_path / "2"))
    assert furthest(alone, both) < 0.01
    assert torch.equal(both.stem[1].running_mean, chain(0).module.stem[1].running_mean)


def test_a_range_test_and_a_loss_that_is_no_number():
    """Every process sees it at the same step, and takes part in what follows."""
    broken = Samples({**DATA.tensors, "depth": torch.full_like(DATA.tensors["depth"], math.inf)})

    context = Context(SPLITS, Criteria(REGRESSION), chain(0), Path())
    alone = range_test(chain(), context, TrainConfig(**SETTINGS), 1)

    found = processes.together(SPLITS, lambda: range_test(chain(), context, TrainConfig(**SETTINGS), 1))
    assert found["lr"] == alone["lr"]
    assert [one["loss"] for one in found["rates"]] == pytest.approx([one["loss"] for one in alone["rates"]], abs=2e-3)
    splits = replace(SPLITS, train=broken)

    def diverges() -> str:
        try:
            trained(chain(), splits)
        except UserError as error:
            return f"{type(error).__name__} {error}"
        return "trained"

    said = processes.together(splits, diverges)
    assert said.startswith("Diverged task 'depth': its loss became inf at training step")


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_killed_run_goes_on_where_it_was(tmp_path, stop):
    """The first process alone has the checkpoint; the others get weights, averages and moments from it."""
    config = TrainConfig(**SETTINGS, ema=0.9, checkpoint_seconds=1e-9)
    alone = trained(chain(), ema=0.9)

    def killed() -> None:
        made = chain()
        train(made, fragile, Criteria(made.tasks), config, seed=1, checkpoint=tmp_path / "state")

    fragile = replace(SPLITS, train=Fragile(DATA.tensors, stop), identity="test")
    with pytest.raises(AssertionError, match="Stopped"):
        processes.together(fragile, killed)
    assert (tmp_path / "state" / "state.json").exists()
    lines: list[str] = []

    def again() -> tuple[Program, list[str]]:
        made = chain()
        train(made, SPLITS, Criteria(made.tasks), config, seed=1, checkpoint=tmp_path / "state", log=lines.append)
        return made, lines

    kept = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()}
    made, said = processes.together(SPLITS, again)
    assert said == [f"training goes on from step {stop} of 6"]
    assert furthest(alone.module, made.module) < 1e-4
    for name, content in kept.items():  # and in one process
        (tmp_path / "state" / name).write_bytes(content)
    made, said = again()
    assert said == [f"training goes on from step {stop} of 6"]
    assert furthest(alone.module, made.module) < 1e-4


def test_networks_that_pickle_does_not_know():
    """Parametrised weights, and a method that was put on a layer."""

    def weighted() -> Program:
        made = chain()
        parametrizations.weight_norm(made.module.depth)
        return made

    alone, both = trained(weighted()), processes.together(SPLITS, lambda: trained(weighted()))
    assert furthest(alone.module, both.module) < 1e-4


def test_a_network_that_cannot_be_sent_is_refused():
    class Local(tiny_networks.Chain):
        pass

    def lead() -> str:
        made = replace(chain(), module=Local())
        with pytest.raises(UserError) as caught:
            trained(made)
        return str(caught.value)

    said = processes.together(SPLITS, lead)
    assert said.startswith("the training cannot be sent to the other processes: ")
    assert "at the top of a module" in said


def test_too_many_processes_for_the_batch():
    def lead() -> str:
        with pytest.raises(UserError) as caught:
            trained(chain(), batch_size=2, accumulate=2)
        return str(caught.value)

    assert processes.together(SPLITS, lead) == (
        "accumulate = 2 in each of 2 processes: a batch of 2 samples is too small for so many micro-batches; "
        "raise batch_size or lower accumulate"
    )


# -- what is summed ------------------------------------------------------------------------------------------------


def test_batch_norms_over_two_processes_are_those_of_one():
    """Outputs, statistics and every gradient, for shares of different size."""
    torch.manual_seed(0)
    image, wanted, norm = torch.randn(5, 3, 4, 4) + 3, torch.randn(5, 3, 4, 4), nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight)

    def run(rows: slice) -> list[Tensor]:
        x = image[rows].clone().requires_grad_()
        output = norm(x)
        ((output - wanted[rows]) ** 2).sum().backward()
        return [output, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]

    def body(group: ProcessGroup) -> list[Tensor]:
        with SynchronisedNorms(group):
            found = run(slice(0, 2) if group.rank == 0 else slice(2, 5))
        return [value.detach() for value in found]

    one, two = processes.each(body)
    output, gradient, weight, bias, mean, variance = (value.detach() for value in run(slice(0, 5)))
    for found, expected in (
        (torch.cat([one[0], two[0]]), output), (torch.cat([one[1], two[1]]), gradient),
        (one[2] + two[2], weight), (one[3] + two[3], bias), (one[4], mean), (two[5], variance),
    ):  # fmt: skip
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(one[4], two[4])
    assert functional.batch_norm(image, norm.running_mean, norm.running_var).shape == image.shape


def test_the_teachers_spread_over_two_processes():
    values = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4]) + 5

    def body(group: ProcessGroup) -> tuple[Tensor, Tensor]:
        own, spread = values[:3] if group.leads else values[3:], TeacherSpread(group)
        return spread.deviation(own), spread.variance(own)

    for deviation, variance in processes.each(body):
        assert float(deviation) == pytest.approx(float(values.std()), rel=1e-5)
        assert float(variance) == pytest.approx(float(values.var(0, correction=0).mean()), rel=1e-5)
    assert float(TeacherSpread().variance(values)) == pytest.approx(float(values.var(0, correction=0).mean()), rel=1e-5)


def test_gradients_are_summed_where_any_process_has_one():
    def body(group: ProcessGroup) -> tuple[list, list]:
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.full((2,), 1.0 + group.rank)
        if group.rank == 1:
            parameters[1].grad = torch.full((2,), 5.0)
        values = group.sum_gradients(parameters, [0.5 * (1 + group.rank)])
        return [None if p.grad is None else p.grad.tolist() for p in parameters], values

    assert processes.each(body) == [([[3.0, 3.0], [5.0, 5.0], None], [1.5])] * 2


def test_a_loss_that_one_process_alone_has_seen_is_its_own():
    """Labels of depth were in its share only; each process had half of the step."""

    def body(group: ProcessGroup) -> tuple[dict, dict]:
        sums, shares = ({"depth": 1.5, "a": 0.5}, {"depth": 0.5, "a": 0.5}) if group.leads else ({"a": 1.0}, {"a": 0.5})
        return group.sum_step([], ["a", "depth", "never"], sums, shares)

    assert processes.each(body) == [({"a": 1.5, "depth": 1.5}, {"a": 1.0, "depth": 0.5})] * 2


def test_each_process_has_a_gpu_of_its_own():
    """On a machine with one GPU, as far as torch says."""

    def body(group: ProcessGroup) -> list[str]:
        plain = group.own_device("cuda")
        torch.cuda.is_available = lambda: True  # in this process, which ends here
        torch.cuda.device_count = lambda: 1
        found = [plain, group.own_device("cpu"), group.own_device("cuda:0")]
        try:
            found.append(group.own_device("auto"))
        except UserError as error:
            found.append(str(error))
        torch.cuda.is_available = lambda: False
        return found

    one, two = processes.each(body)
    assert one == ["cuda", "cpu", "cuda:0", "cuda:0"]
    assert two[:3] == ["cuda", "cpu", "cuda:0"]
    assert two[3] == (
        "device = 'auto': this machine has 1 GPUs, and process 1 is its number 2: start no more processes than there "
        "are GPUs, or say device = 'cpu'"
    )


def test_the_first_to_fail_says_so():
    def body(group: ProcessGroup) -> tuple[bool, int | None]:
        if group.leads:
            group.said("wait")
            return group.fails_first(2), group.failure()
        first = group.fails_first(3)
        group.said()
        return first, group.failure()

    assert processes.each(body) == [(False, 3), (True, 3)]


def test_weights_are_the_same_in_both():
    def lead() -> nn.Module:
        return trained(chain()).module

    assert same_state(processes.together(SPLITS, lead), processes.together(SPLITS, lead))
