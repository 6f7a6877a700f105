"""Which experts a token goes to: the largest of all scores as they are, the lower index first where two are equal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlc.errors import UserError
from mtlc.moe.experts import NONE
from mtlc.moe.routing import Router, TaskRepresentation, top_k
from mtlc.zoo.m3vit import m3vit


def router(gate: str = "multi", tasks: int = 2, width: int = 3, experts: int = 5, k: int = 2, **values) -> Router:
    torch.manual_seed(0)
    made = Router(gate, tasks, width, experts, k, **values)
    torch.nn.init.normal_(made.weight)
    return made.eval()


def tokens(rows: int = 2, count: int = 4, width: int = 3) -> Tensor:
    return torch.randn(rows, count, width, generator=torch.Generator().manual_seed(1))


def fixed(scores: list[float], k: int = 2) -> Router:
    """One token [[1.0]] gets the softmax of `scores`."""
    made = Router("single", 1, 1, len(scores), k).eval()
    with torch.no_grad():
        made.weight.copy_(torch.tensor(scores).view(1, 1, -1))
    return made


ONE, TASK = torch.ones(1, 1, 1), torch.zeros(1, dtype=torch.long)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_lower_index_comes_first_among_equals(values: list[int], data: st.DataObject):
    k = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda place: (-values[place], place))[:k]
    assert top_k(torch.tensor(values, dtype=torch.float32), k).tolist() == expected


def test_ties_over_many_experts():
    """Where a sort that is not stable would show."""
    assert top_k(torch.zeros(3, 512), 7).tolist() == [list(range(7))] * 3
    assert fixed([0.0] * 16, 4)(ONE, TASK)[1].tolist() == [[[0, 1, 2, 3]]]


def test_scores_are_those_over_all_experts():
    """ln 1, ln 2, ln 5: shares 1/8, 2/8, 5/8; the two largest stay 5/8 and 2/8 and do not add up to 1."""
    score, index = fixed([0.0, math.log(2), math.log(5)])(ONE, TASK)
    assert index.tolist() == [[[2, 1]]]
    assert score.flatten().tolist() == pytest.approx([5 / 8, 2 / 8])


def test_each_row_is_routed_by_the_gate_of_its_task():
    made, x = router(tasks=3), tokens()
    score, index = made(x, torch.tensor([2, 0]))
    for row, task in enumerate((2, 0)):
        expected = (x[row] @ made.weight[task]).softmax(-1)
        torch.testing.assert_close(score[row], expected.gather(-1, index[row]))
        assert torch.equal(index[row], expected.topk(2).indices)
    alone = made(x, torch.tensor([2]))
    assert torch.equal(alone[1][0], index[0])


def test_the_conditioned_gate_reads_the_token_then_the_task():
    torch.manual_seed(3)
    representation = TaskRepresentation(2)
    made, x = router("conditioned"), tokens()
    assert made.weight.shape == (1, 3 + 64, 5)
    task = torch.tensor([1, 0])
    score, index = made(x, task, representation(task))
    for row in range(2):
        one_hot = torch.nn.functional.one_hot(task[row], 2).float()
        known = representation.norm(representation.fc2(torch.nn.functional.gelu(representation.fc1(one_hot))))
        logits = x[row] @ made.weight[0, :3] + known @ made.weight[0, 3:]
        torch.testing.assert_close(score[row], logits.softmax(-1).gather(-1, index[row]))


def test_noise_is_of_training_alone():
    made, x = router(noise=1.0), tokens()
    task = torch.tensor([0])
    quiet = made(x, task)
    assert torch.equal(made(x, task)[0], quiet[0])
    assert made.routing is None
    made.train()
    torch.manual_seed(0)
    noisy = made(x, task)[0]
    assert not torch.equal(noisy, quiet[0])
    routing = made.routing
    assert routing is not None
    torch.testing.assert_close(routing.clean, x @ made.weight[0])
    torch.manual_seed(0)
    torch.testing.assert_close(routing.logits, routing.clean + torch.randn(routing.logits.shape) / 5)
    assert (routing.noise, routing.task.tolist()) == (1 / 5, [0, 0])
    torch.testing.assert_close(noisy, routing.logits.softmax(-1).gather(-1, routing.index))


# --- After extraction -----------------------------------------------------------------------------------------------

SHARES = [0.4, 0.3, 0.2, 0.1]
LOGITS = [math.log(share) for share in SHARES]


@pytest.mark.parametrize(
    ("kept", "reroute", "index", "score"),
    [
        ([1, 1, 1, 1], False, [0, 1], [0.4, 0.3]),
        ([1, 0, 1, 1], False, [0, NONE], [0.4, 0.3]),  # the place stays empty
        ([1, 0, 1, 1], True, [0, 2], [0.4, 0.2]),  # the next best, with its own score
        ([0, 0, 1, 1], True, [2, 3], [0.2, 0.1]),
        ([0, 0, 1, 1], False, [NONE, NONE], [0.4, 0.3]),
    ],
)
def test_dropped_experts(kept: list[int], reroute: bool, index: list[int], score: list[float]):
    made = fixed(LOGITS)
    made.kept, made.reroute = torch.tensor(kept, dtype=torch.bool), reroute
    scores, chosen = made(ONE, TASK)
    assert chosen.flatten().tolist() == index
    assert scores.flatten().tolist() == pytest.approx(score)


def test_fewer_experts_left_than_places():
    """Re-routing cannot bring back an expert that is gone."""
    made = fixed(LOGITS, k=3)
    made.kept, made.reroute = torch.tensor([0, 0, 1, 0], dtype=torch.bool), True
    scores, chosen = made(ONE, TASK)
    assert chosen.flatten().tolist() == [2, NONE, NONE]
    assert scores.flatten()[0].item() == pytest.approx(0.2)


# --- In the network -------------------------------------------------------------------------------------------------


def test_the_class_token_is_routed_like_any_other():
    torch.manual_seed(0)
    shape = {"width": 8, "heads": 2, "blocks": 2, "patch": 4, "head_width": 4}
    made = m3vit("micro", ["depth"], experts=4, top_k=2, image_size=(8, 12), **shape).eval()
    seen = []
    made.backbone.blocks[1].mlp.experts.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    with torch.no_grad():
        made(torch.randn(3, 3, 8, 12))
    assert seen[0].shape == (3 * (1 + 2 * 3), 2)
    assert bool((seen[0] >= 0).all())


def test_bad_settings_are_errors():
    with pytest.raises(UserError, match=r"gate = 'many': must be one of multi, conditioned, single"):
        Router("many", 1, 2, 3, 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"top_k = 4: must lie between 1 and the number of experts, 3"):
        Router("multi", 1, 2, 3, 4)
