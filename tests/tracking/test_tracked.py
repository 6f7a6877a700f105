"""Trackers are told what is measured, wherever it is; one that fails costs a warning and not the run."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from mtlc.errors import Unavailable, UserError
from mtlc.tracking import registry
from mtlc.tracking.registry import make_tracker
from mtlc.tracking.tracked import made, measured, tracked_run, within, without_secrets
from mtlc.tracking.tracker import State, TrackedRun


class Notes:
    """Keeps what it is told; raises in the method `fails_in`."""

    def __init__(self, name: str = "notes", fails_in: str = "") -> None:
        self.name, self.fails_in, self.told = name, fails_in, list[Any]()

    def _tell(self, what: str, *values: Any) -> None:
        if what == self.fails_in:
            raise ConnectionError("https://me:secret@host/api?token=abc refused")
        self.told.append((what, *values))

    def start(self, run: TrackedRun) -> str | None:
        self._tell("start", run.earlier)
        return f"id of {self.name}"

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._tell("metrics", dict(values), step)

    def artifact(self, path: Path) -> None:
        self._tell("artifact", path.name)

    def end(self, state: State) -> None:
        self._tell("end", state)


def run_in(folder: Path, **parameters: Any) -> TrackedRun:
    return TrackedRun("job run", "run", folder, parameters)


def test_names_say_in_which_part_something_was_measured(tmp_path: Path) -> None:
    notes = Notes()
    (tmp_path / "page.html").touch()
    measured({"nobody": 1.0})  # before a run, nobody is told
    with tracked_run(run_in(tmp_path), [notes]):
        measured({"a": 1, "none": None, "nan": float("nan")}, 3)
        with within("01-prune"):
            for _ in range(2):
                with within("training", numbered=True):
                    measured({"loss": 0.5}, 7)
        with within("02-qat"), within("training", numbered=True):
            measured({"loss": 0.25})
        measured({"inf": float("inf")})
        made(tmp_path / "page.html")
        made(tmp_path / "not-there")
    measured({"nobody": 1.0})
    assert notes.told == [
        ("start", None),
        ("metrics", {"a": 1.0}, 3),
        ("metrics", {"01-prune/training-1/loss": 0.5}, 7),
        ("metrics", {"01-prune/training-2/loss": 0.5}, 7),
        ("metrics", {"02-qat/training-1/loss": 0.25}, 0),
        ("artifact", "page.html"),
        ("end", "finished"),
    ]


def test_a_run_that_was_cut_off_goes_on_and_a_finished_one_does_not(tmp_path: Path) -> None:
    def starts(**parameters: Any) -> str | None:
        notes = Notes()
        with pytest.raises(KeyboardInterrupt), tracked_run(run_in(tmp_path, **parameters), [notes]):
            raise KeyboardInterrupt
        assert notes.told[-1] == ("end", "failed")
        return str(notes.told[0][1])

    assert starts(seed=1) == "None"
    assert starts(seed=1) == "id of notes"
    assert starts(seed=2) == "None", "other values are another run"
    notes = Notes()
    with tracked_run(run_in(tmp_path, seed=2), [notes]):
        pass
    assert notes.told == [("start", "id of notes"), ("end", "finished")]
    assert starts(seed=2) == "None"


@pytest.mark.parametrize("method", ["start", "metrics", "artifact", "end"])
def test_a_tracker_that_fails_is_one_warning_and_left_out(tmp_path: Path, method: str) -> None:
    bad, good, lines = Notes("bad", method), Notes(), list[str]()
    with tracked_run(run_in(tmp_path), [bad, good], lines.append):
        measured({"a": 1})
        measured({"a": 2})
        made(tmp_path)
    assert lines == [
        "warning: tracker 'bad' failed; the run goes on without it: ConnectionError: https://…@host/api?token=… refused"
    ]
    assert [entry[0] for entry in good.told] == ["start", "metrics", "metrics", "artifact", "end"]


def test_what_a_run_raises_is_not_the_trackers_business(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data"), tracked_run(run_in(tmp_path), [Notes(fails_in="end")]):
        raise UserError("no data")


def test_values_of_secret_variables_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ps3cret")
    assert without_secrets(RuntimeError("bad header: Bearer t0ps3cret")) == "RuntimeError: bad header: Bearer …"


# -- finding them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds an object to the group, as an installed package would."""
    from mtlc import entry_points

    module = types.ModuleType("acme_trackers")
    monkeypatch.setitem(sys.modules, "acme_trackers", module)

    def add(name: str, value: Any) -> None:
        setattr(module, "thing", value)  # noqa: B010 - a module has no such attribute of its own
        point = EntryPoint(name, "acme_trackers:thing", registry.GROUP)
        monkeypatch.setattr(entry_points, "additions", lambda group: (entry_points.Addition(point),))

    return add


def test_a_package_may_add_a_tracker(added: Any) -> None:
    added("notes", lambda **options: Notes(**options))
    made_one = make_tracker("notes", {"fails_in": "end"})
    assert isinstance(made_one, Notes)
    assert made_one.fails_in == "end"
    with pytest.raises(UserError, match=r"\[track\] trackers: no tracker 'note'; did you mean 'notes'\?"):
        make_tracker("note", {})


def test_what_is_wrong_with_a_packages_tracker_is_one_line(added: Any) -> None:
    added("mlflow", Notes)
    with pytest.raises(UserError, match="mtlc has a 'mlflow' of its own"):
        make_tracker("mlflow", {})
    added("notes", lambda: object())
    with pytest.raises(
        UserError, match=r"entry point 'notes' of mtlc.trackers .*: a object is no tracker: it has no start\(\)"
    ):
        make_tracker("notes", {})
    added("notes", Notes)
    with pytest.raises(UserError, match=r"^\[track.options.notes\] unknown key 'urk'"):
        make_tracker("notes", {"urk": 1})

    def broken() -> None:
        raise OSError("no such\nhost")

    added("notes", broken)
    with pytest.raises(UserError, match="making it raised OSError: no such"):
        make_tracker("notes", {})


def test_ours_refuse_what_they_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, options, words in (
        ("mlflow", {"urk": 1}, r"^\[track.options.mlflow\] unknown key 'urk'"),
        ("mlflow", {}, "uri: is missing: give it, or MLFLOW_TRACKING_URI in the environment"),
        ("mlflow", {"uri": "https://me:secret@host"}, "uri: holds a password"),
        ("mlflow", {"uri": "http://host", "experiment": ""}, "experiment: must be a text that is not empty"),
        ("tensorboard", {"folder": 3}, r"^\[track.options.tensorboard\] folder: must be a text"),
        ("tensorbord", {}, "no tracker 'tensorbord'; did you mean 'tensorboard'"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            make_tracker(name, options)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module", "options"),
    [("mlflow", "mlflow.tracking", {"uri": "http://host"}), ("tensorboard", "torch.utils.tensorboard", {})],
)
def test_without_the_package_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, options: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unavailable, match=r"is not installed: pip install 'mtlc\[tracking\]'") as caught:
        make_tracker(name, options)
    assert caught.value.exit_code == 5


def test_the_kept_names_are_sealed(tmp_path: Path) -> None:
    lines = list[str]()
    with pytest.raises(KeyboardInterrupt), tracked_run(run_in(tmp_path), [Notes()]):
        raise KeyboardInterrupt
    kept = json.loads((tmp_path / "tracking.json").read_text())
    (tmp_path / "tracking.json").write_text(json.dumps(kept | {"notes": "another's"}))
    notes = Notes()
    with tracked_run(run_in(tmp_path), [notes], lines.append):
        pass
    assert notes.told[0] == ("start", None)
    assert "damaged" in lines[0]
