"""Quantisation-aware fine-tuning: its rounding against NNCF's and onnxruntime's, its gradients, what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper
from testkit import tiny_networks
from testkit.tiny_networks import (
    Fragile,
    Samples,
    Stopped,
    chain_program,
    moe_program,
    same_state,
    taught,
    taught_splits,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mtlc.compress.pass_interface import Context, PassResult
from mtlc.compress.passes.qat import Qat, QatConfig, worst_off
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.pipeline.step_folder import Finished
from mtlc.compress.training import recovery
from mtlc.compress.training.int8_rounding import InputRounding, WeightRounding, rounded, unrounded
from mtlc.compress.training.recovery import RATES
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.export.graph.lower import lower
from mtlc.export.graph.onnx_names import module_path
from mtlc.export.quantization.execution import session
from mtlc.export.quantization.nncf_ranges import quantize_graph
from mtlc.export.quantization.targets import TARGETS
from mtlc.hw.cost.count import macs
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import Limit, TaskSpec

SETTINGS = {"epochs": 1, "batch_size": 8, "ema": 0.5, "target": "x86-vnni", "calibration_samples": 6}
LAYERS = ("stem.0", "body.0", "depth", "semseg")


def run(program: Program, splits: Splits, folder: Path, log: Callable[[str], None] = print, **settings) -> PassResult:
    context = Context(splits, Criteria(program.tasks), program, folder, log=log)
    return Qat(QatConfig(**{**SETTINGS, **settings})).run(program, context)


def single(module: nn.Module, image: Tensor | None = None) -> tuple[Program, Samples]:
    """A program of one output and data of its image."""
    image = torch.randn(4, 3, 8, 8) if image is None else image
    program = Program(
        module, (TaskSpec("out", "mse", "mse", output=""),), {"image": image[:2]}, ModelSource("none:none")
    )
    return program, Samples({"image": image, "out": image})


class TestWeightRounding:
    def test_each_channel_has_the_grid_of_its_largest_weight(self):
        weight = torch.tensor([[1.27, 0.014, -0.016], [0.0, -0.635, 0.0124]])
        expected = torch.tensor([[1.27, 0.01, -0.02], [0.0, -0.635, 0.01]])
        assert torch.allclose(WeightRounding(127.0)(weight), expected, atol=1e-6)

    def test_reduced_weights_stay_within_64(self):
        weight = torch.randn(5, 4, 3, 3)
        steps = WeightRounding(63.5)(weight) / (weight.abs().amax((1, 2, 3), keepdim=True) / 63.5)
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        assert steps.abs().max().round() == 64

    @pytest.mark.parametrize(
        ("shape", "axis", "flat", "scales"), [((4, 6, 3, 3), 1, 1, 6), ((2, 3, 5), 0, 2, 6), ((2, 3, 5), 1, 1, 3)]
    )
    def test_scales_are_by_output_channel(self, shape, axis, flat, scales):
        """A transposed convolution's, and the two of experts: per expert and channel, per channel."""
        weight = torch.randn(shape)
        largest = WeightRounding(1.0, axis, flat)(weight).abs()  # one step: the largest and zero are all that is left
        assert len(largest.unique()) == scales + 1

    def test_rounding_and_folding_a_batch_norm_commute(self):
        program = chain_program()
        conv, norm = program.module.stem[:2]
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        scale[::2] *= -1
        folded = conv.weight.detach() * scale.view(-1, 1, 1, 1)
        after = WeightRounding(127.0)(conv.weight.detach()) * scale.view(-1, 1, 1, 1)
        assert torch.allclose(WeightRounding(127.0)(folded), after, atol=1e-6)
        assert not torch.allclose(folded, after, atol=1e-4)

    def test_the_gradient_is_straight_through(self):
        weight = torch.randn(4, 3, requires_grad=True)
        pull = torch.randn(4, 3)
        (WeightRounding(127.0)(weight) * pull).sum().backward()
        assert torch.equal(weight.grad, pull)


class TestInputRounding:
    @pytest.mark.parametrize(
        ("symmetric", "seen", "scale", "zero"),
        [
            (False, [(-1.0, 3.0), (-2.0, 5.0)], 4 / 185, 70),  # −1.5 … 4; zero at 69.5 of 255
            (False, [(1.0, 2.0), (2.0, 3.1)], 2.55 / 255, 0),
            (False, [(-2.0, -1.0), (-3.1, -2.0)], 2.55 / 255, 255),
            (True, [(-1.0, 3.0), (-2.0, 5.0)], 4 / 127, 0),
            (True, [(-7.0, 3.0), (-2.0, 5.0)], 6 / 127, 0),
        ],
    )
    def test_the_range_is_that_of_the_mean_extremes(self, symmetric, seen, scale, zero):
        rounding = InputRounding(seen, symmetric)
        assert rounding.scale.item() == pytest.approx(scale, rel=1e-6)
        assert rounding.zero_point.item() == zero

    def test_values_are_rounded_and_clipped_and_gradients_stop_outside(self):
        rounding = InputRounding([(0.0, 2.55)], False)
        x = torch.tensor([-0.5, 0.014, 1.0, 2.6], requires_grad=True)
        y = rounding(x)
        assert torch.allclose(y, torch.tensor([0.0, 0.01, 1.0, 2.55]), atol=1e-6)
        y.sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 0]

    def test_a_tensor_of_zeros_has_a_scale(self):
        rounding = InputRounding([(0.0, 0.0)], False)
        assert torch.equal(rounding(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("name", ["x86", "x86-vnni", "tensorrt"])
class TestAgainstExport:
    """What training rounds is what NNCF exports and onnxruntime computes."""

    @pytest.fixture
    def program(self) -> Program:
        return chain_program()

    @pytest.fixture
    def data(self, program: Program) -> Samples:
        return taught(program, 8, 3)

    @pytest.fixture
    def graph(self, program: Program, data: Samples, name: str) -> ModelProto:
        """The INT8 graph, with the biases of the float one: NNCF corrects them, training cannot know how."""
        plain = lower(program).model
        copy = ModelProto.FromString(plain.SerializeToString())
        inputs = [{"image": data[i]["image"][None].numpy()} for i in range(6)]
        graph = quantize_graph(copy, "chain", inputs, TARGETS[name], ())
        biases = {node.name: node.input[2] for node in plain.graph.node if node.op_type == "Conv"}
        stored = {tensor.name: tensor for tensor in plain.graph.initializer}
        for node in graph.graph.node:
            if node.op_type == "Conv":
                own = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[2])
                own.CopyFrom(stored[biases[node.name]])
                own.name = node.input[2]
        return graph

    @pytest.fixture
    def mine(self, program: Program, data: Samples, name: str) -> nn.Module:
        target = TARGETS[name]
        found = rounded(program, data, 6, target.weights, target.symmetric)
        assert found.layers == LAYERS
        return found.program.module

    def test_the_ranges_are_those_of_nncf(self, graph, mine):
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        makers = {node.output[0]: node for node in graph.graph.node}
        convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
        assert len(convolutions) == len(LAYERS)
        for node, path in zip(convolutions, LAYERS, strict=True):
            assert node.name.startswith(f"{path}/")
            pair = makers[node.input[0]]
            inputs = mine.get_submodule(path).input_rounding
            assert stored[pair.input[1]].item() == pytest.approx(inputs.scale.item(), rel=1e-5)
            assert stored[pair.input[2]].item() == inputs.zero_point.item()

    def test_onnxruntime_computes_the_same(self, graph, program, mine, data, name):
        image = torch.stack([data[i]["image"] for i in range(8)])
        wanted = session(graph, "chain", kernels=False).run(["depth", "semseg"], {"image": image.numpy()})
        with torch.no_grad():
            outputs, exact = mine(image), program.module.eval()(image)
        for task, theirs in zip(("depth", "semseg"), wanted, strict=True):
            apart = np.abs(outputs[task].numpy() - theirs)
            rounding = np.abs(exact[task].numpy() - theirs)
            # With 7 bits a channel's largest weight is half-way, at 63.5: NNCF's folded one may fall to the other side.
            assert apart.mean() < (0.2 if name == "x86" else 1e-4) * rounding.mean()


class TestInAndOut:
    def test_nothing_is_left_of_it(self):
        program = chain_program()
        hooks = [len(m._forward_pre_hooks) for m in program.module.modules()]
        found = rounded(program, taught(program, 4, 0), 4, "full", False)
        assert any(parametrize.is_parametrized(module) for module in found.program.module.modules())
        plain = unrounded(found, program)
        assert same_state(plain.module, program.module)
        assert list(plain.module.state_dict()) == list(program.module.state_dict())
        assert [type(m) for m in plain.module.modules()] == [type(m) for m in program.module.modules()]
        assert [len(m._forward_pre_hooks) for m in plain.module.modules()] == hooks
        assert hasattr(found.program.module.stem[0], "input_rounding")  # the rounding program stays one

    def test_gradients_reach_every_weight(self):
        program = chain_program()
        module = rounded(program, taught(program, 4, 0), 4, "full", False).program.module
        sum(output.square().sum() for output in module(tiny_networks.images(2, 8, 1)).values()).backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in module.parameters())

    def test_experts_are_rounded_and_routers_are_not(self):
        program = moe_program()
        found = rounded(program, taught(program, 4, 0), 4, "full", False)
        experts = [path for path in found.layers if path.endswith("experts")]
        assert len(experts) == 2
        layer = found.program.module.get_submodule(experts[0])
        assert len((layer.fc1.weight[0, 0] / layer.fc1.weight[0, 0].abs().max() * 127).round().unique()) > 1
        steps = layer.fc1.weight / layer.fc1.weight.abs().amax(2, keepdim=True) * 127
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        steps = layer.fc2.weight / layer.fc2.weight.abs().amax((0, 2), keepdim=True) * 127
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        ours, theirs = (dict(p.module.named_parameters()) for p in (found.program, program))
        routers = [name for name in theirs if ".router." in name]
        assert routers
        assert all(torch.equal(ours[name], theirs[name]) for name in routers)

    def test_a_layer_that_decides_stays_in_float(self):
        class Gate(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gate, self.experts, self.top_k = nn.Linear(3, 2), Stack(), 1

            def forward(self, x: Tensor) -> Tensor:
                tokens = x.mean((2, 3))
                score, index = self.gate(tokens).softmax(-1).topk(self.top_k)
                return self.experts(tokens, index, score)

        class Stack(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(2, 3, 3))

            def forward(self, x: Tensor, index: Tensor, score: Tensor) -> Tensor:
                return torch.einsum("nd,nkde,nk->ne", x, self.weight[index], score)

        program, data = single(nn.Sequential(nn.Conv2d(3, 3, 1), Gate()))
        found = rounded(program, data, 4, "full", False)
        assert (found.layers, found.left_alone) == (("0",), {"1.gate": "it decides a discrete choice"})

    def test_a_layer_that_is_not_called_stays_in_float(self):
        class Borrowed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.other, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

            def forward(self, x: Tensor) -> Tensor:
                return self.third(input=nn.functional.conv2d(self.one(x), self.other.weight))

        program, data = single(Borrowed())
        found = rounded(program, data, 4, "full", False)
        assert (found.layers, found.left_alone) == (
            ("one",),
            dict.fromkeys(("other", "third"), "it is not called as a module, with its input first"),
        )
        assert not parametrize.is_parametrized(found.program.module.other)
        assert same_state(unrounded(found, program).module, program.module)

    def test_what_cannot_be_rounded_is_refused(self):
        with pytest.raises(UserError, match="Sequential has no convolution, linear layer or expert"):
            rounded(*single(nn.Sequential(nn.ReLU())), 4, "full", False)
        with pytest.raises(UserError, match="layer '0': its input on the calibration split has NaN or infinite values"):
            rounded(*single(nn.Sequential(nn.Conv2d(3, 3, 1)), torch.full((4, 3, 8, 8), torch.nan)), 4, "full", False)


class TestPass:
    @pytest.fixture
    def program(self) -> Program:
        """One that has something to learn: the network that made the labels, with noise on its weights."""
        program = chain_program()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in program.module.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        return program

    @pytest.fixture
    def splits(self) -> Splits:
        return taught_splits(chain_program(), train=16, calibration=8)

    def test_batch_norm_statistics_stay_and_weights_move(self, program, splits, tmp_path):
        result = run(program, splits, tmp_path)
        assert result.report["kept"]
        before, after = program.module.state_dict(), result.program.module.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name, _ in program.module.named_parameters()}

    def test_the_result_exports(self, program, splits, tmp_path):
        result = run(program, splits, tmp_path)
        kinds = [node.op_type for node in lower(result.program).model.graph.node]
        assert kinds.count("Conv") == 4
        assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)
        assert {module_path(node) for node in lower(result.program).model.graph.node}.isdisjoint({"input_rounding"})

    def test_the_report_has_each_task_before_and_after(self, program, splits, tmp_path):
        report = run(program, splits, tmp_path).report
        assert (report["target"], report["kind"], report["layers"], report["samples"]) == (
            "x86-vnni",
            "simulated",
            4,
            6,
        )
        for row in report["tasks"].values():
            assert row["reference"] == row["float_before"] != row["int8_before"]
            assert len({row[key] for key in ("float_before", "float_after", "int8_before", "int8_after")}) == 4
        assert report["training"]["steps"] == 2

    def test_a_training_that_harms_is_thrown_away_aloud(self, program, splits, tmp_path):
        lines: list[str] = []
        result = run(program, splits, tmp_path, lines.append, lr=0.5, ema=0.0, warmup=0.0)
        assert not result.report["kept"]
        assert result.report["worst_off"]["after"]["harm"] > result.report["worst_off"]["before"]["harm"]
        assert same_state(result.program.module, program.module)
        assert "the weights stay as they were" in lines[-1]

    def test_a_killed_run_goes_on_to_the_same_weights(self, program, splits, tmp_path):
        often = {"epochs": 3, "checkpoint_seconds": 1e-9}
        whole = run(program, splits, tmp_path / "whole", **often).program
        fragile = replace(splits, train=Fragile(splits.train.tensors, 5), identity=splits.identity)
        with pytest.raises(Stopped):
            run(program, fragile, tmp_path / "killed", **often)
        lines: list[str] = []
        again = run(program, splits, tmp_path / "killed", lines.append, **often).program
        assert any("training goes on from step" in line for line in lines)
        assert same_state(whole.module, again.module)

    def test_the_pipeline_runs_it_once(self, program, splits, tmp_path):
        def go() -> Finished:
            steps = [Step("qat", QatConfig(**SETTINGS), "[[passes]] 1")]
            criteria = Criteria(program.tasks)
            return run_passes(program, steps, splits=splits, criteria=criteria, out=tmp_path)[0]

        first, second = go(), go()
        assert (first.cached, second.cached) == (False, True)
        assert same_state(first.program.module, second.program.module)
        assert first.cost == {"macs": macs(program), "params": program.parameters_count()}
        assert second.report["kept"]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"target": "x86-vni"}, "target = 'x86-vni': no such target; did you mean 'x86-vnni'"),
            ({"calibration_samples": 0}, "greater than or equal to 1"),
            ({"lr": 0}, 'must be a finite number above 0, or "auto"'),
            ({"epochs": "long"}, 'must be a finite number above 0, or "auto"'),
            ({"recalibrate": 64}, "Extra inputs"),
            ({"bits": 4}, "Extra inputs"),
        ],
    )
    def test_bad_options(self, settings, message):
        with pytest.raises((UserError, ValueError), match=message):
            QatConfig(**settings)

    @pytest.mark.parametrize("train_lr", [None, 2e-3])
    def test_what_is_left_open_is_settled_as_in_any_fine_tuning(self, program, splits, tmp_path, train_lr, monkeypatch):
        """The rate of [train]; without one a range test of the network as it rounds, with its norms frozen."""
        frozen: list[list[nn.BatchNorm2d]] = []
        first_steps = recovery.Trainer.first_steps

        def watched(self, count):
            frozen.append([part for part in self.module.modules() if isinstance(part, nn.BatchNorm2d)])
            assert parametrize.is_parametrized(self.module.get_submodule("stem.0"), "weight")
            found = first_steps(self, count)
            assert not any(norm.training for norm in frozen[-1])
            return found

        monkeypatch.setattr(recovery.Trainer, "first_steps", watched)
        lines: list[str] = []
        context = Context(splits, Criteria(program.tasks), program, tmp_path, log=lines.append, train_lr=train_lr)
        result = Qat(QatConfig(**{**SETTINGS, "lr": "auto"})).run(program, context)
        recipe = result.report["training"]["recipe"]
        assert recipe["lr_from"] == ("a range test" if train_lr is None else "that of [train]")
        assert lines[1].startswith(f"qat: 1 epochs (given), learning rate {recipe['lr']:g} (")
        assert bool(frozen) == (train_lr is None)
        if train_lr is None:
            assert frozen[0], "a network without norms shows nothing"
            assert recipe["lr"] in [one["lr"] for one in recipe["range_test"]["rates"]] or recipe["lr"] < RATES[-1]
        else:
            given = run(program, splits, tmp_path / "given", lr=train_lr)
            assert same_state(result.program.module, given.program.module)

    def test_features_are_distilled_as_in_any_fine_tuning(self, program, splits, tmp_path):
        plain = run(program, splits, tmp_path / "plain")
        pulled = run(program, splits, tmp_path / "pulled", distill_features=1.0)
        assert not same_state(plain.program.module, pulled.program.module)

    def test_the_machine_is_named_for_what_it_is(self):
        assert QatConfig().target == QatConfig(target="cpu").target
        assert QatConfig().target in TARGETS


class TestWorstOff:
    METRICS = {"depth": 0.5, "semseg": 40.0}

    def criteria(self, **limits: Limit) -> Criteria:
        return Criteria(tiny_networks.with_limit(chain_program(), **limits).tasks)

    def test_without_limits_all_count_by_their_share(self):
        found = worst_off(self.criteria(), self.METRICS, {"depth": 0.51, "semseg": 39.0})
        assert (found.task, found.harm) == ("semseg", pytest.approx(0.025))

    def test_with_limits_those_tasks_count_by_what_they_may_lose(self):
        found = worst_off(self.criteria(depth=Limit(0.1, True)), self.METRICS, {"depth": 0.51, "semseg": 10.0})
        assert (found.task, found.harm) == ("depth", pytest.approx(0.2))

    def test_no_number_is_the_worst(self):
        found = worst_off(self.criteria(), self.METRICS, {"depth": float("nan"), "semseg": 39.0})
        assert found.to_dict() == {"task": "depth", "harm": None}
