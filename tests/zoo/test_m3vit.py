"""M³ViT: the published sizes to the digit, and that a task pays for itself alone."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from testkit.visible_experts import visible
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.hw.cost.count import workload
from mtlc.moe.experts import Experts
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import SIZES, M3ViT, m3vit

PASCAL = {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3, "edge": 1}
NYUD = {"semseg": 40, "depth": 1}
CITYSCAPES = {"semseg": 7, "depth": 1}
SMALL_SHAPE = {"width": 12, "heads": 2, "blocks": 4, "patch": 4, "head_width": 6}
TASKS = {"semseg": 5, "depth": 1, "normals": 3}
GATES = ["multi", "conditioned", "single"]


def network(gate: str = "multi", seed: int = 0, **values) -> M3ViT:
    """Gates as wide as the tokens, so that the tasks route apart and their outputs differ."""
    torch.manual_seed(seed)
    settings = {"experts": 6, "top_k": 2, "image_size": (8, 12), **SMALL_SHAPE, **values}
    made = m3vit("micro", TASKS, gate, **settings)
    visible(made)
    for _, router in made.routers():
        nn.init.normal_(router.weight)
    return made.eval()


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def published(size: str, tasks: tuple[tuple[str, int], ...], image_size: tuple[int, int], gate: str = "multi") -> M3ViT:
    with torch.device("meta"):
        return m3vit(size, dict(tasks), gate, image_size=image_size).eval()


# --- The published networks -----------------------------------------------------------------------------------------


def test_the_parameters_of_small_with_five_gates():
    made = published("small", tuple(PASCAL.items()), (512, 512))
    assert count(made.backbone) == 43_463_040
    assert sum(count(module) for module in made.modules() if isinstance(module, Experts)) == 28_385_280
    assert sum(count(router) for _, router in made.routers()) == 184_320 == 6 * 5 * 384 * 16
    assert count(made.heads["semseg"]) == 2_663_445
    assert made.backbone.pos_embed.shape == (1, 1025, 384)


@pytest.mark.parametrize(
    ("size", "width", "heads", "blocks", "tokens"),
    [("micro", 96, 3, 6, 65), ("tiny", 192, 3, 12, 129), ("small", 384, 12, 12, 1025), ("base", 768, 12, 12, 1025)],
)
def test_the_sizes(size: str, width: int, heads: int, blocks: int, tokens: int):
    made = published(size, (("depth", 1),), SIZES[size]["image_size"])
    assert made.backbone.pos_embed.shape == (1, tokens, width)
    assert len(made.backbone.blocks) == blocks
    assert {block.attn.head_width for block in made.backbone.blocks} == {width // heads}
    sparse = [index for index, block in enumerate(made.backbone.blocks) if hasattr(block.mlp, "experts")]
    assert sparse == list(range(1, blocks, 2))
    assert all(made.backbone.blocks[index].mlp.experts.fc1.weight.shape == (16, width, width) for index in sparse)


def test_the_task_conditioned_gate_adds_what_it_says():
    one_gate = published("small", tuple(PASCAL.items()), (512, 512), "single")
    conditioned = published("small", tuple(PASCAL.items()), (512, 512), "conditioned")
    representation = (5 * 64 + 64) + (64 * 64 + 64) + 2 * 64
    assert count(conditioned) - count(one_gate) == 6 * 64 * 16 + representation


class OneTask(nn.Module):
    def __init__(self, made: M3ViT, task: str) -> None:
        super().__init__()
        self.made, self.task = made, task

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.made(image, (self.task,))


def macs(size: str, tasks: dict[str, int], image_size: tuple[int, int], task: str) -> int:
    """The encoder and the decoder of one task, for one image: counted on fake tensors, nothing is computed."""
    made = m3vit(size, {task: tasks[task]}, image_size=image_size)
    spec = TaskSpec(task, "mse", "mse")
    program = Program(OneTask(made, task).eval(), (spec,), {"image": torch.zeros(1, 3, *image_size)}, ModelSource(""))
    return workload(program).macs


@pytest.mark.parametrize(
    ("size", "tasks", "image_size", "task"),
    [
        ("small", PASCAL, (512, 512), "semseg"),
        ("small", PASCAL, (512, 512), "edge"),
        ("small", NYUD, (480, 640), "semseg"),
        ("small", NYUD, (480, 640), "depth"),
        ("tiny", CITYSCAPES, (128, 256), "semseg"),
    ],
)
def test_macs_by_hand(size: str, tasks: dict[str, int], image_size: tuple[int, int], task: str):
    d, h, w = SIZES[size]["width"], image_size[0] // 16, image_size[1] // 16
    n = h * w + 1
    dense = 2 * 4 * n * d * d
    experts = n * d * 16 + 4 * n * 2 * d * d  # the gate, and four experts of hidden width d
    encoder = h * w * 3 * 16 * 16 * d + 12 * (4 * n * d * d + 2 * n * n * d) + 6 * (dense + experts)
    decoder = 9 * 256 * h * w * (d + 256 * (4 + 16 + 64)) + 256 * tasks[task] * 64 * h * w
    assert macs(size, tasks, image_size, task) == encoder + decoder


GOLDEN = {"pascal": (83.4, 83.9), "nyud": (99.7, 100.6)}


def test_macs_are_the_published_ones():
    """84 G on PASCAL-Context and 100 G on NYUD-v2 (M³ViT, tables 1 and 2)."""
    for tasks, image_size, (low, high) in ((PASCAL, (512, 512), GOLDEN["pascal"]), (NYUD, (480, 640), GOLDEN["nyud"])):
        counted = [macs("small", tasks, image_size, task) / 1e9 for task in (min(tasks, key=tasks.get), "semseg")]
        assert all(low <= value <= high for value in counted), counted


# --- The official constants and first values ------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
def test_every_layer_norm_has_the_official_eps(gate: str):
    norms = [module for module in network(gate).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 4 + len(TASKS) + (gate == "conditioned")
    assert {norm.eps for norm in norms} == {1e-6}


def test_a_small_spread_is_normalised_as_officially():
    """Of ±0.001 the variance is 1e-6: 0.001/√(1e-6 + 1e-6) = 0.7071. An eps of 1e-5 would give 0.3015."""
    small = torch.tensor([1e-3, -1e-3])
    head = network().heads["depth"]
    seen: list[Tensor] = []
    head.norm.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        head(small.repeat(6).expand(1, 7, 12))
        representation = network("conditioned").backbone.representation
        representation.fc2.weight.zero_()
        representation.fc2.bias.copy_(small.repeat(32))
        seen.append(representation(torch.tensor([1])))
    for value in seen:
        assert value.abs().unique().tolist() == pytest.approx([2**-0.5] * len(value.abs().unique()), rel=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_the_first_values_are_spread_as_officially(gate: str):
    """Gates are uniform within 1/√E, experts within 1/√(D·hidden), both with a standard deviation of that over √3."""
    torch.manual_seed(0)
    backbone = m3vit("tiny", CITYSCAPES, gate).backbone
    sparse = [block.mlp for block in backbone.blocks if hasattr(block.mlp, "experts")]
    gates = torch.cat([mlp.router.weight.detach().flatten() for mlp in sparse])
    assert gates.std().item() == pytest.approx(0.1443, rel=0.02)
    assert 0.249 < gates.abs().max().item() <= 0.25
    for part in ("fc1", "fc2"):
        weight = torch.cat([getattr(mlp.experts, part).weight.detach().flatten() for mlp in sparse])
        assert weight.std().item() == pytest.approx(0.003007, rel=0.01)
        assert 0.0052 < weight.abs().max().item() <= 1 / 192
        assert all(not getattr(mlp.experts, part).bias.any() for mlp in sparse)
    for linear in [module for module in backbone.modules() if isinstance(module, nn.Linear)]:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not linear.bias.any()


def test_experts_of_another_width_start_by_both_their_sides():
    torch.manual_seed(0)
    weight = Experts(16, 48, 12).fc1.weight.detach()
    assert weight.std().item() == pytest.approx(1 / 24 / 3**0.5, rel=0.02)


@pytest.mark.parametrize(("gate", "terms"), [("multi", 2 * 3), ("conditioned", 2 * 3), ("single", 2)])
def test_the_balance_loss_adds_up_layers_and_gates(gate: str, terms: int):
    """Where each token goes to the first two of six experts with the score 1/6, a gate's terms are 2·(Var/mean²).

    Importance and load are (1, 1, 0, 0, 0, 0) times a number: mean 1/3, variance 4/15, CV² = 12/5.
    """
    made = network(gate, noise=0.0).train()
    for _, router in made.routers():
        nn.init.zeros_(router.weight)
    made(images())
    assert float(made.routing_loss("balance").detach()) == pytest.approx(terms * 2 * 12 / 5, rel=1e-5)


# --- What runs for which tasks --------------------------------------------------------------------------------------


def watched(made: M3ViT) -> tuple[Counter, list[int]]:
    """How often each head is called, and how many rows each expert layer routes."""
    calls: Counter = Counter()
    rows: list[int] = []
    for task, head in made.heads.items():
        head.register_forward_hook(lambda *_, task=task: calls.update([task]))
    for _, router in made.routers():
        router.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    return calls, rows


@pytest.mark.parametrize("gate", GATES)
def test_all_tasks_give_an_output_of_the_images_size(gate: str):
    out = network(gate)(images())
    assert {task: tuple(value.shape) for task, value in out.items()} == {
        task: (3, channels, 8, 12) for task, channels in TASKS.items()
    }
    assert all(value.isfinite().all() and value.std() > 0 for value in out.values())


@pytest.mark.parametrize(
    ("gate", "asked", "rows"),
    [
        ("multi", None, 9), ("multi", ["depth"], 3), ("multi", ["normals", "semseg"], 6), ("multi", "depth", 3),
        ("conditioned", None, 9), ("conditioned", ["depth"], 3), ("single", None, 3),
        ("single", ["depth", "normals"], 3),
    ],
)  # fmt: skip
def test_only_what_was_asked_runs(gate: str, asked, rows: int):
    made = network(gate)
    calls, routed = watched(made)
    out = made(images(), asked)
    names = list(TASKS) if asked is None else [asked] if isinstance(asked, str) else asked
    assert list(out) == names
    assert calls == Counter(names)
    assert routed == [rows, rows]  # two expert layers


@pytest.mark.parametrize("gate", GATES)
def test_a_task_alone_is_what_it_is_among_others(gate: str):
    made, image = network(gate), images()
    with torch.no_grad():
        whole = made(image)
        for place, task in enumerate(made.tasks):
            torch.testing.assert_close(made(image, [task])[task], whole[task])
            torch.testing.assert_close(made.forward_task(image, torch.tensor([place]))[task], whole[task])


def test_tasks_route_apart_unless_they_share_the_gate():
    with torch.no_grad():
        for gate, apart in (("multi", True), ("conditioned", True), ("single", False)):
            made = network(gate)
            tokens = [made.backbone(images(), None, torch.tensor([place])) for place in range(2)]
            assert torch.equal(tokens[0], tokens[1]) != apart
            assert made.task_conditioned == apart


@pytest.mark.parametrize("gate", GATES)
def test_a_mapping_gives_each_task_its_samples(gate: str):
    made, image = network(gate), images(4)
    samples = {"normals": torch.tensor([3, 0]), "semseg": torch.tensor([1]), "depth": torch.tensor([0, 2, 3])}
    calls, routed = watched(made)
    with torch.no_grad():
        out = made(image, samples)
        assert routed == ([6, 6] if gate != "single" else [4, 4])
        assert calls == Counter(list(samples))
        whole = made(image)
        one = made(image, {"depth": torch.tensor([2, 1])})
    assert list(out) == list(samples)
    for task, places in samples.items():
        torch.testing.assert_close(out[task], whole[task][places])
    torch.testing.assert_close(one["depth"], whole["depth"][[2, 1]])


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kept", [["depth"], ["normals", "semseg"]])
def test_keep_tasks_leaves_their_outputs(gate: str, kept: list[str]):
    made, image = network(gate), images()
    before = count(made)
    with torch.no_grad():
        whole = made(image)
        made.keep_tasks(kept)
        out = made(image)
    assert list(out) == kept == list(made.tasks)
    for task in kept:
        torch.testing.assert_close(out[task], whole[task])
    assert count(made) < before
    if gate == "multi":
        assert all(router.weight.shape[0] == len(kept) for _, router in made.routers())


@pytest.mark.parametrize("form", ["masked", "reference"])
def test_the_forms_of_the_experts_agree(form: str):
    one, other = network(), network(form=form)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        for task, value in one(images()).items():
            torch.testing.assert_close(other(images())[task], value, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_every_task_is_trained():
    made = network(noise=0.0, top_k=6).train()
    sum(value.square().mean() for value in made(images()).values()).backward()
    assert [name for name, parameter in made.named_parameters() if parameter.grad is None] == []
    made.zero_grad()
    made(images(), ["depth"])["depth"].square().mean().backward()
    gates = [router.weight.grad.flatten(1).abs().sum(1) for _, router in made.routers()]
    assert all((grad > 0).tolist() == [False, True, False] for grad in gates)
    assert all(parameter.grad is None for parameter in made.heads["semseg"].parameters())


def test_a_network_that_was_trained_can_be_copied():
    made = network().train()
    before = made(images())["depth"]
    assert before.requires_grad
    assert float(made.routing_loss("balance").detach()) > 0
    duplicate = copy.deepcopy(made)
    assert all(router.routing is None for _, router in duplicate.routers())
    assert all(router.routing is not None for _, router in made.routers())


# --- What is refused ------------------------------------------------------------------------------------------------


def test_unknown_and_empty_tasks_are_errors():
    made = network()
    for call in (made, lambda _, tasks: made.keep_tasks(tasks)):
        with pytest.raises(UserError, match=r"no task 'dept'; did you mean 'depth'"):
            call(images(), ["semseg", "dept"])
        with pytest.raises(UserError, match=r"no task to run: name one or more of semseg, depth, normals"):
            call(images(), [])
    with pytest.raises(UserError, match=r"no task 'edge'"):
        made(images(), {"edge": torch.tensor([0])})


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"the network takes images of \(8, 12\), not \(12, 8\)"):
        network()(torch.zeros(1, 3, 12, 8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "medium"}, r"size = 'medium': must be one of micro, tiny, small, base"),
        ({"tasks": ["dept"]}, r"Scenes has no 'dept'; did you mean 'depth'\?"),
        ({"tasks": []}, r"tasks is empty"),
        ({"gate": "none"}, r"gate = 'none': must be one of multi, conditioned, single"),
        ({"form": "fast"}, r"form = 'fast': must be one of queue, masked, reference"),
        ({"top_k": 17}, r"top_k = 17: must lie between 1 and the number of experts, 16"),
        ({"top_k": 0}, r"top_k = 0: must lie between"),
        ({"image_size": (64, 60)}, r"image_size = \(64, 60\): must be multiples of the patch, 8"),
        ({"heads": 5}, r"heads = 5 does not divide the width 96"),
        ({"patch": 6, "image_size": (60, 60)}, r"patch = 6: the heads need a power of two"),
        ({"widht": 12}, r"m3vit has no argument 'widht'; did you mean 'width'\?"),
    ],
)
def test_bad_arguments(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        m3vit(**values)
