"""Reads checkpoints of the official M³ViT code into `m3vit` networks.

A checkpoint is one file, or the folder that a distributed training leaves: ``0.pth`` holds everything with the experts
of rank 0, ``1.pth``, ``2.pth``, … hold the experts of the other ranks, in order. Files are read without running any
code of theirs. What the tensors tell is taken from them: size, gates, experts, tasks and their channels. What leaves
no trace in a tensor comes from the size and from the caller: `Untraced` names it all.

Every tensor must find its place and every place its tensor; only ``…tam…`` (a branch used in training alone) is
skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtlc.errors import UserError, nearest, one_line
from mtlc.files import check_plain
from mtlc.program.tensors_file import read_torch_file
from mtlc.zoo.m3vit import SIZES, M3ViT, m3vit

TASKS = ("semseg", "human_parts", "sal", "normals", "edge", "depth")
"""The order in which the official code numbers its gates, less the tasks that a network lacks."""

IMAGE_SIZES = ((128, 256), (512, 512), (480, 640))
"""What the published networks take: Cityscapes, PASCAL-Context, NYUD-v2. Only named in an error, never assumed."""

PRUNE_THRESHOLD = 0.1
"""What the official ``expert_prune`` compares scores with; the code offers no other."""

_FILE = re.compile(r"(\d+)\.(pth|pt)")
_EXPERT = re.compile(r"backbone\.blocks\.(\d+)\.mlp\.experts\.(htoh4|h4toh)\.(weight|bias)")
_GATE = re.compile(r"backbone\.blocks\.(\d+)\.mlp\.gate\.(?:(\d+)\.)?w_gate")
_HEAD = re.compile(r"decoders\.([^.]+)\.")
_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class Untraced:
    """How a network was trained, as far as its checkpoint cannot show it. The defaults are the official code's own,
    but for `top_k`, which its configurations set: 4 in the paper.

    `gate_input_ahead`, `expert_prune` and `experts_per_task` (``num_experts_pertask`` of a network trained with
    ``regu_experts_fromtask``) are options of that name; see `m3vit`.
    """

    top_k: int = 4
    gate_input_ahead: bool = False
    expert_prune: bool = False
    experts_per_task: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Those that `m3vit` takes, less its defaults."""
        stated = {
            "gate_input_ahead": self.gate_input_ahead,
            "prune_threshold": PRUNE_THRESHOLD if self.expert_prune else 0.0,
            "experts_per_task": self.experts_per_task,
        }
        return {"top_k": self.top_k} | {key: value for key, value in stated.items() if value}


@dataclass(frozen=True)
class Imported:
    """A network with the checkpoint's weights, in eval mode, and the arguments with which `m3vit` builds its like."""

    network: M3ViT
    args: dict[str, Any]


def import_checkpoint(
    path: Path,
    size: str | None = None,
    image_size: Sequence[int] | None = None,
    top_k: int = Untraced.top_k,
    heads: int | None = None,
    *,
    gate_input_ahead: bool = Untraced.gate_input_ahead,
    expert_prune: bool = Untraced.expert_prune,
    experts_per_task: int | None = Untraced.experts_per_task,
) -> Imported:
    """The network of an official checkpoint.

    `size` is a name in `SIZES`, by default the one of the checkpoint's width and depth; `image_size` (H, W) is by
    default the size's. `heads` allows a width and a depth that are of no size. `top_k` and the last three say what no
    checkpoint shows, see `Untraced`: a network trained otherwise than they say computes something else. Raises
    `UserError`, one line that names the tensor as the checkpoint does, if anything is missing, left over, of another
    shape or not a number, and where the official code itself leaves open what it computes.
    """
    untraced = Untraced(top_k, gate_input_ahead, expert_prune, experts_per_task)
    if experts_per_task is not None and len(_ranks(Path(path))) > 1:
        raise UserError(
            f"{path}: experts_per_task = {experts_per_task}: over several ranks the official code chooses by the "
            "number of all experts and sends by the number of a rank's own; such a network cannot be imported"
        )
    tensors = read_checkpoint(path)
    try:
        args = _arguments(tensors, size, image_size, untraced, heads)
        with torch.device("meta"):  # nothing is initialised only to be overwritten
            network = m3vit(**args)
        network.load_state_dict(_translated(network, tensors), assign=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Imported(network.eval(), args)


# -- files ---------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their official names: a file, or a folder of ranks with the experts joined.

    Raises `UserError` for what cannot be read without running code, and for ranks that are missing or do not fit.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    ranks = _ranks(path)
    if not ranks:
        raise UserError(f"{path}: holds no 0.pth, 1.pth, …; name a checkpoint file, or the folder of a distributed one")
    for rank in range(max(ranks) + 1):
        if rank not in ranks:
            raise UserError(
                f"{path}: {rank}.pth is missing, though {max(ranks)}.pth is there; every rank holds experts"
            )
    whole = _read_file(ranks[0])
    shards = {key: [tensor] for key, tensor in whole.items() if _EXPERT.fullmatch(key)}
    for rank in range(1, len(ranks)):
        tensors = _read_file(ranks[rank])
        for key, tensor in tensors.items():
            if key not in shards:
                raise UserError(
                    f"{ranks[rank]}: {key!r} is no expert tensor of {ranks[0].name}; only rank 0 holds others"
                )
            if tensor.shape != shards[key][0].shape:
                raise UserError(
                    f"{ranks[rank]}: {key} is {tuple(tensor.shape)}, "
                    f"but {tuple(shards[key][0].shape)} in {ranks[0].name}"
                )
            shards[key].append(tensor)
        for key in shards:
            if key not in tensors:
                raise UserError(f"{ranks[rank]}: has no {key!r}, the experts of rank {rank}; is the file whole?")
    return whole | {key: torch.cat(parts) for key, parts in shards.items()}


def _ranks(path: Path) -> dict[int, Path]:
    """The files of a folder of ranks by their numbers; none for a file."""
    if not path.is_dir():
        return {}
    return {int(match[1]): file for file in sorted(path.iterdir()) if (match := _FILE.fullmatch(file.name))}


def _read_file(path: Path) -> dict[str, Tensor]:
    check_plain(path)
    if path.name.removesuffix(".tar").endswith((".pth", ".pt")):
        return _named(path, read_torch_file(path))
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: a checkpoint is a .pth, .pt or .safetensors file, a .pth.tar, or a folder of ranks")
    try:
        return _named(path, load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None


def _named(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors without what is wrapped around them, and without what only training uses."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no tensors by name; it must be a state dict, alone or as its 'state_dict'")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!r} is a {type(value).__name__}; a state dict holds tensors by name")
        name = key
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if "tam" in name:
            continue
        if name in tensors:
            raise UserError(f"{path}: {name!r} is there twice, with and without the prefix 'module.'")
        tensors[name] = value
    return tensors


# -- what the tensors tell -----------------------------------------------------------------------------------------


def _arguments(
    tensors: Mapping[str, Tensor], size: str | None, image_size: Sequence[int] | None, untraced: Untraced,
    heads: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The keyword arguments of `m3vit`; what the size implies is left out."""
    width = _shape(tensors, "backbone.cls_token", 3)[2]
    patch = _shape(tensors, "backbone.patch_embed.proj.weight", 4)[3]
    blocks = _count((_BLOCK.match(key) for key in tensors), "backbone.blocks.{}")
    expert_keys = [key for key in tensors if _EXPERT.fullmatch(key) and key.endswith("htoh4.weight")]
    if not expert_keys:
        raise UserError(
            "has no 'backbone.blocks.1.mlp.experts.htoh4.weight': "
            "a network without experts is no M³ViT that can be imported"
        )
    experts, expert_width, _ = _shape(tensors, expert_keys[0], 3)
    tasks, head_width = _tasks(tensors)
    gate = _gate(tensors, tuple(tasks), width, experts)
    found = {"width": width, "blocks": blocks, "patch": patch}
    size = _size(found, size, heads)
    implied = {**SIZES[size], "expert_width": width, "experts": 16}
    asked = tuple(image_size or implied["image_size"])
    _check_tokens(_shape(tensors, "backbone.pos_embed", 3)[1], asked, patch, named=image_size is not None)
    args: dict[str, Any] = {"size": size, "image_size": list(asked), "tasks": tasks, "gate": gate}
    args |= untraced.arguments()
    stated = {**found, "heads": heads or implied["heads"], "head_width": head_width}
    stated |= {"experts": experts, "expert_width": expert_width}
    return args | {key: value for key, value in stated.items() if value != implied[key]}


def _shape(tensors: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    if key not in tensors:
        raise UserError(f"has no {key!r}, so it is no checkpoint of M³ViT or not a whole one")
    shape = tensors[key].shape
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"{key} is {tuple(shape)}, but it must have {dimensions} dimensions, none of them 0")
    return shape


def _count(matches: Iterable[re.Match[str] | None], name: str) -> int:
    """How many indices, from 0, the first groups of the matches name. A gap is an error that names it."""
    indices = {int(match[1]) for match in matches if match}
    for index in range(len(indices)):
        if index not in indices:
            raise UserError(f"has no {name.format(index)!r}, though {name.format(max(indices))!r} is there")
    return len(indices)


def _tasks(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], int]:
    """The tasks with their output channels, in the order of their gates, and the heads' inner width."""
    present = {match[1] for key in tensors if (match := _HEAD.match(key))}
    for task in sorted(present):
        if task not in TASKS:
            raise UserError(f"decoders.{task}: an unknown task, whose gate is not known{nearest(task, TASKS)}")
    if not present:
        raise UserError("has no 'decoders.TASK.…': the heads are missing, and with them what the tasks are")
    tasks = {}
    for task in (task for task in TASKS if task in present):
        pattern = re.compile(rf"decoders\.{task}\.conv_(\d+)\.")
        convs = _count((pattern.match(key) for key in tensors), f"decoders.{task}.conv_{{}}")
        tasks[task] = _shape(tensors, f"decoders.{task}.conv_{max(convs - 1, 0)}.weight", 4)[0]
    return tasks, _shape(tensors, f"decoders.{next(iter(tasks))}.conv_0.weight", 4)[0]


def _gate(tensors: Mapping[str, Tensor], tasks: tuple[str, ...], width: int, experts: int) -> str:
    """The kind of the gates. Their number must be that of the tasks, their columns as many as there are experts."""
    gates = {key: match for key in tensors if (match := _GATE.fullmatch(key))}
    if not gates:
        raise UserError("has no 'backbone.blocks.1.mlp.gate.0.w_gate' nor '….gate.w_gate': the gates are missing")
    for key in gates:
        shape = _shape(tensors, key, 2)
        if experts not in shape:
            raise UserError(
                f"{key} is {tuple(shape)}, but there are {experts} experts; "
                "if the checkpoint is distributed, give its folder with the files of all ranks"
            )
    numbered = [match for match in gates.values() if match[2] is not None]
    if numbered:
        for block in sorted({int(match[1]) for match in numbered}):
            places = {int(match[2]) for match in numbered if int(match[1]) == block}
            if places != set(range(len(tasks))):
                raise UserError(
                    f"backbone.blocks.{block}.mlp.gate has the gates {', '.join(map(str, sorted(places)))}, "
                    "but the decoders "
                    f"are of {len(tasks)} tasks: {', '.join(tasks)}; every task needs the gate of its number"
                )
        return "multi"
    conditioned = any(key.startswith("backbone.gate_task_represent.") for key in tensors)
    return "conditioned" if conditioned else "single"


def _size(found: Mapping[str, int], size: str | None, heads: int | None) -> str:
    """The size that the checkpoint is of; one that was asked for has to be it."""
    shown = ", ".join(f"{name} {value}" for name, value in found.items())
    if size is not None and size not in SIZES:
        raise UserError(f"size = {size!r}: must be one of {', '.join(SIZES)}")
    fitting = [name for name, values in SIZES.items() if all(values[key] == found[key] for key in found)]
    if size is not None and size not in fitting:
        raise UserError(
            f"size = {size!r}: the checkpoint has {shown}, {size} has "
            + ", ".join(f"{name} {SIZES[size][name]}" for name in found)
            + (f"; leave size out, or ask for {fitting[0]!r}" if fitting else "")
        )
    if fitting:
        return fitting[0]
    if heads is None:
        known = ", ".join(f"{name} {values['width']}×{values['blocks']}" for name, values in SIZES.items())
        raise UserError(
            f"its network has {shown}, which is of no size (width×blocks: {known}), "
            "so its attention heads are not known"
        )
    return "micro"


def _check_tokens(tokens: int, image_size: tuple[int, ...], patch: int, named: bool) -> None:
    if len(image_size) != 2 or min(image_size) < 1:
        raise UserError(f"image_size = {list(image_size)}: must be a height and a width")
    needed = (image_size[0] // patch) * (image_size[1] // patch)
    if any(side % patch for side in image_size):
        raise UserError(f"image_size = {list(image_size)}: must be multiples of the patch, {patch}")
    if tokens == needed + 1:
        return
    fits = [f"{h}x{w}" for h, w in IMAGE_SIZES if not (h % patch or w % patch) and h * w == (tokens - 1) * patch**2]
    asked = "{}x{}".format(*image_size)
    raise UserError(
        f"backbone.pos_embed has {tokens} positions, that is {tokens - 1} patches of {patch}x{patch}, "
        f"but images of {asked}"
        f"{'' if named else ', the default,'} have {needed}; give the image size that it was trained with"
        + (f", such as {fits[0]}" if fits else "")
    )


# -- translation ---------------------------------------------------------------------------------------------------


def _translated(network: M3ViT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's state from the official tensors. Raises for what is missing, left over, misshapen or not finite."""
    state, used = {}, set()
    for key, own in network.state_dict().items():
        names = [key.replace("router.weight", "gate.w_gate")]
        if key.endswith("mlp.router.weight") and network.backbone.gate == "multi":
            names = [key.replace("router.weight", f"gate.{place}.w_gate") for place in range(len(own))]
        elif not key.endswith("mlp.router.weight"):
            names = [_official(key, network)]
        used.update(names)
        if key.endswith("num_batches_tracked") and names[0] not in tensors:
            state[key] = torch.zeros(
                (), dtype=own.dtype
            )  # older batch norms do not count; nothing at inference reads it
            continue
        for name in names:
            if name not in tensors:
                raise UserError(f"has no {name!r}{_meaning(name, network)}; is the checkpoint whole?")
        if key.endswith("mlp.router.weight"):
            parts = [_gate_matrix(name, tensors[name], own.shape[1:], network) for name in names]
            state[key] = torch.stack([_plain(n, part, own, network) for n, part in zip(names, parts, strict=True)])
            continue
        value = tensors[names[0]]
        if value.shape != own.shape:
            raise UserError(
                f"{names[0]} is {tuple(value.shape)}, but it must be {tuple(own.shape)}{_meaning(names[0], network)}"
            )
        state[key] = _plain(names[0], value, own, network)
    left_over = sorted(set(tensors) - used)
    if left_over:
        more = f" (and {len(left_over) - 1} more)" if len(left_over) > 1 else ""
        raise UserError(
            f"{left_over[0]!r}{more} is left over: m3vit has no place for it; "
            "take it out if it is of training only, or the network is another one"
        )
    return state


def _official(key: str, network: M3ViT) -> str:
    """The official name of a tensor of ours that is not a router's."""
    last = len(next(iter(network.heads.values())).convs)  # type: ignore[arg-type]
    for pattern, name in (
        (r"^backbone\.patch_embed\.", "backbone.patch_embed.proj."),
        (r"^backbone\.representation\.", "backbone.gate_task_represent."),
        (r"\.experts\.fc1\.", ".experts.htoh4."),
        (r"\.experts\.fc2\.", ".experts.h4toh."),
        (r"^heads\.(\w+)\.convs\.(\d+)\.", r"decoders.\1.conv_\2."),
        (r"^heads\.(\w+)\.norms\.(\d+)\.", r"decoders.\1.syncbn_fc_\2."),
        (r"^heads\.(\w+)\.predict\.", rf"decoders.\1.conv_{last}."),
        (r"^heads\.(\w+)\.norm\.", r"decoders.\1.norm."),
    ):
        key = re.sub(pattern, name, key)
    return key


def _gate_matrix(name: str, matrix: Tensor, shape: torch.Size, network: M3ViT) -> Tensor:
    """A gate as (D, E). Stored as (E, D), as a linear layer would be, it is turned where the shape leaves no doubt."""
    if matrix.shape == shape:
        return matrix
    if matrix.shape == (shape[1], shape[0]):
        return matrix.T
    raise UserError(f"{name} is {tuple(matrix.shape)}, but it must be {tuple(shape)}{_meaning(name, network)}")


def _plain(name: str, value: Tensor, own: Tensor, network: M3ViT) -> Tensor:
    """`value` in the network's type, contiguous and its own memory."""
    if value.is_floating_point() != own.is_floating_point():
        raise UserError(f"{name} holds {value.dtype}, but it must hold {own.dtype}{_meaning(name, network)}")
    if not bool(value.isfinite().all()):
        raise UserError(f"{name} holds NaN or infinite values{_meaning(name, network)}; the training went wrong")
    return value.to(own.dtype).contiguous().clone()


def _meaning(name: str, network: M3ViT) -> str:
    """What a tensor is for, in parentheses, where its name alone does not say it."""
    gate, head = _GATE.fullmatch(name), _HEAD.match(name)
    if gate:
        of = f"of task {network.tasks[int(gate[2])]!r}" if gate[2] else "of all tasks"
        return f" (the router {of} in block {gate[1]})"
    return f" (the head of task {head[1]!r})" if head else ""
