"""Wraps a network so that its outputs are a tuple in the order of the tasks, for exporters and tracers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mtlc.program.outputs import task_outputs
from mtlc.program.program import Program


class TaskOutputs(nn.Module):
    """The network with its outputs as a tuple in the order of the tasks: what exporters and tracers see."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.network = program.module
        self._tasks, self._ignored = program.tasks, program.ignored_outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._in_order(self.network(*inputs))

    def _in_order(self, tree: Any) -> tuple[Tensor, ...]:
        return tuple(task_outputs(tree, self._tasks, self._ignored).values())


class TaskConditioned(TaskOutputs):
    """A network whose trunk takes the task as an input: (*inputs, task (1,)) → every task's output for that task.

    Only the output of the task that was asked means anything. The module's class offers `forward_task` for this, and
    says by `task_conditioned` that its trunk depends on the task.
    """

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._in_order(self.network.forward_task(*inputs))  # type: ignore[operator]


def is_task_conditioned(program: Program) -> bool:
    """Whether the network has a trunk that takes the task as an input, and more than one task to give it."""
    conditioned = bool(getattr(program.module, "task_conditioned", False)) and len(program.tasks) > 1
    return conditioned and hasattr(program.module, "forward_task")
