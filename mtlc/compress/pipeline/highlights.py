"""Asks the passes of a job which parts of their reports stand at the top of its results."""

from __future__ import annotations

from collections.abc import Sequence

from mtlc.compress.pass_interface import Highlights
from mtlc.compress.passes.registry import pass_type
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.step_folder import Finished


def highlights(steps: Sequence[Step], finished: Sequence[Finished]) -> Highlights:
    """What all finished steps give.

    The sensitivity is that of the first pass that measured one, on the network nearest to the original; the experts
    are those that the last pass left; what was blocked is listed pass by pass.
    """
    found = [pass_type(one.name)(steps[one.index - 1].config).results(one.report, one.artifacts) for one in finished]
    return Highlights(
        sensitivity=next((one.sensitivity for one in found if one.sensitivity is not None), None),
        experts=next((one.experts for one in reversed(found) if one.experts is not None), None),
        blocked=[entry for one in found for entry in one.blocked],
    )
