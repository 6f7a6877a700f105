"""A teacher that is asked once of every sample teaches what one that is asked at every step does."""

from __future__ import annotations

from dataclasses import replace

import torch
from testkit import tiny_networks
from testkit.tiny_networks import Samples, taught_splits

from mtlc.compress.training import lessons as subject
from mtlc.compress.training import trainer
from mtlc.compress.training.lessons import lessons
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.criteria import Criteria

SETTINGS = TrainConfig(epochs=3, batch_size=8, lr=1e-3, distill=0.5, distill_features=1.0, precision="float32")


def ask(image):
    return {"sum": image.sum((1, 2, 3))}, {"layer": image[:, :, 0, 0]}


def here(image):
    return image


def trained(seed: int = 1):
    teacher, student = tiny_networks.chain_program(), tiny_networks.program("chain", 8, seed=seed)
    splits = taught_splits(teacher, train=32)
    train(student, splits, Criteria(student.tasks), SETTINGS, teacher=teacher)
    return student.module.state_dict()


def test_what_was_said_is_found_by_sample():
    data = taught_splits(tiny_networks.chain_program(), train=300).train
    kept = lessons(data, ["image"], here, ask)
    assert kept is not None
    every = data.batch(list(range(300)))["image"]
    outputs, features = kept.of([299, 5, 130], [every[[299, 5, 130]]])
    assert torch.equal(outputs["sum"], every[[299, 5, 130]].sum((1, 2, 3)))
    assert torch.equal(features["layer"], every[[299, 5, 130], :, 0, 0])


def test_of_a_sample_that_was_made_anew_nothing_is_known():
    """A mirrored one too, whose values are the same in another order."""
    data = taught_splits(tiny_networks.chain_program(), train=40).train
    kept = lessons(data, ["image"], here, ask)
    images = data.batch([3, 4])["image"]
    assert kept.of([3, 4], [images]) is not None
    assert kept.of([3, 4], [images.flip(3)]) is None
    assert kept.of([4, 3], [images]) is None
    wide = torch.rand(2, 3, 64, 64)  # more values than are looked at
    marks = subject._marks([wide])
    assert torch.equal(marks, torch.cat([subject._marks([wide[:1]]), subject._marks([wide[1:]])]))
    assert not torch.equal(marks, subject._marks([wide.flip(3)]))


def test_a_training_on_samples_that_change_later_asks_again(monkeypatch):
    """Samples are mirrored after they were learnt about: the training is that of a teacher asked at every step."""

    class Later(Samples):
        def batch(self, indices):
            made = super().batch(indices)
            self.read = getattr(self, "read", 0) + len(indices)
            return made | {"image": made["image"].flip(3)} if self.read > kept_after else made

    def result():
        teacher, student = tiny_networks.chain_program(), tiny_networks.program("chain", 8, seed=1)
        splits = taught_splits(teacher, train=32)
        changing = replace(splits, train=Later(splits.train.tensors))
        train(student, changing, Criteria(student.tasks), SETTINGS, teacher=teacher)
        return student.module.state_dict()

    # What is read before the steps: the first batch, for the features; 32 twice to compare; all 32.
    kept_after = 8 + 64 + 32
    once = result()
    kept_after = 8
    monkeypatch.setattr(trainer, "lessons", lambda *given: None)
    for name, value in result().items():
        torch.testing.assert_close(once[name], value, rtol=0, atol=1e-4)


def test_a_teacher_that_looks_at_the_whole_batch_is_not_kept():
    data = taught_splits(tiny_networks.chain_program()).train
    assert lessons(data, ["image"], here, lambda image: ({"far": image - image.mean(0)}, {})) is None


def test_a_training_ends_as_one_that_asks_at_every_step(monkeypatch):
    """Batches of another size are added up in another order: equal to rounding, over 12 steps of AdamW."""
    asked = []
    monkeypatch.setattr(trainer, "lessons", lambda *given: asked.append(lessons(*given)) or asked[-1])
    once = trained()
    assert len(asked) == 1
    assert asked[0] is not None
    monkeypatch.setattr(trainer, "lessons", lambda *given: None)
    for name, value in trained().items():
        torch.testing.assert_close(once[name], value, rtol=0, atol=1e-4)


def test_samples_that_change_are_not_kept():
    class Noisy:
        def __len__(self):
            return 40

        def batch(self, indices):
            return {"image": torch.randn(len(indices), 3, 4, 4)}

    assert lessons(Noisy(), ["image"], here, ask) is None


def test_more_than_the_memory_is_not_kept(monkeypatch):
    data = taught_splits(tiny_networks.chain_program()).train
    monkeypatch.setattr(subject, "_MEGABYTES", 0)
    assert lessons(data, ["image"], here, ask) is None


def test_what_is_said_of_a_batch_as_a_whole_is_not_kept():
    data = taught_splits(tiny_networks.chain_program()).train
    assert lessons(data, ["image"], here, lambda image: ({"mean": image.mean()[None]}, {})) is None


def test_a_few_samples_tell_that_all_would_not_fit(monkeypatch):
    """Of large pictures 64 at once, to find that out, could be too much."""
    data = taught_splits(tiny_networks.chain_program()).train
    monkeypatch.setattr(subject, "_MEGABYTES", 0)
    asked = []
    assert lessons(data, ["image"], here, lambda image: asked.append(len(image)) or ask(image)) is None
    assert asked == [2]
