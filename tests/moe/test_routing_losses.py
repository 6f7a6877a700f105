"""The routing losses by hand: what is even costs nothing, what is exclusive carries log T nats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlc.moe.losses import _load, balance, cv_squared, dependence, routing_loss
from mtlc.moe.routing import Routing, top_k


def routing(scores: Tensor, task: list[int], k: int = 1, noise: float = 0.0) -> Routing:
    """Rows (R, N, E) of scores that belong to tasks."""
    logits = scores.clamp_min(1e-30).log()
    return Routing(torch.tensor(task), max(task) + 1, logits, logits, scores, top_k(scores, k), noise)


def one_hot(*rows: list[int], experts: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(rows), experts).float()


def test_cv_squared_by_hand():
    """1, 2, 3, 6: mean 3, unbiased variance (4 + 1 + 0 + 9)/3."""
    assert float(cv_squared(torch.tensor([1.0, 2, 3, 6]))) == pytest.approx(14 / 27)
    assert float(cv_squared(torch.full((16,), 7.0))) == 0.0
    assert float(cv_squared(torch.zeros(4))) == 0.0


def test_the_cv_of_a_single_expert_is_zero():
    """The variance of one number is not defined; there is nothing to balance."""
    assert float(cv_squared(torch.tensor([3.0]))) == 0.0
    assert float(balance(routing(torch.ones(2, 4, 1), [0, 1]))) == 0.0


def test_load_without_noise_is_a_count():
    logits = torch.tensor([[3.0, 2, 1], [3, 1, 2], [1, 3, 2], [3, 2, 1]])
    scores = logits.softmax(-1)
    assert _load(logits, logits, scores, top_k(logits, 1), 0.0).tolist() == [3, 1, 0]
    assert _load(logits, logits, scores, top_k(logits, 2), 0.0).tolist() == [3, 3, 2]
    assert _load(logits, logits, scores, top_k(logits, 3), 0.5).tolist() == [4, 4, 4], "all are kept, noise or not"


def phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def test_load_with_noise_compares_logits_with_softmaxed_thresholds():
    """One token, K = 1, clean (1, 0), noisy (1.5, 0.2), σ = 0.5; the noisy scores are (0.785835, 0.214165).

    As the official code has it: expert 0 stays if it beats the second score, expert 1 enters if it beats the first.
    Among logits alone the thresholds would be 0.2 and 1.5.
    """
    clean, noisy = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.5, 0.2]])
    load = _load(clean, noisy, noisy.softmax(-1), top_k(noisy, 1), 0.5)
    assert load.tolist() == pytest.approx([phi((1 - 0.214165) / 0.5), phi((0 - 0.785835) / 0.5)], rel=1e-4)


def test_an_expert_counts_as_kept_where_its_logit_beats_the_softmaxed_threshold():
    """Noisy (2, 1): the second is not chosen, but 1 > 0.268941, the second score, which then is its threshold too."""
    clean, noisy = torch.tensor([[2.0, 0.9]]), torch.tensor([[2.0, 1.0]])
    load = _load(clean, noisy, noisy.softmax(-1), top_k(noisy, 1), 0.5)
    assert load.tolist() == pytest.approx([phi((2 - 0.268941) / 0.5), phi((0.9 - 0.268941) / 0.5)], rel=1e-4)


def test_the_load_has_a_gradient_towards_the_gate():
    clean = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    _load(clean, clean.detach(), clean.detach().softmax(-1), top_k(clean, 1), 0.5)[1].backward()
    assert clean.grad[0, 1] > 0


def test_uniform_use_is_balanced():
    """Every expert is the choice of one token with the same score."""
    made = routing(one_hot([0, 1], [2, 3], experts=4), [0, 0])
    assert float(balance(made)) == 0.0
    assert float(routing_loss("balance", [made, made])) == 0.0


def test_balance_by_hand():
    """All four tokens go to the first of four experts: importance (4, 0, 0, 0) and load the same, CV² = 4 each."""
    collapsed = routing(one_hot([0, 0], [0, 0], experts=4), [0, 0])
    assert float(balance(collapsed)) == pytest.approx(8.0)
    even = routing(one_hot([0, 1], [2, 3], experts=4), [0, 0])
    assert float(routing_loss("balance", [collapsed, even])) == pytest.approx(8.0), "the sum over the layers"
    assert float(routing_loss("balance", [collapsed] * 3)) == pytest.approx(24.0)


def test_balance_is_of_each_task_by_itself():
    """Two tasks with two experts each: even over all, uneven for each.

    Importance (1, 1, 0, 0): CV² = 1/3 / 1/4 = 4/3.
    """
    made = routing(one_hot([0, 1], [2, 3], experts=4), [0, 1])
    assert float(balance(made)) == pytest.approx(2 * (4 / 3 + 4 / 3)), "the sum over the gates"
    assert float(balance(routing(made.scores, [0, 0]))) == 0.0


def test_importance_counts_the_chosen_scores_only():
    """Scores (0.6, 0.4) and K = 1: importance (0.6, 0), load (1, 0); CV² = 2 for both."""
    made = routing(torch.tensor([[[0.6, 0.4]]]), [0])
    assert float(balance(made)) == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_exclusive_experts_carry_log_t(tasks: int):
    scores = one_hot(*([task, task] for task in range(tasks)), experts=tasks)
    assert float(dependence(routing(scores, list(range(tasks))))) == pytest.approx(-math.log(tasks), rel=1e-5)


def test_independent_experts_carry_nothing():
    scores = torch.tensor([0.5, 0.3, 0.2]).expand(4, 6, 3)
    assert float(dependence(routing(scores, [0, 1, 2, 0]))) == pytest.approx(0.0, abs=1e-6)
    assert float(dependence(routing(scores[:1], [3]))) == pytest.approx(0.0, abs=1e-6), "one task depends on nothing"


def test_dependence_by_hand():
    """P(e|0) = (3/4, 1/4), P(e|1) = (1/4, 3/4), marginal (1/2, 1/2): I = 3/4·ln(3/2) + 1/4·ln(1/2)."""
    scores = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.0, 1.0]]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    made = routing(scores, [0, 1])
    assert float(dependence(made)) == pytest.approx(-expected, rel=1e-5)
    assert float(routing_loss("dependence", [made] * 3)) == pytest.approx(-3 * expected, rel=1e-5)


def test_tasks_are_equally_likely_however_many_rows_they_have():
    scores = one_hot([0], [1], experts=2)
    many = torch.cat([scores[:1].expand(7, -1, -1), scores[1:]])
    assert float(dependence(routing(many, [0] * 7 + [1]))) == pytest.approx(-math.log(2), rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**31))
def test_the_bounds(tasks: int, experts: int, seed: int):
    """0 ≤ I(T; E) ≤ log T, and balance is never negative."""
    scores = (3 * torch.randn(tasks, 5, experts, generator=torch.Generator().manual_seed(seed))).softmax(-1)
    made = routing(scores, list(range(tasks)), k=min(2, experts), noise=0.3)
    assert -math.log(tasks) - 1e-5 <= float(dependence(made)) <= 1e-5
    assert float(balance(made)) >= 0
