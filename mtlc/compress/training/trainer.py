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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mtlc.checksums import is_whole, say_damaged, seal_folder
from mtlc.compress.pass_interface import PassConfig
from mtlc.compress.pipeline.identity import evaluation_hash, network_modules, own_generators
from mtlc.compress.pipeline.users_code import code_hash
from mtlc.compress.training.memory_layout import image_layout
from mtlc.errors import UserError, one_line
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Batch, Splits, fetch
from mtlc.files import atomic_folder
from mtlc.log import Log, silent
from mtlc.moe.losses import RoutingLoss
from mtlc.program.outputs import task_outputs
from mtlc.program.program import Program
from mtlc.tasks.task import TaskSpec


class TrainConfig(PassConfig):
    """How to train. `lr` is the peak of the schedule; `warmup` is a share of the steps."""

    epochs: float = Field(30, gt=0)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(2e-3, gt=0)
    final_lr: float = Field(0.01, ge=0, le=1, description="the schedule ends at lr × final_lr")
    weight_decay: float = Field(0.02, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the moving average of the weights; 0 switches it off")
    clip: float = Field(5.0, gt=0, description="largest norm of the gradient")
    distill: float = Field(0.0, ge=0, description="weight of the distillation from the uncompressed network")
    augment: bool = True
    tasks_per_sample: int | None = Field(
        None, ge=1, description="tasks that each sample trains, drawn anew each step; for networks that run tasks apart"
    )
    routing: RoutingLoss = Field("none", description="what shapes the routing of a mixture of experts")
    routing_weight: float = Field(0.01, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_seconds: float = Field(60.0, gt=0)


@dataclass
class _State:
    """What a checkpoint holds besides tensors."""

    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    """A running mean of each."""


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
    Raises `UserError` naming the task whose loss is not a number. Returns the report: steps, seconds, last losses.
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
        self.layout = self._image_layout(program)
        self.module = program.module.to(self.device).to(memory_format=self.layout).train()  # type: ignore[call-overload]
        self.batch = min(config.batch_size, len(self.data))
        _check_batch(self.batch, len(program.tasks), config)
        self.steps_per_epoch = len(self.data) // self.batch  # the odd rest is drawn in another epoch
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.module, config.weight_decay), lr=config.lr)
        # A second network rather than a list of tensors: buffers are averaged or copied along, and it can be saved as
        # one.
        self.average = copy.deepcopy(self.module).eval() if config.ema else None
        self.teacher = None
        if teacher is not None and config.distill:
            self.teacher = copy.deepcopy(teacher.module).to(self.device).eval().requires_grad_(False)
        self.state = _State()
        # Taken before a checkpoint is read: it says which weights the training began with.
        self._begun = _content(self.module)
        self._splits = splits
        bf16 = config.precision == "bfloat16" or (config.precision == "auto" and self.device.type == "cuda")
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def go(self, progress: bool, log: Log) -> dict[str, Any]:
        with own_generators():  # every step seeds them, and dropout, augmentation and data sets may draw from them
            return self._go(progress, log)

    def _go(self, progress: bool, log: Log) -> dict[str, Any]:
        if self._restore(log):
            log(f"training goes on from step {self.state.step} of {self.steps}")
        started = saved = time.monotonic()
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
        return {
            "steps": self.steps,
            "samples": self.steps * self.batch,
            "seconds": round(earlier + time.monotonic() - started, 1),
            "losses": {name: round(value, 5) for name, value in self.state.losses.items()},
        }

    def first_indices(self) -> list[int]:
        """The samples of the first step."""
        return [int(index) for index in self._order(0)[: self.batch]]

    def first_step(self) -> dict[str, float]:
        """Only the first step; the losses by name, those of tasks first."""
        return self._step(self.first_indices())

    def _order(self, epoch: int) -> Tensor:
        """The samples of an epoch, in the order in which they are drawn."""
        return torch.randperm(len(self.data), generator=seeded(self.seed, "order", epoch))

    def _image_layout(self, program: Program) -> torch.memory_format:
        return image_layout(program.module, self.device)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=self.layout) if tensor.ndim == 4 else tensor

    def _step(self, indices: list[int]) -> dict[str, float]:
        step = self.state.step
        torch.manual_seed(_seed(self.seed, "step", step))  # dropout and the like
        batch = fetch(self.data, indices)
        if self.config.augment and hasattr(self.data, "augment"):
            batch = self.data.augment(batch, seeded(self.seed, "augment", step))
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        inputs = [self._laid_out(batch[name]) for name in self.program.inputs]
        # The rate is a function of the step, so a checkpoint needs no state of a scheduler.
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * _schedule(step, self.steps, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        values = self.learn(batch, inputs)
        # Looked at before the weights move: one step with NaN would spoil all of them.
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"task {name!r}: its loss became {value} at training step {step}; lower the learning rate or "
                    f"look for NaN in its labels"
                )
        nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        self.optimizer.step()
        if self.average is not None:
            # A short memory at first (0.1, 0.18, 0.25, …), or the mean would hold on to the weights before training.
            _average(self.average, self.module, min(self.config.ema, (1 + step) / (10 + step)))
        return values

    def learn(self, batch: Batch, inputs: list[Tensor]) -> dict[str, float]:
        """Add the gradients of one batch to the weights'; the losses by name, those of tasks first."""
        rows = self._rows(len(inputs[0]))
        asked = () if rows is None else (rows,)
        outputs = self.outputs((*inputs, *asked))
        losses = {
            t.name: self.criteria.loss(t, outputs[t.name], _of(batch, rows, t.output_key)) for t in self.program.tasks
        }
        total = torch.stack([task.weight * losses[task.name] for task in self.program.tasks]).sum()
        if self.teacher is not None:
            total = total + self.config.distill * self._distillation((*inputs, *asked), outputs)
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

    def _distillation(self, inputs: tuple[Any, ...], outputs: Mapping[str, Tensor]) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad(), self.autocast:
            tree = self.teacher(*inputs)
            targets = {
                name: t.float()
                for name, t in task_outputs(tree, self.program.tasks, self.program.ignored_outputs).items()
            }
        return weighted_distillation(self.program.tasks, outputs, targets)

    def _fingerprint(self) -> str:
        """What a checkpoint must agree with to be continued."""
        follows = evaluation_hash(self.program.tasks, self._splits), code_hash(network_modules(self.program))
        # The code of the network and of its losses counts too: a checkpoint of other code holds other weights.
        text = json.dumps([self._begun, self.config.model_dump(), self.seed, *follows])
        return hashlib.sha256(text.encode()).hexdigest()

    def _save(self) -> None:
        assert self.checkpoint is not None
        tensors = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        # AdamW's moments, flat by name: safetensors holds tensors only, and no pickle.
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
        with atomic_folder(self.checkpoint) as folder:
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, folder / "state.safetensors"
            )
            described = {"fingerprint": self._fingerprint(), **asdict(self.state)}
            (folder / "state.json").write_text(json.dumps(described))
            seal_folder(folder)

    def _restore(self, log: Log) -> bool:
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        if not is_whole(self.checkpoint):
            say_damaged(self.checkpoint, log)
            return False
        try:
            return self._restore_from(self.checkpoint)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{self.checkpoint}: the state of a training, damaged: {one_line(error)}; delete it to train anew"
            ) from error

    def _restore_from(self, checkpoint: Path) -> bool:
        described = json.loads((checkpoint / "state.json").read_text())
        if described["fingerprint"] != self._fingerprint():
            return False  # another network, data set or configuration: start anew rather than mix them
        tensors = load_file(checkpoint / "state.safetensors", device=str(self.device))
        self.module.load_state_dict(_under("model.", tensors))
        if self.average is not None:
            self.average.load_state_dict(_under("average.", tensors))
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer.", tensors).items():
            index, _, name = key.partition(".")
            entries.setdefault(int(index), {})[name] = value
        # Settings of the groups are today's own; the fingerprint has made sure that they are what they were.
        self.optimizer.load_state_dict({"state": entries, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.state = _State(described["step"], described["seconds"], described["losses"])
        return True


def weighted_distillation(
    tasks: Sequence[TaskSpec], outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> Tensor:
    """The sum over tasks of their weight times how far their output is from the teacher's."""
    return torch.stack([t.weight * distillation_loss(t, outputs[t.name], targets[t.name]) for t in tasks]).sum()


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


def distillation_loss(task: TaskSpec, output: Tensor, target: Tensor) -> Tensor:
    """How far an output is from the teacher's, in the terms of the task's loss.

    Class scores: Kullback–Leibler divergence over channels (Hinton et al., 2015, temperature 1). Binary logits:
    cross-entropy with the teacher's probability. Anything else: L1 in units of the teacher's standard deviation.
    """
    if task.loss == "cross_entropy":
        divergence = F.kl_div(F.log_softmax(output, 1), F.log_softmax(target, 1), reduction="none", log_target=True)
        return divergence.sum(1).mean()
    if task.loss in ("balanced_bce", "edge_bce"):
        return F.binary_cross_entropy_with_logits(output, target.sigmoid())
    return (output - target).abs().mean() / target.std().clamp_min(1e-6)


def _schedule(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to `final_lr`."""
    warm = config.warmup * steps
    if step < warm:
        # Never 0, which would waste the first step, and 1 where the cosine takes over.
        return (step + 1) / (warm + 1)
    share = (step - warm) / max(1.0, steps - warm)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels, not norms and biases (Loshchilov and Hutter, 2019, in common practice)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise UserError("[train] every parameter of the network is frozen (requires_grad is False): nothing to train")
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def _average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move `average` towards `module`; integer buffers are copied."""
    pairs = zip(average.state_dict().values(), module.state_dict().values(), strict=True)
    floating = []
    for mean, value in pairs:
        if mean.is_floating_point():
            floating.append((mean, value))
        else:
            mean.copy_(value)
    torch._foreach_lerp_([mean for mean, _ in floating], [value for _, value in floating], 1 - decay)


def _content(module: nn.Module) -> str:
    """SHA-256 of the weights that training starts from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _seed(seed: int, purpose: str, index: int) -> int:
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def seeded(seed: int, purpose: str, index: int) -> torch.Generator:
    """A generator whose numbers follow from a training's seed, what they are for and the step."""
    return torch.Generator().manual_seed(_seed(seed, purpose, index))


def _under(prefix: str, tensors: Batch) -> Batch:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class FinetuneConfig(TrainConfig):
    """`TrainConfig` with the defaults of fine-tuning: few epochs, half the learning rate, some distillation."""

    epochs: float = Field(5, gt=0)
    lr: float = Field(1e-3, gt=0)
    distill: float = Field(0.5, ge=0)
