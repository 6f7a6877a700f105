"""Builds M³ViT, a vision transformer whose tasks share experts: each task routes its tokens by a gate of its own.

Fan, Sarkar, Jiang, Chen, Zou, Cheng, Hao, Wang: "M³ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task
Learning with Model-Accelerator Co-design" (NeurIPS 2022). Odd blocks hold experts in place of the perceptron; the
network runs only what the asked tasks need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.errors import UserError, nearest
from mtlc.moe.experts import Experts, Form
from mtlc.moe.losses import RoutingLoss, routing_loss
from mtlc.moe.routing import NORM_EPS, Gate, Router, TaskRepresentation
from mtlc.zoo.resnet import SCENES_CHANNELS

SIZES: Mapping[str, Mapping[str, Any]] = {
    "micro": {"width": 96, "heads": 3, "blocks": 6, "patch": 8, "image_size": (64, 64), "head_width": 32},
    "tiny": {"width": 192, "heads": 3, "blocks": 12, "patch": 16, "image_size": (128, 256), "head_width": 256},
    "small": {"width": 384, "heads": 12, "blocks": 12, "patch": 16, "image_size": (512, 512), "head_width": 256},
    "base": {"width": 768, "heads": 12, "blocks": 12, "patch": 16, "image_size": (512, 512), "head_width": 256},
}
"""What `m3vit(size=…)` means; tiny is the paper's Cityscapes network, small and base its PASCAL-Context networks."""

Rows = Mapping[str, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention, (N, T, D) → (N, T, D). The number of heads follows from the projection's width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"heads = {heads} does not divide the width {width}")
        self.head_width = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        result: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return result


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class MoeMlp(nn.Module):
    """A router and its experts: tokens (R, N, D) of rows that belong to the tasks (R,) or (1,) → (R, N, D).

    The router reads `routed_by` (R, N, D), by default the tokens themselves.
    """

    def __init__(self, router: Router, experts: Experts) -> None:
        super().__init__()
        self.router = router
        self.experts: nn.Module = experts

    def forward(
        self, x: Tensor, task: Tensor, representation: Tensor | None, routed_by: Tensor | None = None
    ) -> Tensor:
        score, index = self.router(x if routed_by is None else routed_by, task, representation)
        y = self.experts(x.flatten(0, 1), index.flatten(0, 1), score.flatten(0, 1))
        result: Tensor = y.view_as(x).to(x.dtype)
        return result


class Block(nn.Module):
    """A pre-norm transformer block; `mlp` is an `Mlp` or a `MoeMlp`."""

    def __init__(self, width: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.mlp = mlp

    def attend(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.attn(self.norm1(x))
        return result

    def feed(
        self, x: Tensor, task: Tensor | None, representation: Tensor | None, routed_by: Tensor | None = None
    ) -> Tensor:
        z = self.norm2(x)
        if isinstance(self.mlp, MoeMlp):
            return x + self.mlp(z, task, representation, routed_by)  # type: ignore[no-any-return]
        result: Tensor = x + self.mlp(z)
        return result


class Backbone(nn.Module):
    """Image (N, 3, H, W) → tokens (R, 1 + H·W/patch², D), the class token first and no norm at the end.

    With `gate_input_ahead` a gate reads the tokens that enter its block, not those that its experts get.
    """

    def __init__(
        self, tasks: int, width: int, heads: int, blocks: int, patch: int, image_size: tuple[int, int], gate: Gate,
        experts: int, top_k: int, expert_width: int, noise: float, form: Form, gate_input_ahead: bool = False,
        prune_threshold: float = 0.0, experts_per_task: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        height, across = image_size
        if height % patch or across % patch:
            raise UserError(f"image_size = {image_size}: must be multiples of the patch, {patch}")
        self.grid = (height // patch, across // patch)
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))

        def sparse() -> MoeMlp:
            router = Router(gate, tasks, width, experts, top_k, noise, prune_threshold, experts_per_task)
            return MoeMlp(router, Experts(experts, width, expert_width, form))

        self.blocks = nn.ModuleList(
            Block(width, heads, sparse() if index % 2 else Mlp(width, 4 * width)) for index in range(blocks)
        )
        self.representation = TaskRepresentation(tasks) if gate == "conditioned" else None
        self.gate = gate
        self.gate_input_ahead = gate_input_ahead
        self.task_conditioned = gate != "single" or experts_per_task is not None

    def embed(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.grid[0] * self.patch_embed.stride[0], self.grid[1] * self.patch_embed.stride[1]):
            raise UserError(f"the network takes images of {self._size()}, not {tuple(image.shape[-2:])}")
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed

    def _size(self) -> tuple[int, int]:
        return self.grid[0] * self.patch_embed.stride[0], self.grid[1] * self.patch_embed.stride[1]

    def forward(self, image: Tensor, rows: Tensor | None, task: Tensor) -> Tensor:
        """Tokens of `rows` (R,), the image that each row sees, or all images if None, routed for `task` (R,) or (1,).

        What no gate touches yet runs once per image.
        """
        x = self.embed(image)
        representation = None if self.representation is None else self.representation(task)
        expanded = rows is None
        for block in self.blocks:
            entered = x if self.gate_input_ahead and isinstance(block.mlp, MoeMlp) else None
            x = block.attend(x)  # type: ignore[operator]
            if not expanded and isinstance(block.mlp, MoeMlp):
                x, expanded = x[rows], True
                entered = None if entered is None else entered[rows]
            x = block.feed(x, task, representation, entered)  # type: ignore[operator]
        return x if expanded else x[rows]


class DenseHead(nn.Module):
    """Tokens → (N, out, H, W): LN, a convolution block with a doubling for all but one factor 2 of the patch, one more
    block, a 1×1 convolution, and the last doubling.
    """

    def __init__(self, width: int, hidden: int, out: int, grid: tuple[int, int], patch: int) -> None:
        super().__init__()
        doublings = patch.bit_length() - 1
        if 2**doublings != patch:
            raise UserError(f"patch = {patch}: the heads need a power of two")
        self.grid = grid
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.convs = nn.ModuleList(
            nn.Conv2d(width if index == 0 else hidden, hidden, 3, padding=1) for index in range(doublings)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in range(doublings))
        self.predict = nn.Conv2d(hidden, out, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens[:, 1:]).transpose(1, 2).unflatten(2, self.grid)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if index < len(self.convs) - 1:
                x = _double(x)
        return _double(self.predict(x))


class M3ViT(nn.Module):
    """One `Backbone` and a `DenseHead` per task; returns ``{task: (N, channels, H, W)}``."""

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    @property
    def task_conditioned(self) -> bool:
        """Whether the backbone's numbers depend on the task."""
        return self.backbone.task_conditioned

    def forward(self, image: Tensor, tasks: Iterable[str] | Rows | None = None) -> dict[str, Tensor]:
        """Run `tasks` (all, if None) and nothing else.

        As a mapping, `tasks` gives each task's samples (n,) of the batch.
        """
        rows = self._rows(tasks)
        if not self.task_conditioned:
            x = self.backbone(image, None, torch.zeros(1, dtype=torch.long, device=image.device))
            return {task: self.heads[task](x if samples is None else x[samples]) for task, samples in rows.items()}
        if len(rows) == 1:
            ((task, samples),) = rows.items()
            one = torch.tensor([self.tasks.index(task)], device=image.device)
            return {task: self.heads[task](self.backbone(image if samples is None else image[samples], None, one))}
        everyone = torch.arange(image.shape[0], device=image.device)
        chosen = [everyone if samples is None else samples for samples in rows.values()]
        index = [torch.full_like(s, self.tasks.index(task)) for task, s in zip(rows, chosen, strict=True)]
        x = self.backbone(image, torch.cat(chosen), torch.cat(index))
        parts = x.split([s.shape[0] for s in chosen])
        return {task: self.heads[task](part) for task, part in zip(rows, parts, strict=True)}

    def forward_task(self, image: Tensor, task: Tensor) -> dict[str, Tensor]:
        """Every head on the tokens of one task, whose place in `tasks` is `task` (1,): it makes a bundle's trunk."""
        x = self.backbone(image, None, task)
        return {name: head(x) for name, head in self.heads.items()}

    def routers(self) -> Iterator[tuple[str, Router]]:
        """The routers with their paths."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Router))

    def routing_loss(self, kind: RoutingLoss) -> Tensor:
        """The routing loss of the last forward in training mode."""
        return routing_loss(kind, (r.routing for _, r in self.routers() if r.routing is not None))

    def keep_tasks(self, tasks: Sequence[str]) -> None:
        """Drop the gates and the heads of all other tasks, in place."""
        tasks = list(self._rows(tasks))
        places = [self.tasks.index(task) for task in tasks]
        for _, router in self.routers():
            router.keep_tasks(places)
        representation = self.backbone.representation
        if representation is not None:
            fc1 = representation.fc1
            fc1.weight = nn.Parameter(fc1.weight.detach()[:, places].clone(), fc1.weight.requires_grad)
            fc1.in_features = len(places)
        self.heads = nn.ModuleDict({task: self.heads[task] for task in tasks})

    def _rows(self, tasks: Iterable[str] | Rows | None) -> dict[str, Tensor | None]:
        asked: dict[str, Tensor | None]
        if tasks is None:
            asked = dict.fromkeys(self.tasks)
        elif isinstance(tasks, Mapping):
            asked = dict(tasks)
        else:
            asked = dict.fromkeys((tasks,) if isinstance(tasks, str) else tasks)
        if not asked:
            raise UserError(f"no task to run: name one or more of {', '.join(self.tasks)}")
        for task in asked:
            if task not in self.heads:
                raise UserError(f"the network has no task {task!r}{nearest(str(task), self.tasks)}")
        return asked


def m3vit(
    size: str = "micro",
    tasks: Mapping[str, int] | Sequence[str] = SCENES_CHANNELS,
    gate: Gate = "multi",
    experts: int = 16,
    top_k: int = 4,
    image_size: Sequence[int] | None = None,
    expert_width: int | None = None,
    noise: float = 1.0,
    form: Form = "queue",
    gate_input_ahead: bool = False,
    prune_threshold: float = 0.0,
    experts_per_task: int | None = None,
    **shape: int,
) -> M3ViT:
    """M³ViT of a `size` in `SIZES`; further arguments replace what the size says.

    `tasks` gives each task's output channels, or names tasks of Scenes. `expert_width` is the experts' hidden width, by
    default the width, which makes top-4 cost what the dense perceptron costs.

    Three options of the official code are off by default, as they are there. `gate_input_ahead`: gates read the tokens
    that enter their block, before attention and norms. `prune_threshold`: of the chosen scores those that are not above
    it count as 0; ``expert_prune`` there is 0.1. `experts_per_task`: a task uses so many neighbouring experts only, of
    a gate that all tasks share; ``regu_experts_fromtask`` and ``num_experts_pertask`` there.
    """
    if size not in SIZES:
        raise UserError(f"size = {size!r}: must be one of {', '.join(SIZES)}")
    values = {**SIZES[size], **shape}
    unknown = [name for name in shape if name not in SIZES[size]]
    if unknown:
        raise UserError(f"m3vit has no argument {unknown[0]!r}{nearest(unknown[0], SIZES[size])}")
    if image_size is not None:
        values["image_size"] = tuple(image_size)
    unknown = [] if isinstance(tasks, Mapping) else [task for task in tasks if task not in SCENES_CHANNELS]
    if unknown:
        raise UserError(
            f"tasks: Scenes has no {unknown[0]!r}{nearest(unknown[0], SCENES_CHANNELS)}; "
            f"give other tasks as {{task = channels}}"
        )
    channels = dict(tasks) if isinstance(tasks, Mapping) else {task: SCENES_CHANNELS[task] for task in tasks}
    if not channels:
        raise UserError("tasks is empty: name at least one")
    head_width = values.pop("head_width")
    backbone = Backbone(
        len(channels), **values, gate=gate, experts=experts, top_k=top_k,
        expert_width=expert_width or values["width"], noise=noise, form=form, gate_input_ahead=gate_input_ahead,
        prune_threshold=prune_threshold, experts_per_task=experts_per_task,
    )  # fmt: skip
    heads = {
        task: DenseHead(values["width"], head_width, out, backbone.grid, values["patch"])
        for task, out in channels.items()
    }
    network = M3ViT(backbone, heads)
    network.apply(_initialise)
    nn.init.trunc_normal_(backbone.cls_token, std=0.02)
    nn.init.trunc_normal_(backbone.pos_embed, std=0.02)
    return network


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
