"""Micro-batches: what is split how, the gradients of the whole batch, and what happens where memory runs out."""

from __future__ import annotations

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, same_state
from torch import Tensor, nn

from mtlc.compress.training.micro_batches import WHOLE, BatchSplit
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

THREE = tuple(TaskSpec(name, "mse", "mse") for name in ("semseg", "depth", "normals"))


class Plain(nn.Module):
    """No batch norm: what a sample teaches does not hang on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.depth, self.semseg = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.stem(image)
        return {"depth": self.depth(features), "semseg": self.semseg(features)}


class Limited(Plain):
    """Has memory for `most` samples, after its batch norm has seen them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.norm, self.most, self.seen = nn.BatchNorm2d(8), most, []

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.stem(image))
        if self.training:
            self.seen.append(len(image))
            if len(image) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"depth": self.depth(features), "semseg": self.semseg(features)}


def program(module: nn.Module) -> Program:
    source = ModelSource("testkit.tiny_networks:chain")
    return Program(module, REGRESSION, {"image": torch.zeros(2, 3, 8, 8)}, source)


def plain() -> Program:
    torch.manual_seed(4)
    return program(Plain())


def limited(most: int) -> Program:
    torch.manual_seed(4)
    return program(Limited(most))


def trained(made: Program, log=lambda line: None, teacher: Program | None = None, **settings) -> Program:
    data = tiny_networks.taught(tiny_networks.chain_program(REGRESSION), 16, 0)
    config = TrainConfig(**{"epochs": 3, "batch_size": 8, "precision": "float32", "lr": 0.01, **settings})
    splits = Splits(data, data, data, identity="test")
    train(made, splits, Criteria(made.tasks), config, seed=1, log=log, teacher=teacher)
    return made


def furthest(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two networks' weights, as a share of the largest weight of the tensor."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs if a.is_floating_point())


def test_a_batch_is_split_in_runs():
    found = [BatchSplit(7, REGRESSION, None, 0, rank, 2) for rank in (0, 1)]
    assert [split.share(0) for split in found] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [part.places for part in found[1].micro_batches(0, 2)] == [[0, 1], [2, 3]]
    assert [part.share for part in found[0].micro_batches(0, 2)] == [1 / 7, 2 / 7]
    assert BatchSplit(7, REGRESSION, None, 0, 0, 1).micro_batches(0, 1) == [WHOLE]


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_tasks_are_dealt_alike_however_a_batch_is_split(processes, accumulate):
    """Every sample trains the same tasks as in one piece, and every part has some of every task."""
    count, whole = 13, BatchSplit(13, THREE, 2, 5, 0, 1)
    for step in range(4):
        wanted = {
            task: {int(row) for row in rows} for task, rows in (whole.micro_batches(step, 1)[0].rows or {}).items()
        }
        found: dict[str, set[int]] = {task.output_key: set() for task in THREE}
        shares = dict.fromkeys(found, 0.0)
        for rank in range(processes):
            split = BatchSplit(count, THREE, 2, 5, rank, processes)
            own = split.share(step) or list(range(count))
            for part in split.micro_batches(step, accumulate):
                here = own if part.places is None else [own[place] for place in part.places]
                for task in THREE:
                    rows = part.rows[task.output_key]
                    assert len(rows) > 0
                    found[task.output_key] |= {here[int(row)] for row in rows}
                    shares[task.output_key] += part.share_of(task)
        assert found == wanted
        assert shares == pytest.approx(dict.fromkeys(found, 1.0))


def test_micro_batches_give_the_network_of_the_whole_batch():
    """Losses that are means over samples: the sums differ in their order alone, by float32's rounding."""
    whole = trained(plain())
    for accumulate in (2, 3, 8):
        assert furthest(whole.module, trained(plain(), accumulate=accumulate).module) < 1e-4
    assert furthest(whole.module, plain().module) > 1e-2


def test_distillation_and_features_are_weighted_too():
    """The teacher's spread is that of a micro-batch, so this is near and not to rounding."""
    settings = {"distill": 1.0, "lr": 1e-3}
    whole = trained(plain(), teacher=plain(), **settings)
    split = trained(plain(), teacher=plain(), accumulate=2, **settings)
    assert 0 < furthest(whole.module, split.module) < 0.02


def test_tasks_per_sample_in_micro_batches():
    def routed() -> Program:
        torch.manual_seed(5)
        kwargs = {
            "tasks": {"semseg": 3, "depth": 1, "normals": 3}, "gate": "multi", "experts": 4, "top_k": 4,
            "image_size": [8, 8], "width": 8, "heads": 2, "blocks": 2, "patch": 4, "head_width": 4,
        }  # fmt: skip
        source = ModelSource("mtlc.zoo:m3vit", kwargs)
        return Program(source.build().eval(), THREE, {"image": torch.zeros(2, 3, 8, 8)}, source)

    def run(accumulate: int) -> tuple[Program, list[int]]:
        made, seen = routed(), []
        made.module.register_forward_pre_hook(
            lambda _, args: seen.append(sum(map(len, args[1].values()))) if len(args) > 1 else None
        )
        data = tiny_networks.taught(routed(), 12, 0)
        config = TrainConfig(
            epochs=2, batch_size=12, precision="float32", lr=1e-3, tasks_per_sample=2, accumulate=accumulate, ema=0
        )
        train(made, Splits(data, data, data, identity="x"), Criteria(THREE), config)
        return made, seen

    (_, whole), (_, split) = run(1), run(3)
    assert whole == [24, 24]  # two tasks of each of 12 samples
    assert split == [8] * 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate": 9}, "accumulate = 9: a batch of 8 samples is too small for so many micro-batches"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_too_many_micro_batches(settings, words):
    with pytest.raises(Exception, match=words):
        trained(plain(), **settings)


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    lines: list[str] = []
    made = trained(limited(3), lines.append, epochs=1)
    assert made.module.seen == [8, 4, *[2] * 8]  # found in the first of two steps
    assert lines == [
        f"micro-batches of {size} samples do not fit in memory: batches of 8 are trained in {number} from here on, as "
        f"accumulate = {number} would; batch norms see one micro-batch at a time"
        for size, number in ((8, 2), (4, 4))
    ]
    # What failed has left nothing behind: neither gradients nor statistics.
    assert same_state(made.module, trained(limited(8), epochs=1, accumulate=4).module)


def test_a_sample_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"batch_size: not even micro-batches of 1 sample fit in memory"):
        trained(limited(0))


def test_bfloat16_on_a_cpu():
    """Layers compute in bfloat16, losses and weights are in float32."""
    kinds = {}

    def run(precision: str) -> Program:
        made = plain()
        made.module.depth.register_forward_hook(lambda _, inputs, output: kinds.update({precision: output.dtype}))
        return trained(made, precision=precision, epochs=1)

    half, full = run("bfloat16"), run("float32")
    assert kinds == {"bfloat16": torch.bfloat16, "float32": torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in half.module.parameters())
    assert not same_state(full.module, half.module)
    data = tiny_networks.taught(tiny_networks.chain_program(REGRESSION), 16, 0)
    losses = [evaluate(made, Criteria(REGRESSION), data).losses for made in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
