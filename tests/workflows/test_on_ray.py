"""Sweeps and runs on a cluster of several node processes, of which one is killed: nothing is lost, nothing is done
twice, and the results are those of one machine.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from testkit import toy_job
from testkit.places import TESTS

from mtlc.cli import main
from mtlc.job.job import load_job
from mtlc.workflows.run import run_job
from mtlc.workflows.sweep import sweep_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

JOB = (
    '[budget]\nmacs = "90%"\n'
    '[[passes]]\nname = "prune"\nround_to = 1\nfinetune = { epochs = 0 }\nsensitivity = []\nrecalibrate = 0\n'
    '[[passes]]\nname = "finetune"\nepochs = 1\nlr = 0.001\nbatch_size = 8\nrecalibrate = 0\n'
    "[report]\ndevices = []\npictures = 0\n"
)


def patiently(start: Callable[[], Any]) -> Any:
    """What `start` gives. Ray waits 30 s for a node process, which a busy machine may take longer for: thrice then."""
    for _ in range(2):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


class Machines:
    """A head without cores, and node processes of one core each, which may be killed and may join."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._small = {"object_store_memory": 80_000_000, "include_dashboard": False}
        self.cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self._small}))
        self.nodes = [self._new() for _ in range(2)]
        self.address = str(self.cluster.address)

    def _new(self) -> Any:
        small = self._small["object_store_memory"]
        return patiently(lambda: self.cluster.add_node(num_cpus=1, object_store_memory=small))

    def kill(self, count: int) -> None:
        """Kill so many, chosen at random, as a power cut would; as many others join."""
        for node in random.sample(self.nodes, count):
            self.nodes.remove(node)
            self.cluster.remove_node(node, allow_graceful=False)
        self.nodes += [self._new() for _ in range(count)]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    pytest.importorskip("ray")
    environment = pytest.MonkeyPatch()
    environment.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))  # which node processes pass on
    with environment.context():
        made = Machines()
        yield made
        made.cluster.shutdown()


def test_a_sweep_survives_the_death_of_machines(tmp_path: Path, machines: Machines) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, JOB)
    lines: list[str] = []
    killed: list[int] = []

    def log(line: str) -> None:
        lines.append(line)
        # Whoever tells this has one pass behind it and is at the second: first all machines go, then a random one.
        if "finetune: pass 2 of 2" in line and len(killed) < 2:
            killed.append(len(lines))
            machines.kill(2 - len(killed) + 1)

    grid = {"budget.macs": ["90%", "60%"]}
    found = sweep_job(job, grid, tmp_path / "cluster", ray=machines.address, log=log)
    assert len(killed) == 2
    assert [one.state for one in found.cells] == ["done", "done"], [one.error for one in found.cells]
    # Whoever was at its second pass was started again, read the first one, and did not run it twice.
    for name in ("[macs=90% seed=0]", "[macs=60% seed=0]"):
        own = [(place, line) for place, line in enumerate(lines, 1) if line.startswith(name)]
        begun = [place for place, line in own if "reading the data and building the network" in line]
        first = [place for place, line in own if "prune: pass 1 of 2" in line]
        second = [place for place, line in own if "finetune: pass 2 of 2" in line]
        assert len(begun) >= 2, "all machines were killed while it was not done"
        assert not [place for place in first if second and place > second[0]]
        if second and second[0] <= killed[0]:
            assert any("prune: done before" in line for place, line in own if place > killed[0])

    alone = sweep_job(job, grid, tmp_path / "alone", jobs=2)
    assert [one.metrics for one in found.cells] == [one.metrics for one in alone.cells]
    assert [one.macs for one in found.cells] == [one.macs for one in alone.cells]
    again = sweep_job(job, grid, tmp_path / "cluster", ray=machines.address)
    assert all(one.earlier for one in again.cells)


def test_a_run_on_a_cluster_is_that_of_this_machine(tmp_path: Path, machines: Machines) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, JOB)
    arguments = ["run", str(job), "--set", "budget.macs=70%", "--out", str(tmp_path / "cluster"), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--ray", machines.address])
    assert result.exit_code == 0, result.stderr
    assert "prune: pass 1 of 2" in result.stderr, "progress comes back"
    found = json.loads(result.stdout)
    alone = run_job(load_job(job, ["budget.macs=70%"]), tmp_path / "alone")
    assert {name: task["after"] for name, task in found["tasks"].items()} == {
        name: task.after for name, task in alone.tasks.items()
    }
    assert found["cost"]["after"]["macs"] == alone.cost.after.macs
    # What the verb refuses there is said here as it is said there.
    broken = CliRunner().invoke(
        main,
        ["run", str(job), "--set", "data.args.broken=images", "--out", str(tmp_path / "x"), "--ray", machines.address],
    )
    assert broken.exit_code == 2
    assert broken.stderr.splitlines()[-1].startswith("error: ")
    assert "no such" not in broken.stderr
