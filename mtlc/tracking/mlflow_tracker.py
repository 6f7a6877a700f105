"""Keeps runs in MLflow: parameters, metrics with their steps, and the report and bundle as artifacts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mtlc.errors import Unavailable, UserError
from mtlc.extras import missing_extra
from mtlc.telemetry import switch_off_mlflow
from mtlc.tracking.tracker import State, TrackedRun

_AT_ONCE = 100
"""Parameters, and metrics, in one call: no server takes more of the former."""
_LONGEST = 500
"""Characters of a parameter's value that every server takes."""
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""How long a server that does not answer holds the run up, and that addresses of runs are not printed, since what goes
to stdout may be the JSON of a result; unless the environment says otherwise."""
_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")


class MlflowTracker:
    """A run of an experiment. `uri` is the server's address or a store's (default: ``MLFLOW_TRACKING_URI``); what
    proves who one is stands in the environment, never in a job.
    """

    name = "mlflow"

    def __init__(self, *, experiment: str = "mtlc", uri: str | None = None, run_name: str | None = None) -> None:
        for key, value in (("experiment", experiment), ("uri", uri), ("run_name", run_name)):
            if not (isinstance(value, str) and value) and not (value is None and key != "experiment"):
                raise UserError(f"{key}: must be a text that is not empty")
        if uri is not None and urlsplit(uri).password is not None:
            raise UserError(
                "uri: holds a password, which would be copied with the job: put it into the environment, as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        address = uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            raise UserError(
                'uri: is missing: give it, or MLFLOW_TRACKING_URI in the environment, such as "http://HOST:5000"'
            )
        switch_off_mlflow()
        try:
            import mlflow.tracking
        except ImportError as error:
            raise missing_extra("mlflow") from error
        if urlsplit(address).scheme.partition("+")[0] in _DATABASES and find_spec("sqlalchemy") is None:
            # Without this the client would speak of a model registry once it is asked for the first run.
            raise Unavailable(
                f"uri: a store in a database ({urlsplit(address).scheme}) needs the whole of MLflow; its client alone "
                "is installed: pip install mlflow"
            )
        self._mlflow: Any = mlflow
        self._address, self._experiment, self._run_name = address, experiment, run_name
        self._client: Any = None
        self._run = ""

    def start(self, run: TrackedRun) -> str | None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        if urlsplit(self._address).scheme in ("", "file"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # whoever names a folder wants one
        self._client = self._mlflow.tracking.MlflowClient(tracking_uri=self._address)
        if run.earlier is not None and self._goes_on(run.earlier):
            return run.earlier
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        made = self._client.create_run(experiment, run_name=self._run_name or run.name, tags={"mtlc.verb": run.verb})
        self._run = str(made.info.run_id)
        entities = self._mlflow.entities
        parameters = [entities.Param(_name(key), str(value)[:_LONGEST]) for key, value in run.parameters.items()]
        for at in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._run, params=parameters[at : at + _AT_ONCE])
        return self._run

    def _goes_on(self, earlier: str) -> bool:
        """Go on with a run, if it is still there."""
        try:
            if self._client.get_run(earlier).info.lifecycle_stage != "active":
                return False
            self._client.update_run(earlier, status="RUNNING")
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        self._run = earlier
        return True

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        rows = [self._mlflow.entities.Metric(_name(name), value, now, step) for name, value in values.items()]
        for at in range(0, len(rows), _AT_ONCE):
            self._client.log_batch(self._run, metrics=rows[at : at + _AT_ONCE])

    def artifact(self, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._run, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self._run, str(path))

    def end(self, state: State) -> None:
        self._client.set_terminated(self._run, "FINISHED" if state == "finished" else "FAILED")


def _name(text: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w.\-/ ]", "_", text, flags=re.ASCII)
