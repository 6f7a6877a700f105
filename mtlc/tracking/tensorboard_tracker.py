"""Writes runs for TensorBoard: metrics as scalars, parameters as text, small files of text as such."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.extras import missing_extra
from mtlc.tracking.tracker import State, TrackedRun


class TensorBoardTracker:
    """A folder of event files, `folder` within that of the run. TensorBoard shows no bundles: files are named."""

    name = "tensorboard"

    def __init__(self, *, folder: str = "tensorboard") -> None:
        if not isinstance(folder, str) or not folder:
            raise UserError("folder: must be a text that is not empty")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard") from error
        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None
        self._run: TrackedRun | None = None

    def start(self, run: TrackedRun) -> str | None:
        self._run = run
        self._writer = self._make(str(run.folder / Path(self._folder).expanduser()))
        rows = "\n".join(f"| {key} | {str(value).replace('|', '/')} |" for key, value in run.parameters.items())
        self._writer.add_text("job", f"{run.verb} {run.name}\n\n| key | value |\n|---|---|\n{rows}")
        self._writer.flush()
        return None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that a run that is killed has shown what it measured

    def artifact(self, path: Path) -> None:
        assert self._run is not None
        inside = path.relative_to(self._run.folder) if path.is_relative_to(self._run.folder) else path
        self._writer.add_text("files", f"`{inside}`")

    def end(self, state: State) -> None:
        self._writer.add_text("state", state)
        self._writer.close()
