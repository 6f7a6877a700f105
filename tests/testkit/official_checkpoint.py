"""Writes checkpoints in the layout of the official M³ViT code: every tensor's place is spelt out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlc.zoo.m3vit import M3ViT, m3vit

# Every size is another number, so that no two axes can be mistaken for each other.
E, D, HIDDEN, PATCH, HEAD = 6, 10, 7, 4, 5
SHAPE = {"width": D, "heads": 2, "blocks": 4, "patch": PATCH, "head_width": HEAD}
TASKS = {"semseg": 9, "normals": 3, "depth": 1}
IMAGE = (8, 12)


def network(gate: str = "multi", tasks: dict[str, int] = TASKS, seed: int = 0) -> M3ViT:
    torch.manual_seed(seed)
    made = m3vit("micro", tasks, gate, experts=E, top_k=2, expert_width=HIDDEN, image_size=IMAGE, **SHAPE)
    return randomised(made)


def randomised(made: M3ViT) -> M3ViT:
    """No parameter or statistic is left at a value that others have too."""
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(0, 0.3)
            else:
                tensor.fill_(len(name))
    return made.eval()


def official(made: M3ViT) -> dict[str, Tensor]:
    """The state of `made` as the official code would have saved it."""
    out: dict[str, Tensor] = {}

    def layer(name: str, module: Any) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = module.weight.detach(), module.bias.detach()

    backbone = made.backbone
    out["backbone.cls_token"] = backbone.cls_token.detach()
    out["backbone.pos_embed"] = backbone.pos_embed.detach()
    layer("backbone.patch_embed.proj", backbone.patch_embed)
    for i, block in enumerate(backbone.blocks):
        prefix = f"backbone.blocks.{i}"
        layer(f"{prefix}.norm1", block.norm1)
        layer(f"{prefix}.norm2", block.norm2)
        layer(f"{prefix}.attn.qkv", block.attn.qkv)
        layer(f"{prefix}.attn.proj", block.attn.proj)
        if i % 2 == 0:
            layer(f"{prefix}.mlp.fc1", block.mlp.fc1)
            layer(f"{prefix}.mlp.fc2", block.mlp.fc2)
            continue
        layer(f"{prefix}.mlp.experts.htoh4", block.mlp.experts.fc1)
        layer(f"{prefix}.mlp.experts.h4toh", block.mlp.experts.fc2)
        if backbone.gate == "multi":
            for t, matrix in enumerate(block.mlp.router.weight.detach()):
                out[f"{prefix}.mlp.gate.{t}.w_gate"] = matrix
        else:
            out[f"{prefix}.mlp.gate.w_gate"] = block.mlp.router.weight.detach()[0]
    if backbone.representation is not None:
        for part in ("fc1", "fc2", "norm"):
            layer(f"backbone.gate_task_represent.{part}", getattr(backbone.representation, part))
    for task, head in made.heads.items():
        layer(f"decoders.{task}.norm", head.norm)
        for j, (conv, norm) in enumerate(zip(head.convs, head.norms, strict=True)):
            layer(f"decoders.{task}.conv_{j}", conv)
            layer(f"decoders.{task}.syncbn_fc_{j}", norm)
            for statistic in ("running_mean", "running_var", "num_batches_tracked"):
                out[f"decoders.{task}.syncbn_fc_{j}.{statistic}"] = getattr(norm, statistic)
        layer(f"decoders.{task}.conv_{len(head.convs)}", head.predict)
    return {key: value.clone() for key, value in out.items()}


def write(folder: Path, state: Any, name: str = "checkpoint.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name
