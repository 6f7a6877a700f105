"""Refuses settings of a training that ask for a routing which the network does not do."""

from __future__ import annotations

from mtlc.compress.training.train_config import TrainConfig
from mtlc.errors import UserError
from mtlc.program.program import Program


def check_routing(program: Program, config: TrainConfig) -> None:
    """Refuse settings that the network has nothing to do with."""
    name = type(program.module).__name__
    if config.routing != "none" and not hasattr(program.module, "routing_loss"):
        raise UserError(f'routing = "{config.routing}": {name} has no routing_loss method; leave it out')
    if config.routing == "dependence" and not getattr(program.module, "task_conditioned", True):
        raise UserError('routing = "dependence": the tasks share one gate, so nothing depends on them; leave it out')
    if config.tasks_per_sample is None:
        return
    if not hasattr(program.module, "task_conditioned"):
        raise UserError(f"tasks_per_sample: {name} cannot run tasks apart (it has no task_conditioned); leave it out")
    if config.tasks_per_sample > len(program.tasks):
        raise UserError(f"tasks_per_sample = {config.tasks_per_sample}: there are {len(program.tasks)} tasks")
