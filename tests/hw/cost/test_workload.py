"""Counts worked out by hand, and agreement with torch's own counter."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from testkit.costed_networks import MLP, VIT_MACS, Attention, ViT, program
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mtlc.errors import UserError
from mtlc.hw.cost.count import macs, parameters, workload
from mtlc.program.task_modules import TaskOutputs
from mtlc.zoo.resnet import BasicBlock, ConvBN, mtl_resnet

IMAGE = torch.zeros(2, 8, 10, 12)


@pytest.mark.parametrize(
    ("layer", "expected", "count"),
    [
        (nn.Conv2d(8, 6, 3), 6 * 8 * 9 * (8 * 10), 6 * 8 * 9 + 6),
        (nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False), 6 * 8 * 9 * (5 * 6), 6 * 8 * 9),
        (nn.Conv2d(8, 6, (1, 3), dilation=2), 6 * 8 * 3 * (10 * 8), 6 * 8 * 3 + 6),
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), 12 * 2 * 9 * (10 * 12), 12 * 2 * 9 + 12),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8 * 1 * 9 * (10 * 12), 8 * 9 + 8),
        (nn.ConvTranspose2d(8, 6, 2, stride=2), 8 * 6 * 4 * (10 * 12), 8 * 6 * 4 + 6),
        (nn.Linear(12, 5), 8 * 10 * 12 * 5, 12 * 5 + 5),
        (nn.AdaptiveAvgPool2d(1), 0, 0),
    ],
    ids=["conv", "strided", "dilated", "grouped", "depthwise", "transposed", "linear", "pool"],
)
def test_one_layer_by_hand(layer: nn.Module, expected: int, count: int) -> None:
    cost = workload(program(layer, IMAGE))
    assert (cost.macs, cost.parameters) == (expected, count)
    assert cost.parameter_bytes == 4 * count


def test_attention_and_its_bare_products_cost_the_same() -> None:
    class Bare(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    class Fused(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = torch.zeros(1, 4, 9, 8), torch.zeros(1, 4, 7, 8), torch.zeros(1, 4, 7, 8)
    expected = 4 * 9 * 7 * 8 + 4 * 9 * 7 * 8
    for module, kind in ((Bare(), "matmul"), (Fused(), "attention")):
        cost = workload(program(module, q, k, v))
        assert cost.macs == expected
        assert {operator.kind for operator in cost.operators if operator.macs} == {kind}
        # q, k, v and the scores at once; then the output beside the scores and v.
        assert cost.peak_activation_bytes == 4 * (4 * 9 * 8 + 2 * 4 * 7 * 8 + 4 * 9 * 7)


def test_resnet18_has_its_published_size() -> None:
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    blocks = [BasicBlock(cin, cout, stride) for cin, cout, stride in widths]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    resnet18 = nn.Sequential(ConvBN(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks, *head)
    cost = workload(program(resnet18, torch.zeros(1, 3, 224, 224)))
    assert (cost.macs, cost.parameters) == (1_814_073_344, 11_689_512)


def test_changing_a_view_in_place_costs_nothing() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1).transpose_(1, 2)

    cost = workload(program(Turned(), torch.zeros(1, 3, 4)))
    assert [operator.kind for operator in cost.operators] == ["elementwise"]


def test_functional_matmul_with_a_parameter_is_linear_and_counted() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("nth,hd->ntd", x, self.table)

    cost = workload(program(Free(), torch.zeros(1, 5, 6)))
    assert (cost.macs, cost.parameters) == (5 * 6 * 4, 24)
    assert [operator.kind for operator in cost.operators if operator.macs] == ["linear"]


def test_vit_by_hand_and_against_the_flop_counter() -> None:
    module = ViT()
    assert macs(program(module, torch.zeros(2, 3, 32, 32), outputs=("label", "angle"))) == VIT_MACS


@pytest.mark.parametrize("network", ["vit", "resnet", "mlp", "encoder"])
def test_agrees_with_the_flop_counter_after_decomposition(network: str) -> None:
    # In eager mode the counter misses attention on the CPU; the decomposed export has it as products.
    made: dict[str, tuple[nn.Module, Tensor, tuple[str, ...]]] = {
        "vit": (ViT(), torch.randn(1, 3, 32, 32), ("label", "angle")),
        "resnet": (mtl_resnet(["depth", "edge"]), torch.randn(1, 3, 64, 64), ("depth", "edge")),
        "mlp": (MLP(), torch.randn(1, 6), ("",)),
        "encoder": (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(1, 5, 16), ("",)),
    }
    module, x, outputs = made[network]
    made_program = program(module.eval(), x, outputs=outputs)
    exported = torch.export.export(TaskOutputs(made_program).eval(), (x,)).run_decompositions()
    with FlopCounterMode(display=False) as counter:
        exported.module()(x)
    assert counter.get_total_flops() == 2 * macs(made_program) > 0


def test_layers_carry_their_module_path_shapes_and_channels() -> None:
    module = mtl_resnet(["depth"], widths=(8, 16), depths=(1, 1), decoder_width=4)
    layers = workload(program(module, torch.zeros(2, 3, 32, 32), outputs=("depth",))).by_layer()
    conv = layers["encoder.stages.1.0.conv1.conv"]
    assert (conv.kind, conv.channels, conv.input_shapes, conv.output_shape) == (
        "conv",
        16,
        ((1, 8, 16, 16),),
        (1, 16, 8, 8),
    )
    assert conv.macs == 16 * 8 * 9 * 64
    assert conv.activation_bytes == 4 * (8 * 256 + 16 * 64)
    assert layers["encoder.stages.1.0.conv1.bn"].parameters == 32


def test_a_shared_layer_counts_its_work_twice_and_its_parameters_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    cost = workload(program(Shared(), torch.zeros(1, 6)))
    assert (cost.macs, cost.parameters) == (72, 42)
    assert cost.by_layer()["layer"].parameters == 42


def test_work_that_no_task_needs_is_left_out() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.aux = nn.Linear(6, 2), nn.Linear(6, 100)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"main": self.main(x), "aux": self.aux(x)}

    made = program(Auxiliary(), torch.zeros(1, 6), outputs=("main",), ignored=("aux",))
    cost = workload(made)
    assert (cost.macs, cost.parameters, parameters(made)) == (12, 14, 14 + 700)


def test_batch_scales_the_work() -> None:
    made = program(MLP(), torch.zeros(4, 6))
    assert workload(made, batch=8).macs == 8 * macs(made) == 8 * (6 * 16 + 16 * 3)


def test_recurrent_layers_are_counted_step_by_step() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 7, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    assert macs(program(Last(), torch.zeros(1, 3, 5))) == 3 * 4 * 7 * (5 + 7)


# ---- memory -------------------------------------------------------------------------------------------------------


def test_peak_of_a_chain_by_hand() -> None:
    # Elements: 16 → 128 → 32 → 8. The second convolution needs the most at once, 128 + 32; the first 16 + 128.
    chain = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 2, 1))
    assert workload(program(chain, torch.zeros(1, 1, 4, 4))).peak_activation_bytes == 4 * (128 + 32)


def test_activations_write_in_place_of_a_dying_input() -> None:
    chain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    assert workload(program(chain, torch.zeros(1, 4, 8, 8))).peak_activation_bytes == 4 * (256 + 256)


def test_peak_of_a_residual_keeps_the_shortcut_alive() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(x)
            return x + self.second(torch.relu(self.first(x)))

    # Without the shortcut: 64·(12 + 4). The shortcut holds another 64·4 while the second convolution runs.
    assert workload(program(Residual(), torch.zeros(1, 4, 8, 8))).peak_activation_bytes == 4 * 64 * (4 + 12 + 4)


def test_outputs_live_to_the_end() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Conv2d(2, 10, 1), nn.Conv2d(2, 10, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"early": self.early(x), "late": self.late(x)}

    made = program(Early(), torch.zeros(1, 2, 4, 4), outputs=("early", "late"))
    assert workload(made).peak_activation_bytes == 4 * 16 * (2 + 10 + 10)


# ---- what it leaves alone and what it refuses -------------------------------------------------------------------


def test_the_module_is_untouched() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    workload(program(module, torch.randn(2, 3, 8, 8)))
    assert [m.training for m in module.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert type(module[0].weight) is nn.Parameter
    assert torch.backends.mkldnn.enabled


def test_an_operator_without_a_rule_is_named_with_its_module() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).abs()

    cost = workload(program(nn.Sequential(Spectrum()), torch.zeros(1, 8)))
    assert cost.macs == 0
    assert cost.assumed() == {("aten._fft_r2c", "reduction"): ("0",)}


def test_data_dependent_shapes_are_named_not_guessed() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x[:, 0] > 0]

    with pytest.raises(UserError, match=r"1: the shapes or the control flow after aten\.(index|nonzero)"):
        workload(program(nn.Sequential(nn.Linear(4, 4), Picky()), torch.zeros(2, 4)))


def test_a_broken_forward_is_one_line_that_names_the_module() -> None:
    with pytest.raises(UserError, match=r"\[model\] 1 cannot be run on the example input"):
        workload(program(nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4)), torch.zeros(2, 4)))


def test_a_registered_formula_prices_a_custom_operator() -> None:
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    @torch.library.custom_op("mtlc_test::twice_matmul", mutates_args=())
    def twice_matmul(a: Tensor, b: Tensor) -> Tensor:
        return 2 * (a @ b)

    @twice_matmul.register_fake
    def _(a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(a.shape[0], b.shape[1])

    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.mtlc_test.twice_matmul(x, x.t())

    made = program(Custom(), torch.zeros(1, 5))
    with pytest.raises(UserError, match="register_flop_formula"):
        workload(made)
    register_flop_formula(torch.ops.mtlc_test.twice_matmul)(lambda a, b, out_shape=None, **_: 2 * a[0] * a[1] * b[1])
    try:
        assert workload(made).macs == 5
    finally:
        del flop_registry[torch.ops.mtlc_test.twice_matmul]


def test_it_is_fast_enough_for_a_search() -> None:
    made = program(mtl_resnet(["depth", "edge"]), torch.zeros(1, 3, 64, 64), outputs=("depth", "edge"))
    macs(made)
    started = time.process_time()
    for _ in range(5):
        macs(made)
    assert (time.process_time() - started) / 5 < 0.5


def test_attention_module_by_hand() -> None:
    expected = 6 * (8 * 24 + 8 * 8) + 2 * 2 * 6 * 6 * 4
    assert macs(program(Attention(8, 2), torch.zeros(1, 6, 8))) == expected
