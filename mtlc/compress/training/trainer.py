"""The training loop: what ``mtlc train`` and the fine-tuning of every pass run.

AdamW with a warm-up and a cosine schedule, an exponential moving average of the weights, mixed precision on a GPU, and
checkpoints from which a killed run goes on to the same weights bit for bit (order of samples, augmentation and dropout
follow from the seed and the step).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mtlc.compress.channels.slicing import inputs_of
from mtlc.compress.pipeline.identity import evaluation_hash, network_modules, own_generators
from mtlc.compress.pipeline.users_code import code_hash
from mtlc.compress.training.distillation import Teacher
from mtlc.compress.training.learning_curve import Measurements, generators_kept, more_epochs
from mtlc.compress.training.lessons import Lessons, Said, lessons
from mtlc.compress.training.memory_layout import image_layout
from mtlc.compress.training.schedule import average_decay, move_average, parameter_groups, rate_share
from mtlc.compress.training.seeds import seeded, step_seed
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.training_state import TrainingState, restore_state, save_state
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import MetricTotals
from mtlc.evaluation.splits import Batch, Splits, batches, fetch
from mtlc.log import Log, silent
from mtlc.program.modes import evaluating
from mtlc.program.outputs import task_outputs
from mtlc.program.program import Program

_MEASURED_AT_ONCE = 64  # samples in a forward of a measurement


class Diverged(UserError):
    """A training in which a loss became no finite number."""


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
    """
    return Trainer(program, splits, criteria, config, seed, checkpoint, teacher).go(progress, log)


class Trainer:
    """One training run. What a step learns from a batch is `learn`'s to say; the rest is the same for every
    training.
    """

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
        self.seed, self.checkpoint = seed, checkpoint
        if len(self.data) == 0:
            raise UserError("[data] the train split is empty: give it at least one sample")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _check_routing(program, config)
        self.teacher: Teacher | None = None
        # Made before the network moves to its device: it is run on its example to find the features.
        asked = teacher is not None and (config.distill or config.distill_features)
        guide = Teacher(teacher, program, config) if teacher is not None and asked else None
        self.layout = self._image_layout(program)
        self.module = program.module.to(self.device).to(memory_format=self.layout).train()  # type: ignore[call-overload]
        self.batch = min(config.batch_size, len(self.data))
        _check_batch(self.batch, len(program.tasks), config)
        self.steps_per_epoch = len(self.data) // self.batch  # the odd rest is drawn in another epoch
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        groups = parameter_groups(self.module, config.weight_decay)
        if guide is not None:
            self.teacher = guide.to(self.device)
            if guide.match is not None:
                groups.append({"params": list(guide.match.parameters()), "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr)
        # A second network rather than a list of tensors: buffers are averaged or copied along, and it can be saved as
        # one.
        self.average = copy.deepcopy(self.module).eval() if config.ema else None
        self.state = TrainingState()
        self._lessons: Lessons | None = None
        self._said: Said | None = None  # of the batch that is learnt, if it is known
        # Taken before a checkpoint is read: it says which weights the training began with.
        self._begun = _content(self.module)
        self._splits = splits
        self._measurements = Measurements(self.steps, self.batch, len(splits.calibration))
        bf16 = config.precision == "bfloat16" or (config.precision == "auto" and self.device.type == "cuda")
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def go(self, progress: bool, log: Log) -> dict[str, Any]:
        with own_generators():  # every step seeds them, and dropout, augmentation and data sets may draw from them
            return self._go(progress, log)

    def _go(self, progress: bool, log: Log) -> dict[str, Any]:
        if self._restore(log):
            log(f"training goes on from step {self.state.step} of {self.steps}")
        elif self.teacher is not None and self.teacher.match is not None:
            self.teacher.begin(self.module, self._first_inputs())
        if self.teacher is not None and self.teacher.without:
            log(f"distill_features: {self.teacher.without}; the training goes on without")
        started = saved = time.monotonic()
        self._lessons = self._worth_keeping()
        earlier = self.state.seconds
        order, order_epoch = torch.empty(0, dtype=torch.long), -1
        with tqdm(total=self.steps, initial=self.state.step, disable=not progress, unit="step", mininterval=1.0) as bar:
            while self.state.step < self.steps:
                epoch, position = divmod(self.state.step, self.steps_per_epoch)
                # The order of an epoch follows from the seed and its number alone, so a resumed run draws the same.
                if epoch != order_epoch:
                    order, order_epoch = self._order(epoch), epoch
                indices = order[position * self.batch : (position + 1) * self.batch].tolist()
                losses = self._step(indices)
                # Smoothed for display and report; nothing in the training depends on it.
                before = self.state.losses
                running = {k: 0.95 * before[k] + 0.05 * v if k in before else v for k, v in losses.items()}
                self.state.losses = running
                self.state.step += 1
                self._follow()
                bar.update()
                if progress and self.state.step % 10 == 0:
                    bar.set_postfix({name: f"{value:.3f}" for name, value in running.items()}, refresh=False)
                now = time.monotonic()
                if self.checkpoint is not None and now - saved >= self.config.checkpoint_seconds:
                    self.state.seconds = earlier + now - started
                    self._save()
                    saved = now
        if self.average is not None:
            self.module.load_state_dict(self.average.state_dict())
        # The layout and the device were for training only: what follows gets the network as it came.
        self.module.to("cpu", memory_format=torch.contiguous_format).eval()
        found = {
            "steps": self.steps,
            "samples": self.steps * self.batch,
            "seconds": round(earlier + time.monotonic() - started, 1),
            "losses": {name: round(value, 5) for name, value in self.state.losses.items()},
            "curve": {
                "steps_per_epoch": self.steps_per_epoch,
                "samples": self._measurements.samples,
                **self.state.curve,
            },
        }
        advice = more_epochs(self.state.curve, self.criteria, self.config.epochs)
        return found if advice is None else found | {"more_epochs": advice}

    def _ask(self, *inputs: Any) -> Said:
        assert self.teacher is not None
        return self.teacher.ask(*inputs, autocast=self.autocast)

    def _worth_keeping(self) -> Lessons | None:
        """What the teacher says of every sample, if they are seen again as they were, and at least twice."""
        augmented = self.config.augment and hasattr(self.data, "augment")
        if self.teacher is None or augmented or self._rows(1) is not None or self.steps < 2 * self.steps_per_epoch:
            return None

        return lessons(self.data, self.program.inputs, lambda value: self._laid_out(value.to(self.device)), self._ask)

    def _follow(self) -> None:
        """Put down the losses and the metrics after the step that was done, if this is a step to do so."""
        step, curve = self.state.step, self.state.curve
        if self._measurements.of_losses(step):
            losses = {name: round(value, 5) for name, value in self.state.losses.items()}
            curve["losses"].append({"step": step, "losses": losses})
        if self._measurements.of_metrics(step):
            metrics = self._metrics()
            curve["metrics"].append({"step": step, "metrics": metrics})

    def _metrics(self) -> dict[str, float | None]:
        """The metrics of the averaged weights on some of the calibration split, whose number is always the same."""
        module = self.module if self.average is None else self.average
        program, totals = replace(self.program, module=module), MetricTotals(self.criteria)
        with generators_kept(), evaluating(module), torch.inference_mode():
            for batch in batches(self._splits.calibration, _MEASURED_AT_ONCE, self._measurements.samples):
                moved = {name: batch[name].to(self.device) for name in self.program.inputs}
                outputs = program.outputs_on_data(moved)
                totals.update({name: value.cpu() for name, value in outputs.items()}, batch)
        return {name: value if math.isfinite(value) else None for name, value in totals.values().items()}

    def first_indices(self) -> list[int]:
        """The samples of the first step."""
        return [int(index) for index in self._order(0)[: self.batch]]

    def _first_inputs(self) -> tuple[Any, ...]:
        """The inputs of the first step, as the network takes them, not augmented."""
        batch = fetch(self.data, self.first_indices())
        inputs = [self._laid_out(batch[name].to(self.device)) for name in self.program.inputs]
        rows = self._rows(len(inputs[0]))
        return (*inputs, *(() if rows is None else (rows,)))

    def first_step(self) -> dict[str, float]:
        """Only the first step; the losses by name, those of tasks first."""
        return self._step(self.first_indices())

    def first_steps(self, count: int) -> list[dict[str, float]]:
        """Only the first `count` steps, and the losses of each before it moved the weights."""
        if self.teacher is not None and self.teacher.match is not None:
            self.teacher.begin(self.module, self._first_inputs())
        found = []
        for _ in range(count):
            epoch, position = divmod(self.state.step, self.steps_per_epoch)
            indices = self._order(epoch)[position * self.batch : (position + 1) * self.batch]
            found.append(self._step(indices.tolist()))
            self.state.step += 1
        return found

    def _order(self, epoch: int) -> Tensor:
        """The samples of an epoch, in the order in which they are drawn."""
        return torch.randperm(len(self.data), generator=seeded(self.seed, "order", epoch))

    def _image_layout(self, program: Program) -> torch.memory_format:
        return image_layout(program.module, self.device)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=self.layout) if tensor.ndim == 4 else tensor

    def _step(self, indices: list[int]) -> dict[str, float]:
        step = self.state.step
        torch.manual_seed(step_seed(self.seed, "step", step))  # dropout and the like
        batch = fetch(self.data, indices)
        if self.config.augment and hasattr(self.data, "augment"):
            batch = self.data.augment(batch, seeded(self.seed, "augment", step))
        if self._lessons is not None:
            self._said = self._lessons.of(indices, [batch[name] for name in self.program.inputs])
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        inputs = [self._laid_out(batch[name]) for name in self.program.inputs]
        # The rate is a function of the step, so a checkpoint needs no state of a scheduler.
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * rate_share(step, self.steps, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        values = self.learn(batch, inputs)
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

    def learn(self, batch: Batch, inputs: list[Tensor]) -> dict[str, float]:
        """Add the gradients of one batch to the weights'; the losses by name, those of tasks first."""
        rows = self._rows(len(inputs[0]))
        asked = () if rows is None else (rows,)
        features = () if self.teacher is None else self.teacher.features
        with inputs_of(self.module, features) as seen:
            outputs = self.outputs((*inputs, *asked))
        losses = {
            t.name: self.criteria.loss(t, outputs[t.name], _of(batch, rows, t.output_key)) for t in self.program.tasks
        }
        total = torch.stack([task.weight * losses[task.name] for task in self.program.tasks]).sum()
        if self.teacher is not None:
            said = self._ask(*inputs, *asked) if self._said is None else self._said
            total = total + self.teacher.loss(said, outputs, seen)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if self.config.routing != "none":
            # Of the forward just done: the module has kept what its routers said.
            routing = self.module.routing_loss(self.config.routing)
            total = total + self.config.routing_weight * routing
            values["routing"] = float(routing.detach())
        total.backward()
        return values

    def outputs(self, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        """The network's outputs by task, in float32."""
        with self.autocast:
            tree = self.module(*inputs)
        try:
            outputs = task_outputs(tree, self.program.tasks, self.program.ignored_outputs)
        except UserError as error:  # in evaluation mode the network was tried before
            raise UserError(f"in training mode {error}") from None
        return {name: output.float() for name, output in outputs.items()}

    def _rows(self, count: int) -> dict[str, Tensor] | None:
        """The samples of the batch that train each task, if not all train all; every task gets about as many."""
        share, tasks = self.config.tasks_per_sample, self.program.tasks
        if share is None or share >= len(tasks):
            return None
        # Samples are dealt to tasks like cards, each task getting `share` neighbours in a ring. 5 samples, 3 tasks,
        # share 2:
        #
        #     place (shuffled)    0      1      2      0      1
        #     trained tasks      0 1    1 2    2 0    0 1    1 2
        #
        # Every task comes first for as many samples as the others, or one more; the random shift says which ones.
        generator = seeded(self.seed, "tasks", self.state.step)
        places = (
            torch.randperm(count, generator=generator) + int(torch.randint(len(tasks), (), generator=generator))
        ) % len(tasks)
        chosen = (places[:, None] + torch.arange(share)) % len(tasks)
        return {task.output_key: (chosen == i).any(1).nonzero()[:, 0].to(self.device) for i, task in enumerate(tasks)}

    def _fingerprint(self) -> str:
        """What a checkpoint must agree with to be continued."""
        follows = evaluation_hash(self.program.tasks, self._splits), code_hash(network_modules(self.program))
        # The code of the network and of its losses counts too: a checkpoint of other code holds other weights.
        text = json.dumps([self._begun, self.config.model_dump(), self.seed, *follows])
        return hashlib.sha256(text.encode()).hexdigest()

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


def _of(batch: Batch, rows: Mapping[str, Tensor] | None, task: str) -> Batch:
    """The samples of a batch that train `task`."""
    return batch if rows is None else {key: value[rows[task]] for key, value in batch.items()}


def _check_routing(program: Program, config: TrainConfig) -> None:
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


def _check_batch(batch: int, tasks: int, config: TrainConfig) -> None:
    """Refuse batches of which some task would get no sample: the mean over none is no number."""
    least = 1 if config.tasks_per_sample is None else tasks - config.tasks_per_sample + 1
    if batch < least:
        raise UserError(
            f"tasks_per_sample = {config.tasks_per_sample}: a batch of {batch} cannot train all {tasks} tasks; "
            f"it takes batches of {least} samples or more"
        )


def _content(module: nn.Module) -> str:
    """SHA-256 of the weights that training starts from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
