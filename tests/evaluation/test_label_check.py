"""Labels that are none, each named with its sample; and labels that are, which nobody holds up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from testkit.tiny_networks import Samples
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from mtlc.errors import UserError
from mtlc.evaluation.collation import collate
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.label_check import LabelCheck
from mtlc.evaluation.sample_forms import Names
from mtlc.evaluation.splits import Splits, as_splits, fetch
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
        ("edge", float("inf"), None, "expected labels from 0 to 1 or 255, but the target holds inf"),
        ("depth", float("inf"), TaskSpec("depth", "mse", "mse"), "expected finite labels, but the target holds inf"),
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
    check(spoilt("edge", float("nan")))
    check(spoilt("depth", float("nan")), depth=TaskSpec("depth", "mse", "mse"))
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
    assert found._seen["train"].tolist() == [True] * (COUNT - 1 + 3)


def test_watching_names_the_sample_too():
    specs = tuple(TASKS.values())
    splits = Splits(Samples(spoilt("seg", 9)), Samples(labels(3)), Samples(labels(3)))
    with pytest.raises(UserError, match=f"train sample {BAD}: "):
        splits.identify(watch=LabelCheck(program(*specs), Criteria(specs), splits).watch)


# --- Boxes ----------------------------------------------------------------------------------------------------------

POSTPROCESS = {"kind": "detection", "size": [16, 16], "strides": [8]}
NOTHING = [0.0, 0.0, 0.0, 0.0, -1.0]


class Detector(nn.Module):
    """image (N, 3, 16, 16): raw detections (N, 4, 7) of two classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.predict = nn.Conv2d(3, 7, 8, 8)

    def forward(self, image: Tensor) -> Tensor:
        return self.predict(image).flatten(2).transpose(1, 2)


class Ragged:
    """Samples with as many rows as they have boxes; no `batch` of its own."""

    def __init__(self, *boxes: list[list[float]]) -> None:
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": torch.full((3, 16, 16), float(index)), "boxes": torch.tensor(self.boxes[index]).view(-1, 5)}


def check_boxes_of(*boxes: list[list[float]], **changes: object) -> None:
    values = {"output": "", "target": "boxes", "postprocess": POSTPROCESS, **changes}
    task = TaskSpec("detection", "simota", "map", **values)  # type: ignore[arg-type]
    good = Ragged([[1.0, 1, 9, 9, 1]], [])
    made = Program(Detector().eval(), (task,), {"image": torch.zeros(2, 3, 16, 16)}, ModelSource("none:none"))
    LabelCheck(made, Criteria((task,)), Splits(Ragged(*boxes), good, good)).rest()


def test_pictures_with_many_few_and_no_boxes():
    check_boxes_of([[0.0, 0, 16, 16, 0], [3, 3, 4, 4, 1]], [], [NOTHING], [[0.0, 0, 0, 0, 255]])
    stacked = fetch(Ragged([[1.0, 1, 9, 9, 1], [2, 2, 3, 3, 0]], [], [[4.0, 4, 5, 5, 1]]), [0, 1, 2])["boxes"]
    assert stacked.tolist() == [
        [[1, 1, 9, 9, 1], [2, 2, 3, 3, 0]],
        [NOTHING, NOTHING],
        [[4, 4, 5, 5, 1], NOTHING],
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([9.0, 1, 1, 9, 1], "box 1 (9, 1, 1, 9, 1) has no area; give x1 < x2 and y1 < y2"),
        (
            [1.0, 1, 9, 17, 1],
            "box 1 (1, 1, 9, 17, 1) leaves the picture of 16 × 16 pixels (H × W); cut it at the border",
        ),
        ([1.0, 1, 9, 9, 2], "box 1 (1, 1, 9, 9, 2) has a class that is none of 0 to 1, nor -1 for nothing"),
        ([1.0, 1, float("nan"), 9, 1], "box 1 (1, 1, nan, 9, 1) is not finite; rows of nothing have class -1"),
    ],
)
def test_bad_boxes_name_the_sample(row: list[float], words: str):
    with pytest.raises(UserError) as caught:
        check_boxes_of([], [[1.0, 1, 9, 9, 1], row])
    assert str(caught.value) == f"[data] train sample 1: [tasks.detection] loss = 'simota': {words}"


def test_what_else_is_wrong_with_boxes():
    with pytest.raises(UserError, match=r"\[data\] train: no label of task 'detection' counts, in any of its samples"):
        check_boxes_of([], [NOTHING], [[0.0, 0, 0, 0, 255]])
    with pytest.raises(UserError, match=r"\[tasks.detection\] a task with boxes needs postprocess = \{"):
        check_boxes_of([[1.0, 1, 9, 9, 1]], postprocess=None)
    with pytest.raises(
        UserError, match=r"expected an output \(N, 16, 5 \+ classes\) for size \[16, 16\] and strides \[4\]"
    ):
        check_boxes_of([[1.0, 1, 9, 9, 1]], postprocess=POSTPROCESS | {"strides": [4]})
    check_boxes_of([[1.0, 1, 9, 9, 1]], [[1.0, 1, 9, 9, 7]], ignore=7)


def test_losses_that_do_not_ask_are_not_told():
    """A loss and a metric of the user's own, without an argument for it."""
    task = TaskSpec("detection", "mse", "mse", output="", postprocess=POSTPROCESS)
    criteria = Criteria((task,))
    assert criteria.loss(task, torch.ones(1, 4, 7), {"detection": torch.zeros(1, 4, 7)}).item() == 1


# --- Streams and loaders ------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """Samples one after the other, one of them with another label."""

    def __init__(self, task: str, bad: Tensor) -> None:
        self.task, self.bad = task, bad

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        whole = labels()
        for index in range(COUNT):
            sample = {name: value[index] for name, value in whole.items()}
            yield sample | ({self.task: self.bad} if index == BAD else {})


FORMS = {
    "iterable": lambda data: data,
    "generator": lambda data: iter(data),
    "loader of a stream": lambda data: DataLoader(data, batch_size=None),
    "loader with workers": lambda data: DataLoader(list(data), batch_size=4, num_workers=2),
    "loader that collates": lambda data: DataLoader(list(data), collate_fn=lambda samples: collate(samples)),
    "list": list,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("task", "bad", "words"),
    [
        ("seg", torch.full((4, 4), 4), "expected classes 0 to 3 or 255, but the target holds 4"),
        ("seg", torch.zeros(4, 4), "expected class numbers as integers, but the target is float32"),
        ("depth", torch.ones(1, 2, 4), r"expected output and target of one shape, .*target \(1, 1, 2, 4\)"),
        ("edge", torch.full((1, 4, 4), 7.0), "expected labels from 0 to 1 or 255, but the target holds 7"),
    ],
)
def test_bad_labels_of_streams_name_task_and_sample(form: str, task: str, bad: Tensor, words: str):
    """A stream is read once, and its samples have the numbers in which they came."""
    train = FORMS[form](Stream(task, bad))
    good = list(Stream("seg", labels()["seg"][BAD]))
    if form == "loader that collates" and bad.shape != labels()[task].shape[1:]:
        pytest.skip("its own collation stacks them")
    splits = as_splits((train, good[:8], good[8:16]), Names(("image",), tuple(TASKS)), "given")
    specs = tuple(TASKS.values())
    with pytest.raises(UserError, match=rf"^\[data\] train sample {BAD}: \[tasks.{task}\] loss = .*{words}") as error:
        LabelCheck(program(*specs), Criteria(specs), splits).rest()
    assert "\n" not in str(error.value)
