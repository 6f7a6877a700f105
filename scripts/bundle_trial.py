"""Opens bundles and runs them, one after the other, in a process with little memory: the child of `mutate_bundles`.

Reads a line of JSON for each bundle, ``{"path", "source"}``, and answers with one: ``{"outcome", "detail"}``. What it
dies of, its parent sees.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.commands.inspect import text
from mtlc.commands.output import emit
from mtlc.errors import MtlcError
from mtlc.runtime import Session
from mtlc.runtime.random_inputs import random_inputs
from mtlc.workflows.inspect import inspect

MOST_ELEMENTS = 1 << 20
"""Elements of an input that is run: what a manifest asks for beyond that is not the bundle's fault."""
Arrays = Mapping[str, np.ndarray]


def main(backend: str, megabytes: int) -> None:
    """Answer lines until there are no more."""
    if backend == "tensorrt":
        install_fake_tensorrt()
    references: dict[str, Arrays] = {}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    answers, sys.stdout = sys.stdout, io.StringIO()
    for line in sys.stdin:
        asked = json.loads(line)
        source = asked["source"]
        if source not in references:
            references[source] = outputs(Path(source), backend)
        outcome, detail = tried(Path(asked["path"]), backend, references[source])
        print(json.dumps({"outcome": outcome, "detail": detail}), file=answers, flush=True)


def outputs(path: Path, backend: str) -> Arrays:
    """All tasks of a bundle on inputs that are the same for the same manifest."""
    with Session(path, backend=backend, threads=1) as session:
        sizes = [size for tensor in session.manifest.inputs for size in tensor.shape if isinstance(size, int)]
        if math.prod(sizes) > MOST_ELEMENTS:
            return {}
        return session.run(random_inputs(session.manifest, 2))


def install_fake_tensorrt() -> None:
    """A TensorRT and a driver in Python, for a machine without a GPU: they run what a real one would, unhurried."""
    fake: Any = importlib.import_module("testkit.fake_tensorrt")
    driver = fake.Driver()
    vars(ctypes)["CDLL"] = lambda name, **_: driver
    # From now on: the fake calls C itself when it is imported.
    sys.modules["tensorrt"] = fake.make_module(driver)


def tried(path: Path, backend: str, reference: Arrays) -> tuple[str, str]:
    """How a bundle fared, and the words that it was refused or failed with."""
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            emit(False, inspect(path), text)
        if not all(line.isprintable() for line in shown.getvalue().splitlines()):
            return "raw", "inspect prints what a terminal acts on"
        found = outputs(path, backend)
    except MtlcError as error:
        said = str(error)
        if "bad_alloc" in said or "bad allocation" in said or "Failed to allocate" in said:
            return "memory", said
        return ("refused" if said and said.isprintable() else "raw"), said
    except MemoryError as error:
        return "memory", repr(error)
    except Exception as error:
        import traceback

        return "raw", f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    return ("equal" if equal(found, reference) else "other"), ""


def equal(found: Arrays, reference: Arrays) -> bool:
    """Whether both have the same tasks and numbers, up to rounding."""
    return found.keys() == reference.keys() and all(
        array.shape == reference[task].shape
        and np.allclose(array.astype(float), reference[task].astype(float), 1e-4, 1e-5, equal_nan=True)
        for task, array in found.items()
    )


if __name__ == "__main__":
    arguments: Any = sys.argv
    main(arguments[1], int(arguments[2]))
