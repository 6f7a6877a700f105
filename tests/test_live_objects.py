"""References of objects that cannot be imported: the same for what holds the same, another for what does not."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mtlc.errors import UserError
from mtlc.live_objects import content_hash, is_live, reference
from mtlc.references import resolve


class Scaled:
    __slots__ = ("factor", "inner")

    def __init__(self, factor, inner=None) -> None:
        self.factor, self.inner = factor, inner

    def __call__(self, x):
        return self.factor * x


def named(x):
    return x


def times(factor):
    return lambda x: factor * x


def test_what_can_be_imported_is_called_by_its_name():
    assert reference(np.linalg.norm) == "numpy.linalg:norm"
    assert reference(nn.MSELoss) == "torch.nn.modules.loss:MSELoss"
    assert not is_live(reference(nn.MSELoss))
    assert resolve(reference(nn.MSELoss), "loss") is nn.MSELoss


def test_other_objects_are_found_by_what_they_hold():
    made = reference(Scaled(2))
    assert made.startswith("live:Scaled-")
    assert resolve(made, "loss")(3) == 6
    assert reference(Scaled(2)) == made != reference(Scaled(3))
    assert reference(nn.CrossEntropyLoss(weight=torch.ones(3))) == reference(nn.CrossEntropyLoss(weight=torch.ones(3)))
    with pytest.raises(UserError, match=r"loss = 'live:Gone-0': an object of another process; give it again"):
        resolve("live:Gone-0", "loss")


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (Scaled(torch.ones(2)), Scaled(torch.ones(2)), Scaled(torch.tensor([1.0, 2.0]))),
        (Scaled(torch.ones(2)), Scaled(torch.ones(2)), Scaled(torch.ones(2, dtype=torch.float64))),
        (Scaled(torch.ones(2)), Scaled(torch.ones(2)), Scaled(torch.ones(2, 1))),
        (times(2), times(2), times(3)),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
        (partial(max, 1), partial(max, 1), partial(max, 2)),
        ({"a": [1, (2, {3})]}, {"a": [1, (2, {3})]}, {"a": [1, (2, {4})]}),
        (np.arange(3), np.arange(3), np.arange(3) + 1),
        (nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.SmoothL1Loss(beta=1.0), nn.SmoothL1Loss(beta=1.0), nn.HuberLoss()),
        (1, 1, 1.0),
        (Scaled(2, Scaled(3)).__call__, Scaled(2, Scaled(3)).__call__, Scaled(2, Scaled(4)).__call__),
    ],
)
def test_hashes_of_contents(one, same, other):
    assert content_hash(one) == content_hash(same)
    assert content_hash(one) != content_hash(other)


def test_circles_end():
    first, second = Scaled(1), Scaled(1)
    first.inner, second.inner = first, second
    assert content_hash(first) == content_hash(second) != content_hash(Scaled(1))


def test_what_cannot_be_told_is_another_each_time():
    class Opaque:
        __slots__ = ()

        def __reduce_ex__(self, protocol):
            raise TypeError

    value = Opaque()
    assert content_hash(value) != content_hash(value)


def test_hashes_are_those_of_another_process():
    code = (
        "import torch; from torch import nn; from mtlc.live_objects import content_hash\n"
        "print(content_hash([nn.CrossEntropyLoss(weight=torch.ones(3)), {'b', 'a'}, lambda x: x + {1: 'y'}[1]]))"
    )
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(found) == 1
    assert len(found.pop()) == 65
