"""Networks and data small enough for tests: every tensor is random but fixed, every label is known by its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.resnet import mtl_resnet

OUTPUTS = {"depth": 1, "semseg": 3}
TASKS = (TaskSpec("depth", "l1", "rmse"), TaskSpec("semseg", "cross_entropy", "miou"))
REGRESSION = (TaskSpec("depth", "mse", "mse"), TaskSpec("semseg", "mse", "mse"))


def resnet(seed: int = 0) -> nn.Module:
    """The zoo's network, narrow, with batch norms that have statistics of their own."""
    torch.manual_seed(seed)
    return random_norms(mtl_resnet(OUTPUTS, widths=(16, 24, 32), depths=(1, 1, 1), decoder_width=16)).eval()


def random_norms(module: nn.Module) -> nn.Module:
    """Random affine parameters and statistics in all batch norms, from torch's generator as it stands."""
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
    return module


class Chain(nn.Module):
    """image (N, 3, 8, 8) ── stem 16 ── body 24 ─┬─ depth (N, 1, 8, 8)
    └─ semseg (N, 3, 8, 8)
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.depth = nn.Conv2d(24, 1, 1)
        self.semseg = nn.Conv2d(24, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(image))
        return {"depth": self.depth(features), "semseg": self.semseg(features)}


def chain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return random_norms(Chain()).eval()


def program(factory: str, size: int, tasks: Sequence[TaskSpec] = TASKS, **kwargs: Any) -> Program:
    """The program of a factory of this module."""
    source = ModelSource(f"testkit.tiny_networks:{factory}", kwargs)
    return Program(source.build(), tuple(tasks), {"image": torch.zeros(2, 3, size, size)}, source)


def resnet_program(tasks: Sequence[TaskSpec] = TASKS) -> Program:
    return program("resnet", 32, tasks)


def chain_program(tasks: Sequence[TaskSpec] = TASKS) -> Program:
    return program("chain", 8, tasks)


class Samples:
    """A data set of ready tensors (count, …), one of them the image."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __len__(self) -> int:
        return len(self.tensors["image"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {name: tensor[list(indices)] for name, tensor in self.tensors.items()}

    def first(self, count: int) -> Samples:
        return Samples({name: tensor[:count] for name, tensor in self.tensors.items()})


class Stopped(BaseException):  # as a Ctrl-C is: what data sets raise becomes a user error
    """What kills a run in tests."""


class Fragile(Samples):
    """Raises when it has been asked for `calls` batches."""

    def __init__(self, tensors: Mapping[str, Tensor], calls: int) -> None:
        super().__init__(tensors)
        self.calls = calls

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if self.calls == 0:
            raise Stopped
        self.calls -= 1
        return super().batch(indices)


def segformer() -> nn.Module:
    """Of `transformers`: two stages with attention, the first with one head; 32 channels at an eighth the size."""
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[4, 4], drop_path_rate=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    return SegformerModel(config)


def images(count: int, size: int, seed: int) -> Tensor:
    """Smooth random pictures (count, 3, size, size)."""
    coarse = torch.randn(count, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


def taught(teacher: Program, count: int, seed: int, noise: float = 0.3) -> Samples:
    """Pictures whose labels are the teacher's outputs with noise: the teacher's loss is small and not zero.

    Tasks with a cross-entropy get the class of the largest noisy logit, all others the noisy output.
    """
    size = next(iter(teacher.example.values())).shape[-1]
    pictures = images(count, size, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        outputs = teacher.outputs({"image": pictures})
    tensors = {"image": pictures}
    for task in teacher.tasks:
        output = outputs[task.name]
        noisy = output + noise * output.std() * torch.randn(output.shape, generator=generator)
        tensors[task.target_key] = noisy.argmax(1) if task.loss == "cross_entropy" else noisy
    return Samples(tensors)


def taught_splits(teacher: Program, train: int = 32, calibration: int = 10, validation: int = 6) -> Splits:
    return Splits(taught(teacher, train, 10), taught(teacher, calibration, 20), taught(teacher, validation, 30))


def with_limit(teacher: Program, **limits: Any) -> Program:
    """The program with ``max_drop`` for some tasks."""
    tasks = tuple(replace(task, max_drop=limits.get(task.name, task.max_drop)) for task in teacher.tasks)
    return replace(teacher, tasks=tasks)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same tensors, bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a)


def thousand_l1(output: Tensor, target: Tensor) -> Tensor:
    """`l1` in millimetres: the same task in another unit."""
    return 1000 * (output - target).abs().mean()


def moe(tasks: Mapping[str, int] = OUTPUTS, **shape: Any) -> nn.Module:
    """A small M³ViT, image (N, 3, 16, 16), whose routers have preferences: 2 of 4 blocks route among 6 experts."""
    torch.manual_seed(0)
    sizes = {"width": 12, "heads": 2, "blocks": 4, "patch": 4, "head_width": 4, "experts": 6, "top_k": 2, **shape}
    network = m3vit("micro", dict(tasks), image_size=(16, 16), **sizes)
    with torch.no_grad():
        for _, router in network.routers():
            router.weight.normal_(std=1.0)
        for block in network.backbone.blocks[1::2]:
            for parameter in block.mlp.experts.parameters():
                parameter.normal_(std=0.4)
    return random_norms(network).eval()


def moe_program(tasks: Sequence[TaskSpec] = TASKS, **kwargs: Any) -> Program:
    return program("moe", 16, tasks, **kwargs)
