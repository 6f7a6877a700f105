"""Finds what a network's decoders read of its encoder, and measures how well a teacher's follows from a student's.

A compressed network has fewer channels, so its features cannot be compared with the teacher's one by one. A linear map
stands between the two (FitNets, Romero et al., ICLR 2015): it is fitted by least squares at first, trains along, and is
thrown away with the teacher. ::

    student:  image --> encoder --+--> decoder a        pulled: 1 - R² of  teacher's x  from  W · student's x + b
                                  x                      (0: the teacher's is a linear map of the student's)
                                  +--> decoder b
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtlc.compress.channels.slicing import inputs_of
from mtlc.compress.slimmable.layer_places import decoder_layers, survey
from mtlc.compress.training.teacher_spread import TeacherSpread
from mtlc.program.modes import all_trainable, evaluating
from mtlc.program.program import Program

MOST_CHANNELS = 4096
"""The most that are compared: the map is as large as their square. A flattened picture may have more."""
_RIDGE = 1e-3  # of the mean square of the student's channels: keeps the fit finite where channels are alike


def features_read(program: Program) -> list[str]:
    """The layers through which decoders read tensors of the encoder, one layer for each tensor.

    A layer of a task's decoder reads the encoder if what it reads is no input of the network and follows from no other
    layer of that decoder. Of a task whose decoder is the whole network it is the last layer: what the head reads.
    Raises `UserError` naming the task whose output depends on no parameter.
    """
    module, found = program.module, dict[str, int]()
    decoders = decoder_layers(program, survey(program))
    every = [layer for layers in decoders.values() for layer in layers]
    with evaluating(module), all_trainable(module), torch.enable_grad(), inputs_of(module, every) as seen:
        program.outputs(program.example)
        for layers in decoders.values():
            called = [layer for layer in layers if layer in seen and seen[layer].requires_grad]
            weights = [p for layer in layers for p in module.get_submodule(layer).parameters(recurse=False)]
            for layer in [one for one in called if not _follows(seen[one], weights)] or called[-1:]:
                found.setdefault(layer, seen[layer].data_ptr())
    # Layers that read one tensor have its address in common: the first stands for all.
    first = dict[int, str]()
    for layer, address in found.items():
        first.setdefault(address, layer)
    return list(first.values())


def shared_features(student: Program, teacher: Program) -> dict[str, tuple[int, int, int]]:
    """Of the layers of `features_read`, those that the teacher has, and that read tensors of the same positions, of at
    most `MOST_CHANNELS` channels.

    By layer: the dimension of the channels, and how many the student's and the teacher's have.
    """
    names = [name for name in features_read(student) if _has(teacher.module, name)]
    with _trying(student.module), _trying(teacher.module):
        with inputs_of(student.module, names) as ours:
            student.outputs(student.example)
        with inputs_of(teacher.module, names) as theirs:
            teacher.outputs(student.example)
    found = {}
    for name in names:
        if name not in ours or name not in theirs:
            continue
        dimension = channel_dimension(student.module.get_submodule(name))
        one, other = ours[name].movedim(dimension, -1), theirs[name].movedim(dimension, -1)
        if one.shape[:-1] == other.shape[:-1] and max(one.shape[-1], other.shape[-1]) <= MOST_CHANNELS:
            found[name] = (dimension, one.shape[-1], other.shape[-1])
    return found


class FeatureRegression(nn.Module):
    """A linear map for each layer, from the student's channels at a position to the teacher's."""

    def __init__(self, layers: Mapping[str, tuple[int, int, int]]) -> None:
        super().__init__()
        self.layers = dict(layers)
        self.maps = nn.ModuleList(nn.Linear(ours, theirs) for _, ours, theirs in self.layers.values())

    @torch.no_grad()
    def fit(self, seen: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Set the maps to the ridge regression of the teacher's features on the student's."""
        for (name, (dimension, _, _)), linear in zip(self.layers.items(), self.maps, strict=True):
            assert isinstance(linear, nn.Linear)
            x, y = _rows(seen[name], dimension).double(), _rows(targets[name], dimension).double()
            x_mean, y_mean = x.mean(0), y.mean(0)
            x, y = x - x_mean, y - y_mean
            gram = x.T @ x
            floor = (_RIDGE * gram.diagonal().mean()).clamp_min(1e-12)
            gram.diagonal().add_(floor)
            weight = torch.linalg.solve(gram, x.T @ y).T
            linear.weight.copy_(weight)
            linear.bias.copy_(y_mean - weight @ x_mean)

    def forward(
        self, seen: Mapping[str, Tensor], targets: Mapping[str, Tensor], apart: TeacherSpread | None = None
    ) -> Tensor:
        """The mean over layers of what the map leaves unexplained, as a share of the teacher's variance: a scalar.

        `apart` says over which samples that variance is; by default over those of `targets`. A layer that was not run
        this time, as training mode may skip some, has no part in it.
        """
        terms, apart = [], apart or TeacherSpread()
        for (name, (dimension, _, _)), linear in zip(self.layers.items(), self.maps, strict=True):
            if name not in seen or name not in targets:
                continue
            x, y = _rows(seen[name], dimension), _rows(targets[name], dimension)
            terms.append((linear(x) - y).square().mean() / apart.variance(y).clamp_min(1e-12))
        return torch.stack(terms).mean() if terms else torch.zeros(())


def channel_dimension(layer: nn.Module) -> int:
    """The dimension that holds the channels of what a layer reads."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _rows(features: Tensor, dimension: int) -> Tensor:
    """A row for each position of each sample, with the channels in it, in float32."""
    return features.movedim(dimension, -1).flatten(0, -2).float()


def _follows(tensor: Tensor, weights: list[nn.Parameter]) -> bool:
    """Whether `tensor` was computed with one of the weights."""
    gradients = torch.autograd.grad(tensor.sum(), weights, retain_graph=True, allow_unused=True)
    return any(gradient is not None for gradient in gradients)


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


@contextmanager
def _trying(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients within the block."""
    with evaluating(module), torch.no_grad():
        yield
