"""What a plan says of a job's pruning: too slow, too short, or of a network that is not trained."""

from __future__ import annotations

import pytest

from mtlc.compress.passes.finetune import Finetune, FinetuneConfig
from mtlc.compress.passes.prune import PruneConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.training.train_config import TrainConfig
from mtlc.workflows.pruning_advice import pruning_advice

TRAINED = TrainConfig(epochs=24, lr=2e-3)


def advice(share: float | None = 0.4, trained: TrainConfig | None = TRAINED, learned: bool = True, **tune) -> list[str]:
    step = Step("prune", PruneConfig(finetune=FinetuneConfig(**tune)), "[[passes]] 1")
    return pruning_advice([step], share, trained, 4000, learned)


def test_long_enough_at_the_trainings_rate_is_well():
    """To 40 % in two rounds of six epochs: half of the training's 24."""
    assert advice(epochs=6) == []


def test_fewer_epochs_than_half_the_trainings_are_told():
    (line,) = advice(epochs=5)
    assert line.startswith("[[passes]] 1: fine-tuning takes 10 epochs, the training took 24")


def test_a_lower_rate_is_told():
    (line,) = advice(epochs=12, lr=1e-3)
    assert line.startswith("[[passes]] 1: finetune.lr = 0.001 is below the training's 0.002")


def test_a_network_that_is_not_trained_is_told():
    (line,) = advice(epochs=12, learned=False)
    assert "is not trained yet" in line


@pytest.mark.parametrize("share", [None, 1.0, 1.5])
def test_without_a_cut_there_is_nothing_to_say(share):
    assert advice(share, epochs=1, lr=1e-4) == []


def test_without_a_training_to_compare_with_there_is_nothing_to_say():
    assert advice(trained=None, epochs=1, lr=1e-4) == []


def test_other_passes_are_not_spoken_of():
    assert Finetune.name == "finetune"
    assert pruning_advice([Step("finetune", FinetuneConfig(epochs=1, lr=1e-5), "x")], 0.4, TRAINED, 4000, True) == []
