"""The pipeline: its checks, its cache, and what a kill at any moment leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from testkit.places import environment
from torch import nn

from mtlc.compress.pass_interface import Budget, Context, Pass, PassConfig, PassResult
from mtlc.compress.passes import registry
from mtlc.compress.pipeline.identity import Step, own_generators, tensors_hash
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.program.program import HistoryEntry, ModelSource, Program
from mtlc.tasks.task import TaskSpec

TASKS = (TaskSpec("depth", "l1", "rmse"),)


class Tiny(nn.Module):
    """image (N, 1, 8, 8) -> {"depth": (N, 1, 8, 8)}"""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"depth": self.head(torch.relu(self.body(image)))}


class Samples:
    """Deterministic pictures whose depth is their negative."""

    def __init__(self, count: int, seed: int) -> None:
        self.images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[index], "depth": -self.images[index]}


class NudgeConfig(PassConfig):
    scale: float = 1.0
    rounds: int = 1
    seconds: float = 0.0


class Nudge(Pass[NudgeConfig]):
    """Add noise drawn from the global generator: any difference in the seeding or in the input shows in the result."""

    name = "nudge"
    runs = 0

    def run(self, program: Program, context: Context) -> PassResult:
        type(self).runs += 1
        after = program.clone()
        with torch.no_grad():
            for _ in range(self.config.rounds):
                time.sleep(self.config.seconds)
                for parameter in after.module.parameters():
                    parameter.add_(torch.randn_like(parameter) * self.config.scale)
        report = {"rounds": self.config.rounds}
        entry = HistoryEntry(self.name, self.config.model_dump(), [], report)
        return PassResult(program.after(after.module, entry), report, {"sensitivity": [1, 2]})


def broken(name: str, run, exact: bool = False) -> type[Pass]:
    """A pass that runs `run(program) -> PassResult`."""
    body = {"name": name, "Config": PassConfig, "exact": exact, "run": lambda self, program, context: run(program)}
    return type(name, (Pass,), body)


def make() -> Tiny:
    return Tiny()


def program() -> Program:
    with own_generators():  # as `mtlc.job` builds networks: a test may do so in several threads
        torch.manual_seed(0)
        return Program(Tiny().eval(), TASKS, {"image": torch.zeros(2, 1, 8, 8)}, ModelSource(f"{__name__}:make"))


def splits() -> Splits:
    return Splits(Samples(8, 0), Samples(6, 1), Samples(6, 2))


def go(out: Path, *steps: Step, seed: int = 0, **kwargs):
    return run_passes(program(), steps, splits=splits(), criteria=Criteria(TASKS), out=out, seed=seed, **kwargs)


def nudge(index: int, **config) -> Step:
    return Step("nudge", NudgeConfig(**config), f"[[passes]] {index} 'nudge'")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The passes of this file, by name; a test may add its own."""
    types = {"nudge": Nudge}
    Nudge.runs = 0
    monkeypatch.setattr(registry, "pass_types", lambda: types)
    return types


def test_steps_run_in_order_and_are_cached(tmp_path):
    first = go(tmp_path, nudge(1), nudge(2, scale=2.0))
    assert [step.cached for step in first] == [False, False]
    assert first[1].artifacts == {"sensitivity": [1, 2]}
    assert first[1].cost == {"macs": 4 * 9 * 64 + 4 * 64, "params": 45}
    assert [entry.name for entry in first[1].program.history] == ["nudge", "nudge"]
    again = go(tmp_path, nudge(1), nudge(2, scale=2.0))
    assert [step.cached for step in again] == [True, True]
    assert Nudge.runs == 2
    assert tensors_hash(again[1].program) == tensors_hash(first[1].program)
    assert again[1].seconds == first[1].seconds
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("change", ["config", "seed", "data", "budget"])
def test_what_a_step_follows_from_is_in_its_key(tmp_path, change, monkeypatch):
    go(tmp_path, nudge(1))
    kwargs: dict = {"seed": 1} if change == "seed" else {}
    if change == "budget":
        kwargs["budget"] = Budget("macs", 1000.0)
    if change == "data":
        changed = Splits(Samples(8, 5), Samples(6, 1), Samples(6, 2))
        monkeypatch.setattr(sys.modules[__name__], "splits", lambda: changed)
    go(tmp_path, nudge(1, scale=3.0) if change == "config" else nudge(1), **kwargs)
    assert Nudge.runs == 2


def test_another_number_of_threads_is_another_step(tmp_path):
    """Sums in another order round differently: what one thread gave is not what two would."""
    go(tmp_path, nudge(1))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        go(tmp_path, nudge(1))
        assert Nudge.runs == 2
    finally:
        torch.set_num_threads(before)
    go(tmp_path, nudge(1))
    assert Nudge.runs == 2


def test_two_threads_give_what_each_would_alone(tmp_path):
    """They draw from generators of the process in many small steps: in turns they would draw each other's numbers."""
    config = {"rounds": 20, "seconds": 1e-4}
    alone = [tensors_hash(go(tmp_path / f"alone{seed}", nudge(1, **config), seed=seed)[0].program) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(go, tmp_path / f"both{seed}", nudge(1, **config), seed=seed) for seed in (0, 1)]
        both = [tensors_hash(run.result()[0].program) for run in runs]
    assert both == alone
    assert len(set(alone)) == 2


@pytest.mark.parametrize("file", ["program/model.safetensors", "program/program.json", "step.json", "sha256.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_step_is_computed_again(tmp_path, file, damage):
    (first,) = go(tmp_path, nudge(1))
    path = first.folder / file
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[-3] ^= 1
        path.write_bytes(data)
    (again,) = go(tmp_path, nudge(1))
    assert not again.cached
    assert tensors_hash(again.program) == tensors_hash(first.program)
    assert go(tmp_path, nudge(1))[0].cached


def test_a_pass_that_alters_its_input_is_caught(tmp_path, registered):
    def run(given):
        with torch.no_grad():
            given.module.head.bias.add_(1)
        return PassResult(given.clone(), {})

    registered["inplace"] = broken("inplace", run)
    with pytest.raises(VerificationError, match=r"'inplace' \(after nudge\): the pass altered the program"):
        go(tmp_path, nudge(1), Step("inplace", PassConfig(), "[[passes]] 2 'inplace'"))


def changed(given: Program, edit) -> PassResult:
    after = given.clone()
    with torch.no_grad():
        edit(after.module)
    return PassResult(after, {})


@pytest.mark.parametrize(
    ("edit", "exact", "message"),
    [
        (lambda m: m.body.weight.fill_(float("nan")), False, "layer 'body': its weight has NaN"),
        (lambda m: setattr(m, "head", nn.Conv2d(4, 2, 1)), False, r"task 'depth': its output was \(4, 1, 8, 8\)"),
        (
            lambda m: m.double().body.register_forward_pre_hook(lambda _, x: (x[0].double(),)),
            False,
            "now .* torch.float64",
        ),
        (lambda m: m.head.bias.add_(0.5), True, r"task 'depth': an exact pass moved its output by 0\.5"),
        (
            lambda m: m.head.bias.fill_(3e38) + m.head.weight.fill_(3e38),
            False,
            "task 'depth': its output has NaN or inf",
        ),
    ],
)
def test_broken_promises_name_the_task_or_layer(tmp_path, registered, edit, exact, message):
    registered["bad"] = broken("bad", lambda given: changed(given, edit), exact)
    with pytest.raises(VerificationError, match=message) as caught:
        go(tmp_path, Step("bad", PassConfig(), "[[passes]] 1 'bad'"))
    assert str(caught.value).startswith("[[passes]] 1 'bad': ")
    assert not list((tmp_path / "steps").glob("*")), "a refused step leaves nothing"


def test_an_exact_pass_within_rounding_is_let_through(tmp_path, registered):
    registered["same"] = broken("same", lambda given: changed(given, lambda m: m.head.bias.mul_(1 + 1e-7)), exact=True)
    assert go(tmp_path, Step("same", PassConfig(), "1"))[0].missed is None


def test_a_cost_that_is_claimed_and_not_measured_is_an_error(tmp_path, registered):
    registered["liar"] = broken("liar", lambda given: PassResult(given.clone(), {}, cost_claimed={"params": 44}))
    with pytest.raises(VerificationError, match="claims 44 params, measured are 45"):
        go(tmp_path, Step("liar", PassConfig(), "1"))


def test_a_pass_that_raises_is_one_line_with_its_place(tmp_path, registered):
    def run(given):
        raise ZeroDivisionError("division\nby zero")

    registered["raises"] = broken("raises", run)
    with pytest.raises(UserError, match=r"^\[\[passes\]\] 2 \(after nudge\): raised ZeroDivisionError: division$"):
        go(tmp_path, nudge(1), Step("raises", PassConfig(), "[[passes]] 2"))


def test_surgery_that_does_not_replay_is_caught(tmp_path, registered):
    def run(given):
        after = given.clone()
        after.module.head.register_forward_hook(lambda module, inputs, output: output + 1)  # no checkpoint holds a hook
        return PassResult(after, {})

    registered["hook"] = broken("hook", run)
    with pytest.raises(VerificationError, match="task 'depth': the checkpoint gives another output"):
        go(tmp_path, Step("hook", PassConfig(), "1"))


def test_an_interrupt_keeps_the_scratch_folder_and_the_finished_steps(tmp_path, registered):
    seen = []

    class Stops(Nudge):
        name = "stops"

        def run(self, given: Program, context: Context) -> PassResult:
            scratch = context.workdir / "state"
            seen.append(scratch.exists())
            scratch.touch()
            if len(seen) == 1:
                raise KeyboardInterrupt
            return super().run(given, context)

    registered["stops"] = Stops
    steps = nudge(1), Step("stops", NudgeConfig(), "2")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, *steps)
    assert [step.cached for step in go(tmp_path, *steps)] == [True, False]
    assert seen == [False, True]


SCRIPT = """
import sys
from pathlib import Path
import test_pipeline as t
from mtlc.compress.passes import registry
registry.pass_types = lambda: {"nudge": t.Nudge}
done = t.go(Path(sys.argv[1]), *(t.nudge(i, scale=i / 10, rounds=3, seconds=0.05) for i in range(1, 5)))
print(t.tensors_hash(done[-1].program))
"""


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)],
        stdout=subprocess.PIPE,
        env=environment(Path(__file__).parent, OMP_NUM_THREADS="1"),
        text=True,
    )


def test_killed_anywhere_it_goes_on_to_the_same_network(tmp_path):
    """SIGKILL after the first finished step, after the third, and in the middle of a pass: one network, bit for bit."""
    steps = tmp_path / "killed" / "steps"
    for finished in (1, 3):
        process = start(tmp_path / "killed")
        while len(list(steps.glob("0*"))) < finished:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        process.stdout.close()
    before = {path: path.stat().st_mtime_ns for path in steps.glob("0*/step.json")}
    assert len(before) in (3, 4)
    resumed, _ = start(tmp_path / "killed").communicate(timeout=120)
    undisturbed, _ = start(tmp_path / "whole").communicate(timeout=120)
    assert len(resumed.strip()) == 64
    assert resumed == undisturbed
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished steps are not computed again"
    assert {p.name for p in steps.glob("0*")} == {p.name for p in (tmp_path / "whole" / "steps").iterdir()}
    described = json.loads(next(steps.glob("04*/step.json")).read_text())
    assert described["config"] == {"scale": 0.4, "rounds": 3, "seconds": 0.05}
