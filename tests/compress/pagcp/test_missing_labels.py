"""The oracle on data of which some samples have no label: it answers as it does on the labelled ones alone."""

from __future__ import annotations

import pytest
import torch
from testkit import tiny_networks
from testkit.partial_labels import Listed

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.mixed import mixed


def oracle_of(program, data, **settings) -> Oracle:
    groups = ChannelGroups(program.module, program.example_inputs())
    return Oracle(program, groups, Criteria(program.tasks), data, batch_size=4, **settings)


def rows(data, indices, *tasks):
    return [{key: data.tensors[key][row] for key in ("image", *tasks)} for row in indices]


@pytest.fixture(scope="module")
def program():
    return tiny_networks.chain_program()


@pytest.fixture(scope="module")
def full(program):
    return tiny_networks.taught(program, 11, 0)


@pytest.mark.parametrize("cached", [True, False])
def test_trials_do_not_change_with_samples_without_labels(program, full, cached):
    """Two labelled samples fewer than a batch, and batches that have none; forwards of one batch size round alike."""
    alone = oracle_of(program, Listed(rows(full, range(7), "depth", "semseg")), cached=cached)
    among = rows(full, range(7), "depth", "semseg")
    for place, row in ((0, 7), (3, 8), (4, 9), (9, 10), (10, 7), (11, 8), (12, 9)):
        among[place:place] = rows(full, [row])
    with_others = oracle_of(program, Listed(among), cached=cached)
    assert with_others.original == pytest.approx(alone.original, rel=1e-5)
    for unit in alone.units.values():
        gone = list(range(1, unit.channels, 2))
        losses = alone.trial(unit.name, gone)
        assert with_others.trial(unit.name, gone) == pytest.approx(losses, rel=1e-5)
        for share in (0.5, 0.999, 1.001):
            limits = {task: share * loss for task, loss in losses.items()}
            for one in (alone, with_others):
                stopped = one.trial(unit.name, [*gone, 0], limits)
                assert any(stopped[task] > limits[task] for task in limits) == any(
                    alone.trial(unit.name, [*gone, 0])[task] > limits[task] for task in limits
                )


def test_each_task_is_judged_on_its_own_samples(program, full):
    depth, semseg = rows(full, range(6), "depth"), rows(full, range(6, 11), "semseg")
    both = oracle_of(program, mixed(depth, semseg))
    name = next(iter(both.units))
    for task, part in (("depth", depth), ("semseg", semseg)):
        alone = Oracle(
            program.restricted([task]),
            ChannelGroups(program.restricted([task]).module, program.example_inputs()),
            Criteria([spec for spec in program.tasks if spec.name == task]),
            Listed(part),
            batch_size=4,
        )
        assert both.original[task] == pytest.approx(alone.original[task], rel=1e-5)
        assert both.trial(name, [0, 1])[task] == pytest.approx(alone.trial(name, [0, 1])[task], rel=1e-5)


def test_a_task_without_a_label_among_the_samples_is_named(program, full):
    data = Listed([*rows(full, range(4), "depth"), *rows(full, range(4, 8), "depth", "semseg")])
    with pytest.raises(UserError, match="task 'semseg': none of the first 4 calibration samples has a label"):
        oracle_of(program, data, samples=4)
    assert torch.isfinite(torch.tensor(list(oracle_of(program, data, samples=5).original.values()))).all()
