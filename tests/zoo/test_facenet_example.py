"""The example of MTCNN's networks: the package's function, and windows that are labelled by it.

What needs the weights is skipped where facenet-pytorch is not installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from testkit.places import ROOT
from torch.nn import functional as F

from mtlc.errors import UserError

needs_weights = pytest.mark.skipif(
    find_spec("facenet_pytorch") is None, reason="needs: pip install --no-deps facenet-pytorch"
)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """The modules of the example."""
    monkeypatch.syspath_prepend(ROOT / "examples/facenet")
    import face_crops
    import mtcnn_networks

    yield mtcnn_networks, face_crops
    for name in ("face_crops", "mtcnn_networks"):
        del sys.modules[name]


def outputs(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(count, n, generator=generator) for name, n in (("face", 2), ("box", 4), ("landmarks", 10))}


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (40, 60 + index, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


def test_left_and_right_change_places(example):
    """A box off by (1, 2, 3, 4) is off by (-3, 2, -1, 4) in the mirror; the left eye at 0.2 is the right one at 0.8."""
    _, crops = example
    x, y = [0.2, 0.7, 0.5, 0.3, 0.6], [0.1, 0.2, 0.5, 0.8, 0.9]
    given = {"box": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "landmarks": torch.tensor([x + y]), "face": torch.ones(1, 2)}
    made = crops.mirrored(given)
    assert made["box"].tolist() == [[-3, 2, -1, 4]]
    assert torch.allclose(made["landmarks"], torch.tensor([[0.3, 0.8, 0.5, 0.4, 0.7, 0.2, 0.1, 0.5, 0.9, 0.8]]))
    again = crops.mirrored(crops.mirrored(outputs(3)))
    assert all(torch.allclose(value, outputs(3)[name]) for name, value in again.items())


def test_metrics_by_hand(example):
    _, crops = example
    same, off = crops.Agreement(), crops.MeanOffset()
    odds = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.35, 0.65]])
    same.update(odds, torch.tensor([[0.3, 0.7], [0.0, 1.0], [0.6, 0.4]]))
    assert same.compute() == pytest.approx(200 / 3)
    off.update(torch.tensor([[0.1, 0.2]]), torch.tensor([[0.1, 0.3]]))
    assert off.compute() == pytest.approx(5)


def test_squares_lie_within_the_picture(example):
    _, crops = example
    picture, generator = Image.fromarray(np.zeros((30, 90, 3), np.uint8)), np.random.default_rng(0)
    found = np.array([[80.0, 0.0, 24.0], [0.0, 20.0, 100.0]])
    for kind in (found, found[:0]):
        for turn in range(40):
            x, y, side = crops._window(picture, kind, turn, generator)
            assert 24 <= side <= 30
            assert 0 <= x <= 90 - side
            assert 0 <= y <= 30 - side


def test_overlap_of_squares(example):
    assert example[1]._overlap((0, 0, 2), (1, 0, 2)) == pytest.approx(2 / 6)
    assert example[1]._overlap((0, 0, 2), (2, 0, 2)) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "pnet"}, "network = 'pnet': must be one of rnet, onet"),
        ({"train": 0}, "train = 0: give a whole number"),
        ({"root": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(example, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        example[1].face_crops(**{"root": tmp_path, **wrong})


def test_too_few_pictures(example, tmp_path):
    with pytest.raises(UserError, match="has 2 pictures; put at least three there"):
        example[1].face_crops(pictures(tmp_path / "p", 2))


@pytest.mark.skipif(find_spec("facenet_pytorch") is not None, reason="the package is there")
def test_without_the_package_its_install_is_named(example):
    with pytest.raises(UserError, match="pip install --no-deps facenet-pytorch"):
        example[0].face_network()


@needs_weights
@pytest.mark.parametrize(("network", "size", "parameters"), [("rnet", 24, 100_178), ("onet", 48, 389_040)])
def test_the_function_is_that_of_the_package_s_weights(example, network, size, parameters):
    """As the package computes it: features are flattened as (W, H, C)."""
    networks, _ = example
    w = networks._tensors(network)
    x = image = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    for index, (_, pool) in enumerate(zip(*networks.SHAPES[network][1:3], strict=True), 1):
        x = F.prelu(F.conv2d(x, w[f"conv{index}.weight"], w[f"conv{index}.bias"]), w[f"prelu{index}.weight"])
        x = F.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
    n = index + 1
    x = F.linear(x.permute(0, 3, 2, 1).flatten(1), w[f"dense{n}.weight"], w[f"dense{n}.bias"])
    x = F.prelu(x, w[f"prelu{n}.weight"])
    made = networks.face_network(network)
    with torch.no_grad():
        given = made(image)
    for index, task in enumerate(given, 1):
        expected = F.linear(x, w[f"dense{n + 1}_{index}.weight"], w[f"dense{n + 1}_{index}.bias"])
        expected = expected.softmax(1) if task == "face" else expected
        assert torch.allclose(given[task], expected, atol=1e-5)  # the sum of 1,152 products in another order
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters


@needs_weights
def test_the_labels_and_the_splits(example, tmp_path):
    networks, crops = example
    splits = crops.face_crops(pictures(tmp_path / "p", 6), "rnet", train=13, val=5, calibration=4)
    assert [len(split) for split in (splits.train, splits.calibration, splits.validation)] == [13, 4, 5]
    sample = splits.train[3]
    assert {name: tuple(value.shape) for name, value in sample.items()} == {
        "image": (3, 24, 24), "face": (2,), "box": (4,),
    }  # fmt: skip
    assert float(sample["face"].sum()) == pytest.approx(1)
    network = networks.face_network("rnet")
    with torch.no_grad():
        straight = network(sample["image"][None])["box"]
        turned = crops.mirrored(network(sample["image"].flip(-1)[None]))["box"]
    assert torch.allclose(sample["box"], ((straight + turned) / 2)[0], atol=1e-6)
    again = crops.face_crops(tmp_path / "p", "rnet", train=13, val=5, calibration=4)
    assert again.train.identity == splits.train.identity != splits.validation.identity


@needs_weights
def test_a_face_is_found(example):
    """The portrait of Grace Hopper that matplotlib brings: eyes above the mouth, left of right."""
    import matplotlib

    networks, crops = example
    portrait = Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg")
    network = networks.face_network("onet")
    windows = crops.proposals(portrait, networks.proposal_network())
    pixels = np.stack([crops._cut(portrait, window, 48) for window in windows])
    with torch.no_grad():
        found = network(crops.to_input(pixels))
    best = int(found["face"][:, 1].argmax())
    assert found["face"][best, 1] > 0.99
    x, y = found["landmarks"][best].view(2, 5)
    assert x[0] < x[2] < x[1]
    path = Path(portrait.filename)
    cut = crops.windows([path], 60, networks.proposal_network(), network, np.random.default_rng(0))
    assert int((crops.labels(network, cut)["face"][:, 1] >= crops.THRESHOLD).sum()) >= 12  # 20 are moved a little
    assert max(y[0], y[1]) < y[2] < min(y[3], y[4])
