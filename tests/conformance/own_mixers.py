"""Small networks of two tasks whose middle mixes tokens: attention of every kind, mixtures of experts, MLPs.

The frame is that of `own_blocks`. Tokens are (N, 256, 32), the places of a map of 16×16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.case import Collection
from conformance.own_blocks import WIDTH, TwoTasks, conv

NETWORKS = Collection()
SIDE, HEADS, EACH = 16, 4, 8


class OnTokens(nn.Module):
    """A map as tokens through `mixer`, added to what came in, then a perceptron, then a map again."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mixer = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), mixer
        self.fc1, self.fc2 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.mixer(self.norm1(tokens))
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens.transpose(1, 2).reshape(x.shape)


def mixer(about: str, experts: bool = False) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add `TwoTasks` around `OnTokens` with the mixer that the decorated function builds."""

    def added(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def network() -> nn.Module:
            return TwoTasks(OnTokens(build()))

        network.__name__ = build.__name__
        NETWORKS.add("block", about, experts=experts)(network)
        return build

    return added


class OfTorch(nn.Module):
    """`nn.MultiheadAttention` of tokens with themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return found


@mixer("nn.MultiheadAttention")
def attention_of_torch() -> nn.Module:
    return OfTorch()


class Fused(nn.Module):
    """One layer makes queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, EACH
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim))


@mixer("fused queries, keys and values")
def fused_attention() -> nn.Module:
    return Fused()


class Apart(nn.Module):
    """Three layers, and a softmax that is written out. `groups` query heads share a key and a value head."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.num_kv_heads = HEADS, EACH, HEADS // groups
        self.q_proj, self.o_proj = nn.Linear(WIDTH, HEADS * EACH), nn.Linear(HEADS * EACH, WIDTH)
        self.k_proj = nn.Linear(WIDTH, self.num_kv_heads * EACH)
        self.v_proj = nn.Linear(WIDTH, self.num_kv_heads * EACH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q_proj(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(n, t, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(n, t, self.num_kv_heads, self.head_dim).transpose(1, 2)
        k = k.repeat_interleave(self.num_heads // self.num_kv_heads, 1)
        v = v.repeat_interleave(self.num_heads // self.num_kv_heads, 1)
        y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2))


@mixer("separate queries, keys and values")
def separate_attention() -> nn.Module:
    return Apart()


@mixer("grouped-query attention: two query heads to a key head")
def grouped_queries() -> nn.Module:
    return Apart(groups=2)


@mixer("multi-query attention: one key head")
def multi_query() -> nn.Module:
    return Apart(groups=4)


class Windowed(nn.Module):
    """Attention in windows of 4×4, rolled by half, with a bias for each head and relative place (Swin)."""

    def __init__(self, window: int = 4) -> None:
        super().__init__()
        self.window, self.num_heads = window, HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, HEADS) / 5)
        axis = torch.arange(window)
        places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        n, _, c = x.shape
        w, count = self.window, SIDE // self.window
        x = torch.roll(x.view(n, SIDE, SIDE, c), (-w // 2, -w // 2), (1, 2))
        x = x.view(n, count, w, count, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)
        q, k, v = self.qkv(x).reshape(x.shape[0], w * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        y = ((q * q.shape[-1] ** -0.5) @ k.mT + bias).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).flatten(2))
        y = y.view(n, count, count, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(n, SIDE, SIDE, c)
        return torch.roll(y, (w // 2, w // 2), (1, 2)).flatten(1, 2)


@mixer("windows that are rolled, a relative bias for each head (Swin)")
def windows() -> nn.Module:
    return Windowed()


class Learned(nn.Module):
    """Eight learned queries look at all tokens, and all tokens look at them (cross-attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 8, WIDTH))
        self.gather, self.spread = Cross(), Cross()

    def forward(self, x: Tensor) -> Tensor:
        found = self.gather(self.queries.expand(x.shape[0], -1, -1), x)
        return self.spread(x, found)


class Cross(nn.Module):
    """Queries of one sequence, keys and values of another."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.to_q, self.to_kv, self.proj = (nn.Linear(WIDTH, s * WIDTH) for s in (1, 2, 1))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        q = self.to_q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.to_kv(other).chunk(2, -1)
        k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@mixer("cross-attention with learned queries")
def cross_attention() -> nn.Module:
    return Learned()


class Linearised(nn.Module):
    """Attention without a softmax over pairs: keys and values are summed first."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in self.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = torch.einsum("nthd,nthe->nhde", k, v)
        weight = 1 / (torch.einsum("nthd,nhd->nth", q, k.sum(1)) + 1e-6)
        return self.proj((torch.einsum("nthd,nhde->nthe", q, memory) * weight.unsqueeze(-1)).flatten(2))


@mixer("linear attention by einsum")
def linear_attention() -> nn.Module:
    return Linearised()


class Channels(nn.Module):
    """Attention between channels instead of tokens (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return self.proj(y.permute(0, 3, 1, 2).reshape(n, t, c))


@mixer("attention between channels (XCiT)")
def channel_attention() -> nn.Module:
    return Channels()


class Rearranged(nn.Module):
    """Heads by einops, with a norm of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.norm_q, self.norm_k = nn.LayerNorm(EACH), nn.LayerNorm(EACH)

    def forward(self, x: Tensor) -> Tensor:
        from einops import rearrange

        q, k, v = rearrange(self.to_qkv(x), "n t (s h d) -> s n h t d", s=3, h=self.heads)
        q, k = self.norm_q(q), self.norm_k(k)
        score = torch.einsum("nhqd,nhkd->nhqk", q, k) * EACH**-0.5
        return self.to_out(rearrange(torch.einsum("nhqk,nhkd->nhqd", score.softmax(-1), v), "n h t d -> n t (h d)"))


@mixer("heads by einops, queries and keys normed")
def einops_attention() -> nn.Module:
    return Rearranged()


class Rotated(Apart):
    """Queries and keys are turned by their place (rotary embedding); buffers hold sines and cosines."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(SIDE * SIDE)[:, None] * 10 ** -torch.arange(0, 2, 2 / (EACH // 2))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def turned(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return x * self.cos + torch.cat((-two, one), -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, t, -1, self.head_dim).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.o_proj(y.transpose(1, 2).reshape(n, t, -1))


@mixer("rotary position embedding")
def rotary() -> nn.Module:
    return Rotated()


class Places(nn.Module):
    """A perceptron over places, then one over channels (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(SIDE * SIDE, 24), nn.Linear(24, SIDE * SIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.into(x.transpose(1, 2)))).transpose(1, 2)


@mixer("a perceptron over places (MLP-Mixer)")
def mixed_places() -> nn.Module:
    return Places()


class SpatialGate(nn.Module):
    """Half of the channels, mixed over places, gate the other half (gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.norm = nn.Linear(WIDTH, 80), nn.Linear(40, WIDTH), nn.LayerNorm(40)
        self.places = nn.Conv1d(SIDE * SIDE, SIDE * SIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.gelu(self.into(x)).chunk(2, -1)
        return self.out(left * self.places(self.norm(right)))


@mixer("a gate over places (gMLP)")
def spatial_gate() -> nn.Module:
    return SpatialGate()


class SwiGlu(nn.Module):
    """A perceptron with a gate, both in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(WIDTH, 96), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(one) * two)


@mixer("a gated perceptron, gate and value in one layer (SwiGLU)")
def swiglu() -> nn.Module:
    return SwiGlu()


class Experts(nn.Module):
    """Six perceptrons as stacked tensors; each token goes to two."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(6, WIDTH, 24) / 5), nn.Parameter(torch.randn(6, 24, WIDTH) / 5)

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("nd,nkdh->nkh", x, self.w1[index]))
        return (torch.einsum("nkh,nkhd->nkd", hidden, self.w2[index]) * weight.unsqueeze(-1)).sum(1)


class Choice(nn.Module):
    """Each token's two experts and their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.top_k = nn.Parameter(torch.randn(6, WIDTH)), 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight, index = (x @ self.weight.T).softmax(-1).topk(self.top_k, -1)
        return weight / weight.sum(-1, keepdim=True), index


class Sparse(nn.Module):
    """A layer of experts with its router."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = Choice(), Experts()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weight, index = self.router(flat)
        return self.experts(flat, index, weight).view_as(x)


@mixer("a mixture of experts of its own making", experts=True)
def own_experts() -> nn.Module:
    return Sparse()


class PerceptronByEinops(nn.Module):
    """A 1×1 network as linear layers on (N, H·W, C), by einops."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        from einops import rearrange

        tokens = self.two(F.gelu(self.one(rearrange(x, "n c h w -> n (h w) c"))))
        return rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[2])


@NETWORKS.add("block", "linear layers on places, by einops")
def einops_perceptron() -> nn.Module:
    return TwoTasks(PerceptronByEinops())


class Merging(nn.Module):
    """Four neighbours' channels side by side, normed and reduced (Swin's patch merging)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv2d(WIDTH, 24, 1), nn.LayerNorm(96)
        self.reduction = nn.Linear(96, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(n, h // 2, w // 2, 4 * c)
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)


@NETWORKS.add("block", "four neighbours side by side, normed, reduced (patch merging)")
def patch_merging() -> nn.Module:
    return TwoTasks(Merging())


class Encoder(nn.Module):
    """Layers of torch with a class token and a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(WIDTH, WIDTH, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 65, WIDTH) / 5)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        tokens = torch.cat((self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)), 1) + self.places
        return self.layers(tokens)[:, 1:].transpose(1, 2).reshape(x.shape)


@NETWORKS.add("block", "nn.TransformerEncoder with a class token")
def encoder_of_torch() -> nn.Module:
    return TwoTasks(Encoder())


class Unfolded(nn.Module):
    """Each place's neighbourhood weighted by what the place holds (involution)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.reduce, self.span = conv(WIDTH, 32, 1), conv(WIDTH, 8, 1), nn.Conv2d(8, 2 * 9, 1)
        self.after = conv(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        kernel = self.span(self.reduce(x)).view(n, 2, 1, 9, h, w)
        patches = F.unfold(self.before(x), 3, padding=1).view(n, 2, 16, 9, h, w)
        return self.after((kernel * patches).sum(3).view(n, 32, h, w))


@NETWORKS.add("block", "unfolded neighbourhoods with kernels from the map (involution)")
def involution() -> nn.Module:
    return TwoTasks(Unfolded())
