"""Networks that are objects: copied and left alone, saved, and loaded again onto a fresh one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from testkit.tiny_networks import TASKS, Chain, chain, same_state
from torch import nn

import mtlc
from mtlc.compress.pipeline.identity import program_hash
from mtlc.errors import UserError
from mtlc.program.live_source import LiveSource
from mtlc.program.program import HistoryEntry, ModelSource, Program


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer, self.scale = nn.Conv2d(3, 4, 1), scale

    def forward(self, image):
        return self.scale * self.layer(image)


def program(model: nn.Module, **changed) -> Program:
    source = LiveSource.of(model)
    return Program(source.build().eval(), TASKS, {"image": torch.zeros(2, 3, 8, 8)}, source, **changed)


def test_the_object_stays_as_it_is_and_every_network_is_a_copy():
    model = chain().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = LiveSource.of(model)
    with torch.no_grad():
        model.stem[0].weight.add_(1)  # after it was given
    one, other = source.build(), source.build()
    assert same_state(one, other)
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
    one.stem[0].weight.data.zero_()
    assert not same_state(one, other)
    assert model.training
    assert not model._forward_hooks
    assert "_apply" not in vars(model)


def test_a_cut_network_is_loaded_onto_a_fresh_one(tmp_path: Path):
    start = program(chain())
    whole = start.after(start.module, HistoryEntry("prune", {}, [], {}))
    whole.save(tmp_path / "one")
    found = mtlc.load(tmp_path / "one", Chain())  # of other weights
    assert same_state(found.module, start.module)
    assert [entry.name for entry in found.history] == ["prune"]
    assert json.loads((tmp_path / "one/program.json").read_text())["kwargs"]["class"] == "Chain"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, r"made of a network in Python; give a fresh one: mtlc\.load\(path, model\), or --job"),
        (Scaled(), "made of a Chain with 4,068 parameters, but model is a Scaled with 16 parameters of other layers"),
        (Chain, r"model is the class Chain: give an nn\.Module, an object of it: Chain\(\)"),
        ("chain", r"model is str: give an nn\.Module"),
        ({"weights": 1}, r"model is dict: give an nn\.Module; weights are loaded into it"),
    ],
)
def test_what_is_no_fresh_one_is_refused(tmp_path: Path, model, message):
    program(chain()).save(tmp_path / "one")
    with pytest.raises(UserError, match=message):
        mtlc.load(tmp_path / "one", model)


def test_a_job_whose_factory_makes_the_same_layers_will_do(tmp_path: Path):
    program(chain()).save(tmp_path / "one")
    loaded = Program.load(tmp_path / "one", ModelSource("testkit.tiny_networks:chain", {"seed": 3}))
    assert same_state(loaded.module, chain())


def test_the_identity_is_structure_weights_and_settings():
    torch.manual_seed(0)
    model = Scaled()
    first = program_hash(program(model))
    assert program_hash(program(model)) == first
    with torch.no_grad():
        model.layer.bias.add_(1)
    second = program_hash(program(model))
    model.scale = 2.0
    third = program_hash(program(model))
    model.register_forward_hook(lambda layer, inputs, output: output + 1)
    assert len({first, second, third, program_hash(program(model))}) == 4


def test_what_cannot_be_copied_is_refused():
    model = Scaled()
    model.stream = (number for number in range(3))
    with pytest.raises(UserError, match=r"model: cannot be copied: TypeError: cannot pickle 'generator' object"):
        LiveSource.of(model)


def test_wrappers_and_scripts():
    assert isinstance(LiveSource.of(nn.DataParallel(chain())).build(), Chain)
    with pytest.raises(UserError, match=r"model is a TorchScript module.*: give the nn\.Module that was traced"):
        LiveSource.of(torch.jit.script(nn.Linear(2, 2)))
