"""What verification says of checks that could not have failed, and of networks that give no numbers."""

import numpy as np
import pytest
import torch

from mtlc.errors import VerificationError
from mtlc.export.bundle.verify import _vacuous, verify_bundle

RNG = np.random.default_rng(0)


def arrays(**tasks):
    return [{name: make(size) for name, make in tasks.items()} for size in (1, 1, 3)]


def random(size):
    return RNG.standard_normal((size, 2, 4), np.float32)


def test_independent_outputs_are_no_vacuous_check():
    assert _vacuous(arrays(a=random, b=random), 1e-4) == {}


def test_equal_outputs_are_named():
    reference = arrays(a=random, c=random)
    for batch in reference:
        batch["b"] = batch["a"] * (1 + 1e-6)
    reasons = _vacuous(reference, 1e-4)
    assert set(reasons) == {"a", "b"}
    assert "equals that of task 'b'" in reasons["a"]


def test_outputs_that_do_not_depend_on_the_input_are_named():
    reasons = _vacuous(arrays(a=random, zero=lambda n: np.zeros((n, 3))), 1e-4)
    assert list(reasons) == ["zero"]
    assert "the same for all samples" in reasons["zero"]


def test_outputs_that_are_flat_are_named():
    level = lambda n: np.broadcast_to(RNG.standard_normal((n, 1, 1)), (n, 2, 4))  # noqa: E731
    assert "constant within each sample" in _vacuous(arrays(flat=level, a=random), 1e-4)["flat"]


def test_one_number_per_sample_is_not_flat():
    assert _vacuous(arrays(a=lambda n: RNG.standard_normal((n, 1)), b=lambda n: RNG.random((n, 5)) > 0.5), 1e-4) == {}


def test_a_network_that_gives_nan(exported):
    samples = {"image": torch.full((3, 3, 32, 32), float("nan"))}
    with pytest.raises(VerificationError, match="task 'semseg': the network's own output is not finite"):
        verify_bundle(exported.path, exported.program, samples)


def test_other_tasks(exported):
    from dataclasses import replace

    fewer = replace(exported.program, tasks=exported.program.tasks[:2], ignored_outputs=("edge",))
    with pytest.raises(VerificationError, match="its tasks are semseg, depth, edge, the program's semseg, depth"):
        verify_bundle(exported.path, fewer, exported.samples)


@pytest.mark.parametrize("sizes", [(1,), (2, 7)])
def test_other_batch_sizes(exported, sizes):
    report = verify_bundle(exported.path, exported.program, exported.samples, batch_sizes=sizes)
    assert set(report["depth"]) == {*map(str, sizes), "near_ties", "vacuous"}
