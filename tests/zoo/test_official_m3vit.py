"""Imported networks compute what the official code computes, with each option that leaves no trace in a checkpoint.

`Official` is that network written once more, from its description: token by token, expert by expert, on the tensors of
a checkpoint under their official names.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from testkit.official_checkpoint import IMAGE, SHAPE, TASKS, network, official, write
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.moe.losses import balance, dependence
from mtlc.moe.routing import Router
from mtlc.program.program import ModelSource, Program
from mtlc.program.task_modules import is_task_conditioned
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import M3ViT, m3vit
from mtlc.zoo.m3vit_checkpoint import import_checkpoint

HEADS, PATCH, BLOCKS = SHAPE["heads"], SHAPE["patch"], SHAPE["blocks"]
OPTIONS = [
    {},
    {"gate_input_ahead": True},
    {"expert_prune": True},
    {"experts_per_task": 4},
    {"gate_input_ahead": True, "expert_prune": True, "experts_per_task": 4},
]


@dataclass
class Official:
    """The official network in inference; `starts` is where the experts of each task begin."""

    state: dict[str, Tensor]
    top_k: int = 2
    gate_input_ahead: bool = False
    expert_prune: bool = False
    experts_per_task: int | None = None
    eps: float = 1e-6
    starts: tuple[int, ...] = (0, 1, 3)  # of 6 experts and 4 per task: 0, + ⌊1·2/2⌋, + ⌊2·2/2⌋

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return centred / spread * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = self.linear(f"{name}.qkv", x).chunk(3, -1)
        parts = [
            (a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c
            for a, b, c in zip(*(part.chunk(HEADS, -1) for part in (q, k, v)), strict=True)
        ]
        return self.linear(f"{name}.proj", torch.cat(parts, -1))

    def experts(self, name: str, x: Tensor, gate_input: Tensor, task: int) -> Tensor:
        own = self.state.get(f"{name}.gate.{task}.w_gate")
        gate = own if own is not None else self.state[f"{name}.gate.w_gate"]
        start = 0
        if own is None and self.experts_per_task is not None:
            start = self.starts[task]
            gate = gate[:, start : start + self.experts_per_task]
        if len(gate) > gate_input.shape[-1]:
            gate_input = torch.cat([gate_input, self.task_feature(task).expand(len(x), -1)], -1)
        out = []
        for token, scores in zip(x, (gate_input @ gate).softmax(-1), strict=True):
            total = torch.zeros_like(token)
            for expert in scores.argsort(descending=True)[: self.top_k].tolist():
                if self.expert_prune and scores[expert] <= 0.1:
                    continue
                into, back = (f"{name}.experts.{part}" for part in ("htoh4", "h4toh"))
                place = start + expert
                hidden = self.state[f"{into}.weight"][place] @ token + self.state[f"{into}.bias"][place]
                hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
                made = self.state[f"{back}.weight"][place] @ hidden + self.state[f"{back}.bias"][place]
                total = total + scores[expert] * made
            out.append(total)
        return torch.stack(out)

    def task_feature(self, task: int) -> Tensor:
        name = "backbone.gate_task_represent"
        one_hot = F.one_hot(torch.tensor(task), len(TASKS)).to(self.state[f"{name}.fc1.weight"].dtype)
        return self.norm(f"{name}.norm", self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", one_hot))))

    def tokens(self, image: Tensor, task: int) -> Tensor:
        state = self.state
        proj = state["backbone.patch_embed.proj.weight"], state["backbone.patch_embed.proj.bias"]
        x = F.conv2d(image[None], *proj, stride=PATCH)[0].flatten(1).T
        x = torch.cat([state["backbone.cls_token"][0], x]) + state["backbone.pos_embed"][0]
        for i in range(BLOCKS):
            name, entered = f"backbone.blocks.{i}", x
            x = x + self.attention(f"{name}.attn", self.norm(f"{name}.norm1", x))
            z = self.norm(f"{name}.norm2", x)
            if i % 2:
                x = x + self.experts(f"{name}.mlp", z, entered if self.gate_input_ahead else z, task)
            else:
                x = x + self.linear(f"{name}.mlp.fc2", F.gelu(self.linear(f"{name}.mlp.fc1", z)))
        return x

    def __call__(self, image: Tensor, task: str) -> Tensor:
        """Image (3, H, W) → (channels, H, W)."""
        state, name = self.state, f"decoders.{task}"
        x = self.norm(f"{name}.norm", self.tokens(image, list(TASKS).index(task))[1:])
        x = x.T.reshape(1, -1, IMAGE[0] // PATCH, IMAGE[1] // PATCH)
        last = PATCH.bit_length() - 1
        for j in range(last):
            norm = f"{name}.syncbn_fc_{j}"
            x = F.conv2d(x, state[f"{name}.conv_{j}.weight"], state[f"{name}.conv_{j}.bias"], padding=1)
            x = F.batch_norm(
                x, *(state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
            )
            x = x.relu() if j == last - 1 else F.interpolate(x.relu(), scale_factor=2, mode="bilinear")
        x = F.conv2d(x, state[f"{name}.conv_{last}.weight"], state[f"{name}.conv_{last}.bias"])
        return F.interpolate(x, scale_factor=2, mode="bilinear")[0]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *IMAGE, generator=torch.Generator().manual_seed(3))


def in_doubles(made: M3ViT) -> dict[str, Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in official(made).items()}


def decisive(gate: str) -> M3ViT:
    """A network whose tokens get scores from 0 to 1, so that some lie below 0.1 and every option shows."""
    made = network(gate)
    with torch.no_grad():
        for _, router in made.routers():
            router.weight *= 4
    return made


def imported(made: M3ViT, folder: Path, **options: Any) -> M3ViT:
    path = write(folder, official(made))
    return import_checkpoint(path, image_size=IMAGE, top_k=2, heads=HEADS, **options).network


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest by task of |a - b| / |b|."""
    return max(float((one[task] - other[task]).norm() / other[task].norm()) for task in other)


def outputs(oracle: Official) -> dict[str, Tensor]:
    return {task: torch.stack([oracle(image.double(), task) for image in images()]) for task in TASKS}


def cases() -> list[tuple[str, dict[str, Any]]]:
    gates = ("multi", "conditioned", "single")
    return [
        (gate, options) for gate in gates for options in OPTIONS if gate != "multi" or "experts_per_task" not in options
    ]


@pytest.mark.parametrize(("gate", "options"), cases())
def test_an_imported_network_is_the_official_one(tmp_path: Path, gate: str, options: dict[str, Any]):
    """float32 against float64: rounding is some 2e-7; importing as another network is 0.0005 off or more."""
    made = decisive(gate)
    expected = outputs(Official(in_doubles(made), **options))
    got = imported(made, tmp_path, **options)
    with torch.no_grad():
        together = got(images())
        alone = {task: got(images(), [task])[task] for task in TASKS}
    assert difference(together, expected) < 5e-6
    assert difference(alone, expected) < 5e-6
    if options:
        with torch.no_grad():
            assert difference(imported(made, tmp_path)(images()), expected) > 5e-4


def test_official_first_values_show_the_eps(tmp_path: Path):
    """The task's representation starts with a spread of 1e-5 or so, where an eps of 1e-5 is seen."""
    torch.manual_seed(0)
    made = m3vit("micro", TASKS, "conditioned", experts=6, top_k=2, expert_width=7, image_size=IMAGE, **SHAPE).eval()
    with torch.no_grad():
        got = imported(made, tmp_path)(images())
    assert difference(got, outputs(Official(in_doubles(made)))) < 5e-6
    assert difference(got, outputs(Official(in_doubles(made), eps=1e-5))) > 1e-4


def test_the_arguments_build_the_network_again(tmp_path: Path):
    made, options = network("single"), {"gate_input_ahead": True, "expert_prune": True, "experts_per_task": 4}
    path = write(tmp_path, official(made))
    got = import_checkpoint(path, image_size=IMAGE, top_k=2, heads=HEADS, **options)
    stated = {"gate_input_ahead": True, "prune_threshold": 0.1, "experts_per_task": 4, "top_k": 2}
    assert {key: got.args[key] for key in stated} == stated
    again = m3vit(**got.args).eval()
    again.load_state_dict(got.network.state_dict())
    with torch.no_grad():
        assert difference(again(images()), got.network(images())) == 0.0
    plain = import_checkpoint(path, image_size=IMAGE, top_k=2, heads=HEADS).args
    assert not {"gate_input_ahead", "prune_threshold", "experts_per_task"} & plain.keys()


# --- Experts of a task of their own ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "experts", "per_task", "spans"),
    [
        (2, 16, 8, ((0, 8), (8, 16))),
        (3, 6, 4, ((0, 4), (1, 5), (3, 6))),
        (5, 16, 12, ((0, 12), (1, 13), (3, 15), (6, 16), (10, 16))),  # 0, + 1, + 2, + 3, + 4, and cut off at 16
        (4, 16, 16, ((0, 16),) * 4),
    ],
)
def test_the_experts_of_each_task(tasks: int, experts: int, per_task: int, spans: tuple):
    assert Router("single", tasks, 8, experts, 2, experts_per_task=per_task).spans == spans


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gate": "multi"}, r'experts_per_task = 4: with gate = "multi" the official code names experts past the last'),
        ({"tasks": {"depth": 1}}, r"experts_per_task = 4: needs two tasks or more"),
        ({"experts_per_task": 2}, r"experts_per_task = 2: must be above top_k, 2, and at most .* experts, 6"),
        ({"experts_per_task": 7}, r"experts_per_task = 7: must be above top_k"),
        ({"experts_per_task": 3}, r"of 6 experts 2 are left for task 2 counted from 0, which must be more than top_k"),
        ({"prune_threshold": 1.0}, r"prune_threshold = 1.0: must be a score, at least 0 and below 1"),
        ({"prune_threshold": -0.1}, r"prune_threshold = -0.1: must be a score"),
    ],
)
def test_options_that_mean_nothing_are_refused(values: dict[str, Any], message: str):
    settings = {"tasks": TASKS, "gate": "single", "experts": 6, "top_k": 2, "experts_per_task": 4, **values}
    with pytest.raises(UserError, match=message):
        m3vit("micro", image_size=IMAGE, **SHAPE, **settings)


def test_experts_of_several_ranks_cannot_be_told_apart(tmp_path: Path):
    for rank in range(2):
        write(tmp_path, official(network("single")), f"{rank}.pth")
    with pytest.raises(UserError, match=r"experts_per_task = 4: over several ranks the official code chooses") as error:
        import_checkpoint(tmp_path, image_size=IMAGE, top_k=2, heads=HEADS, experts_per_task=4)
    assert "\n" not in str(error.value)


def test_tasks_with_experts_of_their_own_run_apart(tmp_path: Path):
    """The shared gate is then not the same for all tasks: bundles, training and extraction ask the network that."""
    made = m3vit("micro", TASKS, "single", experts=6, top_k=2, experts_per_task=4, image_size=IMAGE, **SHAPE).eval()
    assert made.task_conditioned
    assert not network("single").task_conditioned
    tasks = tuple(TaskSpec(task, "mse", "mse") for task in TASKS)
    assert is_task_conditioned(Program(made, tasks, {"image": images()}, ModelSource("")))
    with torch.no_grad():
        before = made(images())
        made.keep_tasks(["depth", "semseg"])
        after = made(images())
        by_index = made.forward_task(images(), torch.tensor([0]))["depth"]
    assert [router.spans for _, router in made.routers()] == [((3, 6), (0, 4))] * 2
    for task in ("depth", "semseg"):
        torch.testing.assert_close(after[task], before[task])
    torch.testing.assert_close(by_index, after["depth"])


def test_a_task_is_balanced_over_its_own_experts():
    """Two tasks of three experts with two each, every score the same: nothing to balance, and unit of noise 1/2."""
    made = Router("single", 2, 4, 3, 1, noise=1.0, experts_per_task=2).train()
    nn.init.zeros_(made.weight)
    torch.manual_seed(0)
    x = torch.randn(2, 4000, 4)
    made(x, torch.tensor([0, 1]))
    assert made.routing is not None
    assert made.routing.noise == 0.5
    assert made.routing.scores[0, :, 2].abs().max() == 0
    assert made.routing.scores[1, :, 0].abs().max() == 0
    assert float(balance(made.routing).detach()) < 0.01
    assert 0 < -float(dependence(made.routing).detach()) < math.log(2)
    loss = balance(made.routing)
    loss.backward()
    assert made.weight.grad.isfinite().all()


def test_a_pruned_score_counts_as_nothing():
    """Shares 0.6, 0.3, 0.07, 0.03; of the best three those above 0.1 stay, also in training."""
    made = Router("single", 1, 1, 4, 3, prune_threshold=0.1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([0.6, 0.3, 0.07, 0.03]).log().view(1, 1, -1))
    for mode in (True, False):
        score, index = made.train(mode)(torch.ones(1, 1, 1), torch.zeros(1, dtype=torch.long))
        assert index.flatten().tolist() == [0, 1, 2]
        assert score.flatten().tolist() == pytest.approx([0.6, 0.3, 0.0])


# --- mtlc import m3vit ----------------------------------------------------------------------------------------------


def test_the_verb_asks_what_no_checkpoint_shows(tmp_path: Path):
    torch.manual_seed(1)
    made = m3vit("micro", {"semseg": 5, "depth": 1}, "single", head_width=8, image_size=(32, 40)).eval()
    checkpoint, out = write(tmp_path, official(made)), tmp_path / "w.safetensors"

    def run(*options: str, code: int = 0) -> str:
        arguments = ["import", "m3vit", str(checkpoint), "--out", str(out), "--image-size", "32x40", *options]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        return result.stderr if code else result.stdout

    default = {"top_k": 4, "gate_input_ahead": False, "expert_prune": False, "experts_per_task": None}
    assert json.loads(run("--json"))["untraced"] == default
    assert "# top_k = 4, gate_input_ahead = false, expert_prune = false, experts_per_task = none\n" in run()
    text = run("--gate-input-ahead", "--expert-prune", "--experts-per-task", "8", "--top-k", "2")
    assert "# top_k = 2, gate_input_ahead = true, expert_prune = true, experts_per_task = 8\n" in text
    args = tomllib.loads(text)["model"]["args"]
    stated = {"top_k": 2, "gate_input_ahead": True, "prune_threshold": 0.1, "experts_per_task": 8}
    assert {key: args[key] for key in stated} == stated
    assert m3vit(**args).backbone.blocks[1].mlp.router.spans == ((0, 8), (8, 16))
    out.unlink()
    error = run("--experts-per-task", "17", code=2)
    assert "experts_per_task = 17: must be above top_k, 4, and at most the number of experts, 16" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
