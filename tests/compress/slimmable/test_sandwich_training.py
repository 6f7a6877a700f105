"""Training all widths together: which a step runs, what teaches them, and that a killed run goes on bit for bit."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit import tiny_networks, wide_networks
from testkit.tiny_networks import Fragile, Samples, Stopped, same_state
from testkit.wide_networks import TASKS, fresh, supernet_of, table_of
from torch import Tensor, nn

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Here, Measurer
from mtlc.compress.slimmable.sandwich_training import (
    SandwichTrainer,
    SlimRecoveryConfig,
    SlimTrainConfig,
    leading_match,
    read_by_decoders,
    similarity_match,
    train_supernet,
)
from mtlc.compress.slimmable.searched_configurations import searched_configurations
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import Question, Search
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.features import channel_dimension
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits
from mtlc.program.program import ModelSource, Program

FAST = {"epochs": 2, "batch_size": 4, "augment": False, "precision": "float32", "lr": 1e-3}


DATA = tiny_networks.taught(supernet_of("grouped").program, 8, 0)


def splits_of(data: Any = DATA) -> Splits:
    return Splits(data, DATA, DATA, identity="test")


def run(
    supernet: Supernet, data: Any = DATA, seed: int = 0, checkpoint=None, teacher=None, **settings: Any
) -> dict[str, Any]:
    config = SlimTrainConfig(**{**FAST, **settings})
    return train_supernet(
        supernet, splits_of(data), Criteria(TASKS), config, seed=seed, checkpoint=checkpoint, teacher=teacher
    )  # fmt: skip


def trainer(supernet: Supernet, seed: int = 0, **settings: Any) -> SandwichTrainer:
    config = SlimTrainConfig(**{**FAST, **settings})
    return SandwichTrainer(supernet, splits_of(), Criteria(TASKS), config, seed, None)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_step_runs_the_widest_the_narrowest_and_random_ones(count, monkeypatch):
    supernet, ran, forwards = fresh("grouped"), [], []
    entered = Supernet.at

    def at(self, configuration):
        ran.append(configuration)
        return entered(self, configuration)

    monkeypatch.setattr(Supernet, "at", at)
    supernet.program.module.register_forward_hook(lambda *_: forwards.append(len(ran)))
    run(supernet, configurations=count, feature_distillation="none")
    steps = 4  # two epochs of two batches
    assert len(ran) == steps * (count - 1)
    widest_first = [step * (count - 1) + place for step in range(steps) for place in range(count)]
    assert forwards == widest_first  # widths that were entered before each forward
    for step in range(steps):
        narrowest, *others = ran[step * (count - 1) : (step + 1) * (count - 1)]
        assert narrowest == supernet.smallest
        assert all(
            width in supernet.table.options(g) for c in others for g, width in supernet.table.width_of(c).items()
        )


def test_the_seed_and_the_step_draw_the_random_ones():
    supernet = fresh("resnet")
    drawn = {}
    for seed in (0, 0, 1):
        one = trainer(supernet, seed, configurations=6)
        drawn.setdefault(seed, []).append([])
        for step in range(5):
            one.state.step = step
            drawn[seed][-1].append(tuple(one._sandwich()))
    assert drawn[0][0] == drawn[0][1] != drawn[1][0]
    assert len(set(drawn[0][0])) == 5
    every = {c for step in drawn[0][0] for c in step[1:]}
    assert len(every) >= 15  # of 72
    for group in range(3):
        seen = {c.encoder[group] for c in every}
        assert seen == set(supernet.table.options(supernet.stages[group]))


def test_a_pool_is_what_a_step_draws_from():
    supernet = fresh("resnet")
    pool = [supernet.smallest, *list(configurations_of(supernet))[7:12]]
    config = SlimTrainConfig(**{**FAST, "configurations": 4})
    drawn = []
    for _ in range(2):
        one = SandwichTrainer(supernet, splits_of(), Criteria(TASKS), config, 0, None, pool)
        drawn.append([])
        for step in range(40):
            one.state.step = step
            drawn[-1].append(one._sandwich())
    assert drawn[0] == drawn[1]
    assert all(len(set(step)) == len(step) == 3 and set(step) <= set(pool) for step in drawn[0])
    counts = [sum(c in step for step in drawn[0]) for c in pool]
    assert all(10 <= count <= 30 for count in counts)  # 20 of 40 expected


def configurations_of(supernet: Supernet):
    options = [supernet.decoder_options(task) for task in supernet.tasks]
    for encoder in supernet.encoders():
        for decoders in itertools.product(*options):
            yield Configuration(encoder, decoders)


def test_a_pool_is_not_taken_for_another_when_training_goes_on(tmp_path):
    config = SlimTrainConfig(**FAST)
    prints = {
        SandwichTrainer(fresh("grouped"), splits_of(), Criteria(TASKS), config, 0, None, pool)._fingerprint()
        for pool in ([], [fresh("grouped").smallest], [fresh("grouped").smallest, fresh("grouped").largest])
    }
    assert len(prints) == 3


def test_the_searched_configurations_are_what_a_search_finds(tmp_path):
    supernet = fresh("grouped")
    before = {name: value.clone() for name, value in supernet.program.module.state_dict().items()}
    splits, criteria, path = splits_of(), Criteria(TASKS), tmp_path / "evaluations.json"
    pool = searched_configurations(
        supernet, splits, criteria, (0.01, 0.5, 0.8), path=path
    )  # the first is under the narrowest
    assert len(set(pool)) == len(pool)
    assert pool[0] == supernet.smallest
    kept = Evaluations(Here(Measurer(supernet, splits, criteria, 64, 64)), supernet.tasks, path, "seed 0")
    search = Search(supernet, kept, criteria.higher_is_better)
    alike = {task: 1 / len(TASKS) for task in supernet.tasks}
    half = search.find(Question(alike, 0.5 * supernet.macs(supernet.largest)))
    assert half.configuration in pool
    assert half.runs == 0  # it was measured before
    assert searched_configurations(supernet, splits, criteria, (0.5, 0.8), path=path) == pool
    after = supernet.program.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_same_seed_gives_the_same_weights():
    trained = [fresh("grouped") for _ in range(3)]
    for place, (supernet, seed) in enumerate(zip(trained, (0, 0, 1), strict=True)):
        torch.manual_seed(place)  # the global generator must not matter
        report = run(supernet, seed=seed)
        assert (report["steps"], set(report["losses"])) == (4, {"depth", "semseg"})
    assert same_state(trained[0].program.module, trained[1].program.module)
    assert not same_state(trained[0].program.module, trained[2].program.module)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("kind", ["leading", "similarity"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, stop, kind):
    whole, killed, again = (fresh("grouped") for _ in range(3))
    settings = {"checkpoint_seconds": 1e-9, "feature_distillation": kind, "labels": 0.5}
    run(whole, **settings)
    with pytest.raises(Stopped):
        run(killed, Fragile(DATA.tensors, stop), checkpoint=tmp_path / "state", **settings)
    assert json.loads((tmp_path / "state" / "state.json").read_text())["step"] == stop
    run(again, checkpoint=tmp_path / "state", **settings)
    assert same_state(whole.program.module, again.program.module)
    assert not same_state(whole.program.module, killed.program.module)


def test_a_killed_run_with_a_teacher_goes_on_bit_for_bit(tmp_path):
    """The map that compares its features trains along and is part of the state."""
    teacher = fresh("grouped").program
    with torch.no_grad():
        for weight in teacher.module.parameters():
            weight.mul_(1.1)
    whole, killed, again = (fresh("grouped") for _ in range(3))
    settings = {"checkpoint_seconds": 1e-9, "epochs": 1.5, "distill": 0.5, "distill_features": 1.0, "teacher": teacher}
    run(whole, **settings)
    with pytest.raises(Stopped):  # the first of four calls fits the map
        run(killed, Fragile(DATA.tensors, 3), checkpoint=tmp_path / "state", **settings)
    run(again, checkpoint=tmp_path / "state", **settings)
    assert same_state(whole.program.module, again.program.module)
    assert not same_state(whole.program.module, killed.program.module)


def test_a_checkpoint_of_other_widths_is_not_continued(tmp_path):
    program = supernet_of("grouped").program
    other = Supernet(program.clone(), table_of(program, widths=(0.5, 1.0)))
    settings = {"checkpoint_seconds": 1e-9}
    with pytest.raises(Stopped):
        run(fresh("grouped"), Fragile(DATA.tensors, 2), checkpoint=tmp_path / "state", **settings)
    expected = Supernet(program.clone(), other.table)
    run(other, checkpoint=tmp_path / "state", **settings)
    run(expected, **settings)
    assert same_state(other.program.module, expected.program.module)


def test_narrow_widths_learn_what_the_widest_outputs():
    """They see no label, and yet their losses on the labels fall."""
    image = tiny_networks.images(16, 8, 1)
    small = torch.nn.functional.avg_pool2d(image, 2)
    data = Samples({"image": image, "depth": small.mean(1, keepdim=True), "semseg": small})
    losses = {}
    for epochs in (0, 15):
        supernet = fresh("convnext")
        if epochs:
            run(supernet, data, epochs=epochs, lr=1e-2, ema=0.0)
        with supernet.at(supernet.smallest):
            recalibrate_batchnorm(supernet.program, splits_of(data))
            losses[epochs] = evaluate(supernet.program, Criteria(TASKS), data).losses
    assert all(losses[15][task] < 0.4 * losses[0][task] for task in losses[0]), losses


def test_the_targets_are_no_part_of_the_graph(monkeypatch):
    """With narrow configurations that share no trained weight with the widest, its gradient is the labels' alone."""
    gradients = []
    for weight in (1e-30, 1000.0):
        supernet = fresh("convnext")
        one = trainer(supernet, narrow_weight=weight, feature_weight=weight, configurations=2)
        one.optimizer.zero_grad()
        batch = {key: value[:4] for key, value in tiny_networks.taught(supernet.program, 8, 0).tensors.items()}
        one.learn(batch, [batch["image"]])
        unit = next(u for u in supernet.table.units if u.name == "wide")
        kept = supernet.table.kept(unit, 0.25)
        gradients.append(supernet.program.module.wide.weight.grad[kept:].clone())  # rows that no narrower width has
    assert float(gradients[0].abs().max()) > 0
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("setting", ["labels", "feature_weight", "narrow_weight"])
def test_every_weight_weighs(setting):
    light, heavy = fresh("convnext"), fresh("convnext")
    run(light, epochs=0.5, **{setting: 0.1})
    run(heavy, epochs=0.5, **{setting: 100.0})
    assert not same_state(light.program.module, heavy.program.module)


class Side(nn.Module):
    """The decoders read two layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.heads = wide_networks.Heads(32)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.heads(torch.cat([self.left(image), self.right(image)], 1))


@pytest.mark.parametrize("kind", ["leading", "similarity"])
def test_the_pull_is_to_what_the_widest_has_in_these_channels(kind):
    program = Program(Side().eval(), TASKS, {"image": torch.zeros(2, 3, 8, 8)}, ModelSource("none:none"))
    supernet = Supernet(program, table_of(program))
    one = trainer(supernet, feature_distillation=kind)
    assert one._features == ["heads.depth.0"]
    wide = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = wide[:, [*range(8), *range(16, 24)]]
    for narrow in (kept, kept.flip(0)):
        pull = float(one._pull(supernet.smallest, {"heads.depth.0": narrow}, {"heads.depth.0": wide}))
        expected = leading_match(narrow, kept, 1) if kind == "leading" else similarity_match(narrow, wide)
        assert pull == pytest.approx(float(expected))
    assert pull > 0.001


def test_losses_that_are_reported_are_the_widests():
    supernet = fresh("convnext")
    expected = fresh("convnext")
    report = run(supernet, epochs=0.5)
    plain = train(expected.program, splits_of(), Criteria(TASKS), TrainConfig(**{**FAST, "epochs": 0.5}))
    assert report["losses"] == plain["losses"]


def test_tasks_that_train_apart_mean_nothing_here():
    for kind in (SlimTrainConfig, SlimRecoveryConfig):
        with pytest.raises(UserError) as caught:
            kind(tasks_per_sample=1)
        message = "train.tasks_per_sample = 1: all widths train all tasks, taught by the widest; leave it out"
        assert str(caught.value) == message


@pytest.mark.parametrize("settings", [{"distill": 1.0}, {"distill_features": 1.0}])
def test_the_widest_learns_from_the_uncompressed_network_if_asked(settings):
    """Its loss has the teacher's terms: a step moves the weights elsewhere, but only where it is asked for."""
    teacher = fresh("grouped").program
    with torch.no_grad():
        for weight in teacher.module.parameters():
            weight.mul_(1.1)
    without, asked, alone = (fresh("grouped") for _ in range(3))
    run(without, teacher=teacher)
    run(asked, teacher=teacher, **settings)
    run(alone)
    assert same_state(without.program.module, alone.program.module)
    assert not same_state(asked.program.module, alone.program.module)


def test_the_pull_of_the_teacher_brings_the_widest_nearer_to_it():
    """With a weight that drowns the labels, the widest's outputs approach the teacher's; without, they do not."""
    teacher, distances = fresh("grouped").program, {}
    with torch.no_grad():
        for weight in teacher.module.parameters():
            weight.mul_(1.2)
    batch = {name: DATA.tensors[name][:4] for name in teacher.inputs}
    with torch.no_grad():
        wanted = teacher.outputs(batch)
    for weight in (0.0, 50.0):
        supernet = fresh("grouped")
        run(supernet, teacher=teacher, distill=weight, epochs=20, lr=1e-2, ema=0.0, narrow_weight=1e-6)
        with torch.no_grad():
            found = supernet.program.outputs(batch)
        distances[weight] = sum(float((found[name] - wanted[name]).abs().mean()) for name in wanted)
    assert distances[50.0] < 0.8 * distances[0.0]


# -- what the encoder's features are pulled by ----------------------------------------------------------------------

features = st.integers(0, 10_000).map(
    lambda seed: torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(seed))
)


@given(features, st.floats(0.1, 10))
def test_equal_features_match(wide, scale):
    assert float(leading_match(wide, wide, 1)) == pytest.approx(0, abs=1e-5)
    assert float(leading_match(scale * wide, wide, 1)) == pytest.approx(0, abs=1e-5)
    assert float(similarity_match(scale * wide, wide)) == pytest.approx(0, abs=1e-5)


@settings(deadline=None)
@given(features, st.permutations(range(8)))
def test_similarity_knows_no_channels(wide, order):
    shuffled = wide[:, order]
    assert float(similarity_match(shuffled, wide)) == pytest.approx(0, abs=1e-5)
    assert float(similarity_match(torch.cat([wide, wide], 1), wide)) == pytest.approx(0, abs=1e-5)
    assert float(similarity_match(wide[:, :3], wide[:, 3:])) > 1e-3


def test_matches_by_hand():
    one, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert float(leading_match(one, other, 1)) == pytest.approx(2 * (1 - 24 / 25))  # (3/5 − 4/5)² + (4/5 − 3/5)²
    assert float(leading_match(one, -one, 1)) == pytest.approx(4.0)
    two, apart = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Gram rows (1, 1)/√2 twice, and (1, 0), (0, 1): two samples, each (1/√2 − 1)² + 1/2 apart
    assert float(similarity_match(two, apart)) == pytest.approx((2**-0.5 - 1) ** 2 + 0.5)


def test_channels_are_in_the_last_dimension_of_what_linear_layers_read():
    module = supernet_of("convnext").program.module
    assert [channel_dimension(layer) for layer in (module.wide, module.stem)] == [-1, 1]


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        ("resnet", [f"decoders.depth.laterals.{i}" for i in (2, 1, 0)]),
        ("convnext", ["heads.depth.0"]),
        ("m3vit", ["heads.depth.convs.0", "heads.semseg.convs.0"]),  # each reads tokens of its own
        ("segformer", ["heads.depth.0"]),
    ],
)
def test_one_layer_for_every_tensor_that_decoders_read(network, layers):
    assert read_by_decoders(supernet_of(network)) == layers


def test_what_a_layer_reads_at_a_width():
    supernet = supernet_of("concat")
    wide = torch.arange(32.0).view(1, 32, 1, 1).expand(2, 32, 4, 4)
    read = supernet.read("join.0", Configuration((0.5, 1.0), (1.0, 1.0)), wide, 1)
    assert read[0, :, 0, 0].tolist() == [*range(8), *range(16, 24)]  # leading channels of both that are concatenated
    assert supernet.read("join.0", supernet.largest, wide, 1) is wide
    assert supernet.read("down.2", supernet.smallest, wide[:, :3], 1).shape[1] == 3


@pytest.mark.parametrize("network", wide_networks.NETWORKS)
@pytest.mark.parametrize("kind", ["leading", "similarity", "none"])
def test_every_network_learns_a_step(network, kind):
    supernet = fresh(network)
    data = tiny_networks.taught(supernet.program, 4, 0)
    before = evaluate(supernet.program, Criteria(TASKS), data).losses
    supernet_splits = Splits(data, data, data, identity="test")
    config = SlimTrainConfig(**{**FAST, "epochs": 1, "ema": 0.0, "feature_distillation": kind})
    report = train_supernet(supernet, supernet_splits, Criteria(TASKS), config)
    assert all(torch.isfinite(p).all() for p in supernet.program.module.parameters())
    assert report["steps"] == 1
    assert evaluate(supernet.program, Criteria(TASKS), data).losses != before
