"""Training steps on batches in which some samples have no label of a task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit import tiny_networks
from testkit.partial_labels import TASKS, Listed, labelled, nothing_of, unlabelled

from mtlc.compress.training.labelled_losses import label_shares, labelled_losses
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import Trainer, train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.label_check import LabelCheck
from mtlc.evaluation.splits import Splits, fetch

PLAIN = {"ema": 0.0, "augment": False, "precision": "float32", "warmup": 0.0, "lr": 0.01}


def gradient(name: str, samples, shares) -> torch.Tensor | None:
    """That of the loss by the outputs of the samples that have a label."""
    batch = fetch(Listed(samples), range(len(samples)))
    output = batch["said"].requires_grad_()
    found = labelled_losses([(Criteria([TASKS[name]]), TASKS[name], batch)], {name: output}, shares)
    if not found.total.requires_grad:
        assert found.values == {}
        assert float(found.total) == 0
        return None
    found.total.backward()
    assert output.grad is not None
    return output.grad


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_gradients_are_those_of_the_labelled_samples(name, data):
    """With the weight that a batch of labelled samples has, and none at all in the rows of the others."""
    alone = labelled(name, data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99)))
    among, rows = list(alone), list(range(len(alone)))
    for number in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.sampled_from(range(len(nothing_of(name)))))
        place = data.draw(st.integers(0, len(among)))
        among.insert(place, unlabelled(name, nothing_of(name)[which], number))
        rows = [row + (row >= place) for row in rows]
    expected = gradient(name, alone, {})
    found = gradient(name, among, {name: len(alone) / len(among)})
    assert expected is not None
    assert found is not None
    others = [row for row in range(len(among)) if row not in rows]
    assert torch.equal(found[others], torch.zeros_like(found[others]))
    torch.testing.assert_close(found[rows], expected, rtol=1e-6, atol=1e-8)


def test_the_weights_of_two_batches():
    """Half the samples have a label, three of the first four and one of the second: 1.5 and 0.5 times the mean."""
    samples, empty = labelled("value", 4, 0), unlabelled("value", None, 0)
    first, second = [*samples[:3], empty], [samples[3], empty, empty, empty]
    for batch, weight in ((first, 1.5), (second, 0.5)):
        found, plain = gradient("value", batch, {"value": 0.5}), gradient("value", batch, {})
        assert found is not None
        assert plain is not None
        full = gradient("value", [one for one in batch if "value" in one], {})
        torch.testing.assert_close(found[[i for i, one in enumerate(batch) if "value" in one]], weight * full)
        torch.testing.assert_close(plain, found / weight)


def test_no_label_no_gradient():
    assert gradient("value", [unlabelled("value", None, 0)] * 2, {"value": 0.5}) is None


def pieces(data: tiny_networks.Samples, rows, *tasks: str) -> list[dict]:
    return [{key: data.tensors[key][row] for key in ("image", *tasks)} for row in rows]


@pytest.fixture
def frozen():
    """A network whose norms keep their statistics: the images without labels would move them."""
    program = tiny_networks.chain_program(tiny_networks.REGRESSION)
    return program, tiny_networks.taught(program, 12, 0)


def trainer(program, samples, **settings) -> Trainer:
    splits = Splits(Listed(samples), Listed(samples), Listed(samples))
    config = TrainConfig(**{"epochs": 1, "batch_size": len(samples), **PLAIN, **settings})
    return Trainer(program, splits, Criteria(program.tasks), config, 0, None, None)


def test_a_head_without_a_label_in_the_batch_does_not_move(frozen):
    """Neither by a gradient nor by weight decay and momentum; the trunk learns from the other task."""
    program, data = frozen
    start = program.clone()
    made = trainer(program, pieces(data, range(4), "depth"), weight_decay=0.5)
    losses = made.first_step()
    assert set(losses) == {"depth"}
    assert torch.equal(program.module.semseg.weight, start.module.semseg.weight)
    assert program.module.semseg.weight.grad is None
    assert not torch.equal(program.module.depth.weight, start.module.depth.weight)
    assert not torch.equal(program.module.body[0].weight, start.module.body[0].weight)


def test_a_batch_without_any_label_moves_nothing(frozen):
    program, data = frozen
    start = program.clone()
    assert trainer(program, pieces(data, range(4)), weight_decay=0.5).first_step() == {}
    assert all(
        torch.equal(one, other)
        for one, other in zip(program.module.parameters(), start.module.parameters(), strict=True)
    )


def test_a_step_is_that_of_the_tasks_own_data(frozen):
    """Two data sets with one task each in one batch: each head gets the gradient that its own samples give."""
    program, data = frozen
    mixed = [*pieces(data, range(3), "depth"), *pieces(data, range(3, 6), "semseg")]
    both = trainer(program.clone(), mixed)
    both._shares = {"depth": 0.5, "semseg": 0.5}
    both.module.eval()
    both.first_step()
    for task, rows in (("depth", range(3)), ("semseg", range(3, 6))):
        alone = trainer(program.clone(), pieces(data, rows, task))
        alone.module.eval()
        alone.first_step()
        one, other = (getattr(made.module, task).weight.grad for made in (both, alone))
        torch.testing.assert_close(one / one.norm(), other / other.norm(), rtol=1e-4, atol=1e-6)


def test_shares_follow_from_the_count(frozen):
    program, data = frozen
    samples = [
        *pieces(data, range(6), "depth"),
        *pieces(data, range(6, 8), "semseg"),
        *pieces(data, [8], "depth", "semseg"),
    ]
    splits = Splits(Listed(samples), Listed(samples), Listed(samples))
    assert label_shares(splits, program.tasks) == {}
    LabelCheck(program, Criteria(program.tasks), splits).rest()
    auxiliary = replace(program.tasks[0], name="aux", target="depth", training_only=True)
    assert label_shares(splits, (*program.tasks, auxiliary)) == {"depth": 7 / 9, "semseg": 3 / 9, "aux": 7 / 9}


@pytest.mark.parametrize("settings", [{}, {"tasks_per_sample": 1}])
def test_a_training_on_two_data_sets_learns_both(settings):
    """The losses of both tasks fall; with `tasks_per_sample` the network runs each task on its samples."""
    torch.manual_seed(0)
    program = (
        tiny_networks.moe_program(tiny_networks.REGRESSION)
        if settings
        else tiny_networks.chain_program(tiny_networks.REGRESSION)
    )
    teacher = program.clone()
    with torch.no_grad():
        for parameter in teacher.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    data = tiny_networks.taught(teacher, 16, 0)
    samples = [*pieces(data, range(8), "depth"), *pieces(data, range(8, 16), "semseg")]
    splits = Splits(Listed(samples), Listed(samples), Listed(samples))
    LabelCheck(program, Criteria(program.tasks), splits).rest()
    config = TrainConfig(epochs=12, batch_size=8, **{**PLAIN, "lr": 0.003}, **settings)
    report = train(program, splits, Criteria(program.tasks), config)
    first, last = (report["curve"]["losses"][place]["losses"] for place in (0, -1))
    assert set(last) == {"depth", "semseg"}
    assert all(last[task] < first.get(task, 1e9) for task in last)


def test_distillation_learns_from_images_without_labels():
    """No sample has a label: only the teacher says something, of both tasks, and the student comes nearer to it."""
    teacher = tiny_networks.chain_program(tiny_networks.REGRESSION)
    student = teacher.clone()
    with torch.no_grad():
        student.module.depth.weight.add_(0.5)
        student.module.semseg.weight.add_(0.5)

    def apart(task: str) -> float:
        return float((getattr(student.module, task).weight - getattr(teacher.module, task).weight).norm())

    before = {task: apart(task) for task in ("depth", "semseg")}
    data = Listed([{"image": image} for image in tiny_networks.images(8, 8, 0)])
    labels = tiny_networks.taught(teacher, 4, 1)
    config = TrainConfig(epochs=20, batch_size=4, distill=1.0, **PLAIN)
    report = train(student, Splits(data, labels, labels), Criteria(student.tasks), config, teacher=teacher)
    assert report["losses"] == {}
    assert all(apart(task) < 0.9 * distance for task, distance in before.items())


def test_training_losses_that_are_no_number_still_stop_it(frozen):
    program, data = frozen
    samples = pieces(data, range(4), "depth", "semseg")
    samples[1]["depth"] = torch.full_like(samples[1]["depth"], float("inf"))
    with pytest.raises(UserError, match="task 'depth': its loss became inf at training step 0"):
        trainer(program, samples).first_step()
