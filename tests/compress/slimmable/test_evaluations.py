"""What configurations are worth: measured once, kept in a file, and not lost with the worker that was at it."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from testkit import tiny_networks, wide_networks
from testkit.places import TESTS
from testkit.wide_networks import fresh, supernet_of

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Here, Measurer, Metrics, Processes, RayCluster
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.errors import Unavailable, UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits

TASKS = ("a", "b")


def at(*widths: float) -> Configuration:
    """A stage and two decoders."""
    return Configuration(widths[:1], widths[1:])


GRID = [at(e, a, b) for e in (0.5, 1.0) for a in (0.25, 0.5) for b in (0.5, 1.0)]


def metrics_of(configuration: Configuration) -> Metrics:
    (encoder,), (a, b) = configuration.encoder, configuration.decoders
    return {"a": 10 * encoder + a, "b": 100 * encoder + b}


class Counting:
    """Notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Configuration] = []

    def __call__(self, configuration: Configuration) -> Metrics:
        self.asked.append(configuration)
        return metrics_of(configuration)


class Deadly:
    """Kills its own process at one of its configurations, the first `times` times; `folder` counts them."""

    def __init__(self, folder: str, where: Configuration, times: int = 1) -> None:
        self.folder, self.where, self.times = Path(folder), where, times

    def __call__(self, configuration: Configuration) -> Metrics:
        dead = len(list(self.folder.iterdir()))
        if configuration == self.where and dead < self.times:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return metrics_of(configuration)


class Refusing:
    def __call__(self, configuration: Configuration) -> Metrics:
        raise UserError(f"no data for {configuration}")


def no_measurer() -> Any:
    raise UserError("no such checkpoint")


def process_id() -> Any:
    return lambda configuration: {"a": float(os.getpid()), "b": 0.0}


def test_what_is_known_is_not_run_again():
    counting = Counting()
    evaluations = Evaluations(Here(counting), TASKS)
    assert evaluations.of([GRID[0], GRID[1], GRID[0]]) == [metrics_of(GRID[i]) for i in (0, 1, 0)]
    assert evaluations.of([GRID[1]]) == [metrics_of(GRID[1])]
    assert evaluations.of([]) == []
    assert counting.asked == GRID[:2]
    assert evaluations.runs == 2


def test_a_metric_depends_on_the_encoder_and_its_own_decoder():
    """Two runs know four configurations: both widths of `a` with both of `b`."""
    counting = Counting()
    evaluations = Evaluations(Here(counting), TASKS)
    evaluations.of([at(0.5, 0.25, 1.0), at(0.5, 0.5, 0.5)])
    assert evaluations.known(at(1.0, 0.25, 1.0)) is None
    four = [at(0.5, a, b) for a in (0.25, 0.5) for b in (0.5, 1.0)]
    assert evaluations.of(four) == [metrics_of(c) for c in four]
    assert evaluations.runs == 2
    assert evaluations.entries() == {
        ((0.5,), "a", 0.25): 5.25, ((0.5,), "b", 1.0): 51.0, ((0.5,), "a", 0.5): 5.5, ((0.5,), "b", 0.5): 50.5,
    }  # fmt: skip


def test_a_file_keeps_what_was_measured(tmp_path):
    path = tmp_path / "metrics.json"
    Evaluations(Here(Counting()), TASKS, path, "weights 1").of(GRID[:3])
    counting = Counting()
    again = Evaluations(Here(counting), TASKS, path, "weights 1")
    assert again.of(GRID[:4]) == [metrics_of(c) for c in GRID[:4]]
    assert again.runs == 0  # of the four, three runs told all
    assert again.of(GRID) == [metrics_of(c) for c in GRID]
    assert again.runs == 4
    assert counting.asked == GRID[4:]
    other = Evaluations(Here(Counting()), TASKS, path, "weights 2")
    assert other.known(GRID[0]) is None


class Stopping:
    """Measures some, then is interrupted."""

    def __init__(self, after: int) -> None:
        self.after = after

    def run(self, configurations: Sequence[Configuration]) -> Iterator[tuple[Configuration, Metrics]]:
        for configuration in configurations[: self.after]:
            yield configuration, metrics_of(configuration)
        raise KeyboardInterrupt

    def close(self) -> None: ...


def test_an_interrupted_search_keeps_every_result(tmp_path):
    path = tmp_path / "metrics.json"
    apart = [at(0.5, 0.25, 0.5), at(1.0, 0.25, 0.5), at(0.5, 0.5, 1.0)]
    with pytest.raises(KeyboardInterrupt):
        Evaluations(Stopping(2), TASKS, path, "same").of(apart)
    counting = Counting()
    assert Evaluations(Here(counting), TASKS, path, "same").of(apart) == [metrics_of(c) for c in apart]
    assert counting.asked == apart[2:]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "5", '"x"', "\x00\xff", "{}", '{"identity": "i"}', '{"identity": "i", "metrics": 5}',
        '{"identity": "i", "metrics": [[1, "a", 1, 1]]}', '{"identity": "i", "metrics": [[[0.5], "a", 0.25]]}',
        '{"identity": "i", "metrics": [[[0.5], "a", 0.25, "much"]]}',
        '{"identity": "i", "metrics": [[[0.5], [], 0.25, 1]]}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_anew(tmp_path, text):
    path = tmp_path / "metrics.json"
    path.write_bytes(text.encode("latin-1"))
    evaluations = Evaluations(Here(Counting()), TASKS, path, "i")
    assert evaluations.of(GRID[:1]) == [metrics_of(GRID[0])]
    assert evaluations.runs == 1
    assert json.loads(path.read_text())["metrics"] == [[[0.5], "a", 0.25, 5.25], [[0.5], "b", 0.5, 50.5]]


def test_a_metric_that_is_not_the_one_written_is_told_and_measured_anew(tmp_path):
    path = tmp_path / "metrics.json"
    Evaluations(Here(Counting()), TASKS, path, "i").of(GRID[:1])
    path.write_text(path.read_text().replace("5.25", "5.75"))
    lines: list[str] = []
    evaluations = Evaluations(Here(Counting()), TASKS, path, "i", log=lines.append)
    assert lines == [f"{path}: damaged (its SHA-256 is not what was written); measuring anew"]
    assert evaluations.of(GRID[:1]) == [metrics_of(GRID[0])]
    assert evaluations.runs == 1


def test_two_searches_at_once_keep_what_each_measured(tmp_path):
    """Both began with nothing; the last to write has the other's metrics too, and measures none of them again."""
    path = tmp_path / "metrics.json"
    one, two = (Evaluations(Here(Counting()), TASKS, path, "i") for _ in range(2))
    one.of([at(0.5, 0.25, 0.5)])
    two.of([at(1.0, 0.25, 0.5)])
    counting = Counting()
    both = Evaluations(Here(counting), TASKS, path, "i")
    assert both.of([at(0.5, 0.25, 0.5), at(1.0, 0.25, 0.5)]) == [{"a": 5.25, "b": 50.5}, {"a": 10.25, "b": 100.5}]
    assert counting.asked == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


def test_a_metric_that_is_no_number_is_one_line():
    evaluations = Evaluations(Here(lambda _: {"a": 1.0, "b": math.nan}), TASKS)
    with pytest.raises(UserError) as caught:
        evaluations.of(GRID[:1])
    assert str(caught.value) == "task 'b': its metric at encoder 0.5, decoders 0.25 0.5 is nan"
    assert evaluations.entries() == {}


# -- the network itself --------------------------------------------------------------------------------------------


def measurer_of(network: str = "grouped", samples: int | None = None) -> Measurer:
    supernet = fresh(network)
    data = tiny_networks.taught(supernet.program, 8, 0)
    return Measurer(
        supernet, Splits(data, data.first(6), data, identity="x"), Criteria(wide_networks.TASKS), samples, 8
    )


@pytest.mark.parametrize("samples", [None, 3])
def test_a_measurement_is_that_of_the_cut_network(samples):
    measurer = measurer_of(samples=samples)
    program = measurer.supernet.program
    before = {name: buffer.clone() for name, buffer in program.module.named_buffers()}
    for configuration in (measurer.supernet.smallest, measurer.supernet.largest):
        cut = measurer.supernet.narrow(configuration)
        recalibrate_batchnorm(cut, measurer.splits, 8)
        expected = evaluate(cut, measurer.criteria, measurer.splits.calibration.first(samples or 6)).metrics
        assert measurer(configuration) == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in program.module.named_buffers())


def test_decoders_do_not_change_each_others_metrics():
    """What makes the sharing of entries right, batch norms and all."""
    measurer = measurer_of("resnet")
    table = measurer.supernet.table
    encoder = table.smallest.encoder
    narrow, wide = measurer(Configuration(encoder, (0.5, 0.5))), measurer(Configuration(encoder, (0.5, 1.0)))
    assert narrow["depth"] == wide["depth"]
    assert narrow["semseg"] != wide["semseg"]


# -- workers -------------------------------------------------------------------------------------------------------


def test_two_processes_give_what_one_gives():
    configurations = [supernet_of("grouped").smallest, supernet_of("grouped").largest]
    expected = dict(Here(measurer_of()).run(configurations))
    workers = Processes(measurer_of, 2)
    try:
        assert dict(workers.run(configurations)) == expected
    finally:
        workers.close()


@pytest.fixture
def graves(tmp_path):
    (tmp_path / "graves").mkdir()
    return tmp_path / "graves"


def test_a_worker_that_dies_loses_nothing(graves):
    """It dies at a configuration, and once more when nobody asks for anything."""
    workers = Processes(partial(Deadly, str(graves), GRID[3]), 2)
    try:
        evaluations = Evaluations(workers, TASKS)
        assert [evaluations.of([c])[0] for c in GRID[:1]] == [metrics_of(GRID[0])]
        assert dict(workers.run(GRID)) == {c: metrics_of(c) for c in GRID}
        assert len(list(graves.iterdir())) == 1
        process = next(iter(workers._pool._processes.values()))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert dict(workers.run(GRID[:2])) == {c: metrics_of(c) for c in GRID[:2]}
    finally:
        workers.close()


def test_a_configuration_that_kills_every_worker_is_one_line(graves):
    workers = Processes(partial(Deadly, str(graves), GRID[1], 99), 1)
    try:
        with pytest.raises(UserError) as caught:
            list(workers.run([GRID[1]]))
        assert str(caught.value) == (
            "workers died 3 times without measuring any of 1 configurations, the first of them encoder 0.5, decoders "
            "0.25 1; is there memory for 1 workers?"
        )
    finally:
        workers.close()
    assert len(list(graves.iterdir())) == 3


def test_what_a_worker_refuses_is_the_users_line():
    workers = Processes(no_measurer, 1)
    try:
        with pytest.raises(UserError, match=r"^no such checkpoint$"):
            list(workers.run(GRID[:1]))
    finally:
        workers.close()


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of this machine, whose workers find this module."""
    ray = pytest.importorskip("ray")
    paths = os.pathsep.join(dict.fromkeys([str(Path(__file__).parent), str(TESTS), *sys.path]))
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_gives_what_one_process_gives_and_loses_nothing(ray, graves):
    cluster = RayCluster(partial(Deadly, str(graves), GRID[3], 2))
    assert dict(cluster.run(GRID)) == {c: metrics_of(c) for c in GRID}
    assert len(list(graves.iterdir())) == 2
    other = RayCluster(process_id)  # its workers may be those of the first
    pids = [metrics["a"] for _, metrics in other.run(GRID[:4])]
    assert os.getpid() not in pids
    assert all(pid > 100 for pid in pids)
    refusing = RayCluster(Refusing)
    with pytest.raises(UserError) as caught:
        list(refusing.run(GRID[:1]))
    assert str(caught.value) == "no data for encoder 0.5, decoders 0.25 0.5"
    for one in (cluster, other, refusing):
        one.close()
    assert ray.is_initialized(), "a cluster that was there before stays"


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r"ray is not installed: pip install 'mtlc\[ray\]'"):
        RayCluster(no_measurer)
