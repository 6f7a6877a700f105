"""The three forms of the experts compute one formula, forward and backward, wherever the tokens go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlc.errors import UserError
from mtlc.moe.experts import NONE, Experts, Form, run_masked, run_queue, run_reference

FORMS = {"queue": run_queue, "masked": run_masked, "reference": run_reference}


def weights(experts: int, width: int, hidden: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((experts, hidden, width), (experts, hidden), (experts, width, hidden), (experts, width))
    return tuple(torch.randn(shape, generator=generator) * 0.3 for shape in shapes)


@st.composite
def routed(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Tokens, where they go, with what weight, and the experts. Places may be empty or repeat an expert."""
    experts, width, hidden = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    tokens, places = draw(st.integers(0, 9)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    used = draw(st.lists(st.integers(NONE, experts - 1), min_size=1, max_size=3))  # others get no token at all
    chosen = draw(st.lists(st.sampled_from(used), min_size=tokens * places, max_size=tokens * places))
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor(chosen, dtype=torch.int64).view(tokens, places)
    x, score = torch.randn(tokens, width, generator=generator), torch.rand(tokens, places, generator=generator)
    return x, index, score, weights(experts, width, hidden, seed)


@settings(max_examples=60, deadline=None)
@given(routed())
def test_the_forms_agree(case: tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]):
    x, index, score, parameters = case
    expected = run_reference(x, index, score, *parameters)
    assert expected.shape == x.shape
    torch.testing.assert_close(run_queue(x, index, score, *parameters), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run_masked(x, index, score, *parameters), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.ops.mtlc.experts(x, index, score, *parameters), expected, rtol=1e-5, atol=1e-5)
    assert bool((expected[(index == NONE).all(1)] == 0).all())


@settings(max_examples=30, deadline=None)
@given(routed())
def test_the_gradients_agree(case: tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]):
    x, index, score, parameters = case
    aim = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for form, run in FORMS.items():
        inputs = [tensor.clone().requires_grad_() for tensor in (x, score, *parameters)]
        out = run(inputs[0], index, *inputs[1:])
        if not out.requires_grad:  # no token goes anywhere: a constant
            assert form != "masked"
            assert bool((index == NONE).all())
            found[form] = [torch.zeros_like(tensor) for tensor in inputs]
            continue
        (out * aim).sum().backward()
        found[form] = [torch.zeros_like(t) if t.grad is None else t.grad for t in inputs]
    for form in ("queue", "masked"):
        for one, other in zip(found[form], found["reference"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_by_hand(form: str):
    """Two experts of width 1: f0(x) = 2·GELU(x), f1(x) = GELU(3x + 1) − 1, with GELU(z) = z·Φ(z)."""
    parameters = (
        torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[0.0], [1.0]]),
        torch.tensor([[[2.0]], [[1.0]]]), torch.tensor([[0.0], [-1.0]]),
    )  # fmt: skip
    x = torch.tensor([[1.0], [-1.0], [0.5]])
    index = torch.tensor([[0, 1], [1, NONE], [0, 0]])
    score = torch.tensor([[0.5, 0.25], [0.5, 0.9], [0.3, 0.2]])

    def gelu(z: float) -> float:
        return z * 0.5 * (1 + math.erf(z / math.sqrt(2)))

    expected = [0.5 * 2 * gelu(1) + 0.25 * (gelu(4) - 1), 0.5 * (gelu(-2) - 1), (0.3 + 0.2) * 2 * gelu(0.5)]
    assert FORMS[form](x, index, score, *parameters).flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_no_tokens_and_no_places_filled(form: str):
    parameters = weights(3, 4, 5, 0)
    none = FORMS[form](torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), *parameters)
    assert none.shape == (0, 4)
    empty = FORMS[form](torch.ones(3, 4), torch.full((3, 2), NONE), torch.ones(3, 2), *parameters)
    assert torch.equal(empty, torch.zeros(3, 4))


@pytest.mark.parametrize("form", FORMS)
def test_an_expert_without_tokens_has_no_gradient(form: Form):
    torch.manual_seed(0)
    layer = Experts(4, 3, 5, form)
    layer(torch.randn(6, 3), torch.tensor([[0, 2]] * 6), torch.rand(6, 2)).square().sum().backward()
    for parameter in layer.parameters():
        assert (parameter.grad.flatten(1).abs().sum(1) > 0).tolist() == [True, False, True, False]


def test_the_layer_runs_its_form_with_and_without_gradients():
    torch.manual_seed(0)
    layer = Experts(4, 3, 5)
    x, index, score = torch.randn(7, 3), torch.randint(0, 4, (7, 2)), torch.rand(7, 2)
    trained = layer(x, index, score)
    assert trained.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(layer(x, index, score), trained.detach())
        for form in FORMS:
            layer.form = form
            torch.testing.assert_close(layer(x, index, score), trained.detach(), rtol=1e-5, atol=1e-6)
    assert layer.count == 4
    assert "experts=4, in_features=3, out_features=5" in repr(layer)


def test_an_unknown_form_is_an_error():
    with pytest.raises(UserError, match=r"form = 'loop': must be one of queue, masked, reference"):
        Experts(2, 3, 3, "loop")  # type: ignore[arg-type]


def test_half_of_the_flops_are_macs():
    """N·K tokens times two matrices of width × hidden."""
    from torch.utils.flop_counter import FlopCounterMode

    x, index, score = torch.randn(7, 3), torch.randint(0, 4, (7, 2)), torch.rand(7, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Experts(4, 3, 5)(x, index, score)
    assert counter.get_total_flops() == 2 * (7 * 2) * 2 * (3 * 5)
