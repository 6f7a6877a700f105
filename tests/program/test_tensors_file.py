"""Files of weights as other trainings leave them: read right, or refused by name."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from testkit import toy_job
from testkit.tiny_networks import chain, same_state
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.job.job import load_job
from mtlc.program.tensors_file import load_tensors, read_tensors
from mtlc.workflows.opened_job import open_job

State = dict[str, Tensor]


def clean(state: State) -> State:
    return {key: value.clone() for key, value in state.items()}


def under(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def loaded(path: Path) -> nn.Module:
    module = chain(seed=1)
    load_tensors(module, path)
    return module


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin", "ckpt"])
@pytest.mark.parametrize(
    "rename",
    [
        under(""),
        under("module."),
        under("_orig_mod."),
        under("module._orig_mod."),
        under("_orig_mod.module."),
        under("model."),
        under("model._orig_mod."),
        lambda state: {key.replace("stem.0", "stem._orig_mod.0"): value for key, value in state.items()},
        lambda state: {key.replace("body.1", "body.module.1"): value for key, value in state.items()},
    ],
)
def test_prefixes_of_wrappers_are_left_out(tmp_path, suffix, rename):
    state = rename(clean(chain().state_dict()))
    path = tmp_path / f"w.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    assert same_state(loaded(path), chain())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1, "state": {}}},
        lambda state: {"model": under("module.")(state), "args": {"lr": 0.1}},
        lambda state: {"model_state_dict": state, "loss": 0.25},
        lambda state: {"epoch": 3, "model": {"state_dict": state}},
        lambda state: {"net": state},
        lambda state: {"state_dict": state, "best": {"miou": np.float64(0.5), "epoch": np.int64(3)}},
    ],
)
def test_a_state_dict_inside_a_checkpoint(tmp_path, wrap):
    torch.save(wrap(dict(chain().state_dict())), tmp_path / "w.pth")
    assert same_state(loaded(tmp_path / "w.pth"), chain())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_tensors_may_be_stored_once(tmp_path):
    module = Tied()
    save_model(module, str(tmp_path / "w.safetensors"))
    assert len(read_tensors(tmp_path / "w.safetensors")) == 1
    other = Tied()
    with torch.no_grad():
        other.embedding.weight.zero_()
    load_tensors(other, tmp_path / "w.safetensors")
    assert torch.equal(other.head.weight, module.embedding.weight)
    assert other.head.weight is other.embedding.weight


def test_tied_tensors_that_differ_in_the_file(tmp_path):
    save_file({"embedding.weight": torch.zeros(6, 4), "head.weight": torch.ones(6, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"'embedding.weight' and 'head.weight' differ, but are one tensor"):
        load_tensors(Tied(), tmp_path / "w.safetensors")


def test_layers_that_are_called_module_keep_their_name(tmp_path):
    class Own(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.module = nn.Linear(2, 1, bias=False)
            nn.init.constant_(self.module.weight, value)

    for rename in (under(""), under("module.")):
        torch.save(rename(Own(3.0).state_dict()), tmp_path / "w.pth")
        own = Own(0.0)
        load_tensors(own, tmp_path / "w.pth")
        assert own.module.weight.flatten().tolist() == [3.0, 3.0]


class Thing:
    pass


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), str(path))


def written(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            written({"state_dict": chain().state_dict(), "args": Thing()}),
            "holds objects besides tensors, which",
        ),
        (written(nn.Linear(2, 2)), "holds objects besides tensors"),
        (lambda path: path.write_bytes(pickle.dumps(Thing())), "holds objects besides tensors"),
        (scripted, "a TorchScript network, not weights"),
        (
            written({"epoch": 3, "optimizer": {}}),
            "holds no tensors by name, but 'epoch', 'optimizer'; save",
        ),
        (written({}), "holds no tensors by name, but nothing"),
        (written([torch.rand(2)]), "holds a list; weights are a state dict"),
        (written({"a": torch.rand(2), "epoch": 3}), "'epoch' is a int; a state dict holds tensors by name"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "damaged"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_holds_no_weights(tmp_path, write, words):
    write(tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth: .*{words}") as raised:
        load_tensors(chain(), tmp_path / "w.pth")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("depth.weight"), "has no tensor 'depth.weight'"),
        (lambda state: state.update({"module.depth.weight": state["depth.weight"]}), "'depth.weight' is there twice"),
        (lambda state: state.update({"model.extra": torch.rand(2)}), "'model.extra' is not a tensor of the network"),
        (
            lambda state: state.update({"depth.weight": state["depth.weight"].to(torch.int8)}),
            "depth.weight is int8 in the file and float32 in the network; take the weights in floating point",
        ),
        (
            lambda state: state.update(
                {"depth.weight": torch.quantize_per_tensor(state["depth.weight"], 0.1, 0, torch.qint8)}
            ),
            "depth.weight is qint8 in the file and float32 in the network",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, words):
    state = dict(chain().state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    module, before = chain(1), copy.deepcopy(chain(1))
    with pytest.raises(UserError, match=words):
        load_tensors(module, tmp_path / "w.pth")
    assert same_state(module, before)


def test_a_job_reads_a_checkpoint_of_another_training(tmp_path):
    torch.manual_seed(5)
    trained = toy_job.net()
    torch.save({"state_dict": under("module.")(dict(trained.state_dict())), "epoch": 9}, tmp_path / "best.pth")
    text = toy_job.JOB.replace("[tasks.depth]", 'weights = "best.pth"\n[tasks.depth]')
    assert same_state(open_job(load_job(toy_job.write(tmp_path, text))).program.module, trained)
