"""A sweep: cells are checked before any runs, run once, told apart by content; one that fails stops no other."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from testkit import toy_job
from testkit.places import TESTS

from mtlc.checksums import write_sealed
from mtlc.cli import main
from mtlc.errors import MtlcError, UserError
from mtlc.job.job import load_job
from mtlc.results.cost import Cost, CostPair
from mtlc.results.run import RunResults
from mtlc.results.sweep import SweepCell, SweepResult
from mtlc.results.tasks import DeltaM, IntervalResult, TaskResult
from mtlc.workflows import sweep as sweep_module
from mtlc.workflows.order_runners import Outcome, Say
from mtlc.workflows.run import run_job
from mtlc.workflows.sweep import best, grouped, spread, sweep_job
from mtlc.workflows.work_order import Failure, WorkOrder

QUICK = "[report]\ndevices = []\npictures = 0\n"
PRUNE = (
    '[budget]\nmacs = "90%"\n[[passes]]\nname = "prune"\nround_to = 1\nfinetune = { epochs = 0 }\nsensitivity = []\n'
    "recalibrate = 0\n"
)


def faked(order: WorkOrder) -> None:
    """Leaves what a run would: 1000 MACs of which the budget's share is left, depth worse by what was cut and by the
    seed; broken data is refused.
    """
    job = load_job(Path(order.job), order.overrides)
    if job.file.data.args.get("broken"):
        raise UserError("[data] no number")
    assert job.file.budget is not None
    share = float(str(job.file.budget.macs).rstrip("%")) / 100
    task = TaskResult(
        metric="rmse", unit="m", higher_is_better=False, before=1.0, after=2.0 - share + job.seed, constant=3
    )
    middle = -100 * (1 - share + job.seed)
    interval = IntervalResult(low=middle - 1, high=middle + 2, confidence=0.95, samples=8, draws=1000)
    delta = DeltaM(vs_original=middle, vs_original_interval=interval)
    found = RunResults(
        tasks={"depth": task}, delta_m=delta, seed=job.seed,
        cost=CostPair(
            before=Cost(macs=1000, parameters=100, peak_activation_bytes=1, bundle_bytes=1),
            after=Cost(macs=int(1000 * share), parameters=50, peak_activation_bytes=1, bundle_bytes=1),
        ),
        missed=["[budget] macs missed"] if share < 0.5 else [],
    )  # fmt: skip
    order.folder.mkdir(parents=True)
    found.write(order.folder / "results.json")
    write_sealed(order.folder / "done.json", {"key": order.key})


class Here:
    """Does orders in this process, one after the other, and remembers which."""

    def __init__(self, do: Callable[[WorkOrder], None]) -> None:
        self._do, self.orders = do, list[WorkOrder]()

    def run(self, orders: Sequence[WorkOrder], say: Say) -> Iterator[Outcome]:
        for place, order in enumerate(orders):
            self.orders.append(order)
            say(place, "warning: not learned")
            try:
                self._do(order)
            except MtlcError as error:
                yield place, Failure.of(error)
            else:
                yield place, None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    runner = Here(faked)
    monkeypatch.setattr(sweep_module, "InProcesses", lambda jobs: runner)
    return runner


def cell(setting: int, seed: int, delta_m: float | None, share: float = 0.5, missed: Sequence[str] = ()) -> SweepCell:
    return SweepCell(
        settings={"a": setting}, seed=seed, state="done", folder="f", delta_m=delta_m, macs_share=share,
        missed=list(missed), metrics={"depth": delta_m},
    )  # fmt: skip


def test_groups_are_means_and_deviations_over_seeds() -> None:
    failed = SweepCell(settings={"a": 2}, seed=1, state="failed", folder="f", error="no")
    first, second = grouped([cell(1, 0, -1.0), cell(1, 1, -3.0, 0.7, ["missed"]), cell(2, 0, 4.0), failed])
    assert (first.settings, first.seeds, first.failed, first.kept) == ({"a": 1}, 2, 0, 1)
    assert first.delta_m is not None
    assert first.macs_share is not None
    assert (first.delta_m.mean, first.delta_m.std, first.delta_m.count) == (-2.0, pytest.approx(math.sqrt(2)), 2)
    assert first.macs_share.mean == pytest.approx(0.6)
    assert first.metrics["depth"].mean == -2.0
    assert (second.seeds, second.failed) == (1, 1)
    assert second.delta_m is not None
    assert (second.delta_m.mean, second.delta_m.std) == (4.0, None)
    assert second.latency_ms is None
    assert spread([None]) is None


def test_values_that_python_takes_for_one_are_groups_of_their_own() -> None:
    cells = [SweepCell(settings={"a": value}, seed=0, state="waiting", folder="f") for value in (1, 1.0, True, "1")]
    assert len(grouped(cells)) == 4


def test_the_best_keeps_everything_and_has_the_largest_delta_m() -> None:
    cells = [cell(1, 0, 5.0, missed=["budget"]), cell(1, 1, -1.0), cell(2, 0, 2.0, 0.6), cell(2, 1, 2.0, 0.4)]
    assert best(cells) == 3  # of equals the cheaper one
    assert best(cells[:1]) is None
    assert best([cell(1, 0, None)]) is None


def test_a_sweep_runs_each_cell_once_and_writes_its_tables(tmp_path: Path, here: Here) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, PRUNE, QUICK)
    lines: list[str] = []
    found = sweep_job(job, {"budget.macs": ["90%", "60%"]}, tmp_path / "out", seeds=2, log=lines.append)
    assert [(one.settings, one.seed, one.state, one.earlier) for one in found.cells] == [
        ({"budget.macs": "90%"}, 0, "done", False), ({"budget.macs": "90%"}, 1, "done", False),
        ({"budget.macs": "60%"}, 0, "done", False), ({"budget.macs": "60%"}, 1, "done", False),
    ]  # fmt: skip
    assert [(one.macs, one.macs_share, one.parameters_share) for one in found.cells[1:3]] == [
        (900, 0.9, 0.5), (600, 0.6, 0.5),
    ]  # fmt: skip
    assert [one.metrics["depth"] for one in found.cells] == pytest.approx([1.1, 2.1, 1.4, 2.4])
    assert [group.delta_m.mean for group in found.groups if group.delta_m] == pytest.approx([-60, -90])
    assert found.best == 0
    assert found.unlearned == []
    assert "warning: [macs=90% seed=0] not learned" in lines, "a warning of a cell is a warning"
    kept = SweepResult.read(json.loads((tmp_path / "out" / "sweep.json").read_text()), "sweep.json")
    assert kept.model_copy(update={"seconds": 0.0}) == found.model_copy(update={"seconds": 0.0})
    with (tmp_path / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["budget.macs"], row["seed"], row["state"]) for row in rows] == [
        ("90%", "0", "done"), ("90%", "1", "done"), ("60%", "0", "done"), ("60%", "1", "done"),
    ]  # fmt: skip
    assert [float(row["depth"]) for row in rows] == [one.metrics["depth"] for one in found.cells]
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "budget.macs = 60%" in page
    assert "4 of 4 runs are done. 4 kept the budget and every limit." in page
    assert "−60.00 ± 70.71 %" in page
    assert "−11.00 to −8.00 %" in page
    assert [float(row["delta_m_low"]) for row in rows] == pytest.approx([-11, -111, -41, -141])
    assert [float(row["delta_m_high"]) for row in rows] == pytest.approx([-8, -108, -38, -138])
    intervals = [one.delta_m_interval for one in found.cells]
    assert [(one.low, one.high) for one in intervals if one] == [
        (pytest.approx(middle - 1), pytest.approx(middle + 2)) for middle in (-10, -110, -40, -140)
    ]

    # Again, with one value more: what is there is read, the new cells alone run.
    del here.orders[:]
    again = sweep_job(job, {"budget.macs": ["90%", "60%", "80%"]}, tmp_path / "out", seeds=2, log=lines.append)
    assert [order.overrides for order in here.orders] == [
        ('budget.macs="80%"', "seed=0"), ('budget.macs="80%"', "seed=1"),
    ]  # fmt: skip
    assert [one.earlier for one in again.cells] == [True] * 4 + [False] * 2
    assert [one.metrics for one in again.cells[:4]] == [one.metrics for one in found.cells]

    # Other weights are another network: its cells are others, and those of before stay where they are.
    job.write_text(job.read_text().replace('toy_job:net"', 'toy_job:net"\nargs = { width = 6 }'))
    del here.orders[:]
    other = sweep_job(job, {"budget.macs": ["90%"]}, tmp_path / "out", log=lines.append)
    assert len(here.orders) == 1
    assert other.cells[0].folder != found.cells[0].folder
    assert (tmp_path / "out" / found.cells[0].folder / "results.json").is_file()


def test_where_runs_are_tracked_makes_no_other_cell(tmp_path: Path, here: Here) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, PRUNE, QUICK)
    (first,) = sweep_job(job, {}, tmp_path / "out").cells
    job.write_text(job.read_text() + '[track]\ntrackers = ["tensorboard"]\n')
    (again,) = sweep_job(job, {}, tmp_path / "out").cells
    assert (first.folder, again.earlier) == (again.folder, True)
    # More threads sum in another order.
    assert sweep_job(job, {}, tmp_path / "out", threads=2).cells[0].folder != first.folder


def test_a_damaged_cell_is_run_again(tmp_path: Path, here: Here) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, PRUNE, QUICK)
    (first,) = sweep_job(job, {}, tmp_path / "out").cells
    assert first.settings == {}
    (tmp_path / "out" / first.folder / "done.json").write_text('{"sha256": "0", "key": "x"}')
    shutil.move(tmp_path / "out" / first.folder / "results.json", tmp_path / "results.json")
    (tmp_path / "out" / first.folder / "done.json").unlink()
    (tmp_path / "out" / first.folder).rmdir()
    (again,) = sweep_job(job, {}, tmp_path / "out").cells
    assert not again.earlier
    assert len(here.orders) == 2


def test_every_cell_is_checked_before_any_runs(tmp_path: Path, here: Here) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, PRUNE, QUICK)
    for grid, words in (
        (["passes.0.round_too=1,2"], "round_too"),
        (["passes.0.round_to=1,banana"], "banana"),
        (["passes.1.round_to=1"], "no entry 1"),
        (["model.args={width=8},{breadth=8}"], "args={ breadth = 8 }: "),
        (["budget.macs=90%,0.01%"], None),
        (["data.args.train=32,none"], "train=none: "),
        (["model.weights=nowhere.safetensors"], "nowhere.safetensors does not exist"),
    ):
        if words is None:
            continue
        with pytest.raises(UserError) as caught:
            sweep_job(job, grid, tmp_path / "out")
        assert words in str(caught.value), grid
    assert here.orders == []
    assert not (tmp_path / "out").exists()


def test_a_cell_that_fails_stops_no_other(tmp_path: Path, here: Here) -> None:
    job, out = toy_job.write(tmp_path, toy_job.JOB, PRUNE, QUICK), tmp_path / "out"
    arguments = ["sweep", str(job), "--set", "data.args.broken=images,''", "--out", str(out), "--log-level", "error"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr == "error: 1 of 2 runs failed; the same command tries them again\n"
    found = json.loads((out / "sweep.json").read_text())
    assert [one["state"] for one in found["cells"]] == ["failed", "done"]
    assert found["cells"][0]["exit_code"] == 2
    assert found["best"] == 1
    assert "FAILED: data.args.broken=images seed=0: [data] no number" in result.stdout
    assert "best: data.args.broken= seed=0, delta m -10.00 % (95 % interval -11 to -8 %), in cells/" in result.stdout
    assert "[data] no number" in (out / "sweep.html").read_text()
    # The next call tries the failed one again, and nothing else.
    del here.orders[:]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    assert [order.overrides[0] for order in here.orders] == ['data.args.broken="images"']


def test_missed_budgets_are_exit_code_3(tmp_path: Path, here: Here) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, PRUNE.replace("90%", "40%"), QUICK)
    result = CliRunner().invoke(main, ["sweep", str(job), "--json", "--quiet"])
    found = json.loads(result.stdout)
    assert result.exit_code == 3, result.stderr
    assert result.stderr.endswith("error: 1 of 1 runs missed the budget or a limit\n")
    assert found["cells"][0]["missed"] == ["[budget] macs missed"]
    assert found["best"] is None
    assert "No run kept" in (tmp_path / "job-sweep" / "sweep.html").read_text()


def test_text_in_the_table_is_no_formula(tmp_path: Path, here: Here) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB, PRUNE, QUICK)
    sweep_job(job, {"data.args.broken": ["=1+1"]}, tmp_path / "out")
    with (tmp_path / "out" / "sweep.csv").open() as file:
        assert next(csv.DictReader(file))["data.args.broken"] == "'=1+1"


@pytest.mark.slow
def test_cells_are_what_a_run_gives_and_a_process_that_dies_is_one_line(tmp_path: Path) -> None:
    """In real processes: one cell is a run like any other, one kills its process."""
    paths = os.pathsep.join([str(TESTS), *sys.path])
    job = toy_job.write(tmp_path, toy_job.JOB, PRUNE, QUICK)
    (tmp_path / "deadly.py").write_text(
        "import os, signal\nfrom pathlib import Path\nfrom testkit.toy_job import Toy\n\n"
        "class Deadly(Toy):\n"
        "    def forward(self, image):\n"
        "        if Path(__file__).with_name('armed').exists():\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(image)\n\n"
        "def net():\n    return Deadly(8)\n"
    )
    factories = ["testkit.toy_job:net", "deadly:net"]
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith("checking"):
            return
        (tmp_path / "armed").touch()

    environment = pytest.MonkeyPatch()
    environment.setenv("PYTHONPATH", paths)
    with environment.context():
        found = sweep_job(job, {"model.factory": factories}, tmp_path / "out", jobs=2, log=log)
    alone = run_job(load_job(job), tmp_path / "alone")
    assert [one.state for one in found.cells] == ["done", "failed"]
    assert found.cells[0].metrics == {name: task.after for name, task in alone.tasks.items()}
    assert found.cells[0].macs == alone.cost.after.macs
    assert found.cells[1].error is not None
    assert found.cells[1].error.startswith("its process was ended by signal 9, perhaps for want of memory")
