"""Makes a small slimmable network, two encoders with decoders of two widths, and the networks it is cut from."""

from __future__ import annotations

import torch
from torch import nn

from mtlc.export.widths.slimmable_network import DecoderWidth, EncoderWidths, SlimmableNetwork
from mtlc.moe.experts import ExpertLinear
from mtlc.program.program import ModelSource, Program
from mtlc.program.surgery import tensor_dimensions
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.resnet import mtl_resnet
from testkit.visible_experts import visible

TASKS = {"semseg": 4, "depth": 1}
STAGES = (16, 32)
SAMPLES = {"image": torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))}

VIT_SAMPLES = {"image": torch.randn(5, 3, 16, 32, generator=torch.Generator().manual_seed(2))}


def as_program(module, size=(32, 32)):
    specs = tuple(TaskSpec(task, "l1", "rmse") for task in TASKS)
    return Program(module.eval(), specs, {"image": torch.zeros(2, 3, *size)}, ModelSource("tests:network"))


def with_statistics(module):
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 1.5)
                if norm.affine:
                    norm.weight.uniform_(0.5, 1.5)
                    norm.bias.normal_(std=0.1)
    return module.eval()


def narrow(wide, stages, decoder):
    """The network with the first channels of every layer, and what it kept."""
    module = mtl_resnet(tasks=TASKS, widths=stages, depths=(1, 1), decoder_width=decoder)
    tensors, kept = wide.state_dict(), {}
    module.load_state_dict(
        {name: tensors[name][tuple(map(slice, tensor.shape))] for name, tensor in module.state_dict().items()}
    )
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            kept[name] = (range(layer.out_channels), range(layer.in_channels))
    return module, kept


def slimmable() -> SlimmableNetwork:
    """Two encoders, each with decoders of 8 and 16 channels."""
    torch.manual_seed(0)
    wide = with_statistics(mtl_resnet(tasks=TASKS, widths=STAGES, depths=(1, 1), decoder_width=16))
    encoders = []
    for name, share in (("full", 1.0), ("half", 0.5)):
        decoders, encoder = [], None
        for width in (0.5, 1.0):
            module, kept = narrow(wide, tuple(int(share * channels) for channels in STAGES), int(16 * width))
            if (share, width) != (1.0, 1.0):
                with_statistics(module.decoders)
            if share < 1:
                encoder = encoder or with_statistics(module.encoder).state_dict()
                module.encoder.load_state_dict(encoder)
            decoders.append(DecoderWidth(width, as_program(module), kept, dict.fromkeys(TASKS, 1 + width)))
        encoders.append(EncoderWidths(name, (share, share), tuple(decoders)))
    return SlimmableNetwork(
        as_program(wide), ("first", "second"), (0.5, 1.0), tuple(encoders),
        {"default": ("full", dict.fromkeys(TASKS, 1.0)), "mixed": ("half", {"semseg": 1.0, "depth": 0.5})},
        dict.fromkeys(TASKS, 2.0), dict.fromkeys(TASKS, True),
    )  # fmt: skip


def networks(network):
    return {(e.name, d.width): d.program for e in network.encoders for d in e.decoders}


def cut(layer, outputs, inputs):
    """Keep some outputs and inputs of a layer, in place."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        rows, columns = tensor_dimensions(layer, parameter)
        tensor = parameter.detach()
        for dimension, indices in ((rows, outputs), (columns, inputs)):
            if dimension is not None and indices is not None:
                tensor = tensor.index_select(dimension, torch.tensor(indices))
        setattr(layer, name, nn.Parameter(tensor.clone()))
    return layer


def transformer(heads, hidden):
    """A small M³ViT whose attention has the first `heads` of 3 heads and whose perceptrons the first `hidden` of 48."""
    torch.manual_seed(0)
    module = with_statistics(
        m3vit(
            "micro", TASKS, width=24, heads=3, blocks=2, head_width=16, image_size=(16, 32), experts=4, top_k=2,
            expert_width=48,
        )
    )  # fmt: skip
    visible(module)
    torch.nn.init.normal_(module.get_submodule("backbone.blocks.1.mlp.router").weight)
    kept = {}
    for name, layer in module.named_modules():
        if name.endswith("attn"):
            width = layer.head_width
            kept[f"{name}.qkv"] = [part * 24 + i for part in range(3) for i in range(heads * width)], None
            kept[f"{name}.proj"] = None, list(range(heads * width))
        elif isinstance(layer, nn.Linear | ExpertLinear) and name.endswith("fc1"):
            kept[name] = list(range(hidden)), None
        elif isinstance(layer, nn.Linear | ExpertLinear) and name.endswith("fc2"):
            kept[name] = None, list(range(hidden))
    for name, chosen in kept.items():
        cut(module.get_submodule(name), *chosen)
    return module, kept


def slimmable_vit() -> SlimmableNetwork:
    """A small M³ViT of 3 heads, and with 2 of them and half the hidden channels; one width of decoders."""
    encoders = []
    for name, heads, hidden in (("full", 3, 48), ("half", 2, 24)):
        module, kept = transformer(heads, hidden)
        program = as_program(module, (16, 32))
        encoders.append(
            EncoderWidths(name, (hidden / 48,), (DecoderWidth(1.0, program, kept, dict.fromkeys(TASKS, 1.0)),))
        )
    return SlimmableNetwork(
        encoders[0].decoders[0].program, ("blocks",), (0.5, 1.0), tuple(encoders),
        {"default": ("full", dict.fromkeys(TASKS, 1.0))}, dict.fromkeys(TASKS, 1.0), dict.fromkeys(TASKS, True),
    )  # fmt: skip
