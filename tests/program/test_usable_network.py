"""What factories return that is no network to work on, each with the one line that says so; and what is one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from testkit import toy_job
from torch import Tensor, nn

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.job.job import load_job
from mtlc.program.usable_network import usable_network
from mtlc.workflows.opened_job import open_job

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def toy() -> nn.Module:
    return toy_job.net().eval()


def inside(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), part))


def compiled_in_place() -> nn.Module:
    network = toy()
    network.compile()
    return network


def exported(network: nn.Module) -> Any:
    return torch.export.export(network.eval(), (IMAGE,))


def unflattened() -> nn.Module:
    module: nn.Module = torch.export.unflatten(exported(toy()))
    return module


def quantised(layers: set[type] | None = None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)), layers or {nn.Linear}, torch.qint8
        )
    return made


def prepared() -> nn.Module:
    """Ready to learn rounding."""
    return nn.Sequential(nn.Conv2d(3, 3, 1), torch.ao.quantization.FakeQuantize())


def with_quantised_buffer() -> nn.Module:
    network = toy()
    network.register_buffer("table", torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8))
    return network


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.trace(nn.Conv2d(3, 1, 1), IMAGE), "a TorchScript module, which cannot be cut or exported"),
        (lambda: torch.jit.script(nn.Conv2d(3, 1, 1)), "a TorchScript module"),
        (lambda: inside(torch.jit.trace(nn.ReLU(), IMAGE)), r"a network whose layer '1\.1' is a TorchScript module"),
        (lambda: torch.compile(toy()), r"a module compiled by torch\.compile: return the one that was given to it"),
        (compiled_in_place, r"compiled by torch\.compile"),
        (lambda: inside(torch.compile(nn.ReLU())), r"layer '1\.1' is a module compiled by torch\.compile"),
        (lambda: inside(nn.DataParallel(nn.ReLU())), r"layer '1\.1' is a DataParallel: return the network without it"),
        (lambda: nn.DataParallel(torch.jit.trace(nn.ReLU(), IMAGE)), "a TorchScript module"),
        (lambda: exported(toy()), "an ExportedProgram, an exported network: it must return the nn.Module that was"),
        (lambda: exported(toy()).module(), "an exported network, whose shapes are fixed"),
        (lambda: inside(exported(nn.ReLU()).module()), r"layer '1\.1' is an exported network"),
        (unflattened, "an exported network"),
        (quantised, r"layer '2' is a Linear, quantised already: return the network in floating point"),
        (prepared, "layer '1' is a FakeQuantize, quantised already"),
        (with_quantised_buffer, "whose 'table' is quantised already"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), r"whose '0\.weight' has no size yet: run the network once"),
        (lambda: nn.Conv2d(3, 1, 1, device="meta"), "whose 'weight' has no values: it was made on the device 'meta'"),
        (lambda: toy_job.Toy, r"the class Toy: it must return an nn\.Module, an object of it: Toy\(\)"),
        (lambda: toy().state_dict(), r"OrderedDict: it must return an nn\.Module; weights are loaded into it"),
        (lambda: (toy(), "transform"), r"tuple: it must return an nn\.Module, the network alone"),
        (lambda: (3, "transform"), r"tuple: it must return an nn\.Module"),
        (lambda: toy, r"function: it must return an nn\.Module, not what makes or runs one"),
        (lambda: None, r"NoneType: it must return an nn\.Module"),
    ],
)
def test_what_cannot_be_worked_on(make: Callable[[], Any], words: str):
    with pytest.raises(UserError, match=rf"^\[model\] factory = 'net:make' returned .*{words}") as raised:
        usable_network(make(), "net:make")
    assert "\n" not in str(raised.value)


def test_data_parallel_is_taken_off():
    network = toy()
    assert usable_network(nn.DataParallel(nn.DataParallel(network)), "net:make") is network


def test_networks_that_only_look_alike():
    """A symbolic trace calls modules, fused floats and stubs are floats: all of them can be worked on."""
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU()))
    stubs = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(3, 1, 1), torch.ao.quantization.DeQuantStub())
    fused = torch.ao.quantization.fuse_modules(nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU()).eval(), [["0", "1"]])
    for network in (traced, stubs, fused, toy()):
        assert usable_network(network, "net:make") is network


def parallel() -> nn.Module:
    return nn.DataParallel(toy())


def scripted() -> nn.Module:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = toy()

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self.network(image)
            return outputs["depth"], outputs["semseg"]

    made: nn.Module = torch.jit.trace(One(), IMAGE)
    return made


@pytest.mark.parametrize("verb", ["plan", "run", "train"])
def test_a_job_with_a_scripted_network_is_one_line(tmp_path, verb):
    path = toy_job.write(tmp_path, toy_job.JOB.replace("testkit.toy_job:net", f"{__name__}:scripted"))
    more = ["--out", str(tmp_path / "w.safetensors")] if verb == "train" else []
    result = CliRunner().invoke(main, [verb, str(path), "--quiet", *more])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "a TorchScript module" in line
    assert os.listdir(tmp_path) == ["job.toml"]


def test_a_job_takes_data_parallel_off(tmp_path):
    path = toy_job.write(tmp_path, toy_job.JOB.replace("testkit.toy_job:net", f"{__name__}:parallel"))
    assert type(open_job(load_job(path)).program.module) is toy_job.Toy
