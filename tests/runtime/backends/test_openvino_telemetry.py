"""OpenVINO's telemetry is off wherever mtlc imports OpenVINO: none of it is loaded, nothing lies in the home after."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from testkit.places import ROOT

pytest.importorskip("openvino")
pytest.importorskip("openvino_telemetry")

STARTS = {
    "session": "from mtlc.runtime import Session\n"
    "import numpy as np\n"
    "with Session({bundle!r}, backend='openvino') as s: s.run(np.zeros((1, 3, 20, 20), np.float32))",
    "graph": "import mtlc.runtime.backends.openvino_graph",
    "ir": "from pathlib import Path\n"
    "from mtlc.export.openvino.ir import write_ir\n"
    "write_ir(Path({bundle!r}), Path({bundle!r} + '.ir'))",
}


def left_by(code: str, home: Path) -> tuple[list[str], list[str]]:
    """The telemetry modules that a process of its own has after `code`, and the files in its home."""
    home.mkdir()
    code += "\nimport sys; print(*(n for n, m in sys.modules.items() if n.startswith('openvino_telemetry') and m))"
    environment = {"HOME": str(home), "USERPROFILE": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.split(), sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("start", STARTS)
def test_nothing_is_loaded_and_nothing_written(start, bundle, tmp_path):
    assert left_by(STARTS[start].format(bundle=str(bundle)), tmp_path / "home") == ([], [])


def test_what_it_would_do_otherwise(tmp_path):
    """Or the test above would say nothing."""
    loaded, _ = left_by("import openvino", tmp_path / "home")
    assert "openvino_telemetry" in loaded
