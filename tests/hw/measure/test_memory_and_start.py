"""Memory and start, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from testkit.costed_networks import program, randomized
from torch import nn

from mtlc.errors import UserError
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.measure.in_turns import Setting
from mtlc.hw.measure.memory_and_start import footprint

WIDTH = 2048
WEIGHTS = 4 * WIDTH * WIDTH


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("footprints")
    made = {}
    for layers in (1, 3):
        network = randomized(nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))))
        made[layers] = folder / str(layers)
        export_bundle(program(network, torch.ones(2, WIDTH)), made[layers], samples={"input0": torch.rand(4, WIDTH)})
    return made


def test_more_weights_take_more_memory(bundles: dict[int, Path]) -> None:
    """Two layers more are 32 MiB of weights more; a backend may hold them twice, in the file's layout and its own."""
    x = np.ones((1, WIDTH), np.float32)
    one, three = (footprint(Setting(bundles[layers]), x, processes=2) for layers in (1, 3))
    for found in (one, three):
        assert (found["kind"], found["processes"], found["why"]) == ("measured", 2, None)
        assert 10 * 2**20 < found["baseline_bytes"] < found["peak_bytes"] < 2**30
        assert found["added_bytes"] == pytest.approx(found["peak_bytes"] - found["baseline_bytes"], rel=0.05)
        assert 0 < found["cold_min_ms"] <= found["cold_ms"] <= found["cold_max_ms"]
    assert 0.9 * 2 * WEIGHTS < three["added_bytes"] - one["added_bytes"] < 3.5 * 2 * WEIGHTS


def test_what_a_child_refuses_is_one_line(bundles: dict[int, Path]) -> None:
    with pytest.raises(UserError, match=r"a fresh process could not run it: .*no task 'depht'"):
        footprint(Setting(bundles[1]), {"input0": np.ones((1, WIDTH), np.float32)}, tasks=["depht"], processes=1)
