"""Where things lie in the repository, and the environment in which a process of its own finds them."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples" / "scenes"


def environment(*folders: Path, **variables: str) -> dict[str, str]:
    """This process's variables, with mtlc, `testkit` and the modules in `folders` to be found, and `variables` set."""
    paths = [str(path) for path in (*folders, TESTS, ROOT)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables
