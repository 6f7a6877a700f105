"""Weighs the losses of a training step whose samples do not all have labels of all tasks.

In a step a task's loss is the mean over the samples that have a label of it. So that each labelled sample counts alike
in an epoch, and not each batch, that mean is weighted with how many there are of them, as a share of how many a batch
has in the mean:

    weight = labelled samples of the batch / (samples of the batch × labelled share of the train split)

It is 1 where every sample has a label, and 1 in the mean over batches where not. Two batches of 4 of a split in which
half the samples have a label, of which the first has 3 and the second 1: weights 1.5 and 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from mtlc.compress.training.process_group import ProcessGroup
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Batch, Splits
from mtlc.tasks.task import TaskSpec


@dataclass(frozen=True)
class LabelledLosses:
    """The sum of the tasks' weighted losses, a scalar, and the mean loss of each task that the batch has a label of.

    `total` hangs on no weight where the batch has no label.
    """

    total: Tensor
    values: dict[str, float]


def labelled_losses(
    parts: Sequence[tuple[Criteria, TaskSpec, Batch]],
    outputs: Mapping[str, Tensor],
    shares: Mapping[str, float],
    factors: Mapping[str, float] = MappingProxyType({}),
    group: ProcessGroup | None = None,
) -> LabelledLosses:
    """The losses of tasks, each with its criteria and the samples of the batch that train it.

    `outputs` are by task, of these samples; `shares` are the labelled shares of the train split; a task without one has
    the mean over its labelled samples. `factors` are what each task's loss is multiplied with in the sum: how much of a
    step the batch is. With a `group` its other processes are in the same step, each with its own samples. A task that
    one of them has labels of has a gradient of zero here: norms that they share have to meet in each one's backward.
    """
    labelled = [criteria.labelled(task, outputs[task.name], batch, "loss") for criteria, task, batch in parts]
    anywhere = [found is not None for found in labelled]
    if group is not None:
        anywhere = [count > 0 for count in group.sum(torch.tensor(anywhere, dtype=torch.float64)).tolist()]
    terms, values = [], {}
    for (criteria, task, _), found, elsewhere in zip(parts, labelled, anywhere, strict=True):
        output = outputs[task.name]
        if found is None:
            # Of no weight: what only this task trains gets no gradient.
            terms.append(0 * output.sum() if elsewhere else output.new_zeros(()))
            continue
        loss = criteria.loss_of(task, *found)
        values[task.name] = float(loss.detach())
        share = shares.get(task.name)
        weight = factors.get(task.name, 1.0) * (1.0 if share is None else len(found[1]) / (len(output) * share))
        terms.append(task.weight * loss if weight == 1 else task.weight * weight * loss)
    return LabelledLosses(torch.stack(terms).sum(), values)


def label_shares(splits: Splits, tasks: Sequence[TaskSpec]) -> dict[str, float]:
    """By task, the share of the train split's samples that have a label of it, where that is known and not 0.

    Every verb counts them before it trains; for a training by hand `mtlc.evaluation.label_check.LabelCheck` does. A
    task that is only trained with has the share of the task whose labels it takes.
    """
    counts = (splits.labelled or {}).get("train", {})
    known = {task.target_key: counts[task.name] for task in tasks if task.name in counts}
    found = {task.name: counts.get(task.name, known.get(task.target_key)) for task in tasks}
    return {name: count / len(splits.train) for name, count in found.items() if count}
