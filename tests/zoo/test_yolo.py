"""`mtl_yolo`: its outputs, and which point of the picture each row of its detections looks at."""

import pytest
import torch

from mtlc.detection import Detection
from mtlc.zoo import mtl_yolo
from mtlc.zoo.yolo import STRIDES


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_outputs(size: tuple[int, int]):
    network = mtl_yolo(classes=3, widths=(8, 8, 8, 8), head_width=8, decoder_width=8).eval()
    outputs = network(torch.zeros(2, 3, *size))
    how = Detection(size, STRIDES)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "detection": (2, how.anchors, 8),
        "floor": (2, 2, *size),
        "depth": (2, 1, *size),
        "edge": (2, 1, *size),
        "normals": (2, 3, *size),
    }
    assert how.classes(outputs["detection"].shape) == 3


def test_the_rows_are_in_the_order_of_the_points():
    """What changes in one corner of the picture changes the rows of points near it most."""
    torch.manual_seed(0)
    network = mtl_yolo(tasks=["depth"], widths=(8, 8, 8, 8), head_width=8, decoder_width=8).eval()
    points = torch.from_numpy(Detection((64, 96), STRIDES).points)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[..., 40:48, 8:16] += 5
    with torch.no_grad():
        difference = (network(changed)["detection"] - network(image)["detection"]).abs().sum(-1)[0]
    for stride in STRIDES:
        level = points[:, 2] == stride
        most = points[level][difference[level].argmax()]
        assert (most[0] - 12).abs() <= 2 * stride
        assert (most[1] - 44).abs() <= 2 * stride


def test_a_new_network_says_that_nothing_is_there():
    torch.manual_seed(0)
    with torch.no_grad():
        raw = mtl_yolo().eval()(torch.zeros(1, 3, 64, 64))["detection"]
    assert raw[..., 4:].sigmoid().mean() == pytest.approx(0.01, abs=0.005)
