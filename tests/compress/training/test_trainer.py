"""The training loop: what it reaches, what it averages, and that a killed run goes on to the same weights exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, Fragile, Samples, Stopped, same_state
from torch import Tensor, nn

from mtlc.compress.training.distillation import distillation_loss
from mtlc.compress.training.schedule import move_average, rate_share
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

FAST = {"batch_size": 4, "augment": False, "precision": "float32"}


class Augmented(Samples):
    """Flips half of the pictures, labels included."""

    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        flip = torch.rand((), generator=generator) < 0.5
        return {key: value.flip(-1) if flip else value for key, value in batch.items()}


def student(tasks=REGRESSION) -> Program:
    """A chain whose weights are not the teacher's."""
    return tiny_networks.program("chain", 8, tasks, seed=7)


def teacher(tasks=REGRESSION) -> Program:
    return tiny_networks.chain_program(tasks)


def run(program: Program, data, config: TrainConfig, **settings) -> dict:
    splits = Splits(data, data, data, identity="test")
    return train(program, splits, Criteria(program.tasks), config, **settings)


def test_the_loss_falls():
    data, program = tiny_networks.taught(teacher(), 16, 0, noise=0.0), student()
    before = evaluate(program, Criteria(program.tasks), data).losses
    report = run(program, data, TrainConfig(epochs=15, lr=0.01, ema=0.9, **FAST))
    after = evaluate(program, Criteria(program.tasks), data).losses
    assert all(after[t] < 0.25 * before[t] for t in before)
    assert (report["steps"], report["samples"]) == (60, 240)
    assert set(report["losses"]) == {"depth", "semseg"}
    assert not program.module.training


def test_a_tasks_weight_says_how_much_it_counts():
    data = tiny_networks.taught(teacher(), 16, 0, noise=0.0)
    losses = {}
    for weight in (0.0, 1.0):
        program = student((replace(REGRESSION[0], weight=weight), REGRESSION[1]))
        run(program, data, TrainConfig(epochs=8, lr=0.01, weight_decay=0, **FAST))
        losses[weight] = evaluate(program, Criteria(program.tasks), data).losses["depth"]
        frozen = torch.equal(program.module.depth.weight, student().module.depth.weight)
        assert frozen == (weight == 0.0)
    assert losses[1.0] < 0.5 * losses[0.0]


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, ema, stop):
    """Killed at any step, with checkpoints after each: the weights, averaged or not, are those of the whole run."""
    tensors = tiny_networks.taught(teacher(), 10, 0).tensors  # two batches of 4 in an epoch, and an odd rest
    config = TrainConfig(epochs=6, lr=0.01, ema=ema, checkpoint_seconds=1e-9, **{**FAST, "augment": True})
    whole = student()
    undisturbed = run(whole, Augmented(tensors), config, seed=3)
    killed, lines = student(), []
    fragile = type("Both", (Fragile, Augmented), {})(tensors, stop)
    with pytest.raises(Stopped):
        run(killed, fragile, config, seed=3, checkpoint=tmp_path / "training")
    assert json.loads((tmp_path / "training" / "state.json").read_text())["step"] == stop
    again = student()
    report = run(again, Augmented(tensors), config, seed=3, checkpoint=tmp_path / "training", log=lines.append)
    assert lines == [f"training goes on from step {stop} of 12"]
    assert report["steps"] == 12
    assert report["losses"] == undisturbed["losses"]
    assert same_state(whole.module, again.module)
    assert not same_state(whole.module, killed.module)


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "sha256.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_state_is_told_and_training_begins_anew(tmp_path, file, damage):
    tensors = tiny_networks.taught(teacher(), 10, 0).tensors
    config = TrainConfig(epochs=3, lr=0.01, checkpoint_seconds=1e-9, **{**FAST, "augment": True})
    whole, killed, again = student(), student(), student()
    run(whole, Augmented(tensors), config, seed=3)
    fragile = type("Both", (Fragile, Augmented), {})(tensors, 4)
    with pytest.raises(Stopped):
        run(killed, fragile, config, seed=3, checkpoint=tmp_path / "training")
    path = tmp_path / "training" / file
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] + (b"" if damage == "cut" else bytes([data[len(data) // 2] ^ 1])))
        if damage == "flip":
            path.write_bytes(path.read_bytes() + data[len(data) // 2 + 1 :])
    lines: list[str] = []
    run(again, Augmented(tensors), config, seed=3, checkpoint=tmp_path / "training", log=lines.append)
    assert lines == [f"{tmp_path / 'training'}: damaged (its SHA-256 is not what was written); beginning anew"]
    assert same_state(whole.module, again.module)
    lines.clear()
    run(student(), Augmented(tensors), config, seed=3, checkpoint=tmp_path / "training", log=lines.append)
    assert lines == ["training goes on from step 6 of 6"]  # the state was written anew, whole


def test_a_checkpoint_of_another_run_is_not_continued(tmp_path):
    data = tiny_networks.taught(teacher(), 8, 0)
    config = TrainConfig(epochs=2, checkpoint_seconds=1e-9, **FAST)
    run(student(), data, config, seed=1, checkpoint=tmp_path / "c")
    fresh, other, lines = student(), student(), []
    run(fresh, data, config, seed=2)
    run(other, data, config, seed=2, checkpoint=tmp_path / "c", log=lines.append)
    assert lines == []
    assert same_state(fresh.module, other.module)


def test_the_seed_decides():
    data = tiny_networks.taught(teacher(), 8, 0)
    config = TrainConfig(epochs=2, **FAST)
    runs = [student() for _ in range(3)]
    for program, seed in zip(runs, (0, 0, 1), strict=True):
        torch.manual_seed(seed * 17 + id(program) % 1000)  # the global generator must not matter
        run(program, data, config, seed=seed)
    assert same_state(runs[0].module, runs[1].module)
    assert not same_state(runs[0].module, runs[2].module)


def test_the_moving_average_by_hand():
    mean, module = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        mean.weight.copy_(torch.tensor([1.0, 2.0]))
        module.weight.copy_(torch.tensor([2.0, 0.0]))
        module.num_batches_tracked.fill_(7)
    move_average(mean, module, 0.75)
    assert mean.weight.tolist() == [1.25, 1.5]
    assert mean.num_batches_tracked.item() == 7


def test_the_average_is_what_training_leaves():
    """A decay of almost 1 starts at 0.1 and follows the weights at first: (1 + step) / (10 + step)."""
    data = tiny_networks.taught(teacher(), 4, 0)
    start, plain, averaged = student(), student(), student()
    run(plain, data, TrainConfig(epochs=1, ema=0.0, **FAST))
    run(averaged, data, TrainConfig(epochs=1, ema=0.999, **FAST))
    for name, value in averaged.module.named_parameters():
        before, after = start.module.get_parameter(name), plain.module.get_parameter(name)
        assert torch.allclose(value, 0.1 * before + 0.9 * after, atol=1e-6)


def test_the_schedule():
    config = TrainConfig(warmup=0.1, final_lr=0.2)
    values = [rate_share(step, 100, config) for step in range(101)]
    assert values[0] == pytest.approx(1 / 11)
    assert values[:11] == sorted(values[:11])
    assert values[10] == 1.0
    assert values[55] == pytest.approx(0.6)
    assert values[100] == pytest.approx(0.2)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_frozen_parameters_stay():
    program = student()
    for parameter in program.module.stem.parameters():
        parameter.requires_grad_(False)
    run(program, tiny_networks.taught(teacher(), 8, 0), TrainConfig(epochs=2, lr=0.01, **FAST))
    start = student().module
    assert torch.equal(program.module.stem[0].weight, start.stem[0].weight)
    assert not torch.equal(program.module.body[0].weight, start.body[0].weight)


def test_a_frozen_network_cannot_be_trained():
    program = student()
    program.module.requires_grad_(False)
    with pytest.raises(UserError, match=r"every parameter of the network is frozen"):
        run(program, tiny_networks.taught(teacher(), 4, 0), TrainConfig(epochs=1, **FAST))


def test_a_nan_names_the_task_and_the_step():
    data = tiny_networks.taught(teacher(), 4, 0)
    data.tensors["semseg"][1, 2, 0, 0] = math.inf
    with pytest.raises(UserError, match=r"task 'semseg': its loss became inf at training step 0"):
        run(student(), data, TrainConfig(epochs=1, **FAST))


def test_an_empty_train_split():
    empty = tiny_networks.taught(teacher(), 4, 0).first(0)
    full = tiny_networks.taught(teacher(), 4, 0)
    program = student()
    with pytest.raises(UserError, match="train split is empty"):
        train(program, Splits(empty, full, full, identity="x"), Criteria(program.tasks), TrainConfig())


def test_labels_that_no_task_uses_may_be_anything():
    """A sample's name is text; it is no tensor and belongs to no task."""
    tensors = tiny_networks.taught(teacher(), 4, 0).tensors
    samples = [{**{k: v[i] for k, v in tensors.items()}, "name": f"picture {i}"} for i in range(4)]
    program = student()
    splits = Splits(samples, samples, samples)
    train(program, splits, Criteria(program.tasks), TrainConfig(epochs=1, **FAST))


# -- distillation --------------------------------------------------------------------------------------------------


def test_distillation_pulls_to_the_teacher():
    """The labels are noise: all that the student learns is from the teacher's outputs."""
    data = tiny_networks.taught(teacher(), 16, 0, noise=0.0)
    for name in ("depth", "semseg"):
        data.tensors[name] = torch.randn(data.tensors[name].shape)
    like_teacher = tiny_networks.taught(teacher(), 16, 0, noise=0.0)
    distances = {}
    for distill in (0.0, 200.0):
        program = student()
        config = TrainConfig(epochs=10, lr=0.01, ema=0.9, distill=distill, **FAST)
        run(program, data, config, teacher=teacher())
        distances[distill] = evaluate(program, Criteria(REGRESSION), like_teacher).losses
    assert all(distances[200.0][t] < 0.5 * distances[0.0][t] for t in ("depth", "semseg"))


def test_the_teacher_is_left_as_it_was():
    guide, before = teacher(), teacher()
    run(student(), tiny_networks.taught(guide, 4, 0), TrainConfig(epochs=1, distill=1.0, **FAST), teacher=guide)
    assert same_state(guide.module, before.module)
    assert all(p.requires_grad for p in guide.module.parameters())


def test_distillation_in_each_tasks_own_terms():
    scores, target = torch.tensor([[0.0, math.log(3)]])[:, :, None], torch.tensor([[0.0, 0.0]])[:, :, None]
    classes = TaskSpec("s", "cross_entropy", "miou")  # KL of (1/2, 1/2) from (1/4, 3/4) = ln 2 / 2 + ln(2/3) / 2
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(distillation_loss(classes, scores, target)) == pytest.approx(expected)
    assert float(distillation_loss(classes, target, target)) == 0.0
    binary = TaskSpec("e", "edge_bce", "odsf")
    assert float(distillation_loss(binary, torch.zeros(1, 1), torch.zeros(1, 1))) == pytest.approx(math.log(2))
    depth = TaskSpec("d", "l1", "rmse")
    teacher_says = torch.tensor([1.0, 3.0])
    assert float(distillation_loss(depth, teacher_says + 1, teacher_says)) == pytest.approx(1 / math.sqrt(2))


def test_distillation_of_detections_is_about_what_the_teacher_sees():
    postprocess = {"kind": "detection", "size": [8, 16], "strides": [8]}
    boxes = TaskSpec("d", "simota", "map", postprocess=postprocess)
    # The teacher is sure of the first point's only class, and that the second has none.
    said = torch.tensor([[[0.0, 0, 0, 0, 50, 50], [0, 0, 0, 0, -50, -50]]])
    assert float(distillation_loss(boxes, said, said)) == pytest.approx(0, abs=1e-6)
    # One point's boxes count, a mean of 1 off; the other's do not, however far.
    moved = said + torch.tensor([[[4.0, 0, 0, 0, 0, 0], [9, 9, 9, 9, 0, 0]]])
    assert float(distillation_loss(boxes, moved, said)) == pytest.approx(1)
    # Four logits of 0: ln 2 each, over the one point that has an object.
    unsure = said * torch.tensor([1.0, 1, 1, 1, 0, 0])
    assert float(distillation_loss(boxes, unsure, said)) == pytest.approx(4 * math.log(2))
    nothing = torch.tensor([[[0.0, 0, 0, 0, -50, -50]] * 2])
    assert float(distillation_loss(boxes, unsure, nothing)) == pytest.approx(4 * math.log(2))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.conv(image)))


def test_dropout_follows_from_the_step(tmp_path):
    torch.manual_seed(0)
    task = TaskSpec("out", "mse", "mse", output="")
    program = Program(Dropping(), (task,), {"image": torch.zeros(2, 3, 8, 8)}, ModelSource("none:none"))
    data = Samples({"image": tiny_networks.images(4, 8, 0), "out": torch.zeros(4, 1, 8, 8)})
    config = TrainConfig(epochs=5, checkpoint_seconds=1e-9, **FAST)
    whole, again = program.clone(), program.clone()
    run(whole, data, config)
    with pytest.raises(Stopped):
        run(program.clone(), Fragile(data.tensors, 3), config, checkpoint=tmp_path / "c")
    run(again, data, config, checkpoint=tmp_path / "c")
    assert same_state(whole.module, again.module)


# -- networks that route -------------------------------------------------------------------------------------------

MOE_TASKS = tuple(TaskSpec(name, "mse", "mse") for name in ("semseg", "depth", "normals"))


def routed(gate: str = "multi", seed: int = 5) -> Program:
    """A mixture of experts of two blocks for three tasks, images of 8×8."""
    torch.manual_seed(seed)
    kwargs = {
        "tasks": {"semseg": 3, "depth": 1, "normals": 3}, "gate": gate, "experts": 4, "top_k": 2, "image_size": [8, 8],
        "width": 8, "heads": 2, "blocks": 2, "patch": 4, "head_width": 4,
    }  # fmt: skip
    source = ModelSource("mtlc.zoo:m3vit", kwargs)
    return Program(source.build().eval(), MOE_TASKS, {"image": torch.zeros(2, 3, 8, 8)}, source)


def asked_of(program: Program) -> list[dict[str, Tensor]]:
    """The samples that each step asks of each task, as the network gets them; filled while it trains."""
    seen: list[dict[str, Tensor]] = []
    program.module.register_forward_pre_hook(lambda _, args: seen.append(args[1]) if len(args) > 1 else None)
    return seen


@pytest.mark.parametrize(("share", "batch"), [(1, 7), (2, 8), (2, 2), (1, 3)])
def test_each_sample_trains_some_tasks_and_each_task_about_as_many(share, batch):
    data, program = tiny_networks.taught(routed(), 2 * batch, 0), routed()
    seen = asked_of(program)
    run(program, data, TrainConfig(epochs=12, tasks_per_sample=share, **{**FAST, "batch_size": batch}))
    assert len(seen) == 24
    for rows in seen:
        counts = [len(rows[task]) for task in ("semseg", "depth", "normals")]
        assert sum(counts) == share * batch
        assert max(counts) - min(counts) <= 1
        together = torch.cat(list(rows.values()))
        assert torch.bincount(together, minlength=batch).tolist() == [share] * batch
        assert all(len(samples.unique()) == len(samples) for samples in rows.values())
    totals = torch.tensor([[len(rows[task]) for task in rows] for rows in seen]).sum(0)
    assert totals.max() - totals.min() <= 0.25 * totals.float().mean()
    assert len({str(rows) for rows in seen}) >= 6, "drawn anew each step"


def test_a_task_trains_on_its_own_samples_labels():
    """Labels of samples that a task does not train are never looked at, and each meets its own output."""
    program = routed()
    data = tiny_networks.taught(program, 6, 0, noise=0.0)  # the network itself made the labels: all losses are 0
    program.module.requires_grad_(False)
    program.module.heads["depth"].predict.bias.requires_grad_(True)
    for module in program.module.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.train = lambda mode=True, module=module: module  # statistics stay those that made the labels
    for _, router in program.module.routers():
        router.noise = 0.0
    report = run(program, data, TrainConfig(epochs=3, tasks_per_sample=1, lr=1e-9, ema=0, **{**FAST, "batch_size": 6}))
    assert all(loss < 1e-9 for loss in report["losses"].values())


def test_all_tasks_of_each_sample_is_the_same_as_not_asking():
    data, plain, asked = tiny_networks.taught(routed(), 8, 0), routed(), routed()
    seen = asked_of(asked)
    run(plain, data, TrainConfig(epochs=2, **FAST))
    run(asked, data, TrainConfig(epochs=2, tasks_per_sample=3, **FAST))
    assert seen == []
    assert same_state(plain.module, asked.module)


@pytest.mark.parametrize("routing", ["balance", "dependence"])
@pytest.mark.parametrize("gate", ["multi", "conditioned"])
def test_a_killed_run_that_routes_goes_on_bit_for_bit(tmp_path, routing, gate):
    """The tasks of each sample and the noise of the gates follow from the step."""
    tensors = tiny_networks.taught(routed(gate), 10, 0).tensors
    config = TrainConfig(
        epochs=3, lr=0.01, tasks_per_sample=2, routing=routing, distill=0.5, checkpoint_seconds=1e-9, **FAST
    )
    whole, again, lines = routed(gate), routed(gate), []
    report = run(whole, Samples(tensors), config, teacher=routed(gate, 9))
    assert set(report["losses"]) == {"semseg", "depth", "normals", "routing"}
    with pytest.raises(Stopped):
        run(routed(gate), Fragile(tensors, 3), config, checkpoint=tmp_path / "c", teacher=routed(gate, 9))
    run(again, Samples(tensors), config, checkpoint=tmp_path / "c", log=lines.append, teacher=routed(gate, 9))
    assert lines == ["training goes on from step 3 of 6"]
    assert same_state(whole.module, again.module)
    assert same_state(whole.module, whole.clone().module), "what was trained can be copied"


@pytest.mark.parametrize("routing", ["balance", "dependence"])
def test_the_routing_loss_falls_when_it_is_weighted(routing):
    data, losses = tiny_networks.taught(routed(), 8, 0), {}
    for weight in (0.0, 10.0):
        program = routed()
        for _, router in program.module.routers():
            nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(2))
            router.noise = 0.5
        config = TrainConfig(epochs=20, lr=0.02, ema=0, routing=routing, routing_weight=weight, **FAST)
        losses[weight] = run(program, data, config)["losses"]["routing"]
    assert losses[10.0] < losses[0.0] - 0.05


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (student, {"routing": "balance"}, r'routing = "balance": Chain has no routing_loss method; leave it out'),
        (student, {"tasks_per_sample": 1}, r"tasks_per_sample: Chain cannot run tasks apart .*leave it out"),
        (routed, {"tasks_per_sample": 4}, r"tasks_per_sample = 4: there are 3 tasks"),
        (routed, {"tasks_per_sample": 1, "batch_size": 2}, r"a batch of 2 cannot train all 3 tasks; .* of 3 samples"),
        (lambda: routed("single"), {"routing": "dependence"}, r'routing = "dependence": the tasks share one gate'),
    ],
)
def test_settings_that_the_network_has_nothing_to_do_with(make, settings, message):
    program = make()
    data = tiny_networks.taught(program, 4, 0)
    with pytest.raises(UserError, match=message):
        run(program, data, TrainConfig(epochs=1, **{**FAST, **settings}))
