"""``mtlc slim`` and ``mtlc search``, from a job to a session that changes its widths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from testkit import toy_job

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.hw.cost.count import macs
from mtlc.program.program import Program
from mtlc.runtime import Session
from mtlc.workflows.search import read_preference

MODEL = """\
schema = 1
[model]
factory = "mtlc.zoo:mtl_resnet"
args = { tasks = { depth = 1, semseg = 3 }, widths = [8, 16], depths = [1, 1], decoder_width = 8 }
[tasks.depth]
loss = "l1"
metric = "rmse"
[tasks.semseg]
loss = "cross_entropy"
metric = "miou"
[data]
factory = "testkit.toy_job:pictures"
"""
SLIM = """\
[slim]
budgets = ["60%", "30.1%", "30%"]
recalibrate = 16
[[passes]]
name = "slim"
widths = [0.5, 1.0]
round_to = 2
importance_samples = 8
recalibrate = 16
train = { epochs = 2, batch_size = 8, ema = 0.5 }
"""


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    if code == 2:
        assert "Traceback" not in result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    return result


def refused(*args: object) -> str:
    return mtlc(*args, code=2).stderr.splitlines()[-1].removeprefix("error: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, dict]:
    folder = tmp_path_factory.mktemp("slim")
    job = toy_job.write(folder, MODEL, SLIM)
    result = mtlc("slim", job, "--out", folder / "out", "--json", "--quiet")
    return job, folder / "out", json.loads(result.stdout)


def test_slim_writes_a_checkpoint_a_bundle_a_page_and_numbers(made):
    _, out, found = made
    assert {p.name for p in out.iterdir()} >= {"program", "bundle", "slim.json", "widths.html", "evaluations.json"}
    assert json.loads((out / "slim.json").read_text()) == found
    assert found["stages"] == ["stage1", "stage2"]
    assert found["widths"] == [0.5, 1.0]
    names = [point["name"] for point in found["points"]]
    assert names == ["default", "60%", "30.1%", "30%", "low-power"]
    one, other = (point for point in found["points"] if point["name"].startswith("30"))
    assert one["decoders"] == other["decoders"]  # one configuration, and both names are known
    assert one["encoder"] == other["encoder"]
    assert found["points"][0]["delta_m"] == 0.0
    costs = [point["macs"] for point in found["points"]]
    assert costs == sorted(costs, reverse=True)
    for point in found["points"]:
        if point["name"].endswith("%"):
            assert point["macs"] <= float(point["name"][:-1]) / 100 * found["cost"]["widest"]
    assert set(found["controllability"]["range"]) == {"depth", "semseg"}
    assert list(found) == [
        "title", "tasks", "stages", "widths", "cost", "reference", "points", "front", "measured", "controllability",
        "single_task", "bundle", "measurements", "training", "groups", "left_alone", "versions", "job", "seconds",
    ]  # fmt: skip
    assert list(found["points"][0]) == [
        "name", "encoder", "decoders", "macs", "gain", "metrics", "validation", "delta_m",
    ]  # fmt: skip
    for point in found["points"][1:]:
        interval = point["delta_m_interval"]
        assert interval["low"] <= point["delta_m"] <= interval["high"]
        assert interval["samples"] == 8
        for task, change in point["change_intervals"].items():
            assert change["low"] < change["high"], task
            assert change["low"] <= point["validation"][task] - found["points"][0]["validation"][task] <= change["high"]
    assert {task for point in found["points"][1:] for task in point["change_intervals"]} == {"depth", "semseg"}
    assert list(found["bundle"]) == ["path", "bytes", "widest_bytes", "encoders", "programs", "verification"]
    assert list(found["controllability"]) == ["budget", "share", "tasks", "range", "monotonicity"]
    page = (out / "widths.html").read_text()
    assert all(f">{name}<" in page for name in names)


def test_the_bundle_runs_what_slim_says(made):
    _, out, found = made
    x = toy_job.Pictures(4, 5).images.numpy()
    outputs = {}
    with Session(out / "bundle") as session:
        assert session.configurations == tuple(point["name"] for point in found["points"])
        for point in found["points"]:
            active = session.configure(point["name"])
            assert active.macs == point["macs"]
            assert dict(active.decoders) == point["decoders"]
            assert dict(active.encoder) == point["encoder"]
            assert dict(active.metrics) == pytest.approx(point["metrics"])
            outputs[point["name"]] = session.run(x)
        assert session.configure(budget="60%").macs <= 0.6 * found["cost"]["widest"]
        assert session.configure(budget="50%", prefer={"depth": 1.0}).decoders["semseg"] == 0.5
    widest = Program.load(out / "program")
    assert macs(widest) == found["cost"]["widest"]
    first, last = (outputs[p["name"]] for p in (found["points"][0], found["points"][-1]))
    assert all(np.abs(first[t] - last[t]).max() > 1e-4 for t in first)


@pytest.mark.slow
def test_the_bundle_in_int8_runs_the_same_widths(made, tmp_path):
    job, out, found = made
    text = mtlc(
        "quantize", out / "bundle", "--job", job, "--out", tmp_path / "int8", "--target", "x86", "--quiet"
    ).stdout
    assert sum(line.startswith("low-power") for line in text.splitlines()) == 2  # a row for each task
    x = toy_job.Pictures(4, 5).images.numpy()
    with Session(out / "bundle") as plain, Session(tmp_path / "int8") as int8:
        assert int8.configurations == plain.configurations
        for point in found["points"]:
            active, before = int8.configure(point["name"]), plain.configure(point["name"])
            assert (active.macs, active.encoder, active.decoders) == (before.macs, before.encoder, before.decoders)
            assert active.metrics["depth"] == pytest.approx(before.metrics["depth"], rel=0.05)
            assert active.metrics != before.metrics
            expected = plain.run(x)
            for task, array in int8.run(x).items():
                error = np.sqrt(np.square(array - expected[task]).mean())
                assert 0 < error < 0.1 * np.abs(expected[task]).max(), (point["name"], task)
        assert int8.configure(budget="60%").macs <= 0.6 * found["cost"]["widest"]


def test_other_verbs_know_the_configurations(made, tmp_path):
    _, out, found = made
    last = found["points"][-1]["name"]
    shown = mtlc("inspect", out / "bundle").stdout
    assert all(f"runs as   {point['name']}: " in shown for point in found["points"])
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    mtlc("infer", out / "bundle", tmp_path / "x.png", "--out", tmp_path, "--configuration", last)
    assert (tmp_path / "depth.png").exists()
    profile = ("profile", out / "bundle", "--rounds", "2", "--configuration")
    timed = json.loads(mtlc(*profile, last, "--against", out / "widest-bundle", "--json").stdout)
    assert set(timed["bundles"]) == {str(out / "bundle"), str(out / "widest-bundle")}
    assert "no configuration 'lowpower'" in refused(*profile, "lowpower")
    assert "--layers" in refused(*profile, last, "--layers")


def test_bench_compares_configurations(made):
    _, out, found = made
    bundle, last = out / "bundle", found["points"][-1]["name"]
    bench = ("bench", bundle, "--rounds", "2", "--configuration")
    text = mtlc(*bench, "default", "--configuration", last).stdout.splitlines()
    assert text[2].split()[:2] == ["bundle", "configuration"]
    assert [line.split()[1] for line in text[3:]] == ["default", last]
    near = refused(*bench, "defualt", "--rounds", "1000000")
    assert near == f"{bundle}: no configuration 'defualt'; did you mean 'default'?"
    # A bundle of one width is not measured as something that it is not.
    narrow = refused("bench", out / "widest-bundle", "--configuration", last)
    assert narrow.startswith(f"{out / 'widest-bundle'}: has no configuration {last!r}: it runs at one width only")
    assert "leave out --configuration" in narrow


def test_verify_compares_in_a_configuration(made):
    pytest.importorskip("openvino")
    job, out, found = made
    bundle, last = out / "bundle", found["points"][-1]["name"]
    same = ("verify", bundle, "--backend", "openvino", "--configuration", last, "--job", job, "--split", "validation")
    compared = json.loads(mtlc(*same, "--json").stdout)
    assert (compared["first"]["configuration"], compared["reference"]["configuration"]) == (last, last)
    assert compared["tolerance"] == 1e-4
    for task, row in compared["tasks"].items():
        # The narrow network's own metric, and not the widest's.
        assert row["reference"] == pytest.approx(found["points"][-1]["validation"][task], rel=1e-4)
        assert row["reference"] != pytest.approx(found["points"][0]["validation"][task], rel=1e-4)
    assert f"({last}, fp32, openvino" in mtlc(*same).stdout
    # A reference of one width runs at it: the widest equals its own bundle, the narrowest does not.
    against = ("verify", bundle, out / "widest-bundle", "--configuration")
    widest = json.loads(mtlc(*against, "default", "--json").stdout)
    assert (widest["first"]["configuration"], widest["reference"]["configuration"]) == ("default", None)
    assert "samples differ" in mtlc(*against, last, code=4).stderr


def test_verify_refuses_configurations_that_are_not_there(made):
    job, out, found = made
    bundle, last = out / "bundle", found["points"][-1]["name"]
    assert "no configuration 'defualt'; did you mean" in refused("verify", bundle, "--configuration", "defualt")
    assert "would be compared with itself" in refused("verify", bundle, "--configuration", last)
    wrong_side = refused("verify", out / "widest-bundle", bundle, "--configuration", last)
    assert "widest-bundle: has no configuration" in wrong_side
    checkpoint = ("--against", out / "program", "--job", job)
    assert "leave out OTHER, backends, --configuration" in refused(
        "verify", bundle, *checkpoint, "--configuration", last
    )


@pytest.mark.slow
def test_a_finished_slim_is_not_trained_again(made):
    job, out, found = made
    again = mtlc("slim", job, "--out", out, "--json")
    assert "slim: done before" in again.stderr
    repeated = json.loads(again.stdout)
    assert repeated["points"] == found["points"]
    assert repeated["measurements"] == 0


@pytest.mark.slow
def test_slim_from_a_checkpoint_trains_nothing(made, tmp_path):
    job, out, found = made
    result = mtlc("slim", job, "--from", out / "program", "--out", tmp_path / "new", "--json")
    assert "pass" not in result.stderr
    assert json.loads(result.stdout)["points"] == found["points"]


def test_search_in_the_checkpoint_and_in_the_bundle(made, tmp_path):
    job, out, found = made
    whole = found["cost"]["widest"]
    result = json.loads(mtlc("search", out, "--job", job, "--budget", "50%", "--prefer", "depth=1", "--json").stdout)
    assert list(result) == [
        "of", "path", "strategy", "preference", "encoder", "decoders", "macs", "share", "latency_ms", "metrics", "gain",
        "changes", "gain_interval", "runs", "seconds",
    ]  # fmt: skip
    for task, change in result["changes"].items():
        assert change["change"] == pytest.approx(result["metrics"][task] - change["widest"])
        assert change["change_interval"]["low"] < change["change_interval"]["high"]
        assert change["change_interval"]["samples"] == 8
    depth, gain = result["changes"]["depth"], result["gain_interval"]
    assert (depth["metric"], depth["unit"], depth["higher_is_better"]) == ("rmse", "m", False)
    assert depth["widest"] == pytest.approx(found["reference"]["depth"], rel=0.01)  # of other statistics
    assert result["gain"] == pytest.approx(-depth["change"] / depth["widest"])
    assert gain["low"] < result["gain"] < gain["high"]
    # All of the preference is for depth: in each draw the gain is its relative change.
    assert gain["high"] == pytest.approx(-depth["change_interval"]["low"] / depth["widest"], rel=0.5)
    assert result["macs"] <= 0.5 * whole
    assert result["share"] == pytest.approx(result["macs"] / whole)
    assert result["preference"] == {"depth": 1.0, "semseg": 0.0}
    assert result["decoders"]["semseg"] == 0.5
    cut = mtlc(
        "search", out, "--job", job, "--budget", f"{0.5 * whole / 1e6}MMACs", "--out", tmp_path / "cut", "--json"
    )
    narrow = Program.load(tmp_path / "cut" / "program")
    assert macs(narrow) == json.loads(cut.stdout)["macs"] <= 0.5 * whole
    with Session(tmp_path / "cut" / "bundle") as session:
        assert set(session.run(toy_job.Pictures(2, 5).images.numpy())) == {"depth", "semseg"}
    asked = json.loads(mtlc("search", out / "bundle", "--budget", "50%", "--json").stdout)
    assert asked["of"] == "bundle"
    assert asked["macs"] <= 0.5 * whole
    text = mtlc("search", out / "bundle", "--budget", "50%").stdout
    assert "change from widest" not in text
    assert "changes" not in asked
    told = mtlc("search", out, "--job", job, "--budget", "50%", "--prefer", "depth=1").stdout
    assert "change from widest" in told
    assert f"% by preference (95 % interval {100 * gain['low']:+.2f} to {100 * gain['high']:+.2f} %), after 0" in told
    assert "stage1" in text
    assert "of the widest" in text


def test_every_strategy_keeps_the_budget(made):
    job, out, found = made
    for strategy in ("joint", "ecmt", "greedy", "evolution", "uniform"):
        result = mtlc("search", out, "--job", job, "--budget", "45%", "--strategy", strategy, "--json", "--quiet")
        assert json.loads(result.stdout)["macs"] <= 0.45 * found["cost"]["widest"]


def test_two_processes_find_what_one_does(made, tmp_path):
    job, out, _ = made
    (tmp_path / "program").symlink_to(out / "program")
    one = json.loads(mtlc("search", tmp_path, "--job", job, "--budget", "45%", "--json").stdout)
    (tmp_path / "evaluations.json").unlink()
    two = json.loads(mtlc("search", tmp_path, "--job", job, "--budget", "45%", "--workers", "2", "--json").stdout)
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}
    assert one["runs"] > 0


@pytest.mark.slow
def test_a_budget_in_milliseconds(made):
    job, out, _ = made
    result = json.loads(mtlc("search", out, "--job", job, "--budget", "1s", "--json").stdout)
    assert 0 < result["share"] <= 1
    assert 0 < result["latency_ms"] < 1000
    quick = json.loads(mtlc("search", out / "bundle", "--budget", "1s", "--json").stdout)
    assert 0 < quick["share"] <= 1


def test_bad_input_is_one_line(made, tmp_path):
    job, out, _ = made
    bundle = out / "bundle"
    assert refused("search", bundle, "--budget", "50%", "--prefer", "depth=-1").startswith(
        "prefer: depth = -1.0: must be"
    )
    assert refused("search", bundle, "--budget", "50%", "--prefer", "depth=0").startswith("prefer: every task has 0")
    assert refused("search", bundle, "--budget", "50%", "--prefer", "dept=1").endswith("did you mean 'depth'?")
    assert refused("search", bundle, "--budget", "1%").startswith("budget ")
    assert "it misses by" in refused("search", out, "--job", job, "--budget", "1%")
    assert "name the job" in refused("search", out, "--budget", "50%")
    assert refused("search", bundle, "--budget", "half").startswith("budget = 'half': write")
    assert refused("search", out, "--job", job, "--budget", "50%", "--strategy", "evolve").startswith(
        "--strategy evolve"
    )
    assert "--out belongs to" in refused("search", bundle, "--budget", "50%", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    whole = out / "widest-bundle"
    assert "mtlc slim" in refused("search", whole, "--budget", "50%")


def _plain(folder: Path) -> Path:
    """A checkpoint of one width."""
    from mtlc.job.job import load_job

    job = load_job(toy_job.write(folder / "plain", MODEL))
    job.build_program(job.load_splits()).save(folder / "plain" / "program")
    return folder / "plain" / "program"


def test_a_checkpoint_of_one_width_is_one_line(made, tmp_path):
    job, _, _ = made
    assert "mtlc slim" in refused("search", _plain(tmp_path), "--job", job, "--budget", "50%")


def test_jobs_that_slim_refuses(tmp_path):
    def slim(name: str, *more: str) -> str:
        return refused("slim", toy_job.write(tmp_path / name, MODEL, *more), "--out", tmp_path / name / "out")

    assert "[budget] belongs to mtlc run" in slim("a", SLIM, '[budget]\nmacs = "50%"\n')
    assert "needs a pass 'slim' as the last" in slim("b", SLIM, '[[passes]]\nname = "calibrate"\n')
    assert "lacks 1.0" in slim("c", SLIM.replace("[0.5, 1.0]", "[0.25, 0.5]"))
    assert "too narrow for width 0.5" in slim("d", SLIM.replace("round_to = 2", "round_to = 16"))
    assert "budgets" in slim("e", SLIM.replace('"60%"', '"160%"'))
    assert "must be a number, zero or more" in slim("f", SLIM.replace("[slim]", "[slim]\nprefer = { depth = -1.0 }"))
    assert "'dept' is not one of the tasks" in slim("g", SLIM.replace("[slim]", "[slim]\nprefer = { dept = 1.0 }"))
    assert "'5%' is under the least that this network can run" in slim("h", SLIM.replace('"60%"', '"5%"'))
    assert not list(tmp_path.glob("*/out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth", "'depth' is not TASK=NUMBER"),
        ("depth=x", "'depth=x' is not TASK=NUMBER"),
        ("depth=1,depth=2", "'depth=2' is named twice"),
        ("=1", "'=1' is not TASK=NUMBER"),
        ("", "'' is not TASK=NUMBER"),
    ],
)
def test_preferences_that_do_not_read(text, message):
    with pytest.raises(UserError, match=message):
        read_preference(text)


def test_preferences_that_read():
    assert read_preference("depth=0.7, semseg=.3") == {"depth": 0.7, "semseg": 0.3}
    assert read_preference(None) is None
