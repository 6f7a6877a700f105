"""The training loop: what ``mtlc train`` and the fine-tuning of every pass run.

AdamW with a warm-up and a cosine schedule, an exponential moving average of the weights, mixed precision on a GPU, and
checkpoints from which a killed run goes on to the same weights bit for bit (order of samples, augmentation and dropout
follow from the seed and the step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mtlc.compress.channels.slicing import inputs_of
from mtlc.compress.pipeline.identity import own_generators, tensors_hash
from mtlc.compress.training.distillation import Teacher
from mtlc.compress.training.gradient_checkpointing import gradient_checkpointing
from mtlc.compress.training.labelled_losses import LabelledLosses, label_shares, labelled_losses
from mtlc.compress.training.learning_curve import Measurements, metrics_so_far, more_epochs, training_report
from mtlc.compress.training.lessons import Lessons, Said, lessons
from mtlc.compress.training.memory_layout import image_layout, lay_out
from mtlc.compress.training.micro_batches import WHOLE, BatchSplit, MicroBatch
from mtlc.compress.training.process_group import ProcessGroup, current_group
from mtlc.compress.training.routing_check import check_routing
from mtlc.compress.training.schedule import average_decay, move_average, parameter_groups, rate_share
from mtlc.compress.training.seeds import step_seed
from mtlc.compress.training.shared_training import Diverged, Maker, agreed, sharing
from mtlc.compress.training.step_loader import StepLoader, StepReader
from mtlc.compress.training.synchronised_norms import SynchronisedNorms
from mtlc.compress.training.teacher_spread import TeacherSpread
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.training_state import TrainingState, fingerprint, restore_state, save_state
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Batch, Splits, fetch
from mtlc.log import Log, silent
from mtlc.program.out_of_memory import is_out_of_memory
from mtlc.program.outputs import flatten_outputs, task_outputs, unnamed
from mtlc.program.placement import compute_device
from mtlc.program.plain_state import copied
from mtlc.program.program import Program
from mtlc.tasks.task import TaskSpec
from mtlc.tracking.tracked import measured, within


def train(
    program: Program,
    splits: Splits,
    criteria: Criteria,
    config: TrainConfig,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    log: Log = silent,
    teacher: Program | None = None,
) -> dict[str, Any]:
    """Train ``program.module`` in place on ``splits.train`` and leave the averaged weights in it, in eval mode.

    With a `checkpoint` folder, state is written there now and then, and a run that finds some goes on from it.
    Raises `Diverged` naming the task whose loss is not a number. Returns the report: steps, seconds, last losses.
    With ``epochs = 0`` nothing is trained.
    """
    if config.epochs == 0:
        return untrained(program)
    return Trainer(program, splits, criteria, config, seed, checkpoint, teacher).go(progress, log)


def untrained(program: Program) -> dict[str, Any]:
    """The report of a training of no epochs; ``program.module`` is left in eval mode, as after any training."""
    program.module.eval()
    return {"steps": 0, "samples": 0, "seconds": 0.0, "losses": {}}


class Trainer:
    """One training run. What a step learns from a batch is `learn`'s to say; the rest is the same for all."""

    def __init__(
        self,
        program: Program,
        splits: Splits,
        criteria: Criteria,
        config: TrainConfig,
        seed: int,
        checkpoint: Path | None,
        teacher: Program | None,
    ) -> None:
        self.program, self.data, self.criteria, self.config = program, splits.train, criteria, config
        self._auxiliary = Criteria(program.auxiliary)
        self.unnamed: list[str] = []  # outputs of training mode that no task names, known after the first step
        self.seed, self.checkpoint = seed, checkpoint
        if len(self.data) == 0:
            raise UserError("[data] the train split is empty: give it at least one sample")
        self.device = compute_device()
        check_routing(program, config)
        self.teacher: Teacher | None = None
        # Made before the network moves to its device: it is run on its example to find the features.
        asked = teacher is not None and (config.distill or config.distill_features)
        guide = Teacher(teacher, program, config) if teacher is not None and asked else None
        self._guide = teacher if asked else None
        self.layout = self._image_layout(program)
        self.module: Any = lay_out(program.module.to(self.device), self.layout).train()
        self.batch, self.accumulate = min(config.batch_size, len(self.data)), config.accumulate
        self._share_among(None)
        others = current_group()
        self._split(0, 1 if others is None else others.count).check(config.accumulate)
        self.steps_per_epoch = self.reader.steps_per_epoch
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        groups = parameter_groups(self.module, config.weight_decay)
        if guide is not None:
            self.teacher = guide.to(self.device)
            if guide.match is not None:
                groups.append({"params": list(guide.match.parameters()), "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr)
        # A second network rather than a list of tensors: buffers are averaged or copied along, and it can be saved as
        # one.
        self.average = copied(self.module).eval() if config.ema else None
        self.state = TrainingState()
        self._lessons: Lessons | None = None
        self._said: Said | None = None  # of the micro-batch that is learnt, if it is known
        self._shares = label_shares(splits, (*program.tasks, *program.auxiliary))
        self._part = WHOLE
        self._log: Log = silent
        # Taken before a checkpoint is read: it says which weights the training began with.
        self._begun = tensors_hash(program)
        self._splits = splits
        self._measurements = Measurements(self.steps, self.batch, len(splits.calibration))
        bf16 = config.precision == "bfloat16" or (config.precision == "auto" and self.device.type == "cuda")
        self.autocast: Any = torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def go(self, progress: bool, log: Log) -> dict[str, Any]:
        """Train, together with the other processes where some have been joined; the report."""
        self._log = log
        # Every step seeds the generators, and dropout, augmentation and data sets may draw from them.
        with own_generators(), self._shared(None), within("training", numbered=True):
            return self._go(progress, log)

    def _go(self, progress: bool, log: Log) -> dict[str, Any]:
        leads = self.group is None or self.group.leads
        if leads and self._restore(log):
            log(f"training goes on from step {self.state.step} of {self.steps}")
        elif leads:
            self._begin()
        self._agree()
        if self.teacher is not None and self.teacher.without:
            log(f"distill_features: {self.teacher.without}; the training goes on without")
        started = saved = time.monotonic()
        self._lessons = self._worth_keeping()
        earlier, ahead = self.state.seconds, range(self.state.step, self.steps)
        with (
            StepLoader(self.reader, ahead, self.config.workers, self.device.type == "cuda") as loader,
            tqdm(total=self.steps, initial=self.state.step, disable=not progress, unit="step", mininterval=1.0) as bar,
        ):
            while self.state.step < self.steps:
                losses = self._step(loader.read(self.state.step))
                # Smoothed for display and report; nothing in the training depends on it.
                before = self.state.losses
                running = {k: 0.95 * before[k] + 0.05 * v if k in before else v for k, v in losses.items()}
                self.state.losses = running
                self.state.step += 1
                if leads:
                    self._follow()
                bar.update()
                if progress and self.state.step % 10 == 0:
                    bar.set_postfix({name: f"{value:.3f}" for name, value in running.items()}, refresh=False)
                now = time.monotonic()
                if leads and self.checkpoint is not None and now - saved >= self.config.checkpoint_seconds:
                    self.state.seconds = earlier + now - started
                    self._save()
                    saved = now
        if self.average is not None:
            self.module.load_state_dict(self.average.state_dict())
        # The layout and the device were for training only: what follows gets the network as it came.
        lay_out(self.module.to("cpu"), torch.contiguous_format).eval()
        seconds = earlier + time.monotonic() - started
        about = self.steps_per_epoch, self._measurements.samples
        found = training_report(self.steps, self.batch, seconds, self.state.losses, self.state.curve, *about)
        advice = more_epochs(self.state.curve, self.criteria, self.config.epochs)
        return found if advice is None else found | {"more_epochs": advice}

    # -- several processes -----------------------------------------------------------------------------------------

    def for_others(self) -> Maker:
        """What makes the same training in another process."""
        return partial(
            _made, type(self), self.program, self.criteria, self.config, self.seed, self._guide, self._shares
        )

    def help(self, steps: int | None) -> None:
        """Take part in a training of the first process, in all of it or in its first steps."""
        with own_generators(), self._shared(steps):
            if steps is None:
                self._go(False, silent)
            else:
                self._first_steps(steps)

    @contextmanager
    def _shared(self, steps: int | None) -> Iterator[None]:
        """Within the block each process has its share of every batch, if several have been joined."""
        group = current_group()
        self._share_among(group)
        with sharing(group, self.module, self.for_others, len(self.data), steps):
            yield

    def _share_among(self, group: ProcessGroup | None) -> None:
        rank, count = (0, 1) if group is None else (group.rank, group.count)
        self.group, self.split = group, self._split(rank, count)
        self.reader = StepReader(self.data, self.seed, self.batch, self.config.augment, self.split.share)
        self._apart = TeacherSpread(group)

    def _split(self, rank: int, count: int) -> BatchSplit:
        return BatchSplit(self.batch, self.program.tasks, self.config.tasks_per_sample, self.seed, rank, count)

    def _agree(self) -> None:
        """Begin where the first process does: it alone reads checkpoints and fits the features' maps."""
        if self.group is not None:
            self.state = agreed(self.group, self._modules(), self.optimizer, self.state)

    # -- what is kept and followed ---------------------------------------------------------------------------------

    def _ask(self, *inputs: Any) -> Said:
        assert self.teacher is not None
        return self.teacher.ask(*inputs, autocast=self.autocast)

    def _worth_keeping(self) -> Lessons | None:
        """What the teacher says of every sample, if they are seen again as they were, and at least twice."""
        augmented = self.config.augment and hasattr(self.data, "augment")
        if self.teacher is None or augmented or self.split.deals_tasks() or self.steps < 2 * self.steps_per_epoch:
            return None
        return lessons(self.data, self.program.inputs, lambda value: self._laid_out(value.to(self.device)), self._ask)

    def _follow(self) -> None:
        """Put down the losses and the metrics after the step that was done, if this is a step to do so."""
        step, curve = self.state.step, self.state.curve
        if self._measurements.of_losses(step):
            losses = {name: round(value, 5) for name, value in self.state.losses.items()}
            curve["losses"].append({"step": step, "losses": losses})
            measured(losses, step, "loss")
        if self._measurements.of_metrics(step):
            averaged = replace(self.program, module=self.module if self.average is None else self.average)
            samples = self._measurements.samples
            metrics = metrics_so_far(averaged, self.criteria, self._splits.calibration, samples, self.device)
            curve["metrics"].append({"step": step, "metrics": metrics})
            measured(metrics, step, "metric")

    # -- the step --------------------------------------------------------------------------------------------------

    def first_indices(self) -> list[int]:
        """The samples of the first step."""
        return self.reader.indices(0)

    def _begin(self) -> None:
        """Fit the features' maps on the first step's samples, as the network takes them, not augmented."""
        if self.teacher is None or self.teacher.match is None:
            return
        batch = fetch(self.data, self.first_indices())
        inputs = [self._laid_out(batch[name].to(self.device)) for name in self.program.inputs]
        self.teacher.begin(self.module, (*inputs, *self._asked(self._split(0, 1).micro_batches(0, 1)[0])))

    def first_step(self) -> dict[str, float]:
        """Only the first step, in this process alone; the losses by name, those of tasks first."""
        others = current_group()
        self.accumulate *= 1 if others is None else others.count  # no more samples at once than each of them gets
        return self._step(self.reader.read(0))

    def first_steps(self, count: int) -> list[dict[str, float]]:
        """Only the first `count` steps, and the losses of each before it moved the weights."""
        with self._shared(count):
            return self._first_steps(count)

    def _first_steps(self, count: int) -> list[dict[str, float]]:
        if self.group is None or self.group.leads:
            self._begin()
        self._agree()
        found = []
        for _ in range(count):
            found.append(self._step(self.reader.read(self.state.step)))
            self.state.step += 1
        return found

    def _image_layout(self, program: Program) -> torch.memory_format:
        return image_layout(program.module, self.device)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=self.layout) if tensor.ndim == 4 else tensor

    def _step(self, batch: Batch) -> dict[str, float]:
        """Learn from this process's samples of a step."""
        step = self.state.step
        # The rate is a function of the step, so a checkpoint needs no state of a scheduler.
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * rate_share(step, self.steps, self.config)
        sums, shares = self._gradients(batch)
        if self.group is not None:
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            names = [*(task.name for task in self._all_tasks()), *(["routing"] * (self.config.routing != "none"))]
            sums, shares = self.group.sum_step(trained, names, sums, shares)
        values = {name: total / shares[name] for name, total in sums.items()}
        # Looked at before the weights move: one step with NaN would spoil all of them.
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"task {name!r}: its loss became {value} at training step {step}; lower the learning rate or "
                    f"look for NaN in its labels"
                )
        nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        self.optimizer.step()
        if self.average is not None:
            move_average(self.average, self.module, average_decay(step, self.config.ema))
        return values

    def _gradients(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """Add up the gradients of a step's micro-batches; of twice as many, half as large, if memory runs out.

        Returns the losses' sums by name, each micro-batch's times its share of the step, and the sums of these shares.
        """
        step = self.state.step
        if self.group is not None and self.group.rank:  # or every process would drop the same units
            torch.manual_seed(step_seed(self.seed, f"process {self.group.rank}", step))
        drawn, buffers = torch.get_rng_state(), [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulated(batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.accumulate, line = self.split.smaller(self.accumulate, error)
            # Outside the block, where nothing holds the failed step's activations any more.
            self._log(line)
            for buffer, value in buffers:
                buffer.data.copy_(value)
            torch.manual_seed(step_seed(self.seed, "step", step))
            torch.set_rng_state(drawn)

    def _accumulated(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        step, sums, shares = self.state.step, dict[str, float](), dict[str, float]()
        indices = self.reader.own_indices(step)
        for part in self.split.micro_batches(step, self.accumulate):
            some = part.of(batch)
            if self._lessons is not None:
                known = indices if part.places is None else [indices[place] for place in part.places]
                self._said = self._lessons.of(known, [some[name] for name in self.program.inputs])
            moved = {key: value.to(self.device, non_blocking=True) for key, value in some.items()}
            self._part = part
            with self._checkpointed():
                values = self.learn(moved, [self._laid_out(moved[name]) for name in self.program.inputs])
            for name, value in values.items():
                share = part.shares.get(name, part.share)
                sums[name] = sums.get(name, 0.0) + share * value
                shares[name] = shares.get(name, 0.0) + share
        return sums, shares

    def _norms(self) -> AbstractContextManager[Any]:
        """The context of a forward in training mode."""
        return nullcontext() if self.group is None else SynchronisedNorms(self.group)

    def _checkpointed(self) -> AbstractContextManager[Any]:
        return gradient_checkpointing(self.module, self._norms) if self.config.gradient_checkpointing else nullcontext()

    def learn(self, batch: Batch, inputs: list[Tensor]) -> dict[str, float]:
        """Add the gradients of a micro-batch, times its share of the step; its losses by name, of tasks first."""
        part = self._part
        asked = self._asked(part)
        features = () if self.teacher is None else self.teacher.features
        with inputs_of(self.module, features) as seen:
            outputs = self.outputs((*inputs, *asked))
        found = self.labelled_losses(outputs, batch)
        total = found.total
        if self.teacher is not None:
            said = self._ask(*inputs, *asked) if self._said is None else self._said
            total = total + self.teacher.loss(said, outputs, seen, part, self._apart)
        values = found.values
        if self.config.routing != "none":
            # Of the forward just done: the module has kept what its routers said.
            routing = self.module.routing_loss(self.config.routing)
            total = total + self.config.routing_weight * part.share * routing
            values["routing"] = float(routing.detach())
        if found.values or total.requires_grad:  # not where the batch has no label and there is no teacher
            total.backward()
        return values

    def labelled_losses(self, outputs: Mapping[str, Tensor], batch: Batch, auxiliary: bool = True) -> LabelledLosses:
        """The losses of a micro-batch of which some samples may lack labels, times its share of the step."""
        others = self.program.auxiliary if auxiliary else ()
        taught = [(self.criteria, task, self._part.labels(batch, task)) for task in self.program.tasks]
        taught += [(self._auxiliary, task, batch) for task in others]
        factors = {task.name: self._part.share_of(task) for _, task, _ in taught}
        return labelled_losses(taught, outputs, self._shares, factors, self.group)

    def outputs(self, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        """The network's outputs by task, those that are only trained with too, in float32."""
        with self.autocast, self._norms():
            tree = self.module(*inputs)
        try:
            outputs = task_outputs(tree, self._all_tasks(), training=True)
        except UserError as error:  # in evaluation mode the network was tried before
            raise UserError(f"in training mode {error}") from None
        if self.state.step == 0:
            known = self._all_tasks(), self.program.ignored_outputs
            self.unnamed = unnamed(flatten_outputs(tree), *known, training=True)
        return {name: output.float() for name, output in outputs.items()}

    def _all_tasks(self) -> tuple[TaskSpec, ...]:
        return (*self.program.tasks, *self.program.auxiliary)

    def _asked(self, part: MicroBatch) -> tuple[dict[str, Tensor], ...]:
        """What a network that runs tasks apart is given besides its inputs: the samples that train each task."""
        return () if part.rows is None else ({task: rows.to(self.device) for task, rows in part.rows.items()},)

    def _fingerprint(self) -> str:
        return fingerprint(self.program, self._splits, self._begun, self.config, self.seed, self._shares)

    def _modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds the tensors of, by prefix."""
        found: dict[str, nn.Module] = {"model": self.module}
        if self.average is not None:
            found["average"] = self.average
        if self.teacher is not None and self.teacher.match is not None:
            found["features"] = self.teacher.match
        return found

    def _save(self) -> None:
        assert self.checkpoint is not None
        save_state(self.checkpoint, self._modules(), self.optimizer, self.state, self._fingerprint())

    def _restore(self, log: Log) -> bool:
        if self.checkpoint is None:
            return False
        state = restore_state(self.checkpoint, self._modules(), self.optimizer, self._fingerprint(), self.device, log)
        self.state = state or self.state
        return state is not None


def _made(
    kind: type[Trainer], program: Program, criteria: Criteria, config: TrainConfig, seed: int, teacher: Program | None,
    shares: Mapping[str, float], splits: Splits,
) -> Trainer:  # fmt: skip
    made = kind(program, splits, criteria, config, seed, None, teacher)
    made._shares = dict(shares)  # the first process has counted the labels
    return made
