"""A job's trackers: what MLflow and TensorBoard hold after a run, and that results name no addresses."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from testkit import toy_job

from mtlc.errors import Unavailable, UserError
from mtlc.job.job import load_job
from mtlc.tracking.registry import make_tracker
from mtlc.tracking.tracked import made, measured, tracked_run
from mtlc.tracking.tracker import TrackedRun
from mtlc.workflows.run import run_job
from mtlc.workflows.train import train_job

PASSES = (
    '[[passes]]\nname = "finetune"\nepochs = 2\nlr = 0.001\nbatch_size = 8\nrecalibrate = 0\n'
    "[report]\ndevices = []\npictures = 0\n"
)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads of a folder: by name, steps and values."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """A local store, and a client of it."""
    tracking = pytest.importorskip("mlflow.tracking")
    uri = (tmp_path / "store").as_uri()
    return uri, tracking.MlflowClient(tracking_uri=uri)


@pytest.fixture(autouse=True)
def _folders_may_be_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def test_a_database_needs_the_whole_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr("mtlc.tracking.mlflow_tracker.find_spec", lambda name: None)
    for uri in (f"sqlite:///{tmp_path / 'a.db'}", "postgresql+psycopg2://host/runs"):
        with pytest.raises(Unavailable, match=r"\[track.options.mlflow\] uri: .* \((sqlite|postgresql\+psycopg2)\)"):
            make_tracker("mlflow", {"uri": uri})
    assert not (tmp_path / "a.db").exists()
    make_tracker("mlflow", {"uri": "http://host"})


@pytest.mark.slow  # MLflow takes seconds to make the tables
def test_a_database_keeps_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One run, cut off and gone on with, with more parameters and metrics than go in one call."""
    pytest.importorskip("sqlalchemy")
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)  # MLflow keeps the files of a local database where it is called
    uri = f"sqlite:///{tmp_path / 'a.db'}"
    out = tmp_path / "out"
    (out / "bundle").mkdir(parents=True)
    (out / "bundle" / "manifest.json").write_text("{}")
    run = TrackedRun("job run", "run", out, {f"key{number}": number for number in range(120)})
    with suppress(KeyError), tracked_run(run, [make_tracker("mlflow", {"uri": uri})]):
        measured({"loss": 2.0}, 1)
        raise KeyError("cut off")
    with tracked_run(run, [make_tracker("mlflow", {"uri": uri})]):
        measured({f"metric{number}": float(number) for number in range(120)}, 2)
        made(out / "bundle")
    client = tracking.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("mtlc").experiment_id])
    assert found.info.status == "FINISHED"
    assert (len(found.data.params), len(found.data.metrics)) == (120, 121)
    assert [one.path for one in client.list_artifacts(found.info.run_id, "bundle")] == ["bundle/manifest.json"]
    assert capsys.readouterr().out == ""


def test_a_run_is_in_both_of_ours(tmp_path: Path, store: Any) -> None:
    uri, client = store
    track = (
        f'[track]\ntrackers = ["mlflow", "tensorboard"]\noptions.mlflow = {{ uri = "{uri}", experiment = "toys" }}\n'
    )
    out = tmp_path / "out"
    job = load_job(toy_job.write(tmp_path, toy_job.JOB, PASSES, track), ["seed=3", f"track.options.mlflow.uri={uri}"])
    found = run_job(job, out)
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "job run seed=3"
    assert run.data.params["passes.0.lr"] == "0.001"
    assert run.data.params["tasks.depth.metric"] == "rmse"
    assert not any(uri in value or "track" in key for key, value in run.data.params.items())
    metrics = run.data.metrics
    assert metrics["after/depth/rmse"] == found.tasks["depth"].after
    assert metrics["before/semseg/miou"] == found.tasks["semseg"].before
    assert metrics["delta_m"] == found.delta_m.vs_original
    assert metrics["after/macs"] == metrics["passes/macs"] == 210_944
    # 2 epochs of 4 steps: the running loss after each.
    history = client.get_metric_history(run.info.run_id, "01-finetune/training-1/loss/depth")
    assert [one.step for one in history] == list(range(1, 9))
    report = found.passes[0].report
    assert report is not None
    assert [one.value for one in history] == [point["losses"]["depth"] for point in report["curve"]["losses"]]
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"results.json", "report.html", "bundle"}
    assert "bundle/manifest.json" in {one.path for one in client.list_artifacts(run.info.run_id, "bundle")}

    told = scalars(out / "tensorboard")
    assert told["after/depth/rmse"] == [(0, pytest.approx(found.tasks["depth"].after, rel=1e-6))]
    assert told["01-finetune/training-1/loss/depth"] == [
        (one.step, pytest.approx(one.value, rel=1e-6)) for one in history
    ]
    # Where runs are tracked is in no result.
    for name in ("results.json", "report.html"):
        text = (out / name).read_text()
        assert "mlflow" not in text
        assert str(tmp_path / "store") not in text
    assert "track" not in (found.job or {})
    assert found.overrides == {"seed": 3}
    assert not (out / "tracking.json").exists()


def test_a_tracker_that_fails_costs_a_warning(tmp_path: Path, store: Any) -> None:
    (tmp_path / "file").touch()
    uri = (tmp_path / "file" / "store").as_uri()  # below a file: it cannot be made
    lines = list[str]()
    track = f'[track]\ntrackers = ["mlflow"]\noptions.mlflow.uri = "{uri}"\n'
    job = load_job(toy_job.write(tmp_path, toy_job.JOB, "[report]\ndevices = []\npictures = 0\n", track))
    found = run_job(job, tmp_path / "out", log=lines.append)
    assert len([line for line in lines if line.startswith("warning: tracker 'mlflow' failed; the run goes on")]) == 1
    assert (
        found.tasks["depth"].after
        == json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["depth"]["after"]
    )


def test_a_training_is_tracked(tmp_path: Path) -> None:
    pytest.importorskip("torch.utils.tensorboard")
    train = '[train]\nepochs = 2\nbatch_size = 8\n[track]\ntrackers = ["tensorboard"]\n'
    job = load_job(toy_job.write(tmp_path, toy_job.JOB, train))
    found = train_job(job, tmp_path / "w.safetensors")
    told = scalars(tmp_path / "w.safetensors.tracking" / "tensorboard")
    assert [step for step, _ in told["training-1/loss/semseg"]] == list(range(1, 9))
    assert told["validation/depth"][0][1] == pytest.approx(found.validation.metrics["depth"], rel=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('trackers = ["mlfow"]', "no tracker 'mlfow'; did you mean 'mlflow'"),
        ('trackers = ["tensorboard", "tensorboard"]', "'tensorboard' is there twice"),
        ("trackers = []\noptions.mlflow = {}", "options: 'mlflow' is none of trackers = []: list it there"),
        ('tracker = ["mlflow"]', "unknown section; did you mean 'trackers'"),
        ('trackers = ["tensorboard"]\noptions.tensorboard.dir = "x"', "[track.options.tensorboard] unknown key 'dir'"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(tmp_path: Path, text: str, words: str) -> None:
    path = toy_job.write(tmp_path, toy_job.JOB, f"[track]\n{text}\n")
    with pytest.raises(UserError) as caught:
        run_job(load_job(path), tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
