"""The race: who is dropped when, what is trained, and that limits come before losses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from mtlc.compress.pruning.race import race, relative_loss
from mtlc.compress.training.shared_training import Diverged


class Track:
    """Runners whose score falls by their speed with every epoch; a plain object stands for the network."""

    def __init__(self, **speeds: float) -> None:
        self.runners = [
            SimpleNamespace(name=name, program=SimpleNamespace(name=name, epochs=0.0), samples=0, heats=[])
            for name in speeds
        ]
        self.speeds = speeds
        self.trained: list[tuple[int, str, float]] = []
        self.past: dict[str, float] = {}
        self.least = 0.01

    def train(self, runner, epochs: float, heat: int) -> int:
        self.trained.append((heat, runner.name, epochs))
        runner.program.epochs += epochs
        return round(1000 * epochs)

    def worth(self, program):
        loss = 10 - self.speeds[program.name] * program.epochs
        return SimpleNamespace(losses={"a": loss, "who": program.name}, metrics={})

    def score(self, found) -> tuple[float, float]:
        return self.past.get(found.losses["who"], 0.0), found.losses["a"]

    def run(self, epochs: float = 1.2):
        return race(self.runners, epochs, self.least, self.train, self.worth, self.score, lambda line: None)


def test_half_is_dropped_in_each_heat_and_every_heat_trains_as_much():
    track = Track(a=1, b=5, c=2, d=4, e=3)
    assert track.run().name == "b"
    by_heat = {heat: [name for h, name, _ in track.trained if h == heat] for heat in range(3)}
    assert by_heat == {0: ["a", "b", "c", "d", "e"], 1: ["b", "d", "e"], 2: ["b", "d"]}
    for heat in range(3):
        assert sum(epochs for h, _, epochs in track.trained if h == heat) == pytest.approx(0.4)
    assert sum(runner.samples for runner in track.runners) == pytest.approx(1200, abs=3)


def test_a_broken_limit_counts_before_the_loss():
    track = Track(a=1, b=5)
    track.past = {"b": 0.01}
    assert track.run().name == "a"


def test_of_equals_the_first_stays():
    assert Track(a=2, b=2, c=2).run().name == "a"


def test_one_runner_is_not_trained():
    track = Track(a=1)
    assert track.run().name == "a"
    assert track.trained == []


def test_without_training_one_look_decides():
    track = Track(a=1, b=1)
    track.past = {"a": 0.5}
    assert track.run(0.0).name == "b"
    assert [len(runner.heats) for runner in track.runners] == [1, 1]


def test_heats_too_short_to_tell_are_left_out():
    """Three heats of 0.4 epochs for five runners are 0.08 each; at 0.1 and more there are two, then none."""
    track = Track(a=1, b=5, c=2, d=4, e=3)
    track.least = 0.1
    assert track.run().name == "b"
    assert [len(runner.heats) for runner in track.runners] == [1, 2, 1, 2, 2]
    track = Track(a=1, b=5, c=2, d=4, e=3)
    track.least = 0.25
    assert track.run().name == "a"
    assert track.trained == []


def test_relative_loss_by_hand():
    cut = {"a": 3.0, "b": 1.0}
    assert relative_loss({"a": 2.0, "b": 0.3}, {"a": 1.0, "b": 0.2}, cut) == pytest.approx((2 + 1.5) / 2)


def test_losses_below_zero_are_ordered_and_none_at_all_is_told_by_the_cut():
    """From -0.9 to -0.6 is a third lost. From 0, on a network's own labels, 0.5 is half of what the cut made, 1.0."""
    assert relative_loss({"a": -0.6}, {"a": -0.9}, {"a": -0.1}) == pytest.approx(1 + 1 / 3)
    assert relative_loss({"a": 0.5, "b": 1.2}, {"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 9.0}) == pytest.approx(1.35)
    assert relative_loss({"a": float("nan")}, {"a": 1.0}, {"a": 1.0}) == math.inf


def test_one_that_diverges_is_out_and_the_others_go_on():
    track = Track(a=1, b=5)

    def train(runner, epochs: float, heat: int) -> int:
        if runner.name in diverging:
            raise Diverged(f"{runner.name}: nan")
        return track.train(runner, epochs, heat)

    def run() -> str:
        return race(track.runners, 1.2, 0.01, train, track.worth, track.score, lambda line: None).name

    diverging = {"b"}
    assert run() == "a"
    assert track.runners[1].heats[0]["diverged"] == "b: nan"
    diverging = {"a", "b"}
    with pytest.raises(Diverged, match="b: nan"):
        run()
