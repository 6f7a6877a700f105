"""Searches the configuration that fits a preference over the tasks and a budget best, by measuring few of them.

Strategies share the cost model, the objective and the measurements. "ecmt" is the rule of our notes on ECMT (Aich et
al., ICCV 2023): decoders as wide as the preference says, the encoder searched within what is left. "joint" weighs the
two against each other: any decoder widths will do in which a task that is preferred is no narrower than another.
"greedy" narrows one group at a time (network slimming, Yu and Huang, 2019), "evolution" is the search of once-for-all
(Cai et al., ICLR 2020), "uniform" takes one width for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from mtlc.compress.slimmable.candidates import Candidates, Gains
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Metrics
from mtlc.compress.slimmable.metric_predictor import MetricPredictor
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.errors import UserError
from mtlc.runtime.widths.width_choice import decoder_widths, relative_gain

Strategy = Literal["joint", "ecmt", "greedy", "evolution", "uniform"]
STRATEGIES: tuple[Strategy, ...] = ("joint", "ecmt", "greedy", "evolution", "uniform")
Cost = Callable[[Configuration], float]

_AT_A_TIME = 3  # configurations measured before the predictor is fitted again
_ROUNDS = 4
_NEAR = 0.9  # of the budget


@dataclass(frozen=True)
class Question:
    """What is asked: normalised preferences by task, and what a configuration may cost, in the cost model's unit."""

    preference: Mapping[str, float]
    budget: float


@dataclass(frozen=True)
class Found:
    """A configuration with its cost, its metrics on held-out data and its gain Σ p_t · g_t against the widest network.

    `runs` and `seconds` are what this search took; measurements that were there before cost nothing.
    """

    configuration: Configuration
    cost: float
    metrics: Metrics
    gain: float
    runs: int
    seconds: float
    trace: tuple[tuple[int, float], ...] = field(default=(), repr=False)


class Search:
    """Searches one supernet, for as many questions as are asked. What is measured for one serves the others."""

    def __init__(
        self,
        supernet: Supernet,
        evaluations: Evaluations,
        higher_is_better: Mapping[str, bool],
        cost: Cost | None = None,
        unit: str = "MACs",
        seed: int = 0,
    ) -> None:
        self.supernet, self.evaluations, self.unit = supernet, evaluations, unit
        self.cost: Cost = cost or supernet.macs
        self._higher, self._seed = higher_is_better, seed
        self._stages = [supernet.table.options(stage) for stage in supernet.stages]
        self._decoders = {task: supernet.decoder_options(task) for task in supernet.tasks}
        self._reference: Metrics = {}

    # -- what every strategy uses ----------------------------------------------------------------------------------

    def find(self, question: Question, strategy: Strategy = "joint") -> Found:
        """The best configuration that the strategy measured within the budget, never one over it.

        Raises `UserError` if not even the narrowest fits, and says by how much it misses.
        """
        return self._found(question, getattr(self, f"_{strategy}"))

    def best_of(self, configurations: Sequence[Configuration], question: Question) -> Found:
        """The best of some configurations, all of which are measured."""
        return self._found(question, lambda _, tracked: tracked.measure(configurations))

    def _found(self, question: Question, look: Callable[[Question, _Tracked], Any]) -> Found:
        self._refuse_impossible(question)
        started, runs = time.monotonic(), self.evaluations.runs
        tracked = _Tracked(self, question, runs)
        look(question, tracked)
        if tracked.best is None:  # a strategy that measured nothing within the budget
            tracked.measure([self.supernet.smallest])
        assert tracked.best is not None
        return Found(
            tracked.best, self.cost(tracked.best), self.evaluations.of([tracked.best])[0], tracked.gain,
            self.evaluations.runs - runs, time.monotonic() - started, tuple(tracked.trace),
        )  # fmt: skip

    def reference(self) -> Metrics:
        """The metrics of the widest network, which gains refer to."""
        if not self._reference:
            self._reference = self.evaluations.of([self.supernet.largest])[0]
            for task, metric in self._reference.items():
                if metric == 0:
                    raise UserError(f"task {task!r}: the widest network's metric is 0, a relative gain is undefined")
        return self._reference

    def gain(self, preference: Mapping[str, float], metrics: Mapping[str, float]) -> float:
        """Σ p_t · g_t, a fraction."""
        reference = self.reference()
        return sum(p * relative_gain(metrics[t], reference[t], self._higher[t]) for t, p in preference.items())

    def _refuse_impossible(self, question: Question) -> None:
        least, most = self.cost(self.supernet.smallest), self.cost(self.supernet.largest)
        if least > question.budget:
            raise UserError(
                f"budget {self._amount(question.budget)} is under the least that this network can run: "
                f"{self._amount(least)}, {least / most:.1%} of the widest; "
                f"it misses by {self._amount(least - question.budget)}"
            )

    def _amount(self, cost: float) -> str:
        return f"{cost:.4g} ms" if self.unit == "ms" else f"{cost / 1e6:.4g} M{self.unit}"

    def _parts(self, encoder: tuple[float, ...]) -> tuple[float, dict[str, list[float]]]:
        """The cost of an encoder with the narrowest decoders, and what each wider decoder adds to it."""
        # With the encoder given, decoders' costs are taken to add up, as MACs do. One question for each width of each
        # decoder then answers for all combinations of them; `_joint` asks for the real cost of those that it is going
        # to measure.
        least = self.supernet.smallest.decoders
        base = self.cost(Configuration(encoder, least))
        added: dict[str, list[float]] = {}
        for place, (task, options) in enumerate(self._decoders.items()):
            wider = ((*least[:place], width, *least[place + 1 :]) for width in options[1:])
            added[task] = [0.0, *(self.cost(Configuration(encoder, decoders)) - base for decoders in wider)]
        return base, added

    def _predicted(self, question: Question) -> Gains:
        predictor = MetricPredictor(self._stages, self._decoders, self.evaluations.entries())
        return partial(self._gains, question.preference, predictor)

    def _measured(self, question: Question) -> Gains:
        """Gains of what was measured; of anything else it is known nothing, which is worse than all."""
        entries = self.evaluations.entries()
        reference, higher = self.reference(), self._higher

        def metric(encoder: tuple[float, ...], task: str, width: float) -> float:
            worst = -np.inf if higher[task] else np.inf
            return entries.get((encoder, task, width), worst if question.preference[task] else reference[task])

        return partial(self._gains, question.preference, metric)

    def _gains(
        self, preference: Mapping[str, float], metric: Callable[..., float], encoder: tuple[float, ...]
    ) -> dict[str, list[float]]:
        """What every decoder width of every task adds to the gain."""
        reference = self.reference()

        def added(task: str, width: float) -> float:
            if not preference[task]:
                return 0.0  # nobody asks for the task, so it plays no part, whatever is known of it
            change = relative_gain(metric(encoder, task, width), reference[task], self._higher[task])
            return preference[task] * change

        return {task: [added(task, width) for width in options] for task, options in self._decoders.items()}

    def _summed(self, configuration: Configuration, gains: Gains) -> float:
        added = gains(configuration.encoder)
        widths = zip(self.supernet.tasks, configuration.decoders, strict=True)
        return sum(added[task][self._decoders[task].index(width)] for task, width in widths)

    def _preferred(self, question: Question, scale: float) -> tuple[float, ...]:
        widths = decoder_widths(question.preference, scale, self._decoders)
        return tuple(widths[task] for task in self.supernet.tasks)

    # -- the strategies --------------------------------------------------------------------------------------------

    def _joint(self, question: Question, tracked: _Tracked) -> None:
        """Every encoder with all decoder widths that obey the preference: the predictor ranks, the best are measured.

        So are, before, those near the budget that the network was trained for: no predictor knows of them.
        """
        every = Candidates(self.supernet, question.preference, self._parts)
        near = (c for c in self.supernet.trained if _NEAR * question.budget <= self.cost(c) <= question.budget)
        tracked.measure(every.among(near))

        def best(gains: Gains) -> list[Configuration]:
            ranked = every.best(question.budget, gains, 4 * _AT_A_TIME)
            return [c for c in ranked if self.cost(c) <= question.budget]

        self._best_predicted(question, best, tracked)

    def _ecmt(self, question: Question, tracked: _Tracked) -> None:
        """Decoders by preference, the least preferred narrowed until the narrowest encoder fits; then the encoder."""
        decoders = list(self._preferred(question, 1.0))
        order = sorted(range(len(decoders)), key=lambda i: question.preference[self.supernet.tasks[i]])
        for place in order:
            options = self._decoders[self.supernet.tasks[place]]
            while self.cost(Configuration(self.supernet.smallest.encoder, tuple(decoders))) > question.budget:
                at = options.index(decoders[place])
                if at == 0:
                    break
                decoders[place] = options[at - 1]
        # With the decoders fixed, all encoders are candidates: what is left of the budget is theirs.
        candidates = [Configuration(encoder, tuple(decoders)) for encoder in self.supernet.encoders()]
        candidates = [c for c in candidates if self.cost(c) <= question.budget]

        def best(gains: Gains) -> list[Configuration]:
            predicted = {c: self._summed(c, gains) for c in candidates}
            return sorted(candidates, key=lambda c: (-predicted[c], self.cost(c)))

        self._best_predicted(question, best, tracked)

    def _best_predicted(
        self, question: Question, ranked: Callable[[Gains], list[Configuration]], tracked: _Tracked
    ) -> None:
        """Measure what is ranked first until that was measured before; then the best of all that was."""
        # The predictor proposes, the measurement disposes:
        #
        #     anchors --> fit --> rank --> measure the first few --+--> the first was known: done
        #                  ^                                       |
        #                  +---------------- something new --------+    `_ROUNDS` times at most
        #
        # The predictor errs most where nothing was measured, so what it likes best is measured and corrects it.
        self.evaluations.of(self._anchors())
        for _ in range(_ROUNDS):
            best = ranked(self._predicted(question))[:_AT_A_TIME]
            fresh = [c for c in best if self.evaluations.known(c) is None]
            tracked.measure(best)
            if not fresh or best[0] not in fresh:
                break
        # Measured metrics combine: an encoder with one task's decoder from one run and another's from a second. The
        # best such combination may never have been run as a whole, and costs no run.
        tracked.measure(ranked(self._measured(question))[:1])

    def _anchors(self) -> list[Configuration]:
        """A first look at the whole range: the two extremes, and as many more as the groups have widths, in which every
        stage and every decoder takes each of its widths in turn.
        """
        table, anchors = self.supernet.table, [self.supernet.largest, self.supernet.smallest]
        rng = np.random.default_rng(self._seed)
        steps = max(len(table.options(group)) for group in table.groups)
        # Twice, in different orders: one pass alone would show every width of a group only beside one of each other.
        for _ in range(2):
            orders = {group: rng.permutation(steps) % len(table.options(group)) for group in table.groups}
            for step in range(steps):
                widths = {group: table.options(group)[int(orders[group][step])] for group in table.groups}
                anchors.append(
                    Configuration(tuple(widths[s] for s in table.stages), tuple(widths[t] for t in table.tasks))
                )
        return list(dict.fromkeys(anchors))

    def _greedy(self, question: Question, tracked: _Tracked) -> None:
        """From the widest, narrow the group that loses least until the budget is met."""
        present = self.supernet.largest
        while self.cost(present) > question.budget:
            # All neighbours are measured at each step: as many runs as there are groups that can still go down.
            narrower = self._steps_down(present)
            metrics = self.evaluations.of(narrower)
            gains = [self.gain(question.preference, m) for m in metrics]
            present = narrower[int(np.argmax(gains))]
        tracked.measure([present])

    def _steps_down(self, configuration: Configuration) -> list[Configuration]:
        """The configurations with one group one width narrower."""
        widths = (*configuration.encoder, *configuration.decoders)
        split, found = len(configuration.encoder), []
        for place, group in enumerate(self.supernet.table.groups):
            at = self.supernet.table.options(group).index(widths[place])
            if at > 0:
                changed = (*widths[:place], self.supernet.table.options(group)[at - 1], *widths[place + 1 :])
                found.append(Configuration(changed[:split], changed[split:]))
        return found

    def _evolution(
        self,
        question: Question,
        tracked: _Tracked,
        population: int = 100,
        generations: int = 500,
        parents: float = 0.25,
        mutation: float = 0.1,
        mutated: float = 0.5,
        patience: int = 10,
    ) -> None:
        """Once-for-all's evolutionary search with its settings (population 100, a quarter are parents, half of the next
        generation mutated with probability 0.1 a gene, half crossed); it ends after `patience` generations without
        gain.
        """
        rng = np.random.default_rng(self._seed)
        options = [self.supernet.table.options(group) for group in self.supernet.table.groups]
        split = len(self.supernet.stages)

        def made(widths: Sequence[float]) -> Configuration:
            return Configuration(tuple(widths[:split]), tuple(widths[split:]))

        # Draws over the budget are thrown away. The bound is for budgets that hardly any draw meets.
        def fitting(draw: Callable[[], list[float]]) -> Configuration:
            for _ in range(1000):
                found = made(draw())
                if self.cost(found) <= question.budget:
                    return found
            return self.supernet.smallest

        def mutant(of: Configuration) -> list[float]:
            genes = (*of.encoder, *of.decoders)
            return [
                widths[int(rng.integers(len(widths)))] if rng.random() < mutation else gene
                for gene, widths in zip(genes, options, strict=True)
            ]

        def child(one: Configuration, two: Configuration) -> list[float]:
            pairs = zip((*one.encoder, *one.decoders), (*two.encoder, *two.decoders), strict=True)
            return [a if rng.random() < 0.5 else b for a, b in pairs]

        def anyone() -> list[float]:
            return [widths[int(rng.integers(len(widths)))] for widths in options]

        people = [fitting(anyone) for _ in range(population)]
        stale, best = 0, -np.inf
        for _ in range(generations):
            # People who were measured before cost no run: `Evaluations` remembers them, so the elite is free.
            gains = tracked.measure(people)
            elite = [
                people[i] for i in np.argsort([-g for g in gains], kind="stable")[: max(1, int(parents * population))]
            ]
            stale, best = (0, max(gains)) if max(gains) > best + 1e-12 else (stale + 1, best)
            if stale >= patience:
                break
            mutants = int(mutated * population)

            def one(elite: Sequence[Configuration] = elite) -> Configuration:
                return elite[int(rng.integers(len(elite)))]

            people = [*elite, *(fitting(lambda: mutant(one())) for _ in range(mutants))]
            people += [fitting(lambda: child(one(), one())) for _ in range(population - mutants)]

    def _uniform(self, question: Question, tracked: _Tracked) -> None:
        """One width for all stages and decoders, the widest that fits."""
        tried = [self.supernet.table.uniform(width) for width in self.supernet.table.widths]
        tracked.measure([c for c in tried if self.cost(c) <= question.budget][-1:])


class _Tracked:
    """The best of what a strategy measured within the budget, and how the gain grew with the number of runs."""

    def __init__(self, search: Search, question: Question, runs: int) -> None:
        self._search, self._question, self._runs = search, question, runs
        self.best: Configuration | None = None
        self.gain = -float("inf")
        self.trace: list[tuple[int, float]] = []

    def measure(self, configurations: Sequence[Configuration]) -> list[float]:
        """Measure configurations that fit; their gains."""
        search = self._search
        gains = [search.gain(self._question.preference, m) for m in search.evaluations.of(configurations)]
        for configuration, gain in zip(configurations, gains, strict=True):
            # Equal gains differ in their last digits by the order of sums; among equals the cheaper one wins.
            better = gain > self.gain + 1e-12
            cheaper = (
                self.best is not None
                and gain >= self.gain - 1e-12
                and search.cost(configuration) < search.cost(self.best)
            )
            if search.cost(configuration) <= self._question.budget and (better or cheaper):
                self.best, self.gain = configuration, gain
                self.trace.append((search.evaluations.runs - self._runs, gain))
        return gains
