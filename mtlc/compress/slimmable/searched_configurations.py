"""Searches the configurations of a supernet that are worth training: those that a user would end up with.

A configuration is a width for each part of the network. Most are never used, since another one is better at the same
cost. Training therefore samples those near the Pareto front, not all evenly (AttentiveNAS, Wang et al., CVPR 2021).
They are found as users will find them: by the search, at several budgets, for all tasks alike and for each one
favoured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Here, Measurer
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import Question, Search
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.log import Log, silent
from mtlc.runtime.widths.width_choice import normalised_preference

_SAMPLES = 64
"""Of the calibration split for a metric, and of the training split for batch-norm statistics."""
_FAVOURED = 0.6
"""The preference of a task that is favoured; the others share the rest."""


def searched_configurations(
    supernet: Supernet,
    splits: Splits,
    criteria: Criteria,
    budgets: Sequence[float],
    *,
    seed: int = 0,
    path: Path | None = None,
    log: Log = silent,
) -> tuple[Configuration, ...]:
    """The narrowest configuration, and what `Search` finds for budgets: for all tasks alike, and favouring each.

    `budgets` are shares of the widest network's MACs; those under the narrowest one's are left out. What is measured is
    kept at `path`, if one is given, so that a run that was interrupted goes on; the file must be of this supernet.
    """
    # On few samples: these measurements only say which configurations are worth training.
    measurer = Measurer(supernet, splits, criteria, _SAMPLES, _SAMPLES)
    evaluations = Evaluations(Here(measurer), supernet.tasks, path, f"seed {seed}", log=log)
    search = Search(supernet, evaluations, criteria.higher_is_better, seed=seed)
    least, most = supernet.macs(supernet.smallest), supernet.macs(supernet.largest)
    found = [
        search.find(Question(preference, share * most)).configuration
        for preference in _preferences(supernet.tasks)
        for share in budgets
        if share * most >= least
    ]
    return tuple(dict.fromkeys([supernet.smallest, *found]))


def _preferences(tasks: tuple[str, ...]) -> Iterator[dict[str, float]]:
    yield normalised_preference(None, tasks)
    if len(tasks) > 1:
        for favoured in tasks:
            rest = (1 - _FAVOURED) / (len(tasks) - 1)
            yield {task: _FAVOURED if task == favoured else rest for task in tasks}
