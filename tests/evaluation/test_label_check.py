"""Labels that are none, each named with its sample; and labels that are, which nobody holds up."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from testkit.tiny_networks import Samples
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.label_check import LabelCheck
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

COUNT, BAD = 70, 41  # in the second batch of 32


class Net(nn.Module):
    """image (N, 3, H, W): depth, classes and edges are convolutions of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depth, self.seg, self.edge = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {name: layer(image) for name, layer in self.named_children()}


def log_depth(output: Tensor, target: Tensor) -> Tensor:
    return (output.exp().log() - target.log()).abs().mean()


def inverse(output: Tensor, target: Tensor) -> Tensor:
    return (1 / (target - output)).mean()


def labels(count: int = COUNT, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(count, 3, 4, 4, generator=generator),
        "depth": 1 + torch.rand(count, 1, 4, 4, generator=generator),
        "seg": torch.randint(0, 4, (count, 4, 4), generator=generator),
        "edge": (torch.rand(count, 1, 4, 4, generator=generator) > 0.8).float(),
    }


TASKS = {
    "depth": TaskSpec("depth", "l1", "rmse"),
    "seg": TaskSpec("seg", "cross_entropy", "miou"),
    "edge": TaskSpec("edge", "balanced_bce", "odsf"),
}


def program(*tasks: TaskSpec) -> Program:
    ignored = tuple(name for name in TASKS if name not in {task.name for task in tasks})
    example = {"image": torch.zeros(2, 3, 4, 4)}
    return Program(Net().eval(), tasks, example, ModelSource("none:none"), ignored_outputs=ignored)


def check(train: Mapping[str, Tensor], part: bool = False, **tasks: TaskSpec) -> None:
    """Check a train split, or the whole as a part of it, beside good splits; some tasks may be others."""
    specs = tuple({**TASKS, **tasks}.values())
    data = Samples(train)
    splits = Splits(Subset(data, range(len(data))) if part else data, Samples(labels(3, 1)), Samples(labels(3, 2)))
    LabelCheck(program(*specs), Criteria(specs), splits).rest()


def spoilt(task: str, value: float) -> dict[str, Tensor]:
    made = labels()
    made[task][BAD].view(-1)[5] = value
    return made


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize(
    ("task", "value", "spec", "words"),
    [
        ("seg", 9, None, r"\[tasks.seg\] loss = 'cross_entropy': expected classes 0 to 3 or 255, but .* holds 9"),
        ("seg", -1, None, "expected classes 0 to 3 or 255, but the target holds -1"),
        ("seg", 255, TaskSpec("seg", "cross_entropy", "miou", ignore=-1), "0 to 3 or -1, but the target holds 255"),
        (
            "edge",
            2.0,
            None,
            r"\[tasks.edge\] loss = 'balanced_bce': expected labels from 0 to 1 or 255, but the target holds 2",
        ),
        ("edge", float("nan"), None, "expected labels from 0 to 1 or 255, but the target holds nan"),
        ("depth", float("nan"), TaskSpec("depth", "mse", "mse"), "expected finite labels, but the target holds nan"),
        ("depth", float("nan"), TaskSpec("depth", f"{__name__}:log_depth", "rmse"), "log_depth' is nan; look for NaN"),
        ("depth", 0.0, TaskSpec("depth", f"{__name__}:log_depth", "rmse"), "log_depth' is inf"),
    ],
)
def test_a_late_bad_label_is_named_with_its_sample(part, task, value, spec, words):
    with pytest.raises(UserError, match=rf"^\[data\] train sample {BAD}: .*{words}"):
        check(spoilt(task, value), part, **({} if spec is None else {task: spec}))


def test_labels_in_order():
    check(labels())
    check(spoilt("seg", 255))
    check(spoilt("depth", float("nan")))  # l1 leaves out what was not measured
    check(spoilt("edge", 255.0))
    check(spoilt("edge", 2.0), edge=TaskSpec("edge", "balanced_bce", "odsf", ignore=2))


def test_the_shape_of_one_label():
    class Odd(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.tensors = labels()

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            sample = {name: tensor[index] for name, tensor in self.tensors.items()}
            return {**sample, "depth": sample["depth"][:, :2]} if index == BAD else sample

    specs = tuple(TASKS.values())
    splits = Splits(Odd(), Samples(labels(3)), Samples(labels(3)))
    with pytest.raises(UserError, match=rf"train sample {BAD}: \[tasks.depth\] loss = 'l1': expected .* one shape"):
        LabelCheck(program(*specs), Criteria(specs), splits).rest()


@pytest.mark.parametrize("bad", [4, 40])  # the network is not run on more than 32 sizes
def test_samples_of_other_sizes_are_held_against_outputs_of_their_size(bad):
    class Sizes(torch.utils.data.Dataset):
        def __init__(self, bad: int) -> None:
            self.bad = bad

        def __len__(self) -> int:
            return 42

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            size = 4 + index
            label = torch.full((size, size), 5 if index == self.bad else 3)
            return {"image": torch.rand(3, size, size), "seg": label}

    task = TASKS["seg"]
    good = Samples({"image": torch.rand(2, 3, 4, 4), "seg": torch.zeros(2, 4, 4, dtype=torch.long)})
    LabelCheck(program(task), Criteria([task]), Splits(Sizes(-1), good, good)).rest()
    with pytest.raises(UserError, match=rf"train sample {bad}: .* holds 5"):
        LabelCheck(program(task), Criteria([task]), Splits(Sizes(bad), good, good)).rest()


def test_a_label_that_only_another_samples_output_does_not_fit():
    """1 / (target - output) is infinite for one sample's output and another's label, not for the sample's own."""
    made = labels()
    with torch.no_grad():
        made["depth"] = Net()(made["image"])["depth"] + 1
        made["depth"][BAD] = Net()(labels(3, 1)["image"])["depth"][0]
    check(made, depth=TaskSpec("depth", f"{__name__}:inverse", "rmse"))


@pytest.mark.parametrize(("task", "value"), [("depth", 0.0), ("seg", 255), ("edge", 255.0)])
def test_a_split_without_a_label(task, value):
    made = labels()
    made[task][:] = value
    with pytest.raises(UserError, match=rf"\[data\] train: no label of task '{task}' counts"):
        check(made)


def test_masks_of_0_and_255():
    """255 does not count, so such masks would teach that there is never an edge."""
    made = labels()
    made["edge"] *= 255
    with pytest.raises(UserError, match=r"no label of task 'edge' is positive, and 255 does not count; .* divide them"):
        check(made)
    made["edge"] /= 255
    check(made)


class Counting(Samples):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.reads = 0

    def batch(self, indices):
        self.reads += len(indices)
        return super().batch(indices)


def test_what_was_watched_is_not_read_again():
    """The identity of data that have none reads all of them, and that is the only time."""
    data, other = Counting(labels()), Samples(labels(3, 1))
    specs = tuple(TASKS.values())
    splits = Splits(data, other, other)
    found = LabelCheck(program(*specs), Criteria(specs), splits)
    splits.identify(watch=found.watch)
    read = data.reads
    assert read >= COUNT
    found.rest()
    assert data.reads == read


def test_parts_of_data_are_read_by_themselves():
    """A sample that is in no split may be what it likes."""
    whole, other = Samples(spoilt("seg", 9)), Samples(labels(3, 1))
    specs = tuple(TASKS.values())
    good = Subset(whole, [index for index in range(COUNT) if index != BAD])
    splits = Splits(ConcatDataset([good, other]), other, other)
    found = LabelCheck(program(*specs), Criteria(specs), splits)
    splits.identify(watch=found.watch)
    found.rest()
    assert found._seen["train"] == set(range(COUNT - 1 + 3))


def test_watching_names_the_sample_too():
    specs = tuple(TASKS.values())
    splits = Splits(Samples(spoilt("seg", 9)), Samples(labels(3)), Samples(labels(3)))
    with pytest.raises(UserError, match=f"train sample {BAD}: "):
        splits.identify(watch=LabelCheck(program(*specs), Criteria(specs), splits).watch)
