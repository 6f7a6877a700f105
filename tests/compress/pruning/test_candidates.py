"""Proposed allocations meet the cost, differ, and are what their names say."""

from __future__ import annotations

import pytest
from testkit import tiny_networks
from testkit.tiny_networks import taught_splits

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.sweep import Rules
from mtlc.compress.pruning import candidates as subject
from mtlc.compress.pruning.candidates import propose, tilted, uniform
from mtlc.evaluation.criteria import Criteria

RULES = Rules(initial_thres=1000.0, rank="reconstruction")


@pytest.fixture(scope="module")
def resnet():
    program = tiny_networks.resnet_program()
    splits = taught_splits(program, train=8, calibration=6)
    example = program.example_inputs()
    groups = ChannelGroups(program.module, example, ())
    oracle = Oracle(program, groups, Criteria(program.tasks), splits.calibration, reconstruct=True)
    return program, oracle, ChannelCosts(program, oracle.units, "macs")


@pytest.mark.parametrize("share", [0.6, 0.3])
def test_all_meet_the_cost_and_no_two_are_alike(resnet, share):
    program, oracle, costs = resnet
    target = share * costs.cost({})
    found, sweeps = propose(program, oracle, costs, RULES, target)
    assert found[0].name == "pagcp"
    assert sweeps[-1].cost <= target
    assert "uniform" in [candidate.name for candidate in found]
    assert oracle.removed == {}
    for candidate in found:
        assert costs.cost(candidate.removed) <= target
        for name, unit in oracle.units.items():
            assert unit.channels - len(candidate.removed.get(name, ())) == candidate.kept[name]
            assert candidate.kept[name] % 8 == 0
    assert len({tuple(candidate.kept.values()) for candidate in found}) == len(found)


def test_where_none_costs_so_little_the_sweeps_are_proposed_as_far_as_they_got(resnet):
    program, oracle, costs = resnet
    (found,), sweeps = propose(program, oracle, costs, RULES, 0.001 * costs.cost({}))
    assert found.name == "pagcp"
    assert 0.001 * costs.cost({}) < costs.cost(found.removed) == sweeps[-1].cost < 0.9 * costs.cost({})
    assert oracle.removed == {}


def test_uniform_keeps_about_the_same_share_everywhere(resnet):
    _, oracle, costs = resnet
    (found,) = uniform(oracle, costs, Rules(round_to=1, rank="norm"), 0.3 * costs.cost({}))
    shares = [found.kept[name] / unit.channels for name, unit in oracle.units.items() if unit.channels >= 16]
    assert max(shares) - min(shares) <= 2 / 16


def test_tilted_shapes_narrow_what_costs_macs_and_no_parameters(resnet):
    """A convolution at half the resolution has a quarter of the MACs for as many parameters."""
    program, oracle, costs = resnet
    tilt = subject._tilt(program, oracle, costs)
    fine, coarse = (tilt[f"encoder.stages.{stage}.0.conv1.conv"] for stage in (0, 1))
    assert coarse / fine == pytest.approx(4**subject._TILT, rel=0.2)


def test_tilted_keeps_more_parameters_of_as_many_macs(resnet):
    program, oracle, costs = resnet
    rules, target = Rules(round_to=1, rank="norm"), 0.3 * costs.cost({})
    parameters = ChannelCosts(program, oracle.units, "params")
    (flat,), (found,) = uniform(oracle, costs, rules, target), tilted(program, oracle, costs, rules, target)
    assert found.name == "uniform, tilted"
    assert 0.95 * target < costs.cost(found.removed) <= target
    assert parameters.cost(found.removed) > 1.1 * parameters.cost(flat.removed)
    (named,) = [one for one in propose(program, oracle, costs, rules, target)[0] if one.name == found.name]
    assert named.kept == found.kept


def test_nothing_is_tilted_where_parameters_are_the_budget(resnet):
    program, oracle, _ = resnet
    costs = ChannelCosts(program, oracle.units, "params")
    target = 0.3 * costs.cost({})
    assert tilted(program, oracle, costs, RULES, target) == uniform(oracle, costs, RULES, target)
    assert {one.name for one in propose(program, oracle, costs, RULES, target)[0]} <= {"pagcp", "uniform", "between"}


def test_tilted_proposes_nothing_where_the_narrowest_costs_more(resnet):
    program, oracle, costs = resnet
    assert tilted(program, oracle, costs, RULES, 0.001 * costs.cost({})) == []


def test_a_sweep_that_its_tolerance_stops_proposes_nothing(resnet):
    program, oracle, costs = resnet
    rules = Rules(initial_rate=1e-6, initial_thres=1 + 2.5e-6, rank="reconstruction")
    found, _ = propose(program, oracle, costs, rules, 0.3 * costs.cost({}))
    assert {candidate.name for candidate in found} <= {"uniform", "uniform, tilted"}
    assert found
