"""Data as people have it: loaders, data sets, arrays and iterables become named samples, or one line says why not."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mtlc.errors import UserError
from mtlc.evaluation.sample_forms import Names, as_input, as_label, named
from mtlc.evaluation.splits import as_splits, fetch, load_splits
from mtlc.runtime.bundle.manifest import Preprocessing

NAMES = Names((), ("depth", "semseg"))
IMAGES = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DEPTH = IMAGES.mean(1, keepdim=True)
CLASSES = IMAGES.argmax(1)
Sample = namedtuple("Sample", "semseg depth image")


@dataclass
class Measured:
    image: Tensor
    depth: Tensor
    semseg: Tensor


class Mapped(Dataset):
    """A map-style data set with samples of some form."""

    def __init__(self, form) -> None:
        self.form = form

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int):
        if not 0 <= index < len(IMAGES):
            raise IndexError
        return self.form(IMAGES[index], DEPTH[index], CLASSES[index])


class Streamed(IterableDataset):
    def __iter__(self):
        return zip(IMAGES, DEPTH, CLASSES, strict=True)


def as_dict(x, y, z) -> dict:
    return {"image": x, "depth": y, "semseg": z, "file": "a.png"}


def stack(samples) -> dict:
    """A collate_fn that makes depth millimetres, to tell that it ran."""
    image, depth, classes = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return {"image": image, "depth": 1000 * depth, "semseg": classes}


def collate_to_tuple(samples):
    image, depth, classes = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return image, (depth, classes)


def plain(x, y, z):
    return x, y, z


FORMS = {
    "tensors": TensorDataset(IMAGES, DEPTH, CLASSES),
    "flat": Mapped(plain),
    "lists": Mapped(lambda x, y, z: [x, [y, z]]),
    "nested": Mapped(lambda x, y, z: (x, (y, z))),
    "pair": Mapped(lambda x, y, z: (x, {"semseg": z, "depth": y})),
    "dict": Mapped(as_dict),
    "named": Mapped(lambda x, y, z: Sample(z, y, x)),
    "dataclass": Mapped(Measured),
    "list": [as_dict(*one) for one in zip(IMAGES, DEPTH, CLASSES, strict=True)],
    "arrays": (IMAGES.numpy(), DEPTH.numpy(), CLASSES.numpy()),
    "nested arrays": (IMAGES, (DEPTH, CLASSES)),
    "arrays by name": {"image": IMAGES, "depth": DEPTH.numpy(), "semseg": CLASSES},
    "another name": {"rgb": IMAGES, "depth": DEPTH, "semseg": CLASSES},
    "float64": (IMAGES.double(), DEPTH.double().numpy(), CLASSES.numpy().astype(np.uint16)),
    "loader": DataLoader(Mapped(plain), batch_size=3, shuffle=True, drop_last=True),
    "loader with workers": DataLoader(Mapped(plain), batch_size=3, num_workers=2),
    "collated to a tuple": DataLoader(Mapped(plain), collate_fn=collate_to_tuple),
    "stream": Streamed(),
    "loader of a stream": DataLoader(Streamed(), batch_size=3),
    "loader of a stream without batches": DataLoader(Streamed(), batch_size=None),
    "function": lambda: TensorDataset(IMAGES, DEPTH, CLASSES),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form):
    splits = as_splits(dict.fromkeys(("train", "calibration", "validation"), FORMS[form]), NAMES, "given")
    batch = fetch(splits.train, [17, 2, 5, 3, 8])
    image = "rgb" if form == "another name" else "image"
    assert {name: value.dtype for name, value in batch.items()} == {
        image: torch.float32, "depth": torch.float32, "semseg": torch.int64
    }  # fmt: skip
    assert len(splits.train) == 20
    for name, whole in ((image, IMAGES), ("depth", DEPTH), ("semseg", CLASSES)):
        assert torch.equal(batch[name], whole[[17, 2, 5, 3, 8]])
    assert splits.identity == as_splits((FORMS[form],) * 3, NAMES, "given").identity


def test_a_generator_is_read_once():
    told: list[str] = []
    splits = as_splits((iter(FORMS["list"]), FORMS["list"]), NAMES, "given", told.append)
    assert (len(splits.train), len(splits.calibration)) == (18, 2)
    assert told[0] == "[data] train: reading an iterable once, its samples are kept"
    read = iter(FORMS["list"])
    list(read)
    with pytest.raises(UserError, match="train: gave no sample; an iterator can be read only once"):
        as_splits((read, FORMS["list"]), NAMES, "given")


def test_the_collation_of_a_loader_is_its_own():
    loader = DataLoader(Mapped(plain), batch_size=7, collate_fn=stack, num_workers=2)
    data = as_splits((loader, loader), NAMES, "given").validation
    assert torch.equal(fetch(data, range(20))["depth"], 1000 * DEPTH)
    assert torch.equal(fetch(data, [4])["depth"], 1000 * DEPTH[[4]])
    assert torch.equal(data[4]["depth"], 1000 * DEPTH[4])


def test_samplers_choose_the_samples_of_an_epoch():
    data, told = TensorDataset(IMAGES, DEPTH, CLASSES), list[str]()
    weights = [0.0] * 10 + [1.0] * 10
    for sampler, within, count in (
        (SubsetRandomSampler([3, 4, 11]), {3, 4, 11}, 3),
        (WeightedRandomSampler(weights, 12), set(range(10, 20)), 12),
        (RandomSampler(data, replacement=True, num_samples=8), set(range(20)), 8),
    ):
        state = torch.get_rng_state()
        loaders = [DataLoader(data, sampler=sampler) for _ in range(2)]
        found = [as_splits((one, data), NAMES, "given", told.append) for one in loaders]
        assert torch.equal(torch.get_rng_state(), state)
        kept = [
            index
            for part in (found[0].train, found[0].calibration)
            for index in range(len(part))
            for index in [int((part[index]["image"] == IMAGES).flatten(1).all(1).nonzero()[0])]
        ]
        assert len(kept) == count
        assert set(kept) <= within
        assert found[0].identity == found[1].identity
    assert "[data] train: 12 samples an epoch, as WeightedRandomSampler drew them once" in told
    batches = DataLoader(data, batch_sampler=[[0, 2], [4], [6, 8]])
    assert len(as_splits((data, batches), NAMES, "given").validation) == 5


def test_pictures_of_bytes_are_divided_by_255_or_go_through_the_preprocessing():
    pixels = (IMAGES * 255).byte()
    whole = (pixels.permute(0, 2, 3, 1).numpy(), DEPTH, CLASSES)
    splits = as_splits((whole, whole), NAMES, "given")
    assert torch.allclose(fetch(splits.validation, [0, 3])["image"], pixels[[0, 3]] / 255)
    assert splits.preprocessing == {
        "scale": 1 / 255, "mean": [0.0], "std": [1.0], "color": "RGB", "layout": "NCHW"
    }  # fmt: skip
    how = {"scale": 0.5, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    first = TensorDataset(pixels, DEPTH, CLASSES)
    splits = as_splits({"train": first, "validation": first, "preprocessing": how}, NAMES, "given")
    for part in (splits.train, splits.calibration, splits.validation):
        assert float(part[0]["image"].min()) < 0
    expected = (pixels[7].float() * 0.5 - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor([4.0, 5, 6]).view(
        3, 1, 1
    )
    assert torch.allclose(splits.validation[7]["image"], expected, atol=1e-5)
    assert splits.preprocessing == how


def test_rules_for_inputs_and_labels():
    def shape(value, batched=False):
        made = as_input(value, None, batched, "here")
        return tuple(made.shape), made.dtype

    assert shape(np.zeros((6, 7, 3))) == ((3, 6, 7), torch.float32)
    assert shape(np.zeros((3, 7, 3), np.float32)) == ((3, 7, 3), torch.float32)  # channels first already
    assert shape(torch.zeros(6, 7, 3)) == ((6, 7, 3), torch.float32)  # a float tensor is as the network takes it
    assert shape(torch.zeros(6, 7, 3, dtype=torch.uint8)) == ((3, 6, 7), torch.float32)
    assert shape(torch.zeros(2, 6, 7, 3, dtype=torch.uint8), True) == ((2, 3, 6, 7), torch.float32)
    assert shape(np.zeros((6, 7), np.uint8)) == ((1, 6, 7), torch.float32)
    assert shape(torch.arange(5)) == ((5,), torch.int64)  # tokens
    bgr = as_input(torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1), Preprocessing(1.0, color="BGR"), False, "")
    assert bgr.flatten().tolist() == [3, 2, 1]
    assert as_label(np.float64(0.5), "").dtype == torch.float32
    assert as_label(np.array([1, 70000], np.uint32), "").tolist() == [1, 70000]
    assert as_label(np.array([True, False]), "").tolist() == [1, 0]
    assert as_label(None, "") is None
    assert as_label(3, "").item() == 3
    with pytest.raises(UserError, match="there: is a object; give a tensor, an array or a number"):
        as_label(object(), "there")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TensorDataset(IMAGES, DEPTH), r"\[data\] train sample 0: a tuple of 2 with 1 label, where depth, semseg are"),
        (TensorDataset(IMAGES), r"train sample 0: is a tuple of 1; give \(image, depth, semseg\) or \{'image', 'de"),
        ([3, 4], r"train sample 0: is a int; give \(image"),
        (3, "train: is a int; give a DataLoader, a data set with"),
        ("data/train", "train: is a str; give a DataLoader"),
        (TensorDataset, r"train: is the class TensorDataset: give an object of it: TensorDataset\("),
        (lambda: 1 / 0, r"train: <lambda>\(\): ZeroDivisionError: division by zero"),
        (lambda: None, "train: is a NoneType; give a DataLoader"),
        (
            (IMAGES, DEPTH[:3], CLASSES),
            r"train: arrays that differ in the number of samples, .*: \(20, 3, 8, 8\), \(3, ",
        ),
        ({"train": [], "val": []}, "train: is a dict of 'train', 'val'; give a DataLoader"),
        ([{"a": IMAGES, "b": DEPTH, "depth": DEPTH}], "inputs: a sample has 'a', 'b', 'depth', and 'a' and 'b' of"),
        (Mapped(lambda x, y, z: 1 / 0), r"\[data\] train sample 0: ZeroDivisionError"),
        (DataLoader(Mapped(plain), collate_fn=lambda s: 1 / 0), r"train sample 0 \(collate_fn\): ZeroDivisionError"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(given, message):
    with pytest.raises(UserError, match=message):
        as_splits({"train": given, "validation": FORMS["tensors"]}, NAMES, "given")


def test_a_sample_that_fails_later_is_named():
    def form(x, y, z):
        return (x, y) if torch.equal(x, IMAGES[13]) else (x, y, z)

    data = as_splits((DataLoader(Mapped(form), num_workers=2), FORMS["tensors"]), NAMES, "given").train
    with pytest.raises(UserError, match=r"\[data\] train sample 13: a tuple of 2 with 1 label"):
        fetch(data, range(18))


def test_that_bytes_are_divided_is_told():
    told: list[str] = []
    data = ((IMAGES * 255).byte(), DEPTH, CLASSES)
    as_splits((data, data), NAMES, "given", told.append)
    assert any("pictures are bytes, and are divided by 255" in line for line in told)
    kept = as_splits({"train": data, "validation": data, "preprocessing": {"scale": 1}}, NAMES, "given")
    assert torch.equal(kept.validation[3]["image"], data[0][3].float())


def test_what_a_data_set_of_others_calls_files_and_augment_is_its_own():
    class Folder(Mapped):
        def __init__(self, form) -> None:
            super().__init__(form)
            self.files, self.augment = ["a.png"], True

    for form in (plain, as_dict):
        data = as_splits((Folder(form),) * 3, NAMES, "given").train
        assert not hasattr(data, "augment")
        assert not hasattr(data, "files")
        assert len(data) == 20

    class Flipping(Mapped):
        def augment(self, batch, generator):
            return {**batch, "image": batch["image"].flip(-1)}

    data = as_splits((Flipping(plain),) * 3, NAMES, "given").train
    assert torch.equal(data.augment(fetch(data, [2]), None)["image"], IMAGES[[2]].flip(-1))


def test_several_inputs():
    names = Names(("left", "right"), ("depth",))
    for sample in ((1, 2, 3), ((1, 2), 3), ({"right": 2, "left": 1}, 3), {"depth": 3, "left": 1, "right": 2}):
        assert named(sample, names, "here") == {"left": 1, "right": 2, "depth": 3}
    assert named((torch.zeros(1), [1, 2, 3]), Names(("image",), ("depth",)), "here")["depth"] == [1, 2, 3]
    with pytest.raises(UserError, match="here: has no 'right', which the network takes"):
        named({"left": 1, "depth": 3}, names, "here")


def test_data_sets_that_fit_are_left_alone():
    """So that their own `batch`, `identity` and `augment` are found as before."""
    names = Names(("image",), ("depth", "semseg"))
    for data in (FORMS["dict"], FORMS["pair"], FORMS["list"]):
        assert as_splits((data,) * 3, names, "given").train is data


def test_a_factory_of_a_job_may_give_any_of_them(monkeypatch):
    import sys
    from types import ModuleType

    module = ModuleType("some_loaders")
    module.make = lambda: [FORMS["loader"], FORMS["float64"]]
    monkeypatch.setitem(sys.modules, "some_loaders", module)
    splits = load_splits("some_loaders:make", NAMES)
    assert (len(splits.train), len(splits.calibration), len(splits.validation)) == (18, 2, 20)
    assert splits.validation[1]["image"].dtype == torch.float32
