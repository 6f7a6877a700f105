"""A slimmable network that is only a table: its costs and metrics are known for every width."""

from __future__ import annotations

from itertools import pairwise, product

from mtlc.compress.channels.unit import Member, Unit
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Metrics
from mtlc.compress.slimmable.layer_places import Place
from mtlc.compress.slimmable.width_table import build_table

TASKS = ("depth", "edge", "semseg")


WIDTHS = (0.25, 0.5, 0.75, 1.0)


HIGHER = {"depth": False, "edge": True, "semseg": True}


STAGE_COSTS, DECODER_COSTS = (30e6, 25e6, 15e6, 10e6), {"depth": 6e6, "edge": 3e6, "semseg": 9e6}


def unit(name: str, channels: int = 32) -> Unit:
    return Unit(name, channels, (Member(name, "out", tuple((c,) for c in range(channels))),), True)


class Known:
    """What `Search` asks of a supernet: four stages, three decoders, four widths of each, and costs that multiply."""

    trained: tuple[Configuration, ...] = ()

    def __init__(self, stages: int = 4) -> None:
        names = [f"e{i}" for i in range(stages)]
        places = {n: Place(i, 4 ** (8 - i), frozenset(TASKS)) for i, n in enumerate(names)}
        places |= {t: Place(9, 4, frozenset({t})) for t in TASKS}
        self.table = build_table([unit(n) for n in (*names, *TASKS)], places, TASKS, WIDTHS, 8)
        self.stages, self.tasks = self.table.stages, self.table.tasks
        self.largest, self.smallest = self.table.largest, self.table.smallest

    def encoders(self) -> list[tuple[float, ...]]:
        return list(product(*(self.table.options(stage) for stage in self.stages)))

    def decoder_options(self, task: str) -> tuple[float, ...]:
        return self.table.options(task)

    def macs(self, configuration: Configuration) -> int:
        widths = (1.0, *configuration.encoder)
        total = sum(cost * before * width for cost, before, width in zip(STAGE_COSTS, widths, widths[1:], strict=False))
        total += sum(DECODER_COSTS[t] * w * widths[-1] for t, w in configuration.decoder_of(TASKS).items())
        return round(total)


def metrics_of(configuration: Configuration) -> Metrics:
    """Sums of what each width gives, and a little of the products of neighbouring ones."""
    found = {}
    for place, task in enumerate(TASKS):
        widths = (*configuration.encoder, configuration.decoder_of(TASKS)[task])
        lost = sum((0.02 + 0.03 * ((i + place) % 3)) * (1 - w) ** 1.5 for i, w in enumerate(widths))
        lost += sum(0.01 * (1 - a) * (1 - b) for a, b in pairwise(widths))
        found[task] = 0.6 * (1 - lost) if HIGHER[task] else 0.2 * (1 + lost)
    return found
