"""Samples without a label of a task: whatever is measured of the task is as if they were not there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.partial_labels import NAN, TASKS, Listed, label_of, labelled, nothing_of, output_of, unlabelled
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.evaluation.collation import collate, labelled_key
from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.data_identity import data_identity
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.label_check import LabelCheck
from mtlc.evaluation.labelled import labelled_rows
from mtlc.evaluation.mixed import mixed
from mtlc.evaluation.splits import Splits, batches, fetch
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.losses import LOSSES
from mtlc.tasks.metrics import METRICS
from mtlc.tasks.task import TaskSpec


def said(batch):
    return dict.fromkeys(TASKS, batch["said"])


def test_every_loss_and_metric_is_tried():
    assert {task.loss for task in TASKS.values()} >= LOSSES.keys()
    assert {task.metric for task in TASKS.values()} >= METRICS.keys()


@st.composite
def spread(draw, name: str):
    """Labelled samples, and the same with unlabelled ones among them."""
    alone = labelled(name, draw(st.integers(1, 6)), draw(st.integers(0, 99)))
    among = list(alone)
    for number in range(draw(st.integers(1, 6))):
        nothing = draw(st.sampled_from(range(len(nothing_of(name)))))
        among.insert(draw(st.integers(0, len(among))), unlabelled(name, nothing_of(name)[nothing], 1000 + number))
    return alone, among


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_losses_and_metrics_are_those_of_the_labelled_samples(name, data):
    """To the last digit: the same samples stand together in a loss, whichever batches they came in."""
    alone, among = data.draw(spread(name))
    size, criteria = data.draw(st.integers(1, 5)), Criteria([TASKS[name]])
    expected, found = (evaluate(said, criteria, Listed(some), size) for some in (alone, among))
    assert found.losses == expected.losses
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-12, nan_ok=True)
    assert found.labelled == expected.labelled == {name: len(alone)}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "own"])
def test_pixels_that_are_no_label_take_no_part(name):
    """A wrong answer there changes neither loss nor metric."""
    if name.startswith("boxes"):
        return
    generator = torch.Generator().manual_seed(5)
    output, label = output_of(name, generator)[None], label_of(name, generator)[None]
    label[..., 3, 3] = {"classes": 255, "hits": 1}.get(name, NAN)
    # Metrics of edges and of normals look at neighbours and channels: the whole pixel is another.
    other = output.clone()
    other[..., 3, 3] = -other[..., 3, 3]
    criteria = Criteria([replace(TASKS[name], metric_args={"thin": False, "tolerance": 0.0} if name == "edge" else {})])
    one, two = (evaluate(lambda batch, o=o: {name: o}, criteria, [{name: label[0]}]) for o in (output, other))
    assert one.losses == two.losses
    assert one.metrics == two.metrics
    assert math.isfinite(one.losses[name])


@pytest.mark.parametrize("name", ["classes", "depth", "value", "normals", "mask"])
def test_a_constant_predictor_knows_only_labels(name):
    alone = labelled(name, 4, 0)
    among = [unlabelled(name, nothing, 7) for nothing in nothing_of(name)] + alone
    expected, found = (
        constant_metrics(Criteria([TASKS[name]]), Listed(some), Listed(some), batch_size=3, channels={"classes": 3})
        for some in (alone, among)
    )
    assert expected[name] is not None
    assert found == expected
    nothing = Listed([unlabelled(name, None, 0)])
    assert constant_metrics(Criteria([TASKS[name]]), nothing, Listed(alone))[name] is None
    assert constant_metrics(Criteria([TASKS[name]]), Listed(alone), nothing)[name] is None


def test_a_mean_is_over_samples_and_not_over_batches():
    """By hand: errors 1, 2, 3 in batches of 2 with one, none and two labels."""
    samples = [{"said": torch.full((1, 1, 1), error), "value": torch.zeros(1, 1, 1)} for error in (1.0, 2.0, 3.0)]
    empty = {"said": torch.full((1, 1, 1), 9.0)}
    found = evaluate(said, Criteria([TASKS["value"]]), Listed([samples[0], empty, empty, empty, *samples[1:]]), 2)
    assert found.losses["value"] == pytest.approx((1 + 4 + 9) / 3)
    assert found.metrics["value"] == pytest.approx((1 + 4 + 9) / 3)


def test_one_pixel_is_a_label():
    """Wherever it lies: of the second sample it is in a column that is not looked at first."""
    labels = torch.full((3, 1, 20, 20), NAN)
    labels[0, 0, 0, 0] = labels[1, 0, 3, 13] = 1.0
    batch = {"value": labels}
    assert labelled_rows(TASKS["value"], torch.zeros(3, 1, 20, 20), batch, "loss").tolist() == [True, True, False]
    labels[2] = 0.0
    assert labelled_rows(TASKS["value"], torch.zeros(3, 1, 20, 20), batch, "loss") is None


def test_no_label_at_all_is_said():
    criteria = Criteria([TASKS["value"]])
    data = Listed([unlabelled("value", nothing, 0) for nothing in nothing_of("value")])
    with pytest.raises(UserError, match="task 'value': none of the 3 samples that are looked at has a label that"):
        evaluate(said, criteria, data)
    with pytest.raises(UserError, match=r"\[tasks.value\] the data has no 'value'; its keys: said"):
        evaluate(said, criteria, Listed([unlabelled("value", None, 0)]))
    found = evaluate(said, criteria, data, need_labels=False)
    assert math.isnan(found.losses["value"])
    assert math.isnan(found.metrics["value"])
    assert found.labelled == {"value": 0}


def test_a_batch_says_which_samples_have_a_label():
    batch = collate([{"a": torch.ones(2), "name": "x"}, {"a": torch.zeros(2), "b": 3}, {"a": torch.ones(2), "b": None}])
    assert batch["a"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert batch["b"].tolist() == [0, 3, 0]
    assert batch[labelled_key("b")].tolist() == [False, True, False]
    assert set(batch) == {"a", "b", "b:labelled"}
    assert set(collate([{"a": torch.ones(2), "b": None}])) == {"a"}
    boxes = collate([{"b": torch.ones(1, 5)}, {}, {"b": torch.ones(3, 5)}])
    assert boxes["b"][0, :, 4].tolist() == [1, -1, -1]
    assert boxes[labelled_key("b")].tolist() == [True, False, True]


def test_a_batch_of_full_samples_has_no_more_entries_than_they():
    assert set(fetch(labelled("value", 3, 0), [0, 1, 2])) == {"said", "value"}


class Whole(Listed):
    """Gives batches itself."""

    def __init__(self, made) -> None:
        super().__init__([{}])
        self.made = made

    def batch(self, indices):
        return self.made


def test_batches_of_a_data_sets_own():
    value = torch.ones(2, 1, 1, 1)
    mask = torch.tensor([True, False])
    made = {"said": 1 + value, "value": value * torch.tensor([0.0, NAN])[:, None, None, None], "other": None}
    criteria = Criteria([TASKS["value"]])
    assert evaluate(said, criteria, Whole(made)).losses == {"value": 4.0}
    made["value"] = value
    assert evaluate(said, criteria, Whole({**made, "value:labelled": mask})).labelled == {"value": 1}
    with pytest.raises(UserError, match=r"'value:labelled' is float32 \(2,\): give a bool for each of the 2 samples"):
        evaluate(said, criteria, Whole({**made, "value:labelled": mask.float()}))


def test_mixed_parts_are_spread_over_each_other():
    data = mixed([{"a": torch.tensor(i)} for i in range(4)], [{"b": torch.tensor(i)} for i in range(2)])
    seen = [next(iter(data[i].items())) for i in range(len(data))]
    assert [(key, int(value)) for key, value in seen] == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 1), ("a", 3)]
    expected = ["a", "a:labelled", "b", "b:labelled", "mixed:part"]
    assert [sorted(batch) for batch in batches(data, 3)] == [expected] * 2
    assert len(mixed(data, [{"c": torch.tensor(0)}]).made_of) == 3
    with pytest.raises(UserError, match="mixed: give one data set or more, with samples in each"):
        mixed([{}], [])


class Augmented(Listed):
    """Adds to its images what the generator draws, and turns its labels round; it knows only its own."""

    def __init__(self, samples, key: str, identity: str) -> None:
        super().__init__(samples)
        self.key, self.identity = key, identity

    def augment(self, batch, generator):
        assert set(batch) == {"image", self.key}
        return {"image": batch["image"] + torch.rand((), generator=generator), self.key: -batch[self.key]}


def test_each_part_makes_and_augments_its_own_samples():
    ones = {"image": torch.ones(1, 2, 2), "a": torch.ones(2)}
    boxes = [{"image": torch.zeros(1, 2, 2), "b": torch.ones(count, 5)} for count in (1, 2)]
    data = mixed(Augmented([ones] * 3, "a", "x"), Listed(boxes))
    batch = fetch(data, [0, 1, 2, 3])
    assert batch["mixed:part"].tolist() == [0, 1, 0, 1]
    assert batch["b"][1, :, 4].tolist() == [1, -1]
    drawn = float(torch.rand((), generator=torch.Generator().manual_seed(1)))
    found = data.augment(batch, torch.Generator().manual_seed(1))
    assert found["image"][:, 0, 0, 0].tolist() == pytest.approx([1 + drawn, 0, 1 + drawn, 0])
    assert found["a"][:, 0].tolist() == [-1, 0, -1, 0]
    assert found["a:labelled"].tolist() == [True, False, True, False]
    assert torch.equal(found["b"], batch["b"])
    assert not hasattr(mixed(Listed(boxes)), "augment")
    with pytest.raises(
        UserError, match=r"samples of several data sets do not stack: 'image' is \(1, 2, 2\) and \(1,\)"
    ):
        fetch(mixed([ones], [{"image": torch.ones(1)}]), [0, 1])


def test_mixed_data_are_told_by_their_parts():
    """Their identities are asked, and no sample is read for it."""

    def told(*names: str) -> str:
        data = mixed(*(Augmented([VALUE] * 2, "value", name) for name in names))
        return data_identity(data, lambda data, indices: pytest.fail("read"), "train")

    assert told("x", "y") == told("x", "y")
    assert len({told("x", "y"), told("y", "x"), told("x"), told("x", "z")}) == 4


class Net(nn.Module):
    """image (N, 1, H, W): two values of it."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.classes = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"value": self.value(image), "classes": self.classes(image)}


SPECS = (TASKS["value"], TASKS["classes"])
IMAGE = torch.ones(1, 2, 2)
VALUE, CLASSES = {"image": IMAGE, "value": IMAGE}, {"image": IMAGE, "classes": torch.zeros(2, 2, dtype=torch.long)}


def checked(train, calibration=(VALUE, CLASSES), taught: bool = False) -> tuple[Splits, list[str]]:
    program = Program(Net().eval(), SPECS, {"image": torch.ones(2, 1, 2, 2)}, ModelSource("none:none"))
    splits, lines = Splits(Listed(train), Listed(calibration), Listed([VALUE, VALUE, CLASSES])), list[str]()
    LabelCheck(program, Criteria(SPECS), splits, taught).rest(lines.append)
    return splits, lines


def test_labels_are_counted_and_said():
    splits, lines = checked([VALUE, CLASSES, {**VALUE, "value": torch.full((1, 2, 2), NAN)}])
    assert splits.labelled == {
        "train": {"value": 1, "classes": 1},
        "calibration": {"value": 1, "classes": 1},
        "validation": {"value": 2, "classes": 1},
    }
    assert lines == [
        "[data] labels of task 'value': 1 of 3 train, 1 of 2 calibration, 2 of 3 validation samples",
        "[data] labels of task 'classes': 1 of 3 train, 1 of 2 calibration, 1 of 3 validation samples",
    ]


def test_full_data_are_not_talked_about():
    both = {**VALUE, **CLASSES}
    program = Program(Net().eval(), SPECS, {"image": torch.ones(2, 1, 2, 2)}, ModelSource("none:none"))
    splits, lines = Splits(Listed([both] * 3), Listed([both]), Listed([both] * 2)), list[str]()
    LabelCheck(program, Criteria(SPECS), splits).rest(lines.append)
    assert lines == []
    assert splits.labelled["train"] == {"value": 3, "classes": 3}


@pytest.mark.parametrize(
    ("train", "calibration", "words"),
    [
        ([VALUE], [VALUE, CLASSES], r"^\[tasks.classes\] the train split has no 'classes'; its keys: image, value$"),
        (
            [VALUE, CLASSES],
            [CLASSES],
            r"^\[tasks.value\] the calibration split has no 'value'; its keys: classes, image",
        ),
        (
            [VALUE, {**CLASSES, "classes": torch.full((2, 2), 255)}],
            [VALUE, CLASSES],
            r"^\[data\] train: no label of task 'classes' counts, in any of its samples; look at what 'classes' holds$",
        ),
        ([VALUE, CLASSES, {"value": IMAGE}], [VALUE, CLASSES], r"^\[data\] train sample 2: it has no 'image', which"),
        (
            [VALUE, {**CLASSES, "classes": torch.full((2, 2), 7)}],
            [VALUE, CLASSES],
            r"^\[data\] train sample 1: \[tasks.classes\] loss = 'cross_entropy': expected classes 0 to 2 or 255, but",
        ),
    ],
)
def test_what_is_missing_is_named(train, calibration, words):
    with pytest.raises(UserError, match=words):
        checked(train, calibration)


def test_a_teacher_stands_in_for_labels_in_training_alone():
    splits, lines = checked([VALUE], taught=True)
    assert splits.labelled["train"] == {"value": 1, "classes": 0}
    assert lines[0] == (
        "warning: [data] train: no sample has a label of task 'classes': it learns from the outputs of the "
        "uncompressed network alone"
    )
    with pytest.raises(UserError, match="the calibration split has no 'value'"):
        checked([VALUE], [CLASSES], taught=True)


def test_a_loss_of_ones_own_is_given_labelled_samples_only():
    """Its assertion would fail; an absent label of a task with another target is the same."""
    task = replace(TASKS["own"], target="value")
    data = Listed([*labelled("value", 2, 0), *(unlabelled("value", nothing, 1) for nothing in nothing_of("value"))])
    assert isinstance(task, TaskSpec)
    assert evaluate(said, Criteria([task]), data, 4).labelled == {"own": 2}
