"""Rounds: a race takes no more training than there is, reports say the recipe, and who stopped one is found out."""

from __future__ import annotations

import pytest
from testkit import tiny_networks
from testkit.pruning import context, run
from testkit.tiny_networks import taught_splits, with_limit

from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.tasks.task import Limit

EASY = {"method": "recovered", "sensitivity": (), "rounds": 1}


@pytest.mark.parametrize(("race", "epochs"), [(0.4, 16), (0.99, 16)])
def test_a_round_with_a_race_trains_as_long_as_one_without(tmp_path, race, epochs):
    """21 samples in batches of 4 are 5 steps an epoch: the odd one is in no step, and counts for none."""
    program = tiny_networks.resnet_program()
    given = context(program, taught_splits(program, train=21, calibration=4, validation=4), tmp_path)
    tune = FinetuneConfig(epochs=epochs, batch_size=4, lr=1e-3, distill_features=0, recalibrate=0)
    (entry,) = run(program, given, finetune=tune, race=race, **EASY).report["rounds"]
    raced = sum(one["samples"] for one in entry["candidates"])
    assert raced > 0
    assert entry["samples"] <= epochs * 5 * 4 + 4
    if race < 0.9:
        assert entry["samples"] == epochs * 5 * 4


def test_a_rounds_report_says_where_its_recipe_is_from(tmp_path):
    program = tiny_networks.chain_program()
    given = context(program, taught_splits(program, train=8, calibration=4), tmp_path)
    tune = FinetuneConfig(epochs=1, batch_size=8)
    (entry,) = run(program, given, finetune=tune, **EASY).report["rounds"]
    recipe = entry["training"]["recipe"]
    assert (recipe["epochs"], recipe["epochs_from"], recipe["lr_from"]) == (1, "given", "a range test")
    assert recipe["range_test"]["steps"] > 0


def test_without_sweeps_the_layer_that_cost_most_is_named_too(tmp_path):
    program = with_limit(tiny_networks.chain_program(), depth=Limit(1e-4, True))
    given = context(program, taught_splits(program), tmp_path)
    missed = run(program, given, finetune=None, **{**EASY, "method": "uniform"}).missed
    assert missed is not None
    assert missed.endswith("most of its loss arose at layer 'body.0'")
