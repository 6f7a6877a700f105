"""Opens what the pruning methods are compared on: a job, its data, and a trained network for every seed.

A subject is also the settings that all methods share on it: cuts, seeds, epochs, the rates that are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtlc.compress.training.trainer import TrainConfig
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.files import one_at_a_time
from mtlc.job.job import Job, load_job
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors
from mtlc.workflows.train import train_job

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Subject:
    """What is compared on one network and its data.

    `job` names data and network, and its weights are the trained network of seed 0; `training` says how that was
    trained, which is also how a narrower network is trained from scratch. With `own_training` every other seed trains a
    network of its own that way; without, all seeds start from the one that the job names. `shares` are what may be
    left of the MACs. Fine-tuning takes `epochs` of the training split. Each method is tried with each of `rates` with
    the first seed at `tuned_at`; the better one is its rate at all cuts and with all seeds. `own_rates` are those of a
    method that is tried with others. `ablated` and
    `ablation_seeds` are the cuts and seeds of the ablation. `data` replaces arguments of the job's data factory, and
    `training_epochs` the epochs of `training`; `few` are the arguments of a trial.
    """

    name: str
    job: Path
    training: Path
    own_training: bool
    epochs: float
    seeds: tuple[int, ...]
    shares: tuple[float, ...] = (0.6, 0.4, 0.2, 0.15, 0.1)
    rates: tuple[float, ...] = (1e-3, 3e-3)
    own_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    tuned_at: float = 0.2
    ablated: tuple[float, ...] = (0.4, 0.15)
    ablation_seeds: tuple[int, ...] = (0, 1, 2)
    data: Mapping[str, Any] | None = None
    training_epochs: float | None = None
    few: Mapping[str, Any] = field(default_factory=lambda: {"train": 160, "val": 48})

    def rates_of(self, method: str) -> tuple[float, ...]:
        """What a method is tried with."""
        return self.own_rates.get(method, self.rates)

    def quick(self) -> Subject:
        """The same steps in seconds each: few samples, two seeds, one cut. Its figures say nothing."""
        return replace(
            self, epochs=0.5, seeds=self.seeds[:2], shares=(0.4,), tuned_at=0.4, ablated=(0.4,),
            ablation_seeds=self.seeds[:1], data=self.few, training_epochs=2.0,
        )  # fmt: skip


SUBJECTS: Mapping[str, Subject] = {
    "multifashion": Subject(
        "multifashion", Path("examples/multifashion/prune.toml"), Path("examples/multifashion/train.toml"),
        own_training=True, epochs=4.0, seeds=(0, 1, 2, 3, 4), rates=(2e-3,), tuned_at=0.15,
        own_rates={"scratch": (2e-3, 3e-3)}, few={"train": 640, "val": 400},
    ),
    "scenes": Subject(
        "scenes", Path("examples/scenes/prune.toml"), Path("examples/scenes/train.toml"),
        own_training=False, epochs=6.0, seeds=(0, 1, 2),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Dense:
    """A subject's trained network of one seed, with the data and losses, and how it was trained."""

    program: Program
    splits: Splits
    criteria: Criteria
    training: TrainConfig
    samples: int
    """That its training has seen."""


def dense(subject: Subject, seed: int, work: Path) -> Dense:
    """The trained network of a seed. One that is not there is trained, once, and kept under `work`."""
    job, training = _job(subject, subject.job), _job(subject, subject.training)
    splits = _splits(subject)
    if training.train is None:
        raise UserError(f"{training.path}: has no [train]: it must say how the network was trained")
    program = job.build_program(splits, weights=False)
    load_tensors(program.module, _weights(subject, job, training, seed, work))
    samples = samples_in(training.train.epochs, training.train, splits)
    return Dense(program, splits, Criteria(program.tasks), training.train, samples)


def samples_in(epochs: float, config: TrainConfig, splits: Splits) -> int:
    """How many samples a training of so many epochs sees: whole batches of the training split."""
    batch = min(config.batch_size, len(splits.train))
    return max(1, round(epochs * (len(splits.train) // batch))) * batch


def epochs_for(samples: float, config: TrainConfig, splits: Splits) -> float:
    """The epochs in which a training sees so many samples; see `samples_in`."""
    batch = min(config.batch_size, len(splits.train))
    return samples / (batch * (len(splits.train) // batch))


def _weights(subject: Subject, job: Job, training: Job, seed: int, work: Path) -> Path:
    shipped = job.weights is not None and job.weights.exists()
    if job.weights is not None and shipped and (seed == 0 or not subject.own_training):
        return job.weights
    if not subject.own_training:
        raise UserError(f"{job.path}: its trained weights are not there; make them with: mtlc train {subject.training}")
    path = work / subject.name / "dense" / f"{seed}.safetensors"
    if not path.exists():
        with one_at_a_time(path):
            if not path.exists():
                seeded = Job(training.path, training.file.model_copy(update={"seed": seed}), (), training.train)
                train_job(seeded, path)
    return path


def _job(subject: Subject, path: Path) -> Job:
    """The job, with the subject's own arguments of data and epochs of training."""
    job = load_job(ROOT / path)
    file, train = job.file, job.train
    if subject.data is not None:
        section = file.data
        update: dict[str, Any] = {"args": {**section.args, **subject.data}}
        if section.factory == "mtlc.zoo:scenes":
            update["root"] = None  # made in memory: a folder holds scenes of one number and size
        file = file.model_copy(update={"data": section.model_copy(update=update)})
    if train is not None and subject.training_epochs is not None:
        train = train.model_copy(update={"epochs": subject.training_epochs})
    return Job(job.path, file, (), train)


@lru_cache(maxsize=1)
def _loaded(name: str, quick: tuple[tuple[str, Any], ...] | None) -> Splits:
    subject = SUBJECTS[name]
    return _job(replace(subject, data=None if quick is None else dict(quick)), subject.job).load_splits()


def _splits(subject: Subject) -> Splits:
    """The data, which one process reads once however many cells it runs."""
    return _loaded(subject.name, None if subject.data is None else tuple(sorted(subject.data.items())))
