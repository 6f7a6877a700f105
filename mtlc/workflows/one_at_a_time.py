"""Lets a call from Python be alone with torch, and leave its globals as they were."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from mtlc.compress.pipeline.identity import own_generators
from mtlc.compress.training.learning_curve import generators_kept

P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, of which a second thread waits until the first has left it and all others of its kind.

    Python's callers have threads, which the command line has not: torch's exporter and tracer keep what they do in
    globals of the process. The generators are afterwards as they were, and a caller's ``torch.no_grad()`` is not in
    force meanwhile, for passes train.
    """

    @wraps(function)
    def alone(*arguments: P.args, **options: P.kwargs) -> R:
        with own_generators(), generators_kept(), torch.inference_mode(False), torch.enable_grad():
            return function(*arguments, **options)

    return alone
