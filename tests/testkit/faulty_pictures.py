"""Data of the toy job that fail in one process of several: ``FAULT=RANK:raise|kill:READS`` in the environment."""

from __future__ import annotations

import os
import signal

from torch import Tensor

from mtlc.evaluation.splits import Splits
from testkit.toy_job import Pictures, pictures


class Faulty(Pictures):
    """Raises in process RANK after so many reads of batches, or kills that process."""

    reads = 0

    def batch(self, indices) -> dict[str, Tensor]:
        rank, what, after = (os.environ.get("FAULT") or "-1:raise:0").split(":")
        self.reads += 1
        if rank == os.environ.get("RANK") and self.reads > int(after):
            if what == "raise":
                raise OSError("cannot be decoded")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices)


def faulty() -> Splits:
    made = pictures()
    made.train = Faulty(32, 0)
    return made
