"""Builds R-Net and O-Net of MTCNN as networks of several tasks, with the weights of the installed facenet-pytorch.

    pip install --no-deps facenet-pytorch     # 2.6, MIT; its weights are in the package

MTCNN (Zhang et al., IEEE SPL 2016) finds faces in three steps. P-Net proposes windows, R-Net looks at each in 24×24
pixels, O-Net at those that are left in 48×48. R-Net and O-Net give for each window `face` (N, 2), the odds that it is
none and one; `box` (N, 4), by how much its left, top, right and lower edge are off, as shares of its side; O-Net also
`landmarks` (N, 10), five x and five y of eyes, nose and corners of the mouth, from 0 to 1 within the window.

The package itself is not imported, as it needs torchvision, and its weights are read without running code of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.errors import UserError, nearest

TASKS = {"face": 2, "box": 4, "landmarks": 10}


class Shape(NamedTuple):
    """What tells one network from the other."""

    size: int
    """Height and width of its input, in pixels."""
    convolutions: tuple[tuple[int, int], ...]
    """Channels and kernel of each."""
    pools: tuple[int, ...]
    """The kernel of the pooling after each, of stride 2; 0 for none."""
    hidden: int
    tasks: tuple[str, ...]


SHAPES = {
    "rnet": Shape(24, ((28, 3), (48, 3), (64, 2)), (3, 3, 0), 128, ("face", "box")),
    "onet": Shape(48, ((32, 3), (64, 3), (64, 3), (128, 2)), (3, 3, 2, 0), 256, ("face", "box", "landmarks")),
}


class Stage(nn.Module):
    """A convolution, a PReLU with a slope for each channel, and a pooling that keeps what is left at the edge."""

    def __init__(self, cin: int, cout: int, kernel: int, pool: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel)
        self.prelu = nn.PReLU(cout)
        self.pool = nn.MaxPool2d(pool, 2, ceil_mode=True) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.prelu(self.conv(x)))


class FaceNetwork(nn.Module):
    """R-Net or O-Net: convolutions and a linear layer that tasks share, and a linear layer a task."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.size = shape.size
        widths = [3, *(channels for channels, _ in shape.convolutions)]
        self.stages = nn.Sequential(
            *(
                Stage(widths[i], channels, kernel, shape.pools[i])
                for i, (channels, kernel) in enumerate(shape.convolutions)
            )
        )
        self.dense = nn.Linear(widths[-1] * 9, shape.hidden)  # 3×3 pixels are left in both
        self.prelu = nn.PReLU(shape.hidden)
        self.heads = nn.ModuleDict({task: nn.Linear(shape.hidden, TASKS[task]) for task in shape.tasks})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.prelu(self.dense(torch.flatten(self.stages(image), 1)))
        outputs = {task: head(x) for task, head in self.heads.items()}
        return {**outputs, "face": F.softmax(outputs["face"], 1)}


class ProposalNetwork(nn.Module):
    """P-Net: (N, 3, H, W) → (N, H', W'), the odds of a face in each window of 12×12 pixels, 2 pixels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(Stage(3, 10, 3, 2), Stage(10, 16, 3, 0), Stage(16, 32, 3, 0))
        self.face = nn.Conv2d(32, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return F.softmax(self.face(self.stages(image)), 1)[:, 1]


def face_network(network: str = "onet") -> FaceNetwork:
    """R-Net or O-Net with its weights, the same function as the package's own class.

    Raises `UserError` where the package is missing or holds other weights.
    """
    if network not in SHAPES:
        raise UserError(f"network = {network!r}: must be one of {', '.join(SHAPES)}{nearest(network, SHAPES)}")
    shape = SHAPES[network]
    made = FaceNetwork(shape)
    dense = len(shape.convolutions) + 1
    names = {**_stage_names(len(shape.convolutions)), f"dense{dense}": "dense", f"prelu{dense}": "prelu"}
    names |= {f"dense{dense + 1}_{1 + list(TASKS).index(task)}": f"heads.{task}" for task in shape.tasks}
    tensors = _tensors(network)
    key = f"dense{dense}.weight"
    if key in tensors and tensors[key].shape == made.dense.weight.shape:
        # The package flattens features as (W, H, C), as the network that its weights come from did; here it is
        # (C, H, W), so that each channel's entries stay together when channels are cut.
        tensors[key] = tensors[key].view(shape.hidden, 3, 3, -1).permute(0, 3, 2, 1).reshape(shape.hidden, -1)
    _load(made, tensors, names, network)
    return made.eval()


def proposal_network() -> ProposalNetwork:
    """P-Net with its weights. Raises `UserError` as `face_network` does."""
    made = ProposalNetwork()
    tensors = {name: value for name, value in _tensors("pnet").items() if not name.startswith("conv4_2.")}
    _load(made, tensors, {**_stage_names(3), "conv4_1": "face"}, "pnet")
    return made.eval()


def _stage_names(count: int) -> dict[str, str]:
    return {f"{kind}{i + 1}": f"stages.{i}.{kind}" for i in range(count) for kind in ("conv", "prelu")}


def _load(module: nn.Module, tensors: Mapping[str, Tensor], names: Mapping[str, str], network: str) -> None:
    renamed = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = value
    try:
        module.load_state_dict(renamed)
    except RuntimeError:
        raise UserError(
            f"{network}: the weights of the installed facenet-pytorch are of another network; install version 2.6"
        ) from None


def _tensors(network: str) -> dict[str, Tensor]:
    spec = find_spec("facenet_pytorch")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise UserError("facenet-pytorch is not installed: pip install --no-deps facenet-pytorch")
    path = Path(folders[0]) / "data" / f"{network}.pt"
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # OSError, UnpicklingError, RuntimeError: whatever a damaged file makes torch raise
        raise UserError(
            f"{path}: missing or damaged; pip install --no-deps --force-reinstall facenet-pytorch"
        ) from None
    return tensors
