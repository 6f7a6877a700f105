"""A small slimmable network: two encoders, each with decoders of two widths, and the networks that they are cut from."""

from __future__ import annotations

import torch
from torch import nn

from mtlc.export.widths import DecoderWidth, EncoderWidths, SlimmableNetwork
from mtlc.program import ModelSource, Program
from mtlc.tasks import TaskSpec
from mtlc.zoo.resnet import mtl_resnet

TASKS = {"semseg": 4, "depth": 1}
STAGES = (16, 32)
SAMPLES = {"image": torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


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
