"""Splits, batches and the identity that caches are keyed by."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from mtlc.errors import UserError
from mtlc.evaluation.splits import Splits, batches, fetch, load_splits


def samples(count: int, shift: float = 0.0) -> list[dict]:
    return [{"image": torch.full((1, 2, 2), i + shift), "label": i} for i in range(count)]


class Pairs:
    """(image, labels) samples, as many data sets have them."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int):
        if index >= 3:
            raise IndexError
        return np.full((1, 2, 2), index, np.float32), {"label": index, "depth": torch.ones(1)}


class Whole(Pairs):
    """Gives batches itself."""

    asked: list = []

    def batch(self, indices):
        self.asked.append(list(indices))
        return {"image": torch.zeros(len(indices), 1)}


@pytest.fixture
def factory(monkeypatch):
    """A module of data factories: ``give(name=callable)`` returns the reference."""

    def give(function) -> str:
        module = ModuleType("some_data")
        module.make = function
        monkeypatch.setitem(sys.modules, "some_data", module)
        return "some_data:make"

    return give


def test_batches_cover_the_split_in_order():
    sizes = [b["label"].tolist() for b in batches(samples(7), 3)]
    assert sizes == [[0, 1, 2], [3, 4, 5], [6]]
    assert [b["label"].tolist() for b in batches(samples(7), 3, 4)] == [[0, 1, 2], [3]]
    assert [b["label"].tolist() for b in batches(samples(2), 3, 100)] == [[0, 1]]


def test_samples_are_dicts_or_pairs():
    batch = fetch(Pairs(), [2, 0])
    assert {k: tuple(v.shape) for k, v in batch.items()} == {"image": (2, 1, 2, 2), "label": (2,), "depth": (2, 1)}
    assert batch["label"].tolist() == [2, 0]
    assert batch["image"][:, 0, 0, 0].tolist() == [2.0, 0.0]
    with pytest.raises(UserError, match="a sample is a list"):
        fetch([[1, 2]], [0])


def test_a_data_set_may_give_batches_itself():
    data = Whole()
    list(batches(data, 2))
    assert data.asked[-2:] == [[0, 1], [2]]


def test_what_is_no_tensor_is_left_out():
    named = [{**sample, "name": f"{i}.png"} for i, sample in enumerate(samples(2))]
    assert set(fetch(named, [0, 1])) == {"image", "label"}
    assert Splits(named, named, named).identity == Splits(named, named, named).identity


def test_splits_must_be_map_style_and_not_empty():
    with pytest.raises(UserError, match=r"\[data\] train: the data factory must give a map-style"):
        Splits(iter([]), samples(1), samples(1))
    with pytest.raises(UserError, match="the calibration split is empty"):
        Splits(samples(1), [], samples(1))
    Splits([], samples(1), samples(1))  # passes that do not train need no training data


def test_the_identity_follows_the_content():
    def identity(**changed) -> str:
        parts = {"train": samples(5), "calibration": samples(3), "validation": samples(2), **changed}
        return Splits(**parts).identity

    base = identity()
    assert len(base) == 64
    assert identity() == base
    assert identity(train=samples(6)) != base
    assert identity(calibration=samples(3, 0.5)) != base
    assert identity(validation=samples(3), calibration=samples(2)) != base
    assert identity(preprocessing={"scale": 2}) != base


def test_a_data_sets_own_identity_is_used():
    class Named(list):
        identity = "v1"

    one, other = Named(samples(2)), Named(samples(2, 3.0))
    first = Splits(one, one, one).identity
    assert Splits(other, other, other).identity == first
    other.identity = "v2"
    assert Splits(other, one, one).identity != first


def test_factories_return_splits_dicts_or_tuples(factory):
    def parts(count: int = 2):
        return {"train": samples(count), "calibration": samples(1), "validation": samples(3)}

    whole = load_splits(factory(lambda count: Splits(**parts(count))), count=4)
    assert len(whole.train) == 4
    as_dict = load_splits(factory(lambda: {**parts(), "preprocessing": {"scale": 0.5}}))
    assert (len(as_dict.validation), as_dict.preprocessing) == (3, {"scale": 0.5})
    as_tuple = load_splits(factory(lambda: tuple(parts().values())))
    assert [len(s) for s in (as_tuple.train, as_tuple.calibration, as_tuple.validation)] == [2, 1, 3]
    with pytest.raises(UserError, match="the split 'validation' is missing"):
        load_splits(factory(lambda: {"train": samples(1), "calibration": samples(1)}))
    with pytest.raises(UserError, match="a dict with 'validatoin'; did you mean 'validation'"):
        load_splits(factory(lambda: {"train": samples(1), "validatoin": samples(1)}))
    with pytest.raises(UserError, match=r"returned list: return mtlc\.evaluation\.splits\.Splits"):
        load_splits(factory(lambda: samples(3)))
    with pytest.raises(UserError, match="raised FileNotFoundError: no folder"):
        load_splits(factory(lambda: (_ for _ in ()).throw(FileNotFoundError("no folder"))))


def test_a_calibration_split_that_nobody_gives_is_every_tenth_training_sample(factory):
    told: list[str] = []
    found = load_splits(factory(lambda: (samples(25), samples(4))), None, told.append)
    assert [batch["label"].tolist() for batch in batches(found.calibration, 8)] == [[0, 10, 20]]
    assert len(found.train) == 22
    assert {0, 10, 20}.isdisjoint(label for batch in batches(found.train, 8) for label in batch["label"].tolist())
    assert told == [
        "[data] no calibration split: 3 of the 25 training samples are it, every 10th, and are not trained on"
    ]
    assert found.calibration.place(2) == "train sample 20"
    with pytest.raises(UserError, match="train has 1 sample: too few"):
        load_splits(factory(lambda: (samples(1), samples(4))))


def test_parts_of_a_split_keep_what_it_has_besides_samples(factory):
    class Fast(list):
        identity = "v1"

        def batch(self, indices):
            return {"image": torch.stack([self[index]["image"] for index in indices])}

        def augment(self, batch, generator):
            return {name: -value for name, value in batch.items()}

    found = load_splits(factory(lambda: [Fast(samples(21)), Fast(samples(2))]))
    assert fetch(found.calibration, [1, 2])["image"][:, 0, 0, 0].tolist() == [10, 20]
    assert found.train.augment({"x": 1}, None) == {"x": -1}
    assert "v1" in found.train.identity != found.calibration.identity


def test_several_samples_are_asked_for_at_once_where_a_data_set_can():
    class Several(list):
        asked: list = []

        def __getitems__(self, indices):
            self.asked.append(indices)
            return [self[index] for index in indices]

    data = Several(samples(4))
    assert fetch(data, [3, 1])["label"].tolist() == [3, 1]
    assert data.asked == [[3, 1]]
    data[1] = 7
    with pytest.raises(UserError, match="a sample is a int"):
        fetch(data, [3, 1])
