"""Layers of experts as other code may write them, each with a trait that taking experts out must respect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.moe.experts import Experts
from testkit.foreign_network import Foreign

WIDTH, EXPERTS, TOP_K = 16, 8, 2


class OtherRouter(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, WIDTH) * 0.3)
        self.top_k = TOP_K

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight, index = (x @ self.weight.T).softmax(-1).topk(self.top_k, -1)
        return weight / weight.sum(-1, keepdim=True), index


class Bank(nn.Module):
    """Σ_k weight_k · (GELU(x·w1 + b1)·w2 + b2) over a token's places; the classes below change one thing of it."""

    def __init__(self, experts: int = EXPERTS, hidden: int = 24) -> None:
        super().__init__()
        for name, *shape in (("w1", WIDTH, hidden), ("b1", hidden), ("w2", hidden, WIDTH), ("b2", WIDTH)):
            setattr(self, name, nn.Parameter(torch.randn(experts, *shape) * 0.3))

    def each(self, x: Tensor, index: Tensor) -> Tensor:
        """What each expert gives, (N, K, D), for tokens (N, K, D)."""
        hidden = F.gelu(torch.einsum("nkd,nkdh->nkh", x, self.w1[index]) + self.b1[index])
        return torch.einsum("nkh,nkhd->nkd", hidden, self.w2[index]) + self.b2[index]

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        wide = x.unsqueeze(1).expand(-1, index.shape[1], -1)
        return (self.each(wide, index) * weight.unsqueeze(-1)).sum(1)


class Buffer(Bank):
    """A buffer with a row for each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 2, EXPERTS))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return super().forward(x, index, weight * self.scale[index])


class OneBuffer(Buffer):
    """Such a buffer in which all rows are alike, for now."""

    def __init__(self) -> None:
        super().__init__()
        self.scale.fill_(1)


class WidthBuffer(Bank):
    """A buffer that is as long as there are experts, and has one value for each feature of a token."""

    def __init__(self) -> None:
        super().__init__(experts=WIDTH)
        self.register_buffer("scale", torch.linspace(0.5, 2, WIDTH))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return super().forward(x * self.scale, index, weight)


class Listed(Bank):
    """A plain list, and a plain tensor, with a value for each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = [0.5 + 0.1 * expert for expert in range(EXPERTS)]
        self.powers = torch.linspace(0.5, 2, EXPERTS)

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        factor = torch.tensor(self.factors, dtype=x.dtype) * self.powers.to(x.dtype)
        return super().forward(x, index, weight * factor[index])


class Width(Bank):
    """Numbers that only happen to be as many as the experts, by names that sound otherwise."""

    def __init__(self) -> None:
        super().__init__(hidden=EXPERTS)
        self.expert_dim = self.hidden_experts = EXPERTS

    def each(self, x: Tensor, index: Tensor) -> Tensor:
        return super().each(x, index) * self.expert_dim**-0.5 / self.hidden_experts


class Counted(Bank):
    """A number that counts the experts by a name that does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.n = EXPERTS

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for expert in range(self.n):
            share = ((index == expert) * weight).sum(1, keepdim=True)
            total = total + share * self.each(x.unsqueeze(1), torch.full_like(index[:, :1], expert)).squeeze(1)
        return total


class Overwriting(Bank):
    """An expert that a token names twice counts once: advanced indexing writes one of the two."""

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for expert in range(len(self.w1)):
            token, place = torch.where(index == expert)
            made = F.gelu(x[token] @ self.w1[expert] + self.b1[expert]) @ self.w2[expert] + self.b2[expert]
            total[token] += made * weight[token, place, None]
        return total


class WeightedInput(Bank):
    """The weight acts on the input, so that weight 0 leaves what an expert makes of its biases."""

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return self.each(x.unsqueeze(1) * weight.unsqueeze(-1), index).sum(1)


class Renormalised(Bank):
    """The weights are divided by their sum, so that a weight of 0 makes the others larger."""

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return super().forward(x, index, weight / weight.sum(-1, keepdim=True))


class Residual(Bank):
    """An expert adds its input, also with parameters of 0."""

    def each(self, x: Tensor, index: Tensor) -> Tensor:
        return x + super().each(x, index)


class Tied(Bank):
    """A parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Parameter(torch.linspace(0.5, 2, EXPERTS))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return super().forward(x, index, weight * self.first[index] * self.second[index])


class NormAfter(Bank):
    """A norm over the sum: no expert has a part of its own in it."""

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(super().forward(x, index, weight), (WIDTH,))


class WidthParameter(Bank):
    """A parameter for each feature of a token, of which there are as many as experts."""

    def __init__(self) -> None:
        super().__init__(experts=WIDTH)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return super().forward(x * self.gain, index, weight)


class Elsewhere(Counted):
    """The count stands where it cannot be changed for this module alone."""

    def __init__(self) -> None:
        super().__init__()
        del self.n
        self.config = {"experts": EXPERTS}

    def __getattr__(self, name: str) -> object:
        return self.config["experts"] if name == "n" else super().__getattr__(name)


class Ours(Experts):
    """mtlc's own experts, behind a router that is not."""

    def __init__(self) -> None:
        super().__init__(EXPERTS, WIDTH, 24)


class OtherLayer(nn.Module):
    """Tokens (N, T, D) → (N, T, D)."""

    def __init__(self, bank: nn.Module) -> None:
        super().__init__()
        self.router, self.experts = OtherRouter(len(next(bank.parameters()))), bank

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weight, index = self.router(flat)
        return self.experts(flat, index, weight).view_as(x)


class SharedBank(nn.Module):
    """Two layers, each with a router of its own, over the same experts."""

    def __init__(self, bank: Callable[[], nn.Module] = Bank) -> None:
        super().__init__()
        experts = bank()
        self.a, self.b = OtherLayer(experts), OtherLayer(experts)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(x + self.a(x))
        return result


def layer(bank: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return (bank() if issubclass(bank, SharedBank) else OtherLayer(bank())).eval()


def network(bank: str, unused: Sequence[int] = (), shared: bool = False) -> nn.Module:
    """Two tasks around such a layer, which is at `sparse`; `unused` experts have a router row that no token likes."""
    found = globals()[bank]
    torch.manual_seed(0)
    made = Foreign(SharedBank(found) if shared else OtherLayer(found()))
    with torch.no_grad():  # the first feature is 10 for every token, and the routers read it
        made.stem.weight[0], made.stem.bias[0] = 0, 10
        for router in made.modules():
            if isinstance(router, OtherRouter):
                router.weight[:, 0] = 0
                router.weight[list(unused), 0] = -10
    return made.eval()
