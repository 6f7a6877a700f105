"""Exported experts: what is written is what is read, to the bit, on the Verilog, in numpy and in plain C."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from testkit import rtl_samples
from testkit.tiny_networks import TASKS
from torch import nn

from mtlc.errors import UserError, VerificationError
from mtlc.hw.rtl.cycles import cycles
from mtlc.hw.rtl.engine import Engine, engine_for, layer_of, tile_beats
from mtlc.hw.rtl.expert_calls import expert_calls, in_int8
from mtlc.hw.rtl.export_experts import export_experts, quantised_layers
from mtlc.hw.rtl.exported import Exported, read_exported, run_layer
from mtlc.hw.rtl.layout import ExportedLayer
from mtlc.hw.rtl.quantise import gelu, quantised, quantised_experts, weighted_sum
from mtlc.hw.rtl.reference import linear
from mtlc.program.program import ModelSource, Program


@pytest.fixture(scope="module")
def program() -> Program:
    return rtl_samples.network()


@pytest.fixture(scope="module")
def layers(program: Program) -> list[ExportedLayer]:
    return rtl_samples.exported_layers(program)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, layers: list[ExportedLayer]) -> Path:
    target = tmp_path_factory.mktemp("fpga") / "experts"
    export_experts(target, "depth", layers, (8, 8), 20.0, {"seed": 0})
    return target


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    return read_exported(folder)


def altered(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_what_is_written_is_read(exported: Exported, layers: list[ExportedLayer]) -> None:
    assert exported.paths == rtl_samples.PATHS
    for index, layer in enumerate(layers):
        found = exported.layer(index)
        assert (found.row, found.top_k, found.snr_db, found.experts.scales) == (
            layer.row, layer.top_k, layer.snr_db, layer.experts.scales,
        )  # fmt: skip
        for ours, right in zip(found.matrices(), layer.matrices(), strict=True):
            for one, other in zip(ours, right, strict=True):
                for name in ("weight", "bias", "multiplier", "shift"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for ours, right in zip(found.frame.queues, layer.frame.queues, strict=True):
            np.testing.assert_array_equal(ours, right)
        np.testing.assert_array_equal(found.experts.activation, layer.experts.activation)


def test_an_extracted_layer_has_the_experts_that_are_left(exported: Exported) -> None:
    entry = exported.layout["layers"][0]
    assert (entry["experts"], entry["row"]) == (3, [0, -1, 1, -1, -1, 2])
    # Two matrices of three experts: ⌈20/8⌉ and ⌈96/8⌉ tiles of K + 7 beats of 8 bytes.
    assert entry["matrices"]["fc1"]["expert_bytes"] == 3 * (96 + 7) * 8
    assert entry["matrices"]["fc2"]["expert_bytes"] == 12 * (20 + 7) * 8
    assert entry["matrices"]["fc2"]["offset"] == 3 * 3 * (96 + 7) * 8
    assert len(exported.data["weights.bin"]) == 15 * (3 * 103 + 12 * 27) * 8
    assert sum(entry["frame"]["queues"]) < 65 * 2 == sum(exported.layout["layers"][1]["frame"]["queues"])


def test_the_verilog_and_numpy_give_what_was_exported(exported: Exported, verilated: Path) -> None:
    for index, layer in enumerate(exported.layout["layers"]):
        found = run_layer(exported, index, 8.0, verilated)
        assert (found.verilog, found.numpy) == (True, True)
        assert found.outputs_compared == sum(found.queues) * (20 + 96)
        queues = layer["frame"]["queues"]
        assert found.cycles_by_matrix == [
            cycles(exported.engine, 96, [20] * len(queues), queues, 8),
            cycles(exported.engine, 20, [96] * len(queues), queues, 8),
        ]
        assert found.cycles == found.closed_form


def test_one_wrong_weight_is_found(folder: Path, verilated: Path, tmp_path: Path) -> None:
    """Neither side copies the expected outputs: a weight that changes is seen in the Verilog and in numpy."""
    import hashlib

    other = altered(folder, tmp_path / "other")
    data = bytearray((other / "weights.bin").read_bytes())
    data[5] ^= 0x40
    (other / "weights.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"weights.bin: altered or damaged"):
        read_exported(other)
    layout = json.loads((other / "layout.json").read_text())
    layout["files"]["weights.bin"]["sha256"] = hashlib.sha256(data).hexdigest()
    (other / "layout.json").write_text(json.dumps(layout))
    found = run_layer(read_exported(other), 0, None, verilated)
    assert (found.verilog, found.numpy) == (False, False)


def test_plain_c_gives_the_same_outputs(folder: Path, exported: Exported, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc found")
    program, out = tmp_path / "run_expert", tmp_path / "outputs"
    source = Path(__file__).with_name("run_expert.c")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", f"-I{folder}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(program)], check=True, capture_output=True)
    subprocess.run([program, folder, out], check=True)
    layers = [exported.layer(index) for index in range(3)]
    right = [np.concatenate(one.experts.run(one.frame.tokens, one.frame.queues)[1]) for one in layers]
    assert out.read_bytes() == b"".join(one.tobytes() for one in right) == exported.data["outputs.bin"]
    assert len(out.read_bytes()) > 20_000


def test_the_header_compiles_alone_whatever_the_names(layers: list[ExportedLayer], tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc found")
    export_experts(tmp_path / "one", 'a */ "task" ä', layers[:1], (16, 16), 20.0, {})
    (tmp_path / "main.c").write_text(
        '#include "mtlc_experts.h"\nint main(void) { return mtlc_layers[0].fc1.tiles != 2; }\n'
    )
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{tmp_path / 'one'}"]
    subprocess.run(["gcc", *flags, "main.c", "-o", "main"], cwd=tmp_path, check=True, capture_output=True)
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


@pytest.mark.parametrize("outputs", [1, 8, 13])
def test_beats_are_read_back(outputs: int) -> None:
    rng = np.random.default_rng(outputs)
    one = quantised(rng.normal(size=(outputs, 30)), rng.normal(size=outputs), 0.02, 0.03)
    engine = Engine(8, 8)
    beats = np.concatenate([tile_beats(engine, one, tile) for tile in range(-(-outputs // 8))])
    found = layer_of(engine, beats, outputs)
    for name in ("weight", "bias", "multiplier", "shift"):
        np.testing.assert_array_equal(getattr(found, name), getattr(one, name))


def test_quantisation_by_hand() -> None:
    # Scales 0.01 and 0.02 by output; 1.27 · 0.5 + 0.635 = 1.27: 127 of its scale 0.01.
    one = quantised(np.array([[1.27, -0.635], [2.54, 0.0]]), np.array([0.635, 0.0]), 0.005, 0.01)
    np.testing.assert_array_equal(one.weight, [[127, -64], [127, 0]])
    np.testing.assert_array_equal(one.bias, [12_700, 0])
    np.testing.assert_array_equal(linear(np.array([[100, 0]], np.int8), one), [[127, 127]])
    np.testing.assert_array_equal(linear(np.array([[-100, 0]], np.int8), one), [[0, -127]])


def test_an_output_of_zeros_gives_its_bias() -> None:
    one = quantised(np.array([[0.0, 0.0], [1.0, -1.0]]), np.array([0.4, 0.0]), 0.01, 0.01)
    np.testing.assert_array_equal(linear(np.array([[5, 9]], np.int8), one), [[40, -4]])


def test_int8_experts_in_the_network_are_the_exported_ones(program: Program, layers: list[ExportedLayer]) -> None:
    """The network with INT8 experts computes what numpy does, weighted by the scores, and is itself afterwards."""
    frame = rtl_samples.images(1, seed=1)
    before = program.outputs(frame)["depth"]
    first = layers[0]
    calls = expert_calls(program, frame, "depth")[first.path]
    seen = {}
    with in_int8(program, {first.path: first.experts}), torch.no_grad():
        handle = program.module.get_submodule(first.path).register_forward_hook(lambda m, i, o: seen.update(y=o))
        changed = program.outputs(frame)["depth"]
        handle.remove()
    real = [one * first.experts.scales.outputs for one in first.frame.outputs]
    right = weighted_sum(real, first.frame.queues, calls.rows, calls.score, 96)
    np.testing.assert_allclose(seen["y"][0].numpy(), right, atol=1e-6)
    assert not torch.equal(changed, before)
    assert torch.equal(program.outputs(frame)["depth"], before)


def test_noise_is_that_of_int8(layers: list[ExportedLayer], program: Program) -> None:
    """An independent count of the ratio, with torch's own experts for the float side."""
    frame, layer = rtl_samples.images(1, seed=1), layers[1]
    calls = expert_calls(program, frame, "depth")[layer.path]
    inner = program.module.get_submodule(layer.path).experts
    with torch.no_grad():
        right = inner(*(torch.from_numpy(part) for part in (calls.x, calls.rows, calls.score))).numpy()
    real = [one * layer.experts.scales.outputs for one in layer.frame.outputs]
    made = weighted_sum(real, layer.frame.queues, calls.rows, calls.score, 96)
    ratio = 10 * np.log10((right**2).sum() / ((made - right) ** 2).sum())
    assert layer.snr_db == pytest.approx(ratio, abs=1e-3)
    assert 25 < ratio < 45


def test_too_much_noise_is_refused_and_nothing_written(layers: list[ExportedLayer], tmp_path: Path) -> None:
    with pytest.raises(
        VerificationError, match=r"layer 'backbone.blocks.\d.mlp': INT8 experts are .* less than the 60 dB"
    ):
        export_experts(tmp_path / "out", "depth", layers, (8, 8), 60.0, {})
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_holds_any_frame() -> None:
    assert engine_for(8, 8, [(65, 4, 96, 96)]) == Engine(8, 8)
    # 1025 · 4 places of 384 features, in words of 16.
    assert engine_for(16, 16, [(1025, 4, 384, 384)]) == Engine(16, 16, 2048, 1 << 21, 1 << 13)
    with pytest.raises(UserError, match="rows = 6: must be a power of two"):
        engine_for(6, 8, [(65, 4, 96, 96)])


def test_bad_input(program: Program, folder: Path, tmp_path: Path) -> None:
    frame = rtl_samples.images(1)
    with pytest.raises(
        UserError, match=r"no layer of experts 'backbone.blocks.1'; did you mean 'backbone.blocks.1.mlp'"
    ):
        quantised_layers(program, "depth", frame, frame, ["backbone.blocks.1"])
    plain = Program(nn.Conv2d(3, 1, 1), program.tasks, program.example, program.source)
    with pytest.raises(UserError, match="no mixture of experts"):
        quantised_layers(plain, "depth", frame, frame)
    weights = tuple(np.full(shape, np.nan) for shape in ((1, 2, 3), (1, 2), (1, 3, 2), (1, 3)))
    with pytest.raises(UserError, match="NaN or infinite"):
        quantised_experts(weights, np.zeros((1, 3)), [np.arange(1)])  # type: ignore[arg-type]
    weights = tuple(np.ones(shape) for shape in ((1, 2, 3), (1, 2), (1, 3, 2), (1, 3)))
    with pytest.raises(UserError, match="no token of the calibration samples"):
        quantised_experts(weights, np.zeros((1, 3)), [np.arange(0)])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such file"):
        read_exported(tmp_path)
    for text in ("{", "[]", '{"format": "mtlc-fpga"}'):
        (tmp_path / "layout.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            read_exported(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("mine")
    with pytest.raises(UserError, match="a folder with other files in it"):
        export_experts(tmp_path / "home", "depth", rtl_samples.exported_layers(program)[:1], (8, 8), 20.0, {})
    other = altered(folder, tmp_path / "newer")
    layout = json.loads((other / "layout.json").read_text())
    (other / "layout.json").write_text(json.dumps({**layout, "schema": 9}))
    with pytest.raises(UserError, match="schema 9; this mtlc reads"):
        read_exported(other)
    (other / "layout.json").write_text(json.dumps({**layout, "layers": [{**layout["layers"][0], "matrices": {}}]}))
    with pytest.raises(UserError, match="damaged"):
        read_exported(other)
    (other / "layout.json").write_text(json.dumps(layout))
    (other / "queues.bin").unlink()
    with pytest.raises(UserError, match=r"queues.bin: no such file"):
        read_exported(other)


def test_gelu_is_the_exact_one() -> None:
    np.testing.assert_allclose(gelu(np.array([-1.0, 0.0, 2.0])), [-0.15865525, 0, 1.95449974], atol=1e-8)


def test_calls_of_layers_that_share_experts_are_each_layers_own() -> None:
    source = ModelSource("testkit.expert_traits:network", {"bank": "Ours", "shared": True})
    network = Program(source.build(), TASKS, {"image": torch.zeros(2, 3, 16, 16)}, source)
    image, seen = torch.rand(2, 3, 16, 16), {}
    for name in ("a", "b"):
        layer = network.module.get_submodule(f"sparse.{name}")
        layer.router.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[0], out[1])}))
    found = expert_calls(network, {"image": image}, "depth")
    assert list(found) == ["sparse.a", "sparse.b"]
    for name, (x, index) in seen.items():
        assert np.array_equal(found[f"sparse.{name}"].x, x.numpy())
        assert np.array_equal(found[f"sparse.{name}"].rows, index.numpy())
    assert not np.array_equal(found["sparse.a"].rows, found["sparse.b"].rows)
