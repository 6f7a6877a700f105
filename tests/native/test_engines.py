"""Every function of onnxruntime's table that the library uses, called in each version that is at hand.

`MTLC_ENGINES` may list more of onnxruntime's shared libraries, with colons between them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from testkit.hand_bundle import CHANNELS, SIZE, expected, external, plus_head
from testkit.native_library import ENGINE, Native, NativeError

ENGINES = [str(ENGINE), *filter(None, os.environ.get("MTLC_ENGINES", "").split(":"))]

# One engine serves a process, so each version has one of its own.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from testkit.native_library import Native, NativeError
x = np.load({x!r})
with Native(Path({native!r})).session(Path({bundle!r}), engine=Path({engine!r}), eager=True) as c:
    plan = c.plan()
    plan.set_input(None, x)
    plan.run()
    mine = np.empty_like(x)
    plan.set_output("less", mine)
    x[:] += 1
    plan.set_input(None, x)
    plan.run()
    np.savez({out!r}, plus=plan.output("plus"), square=plan.output("square"), less=mine)
    print(c.native.plain("mtlc_session_engine", c.handle).decode())
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_version_of_onnxruntime(native: Native, bundle: Path, tmp_path: Path, engine: str):
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, SIZE, SIZE), np.float32)
    np.save(tmp_path / "x.npy", x)
    script = SCRIPT.format(
        tests=str(Path(__file__).parent.parent), x=str(tmp_path / "x.npy"), native=str(native.folder),
        bundle=str(bundle), engine=engine, out=str(tmp_path / "out.npz"),
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in Path(engine).name
    for task, array in np.load(tmp_path / "out.npz").items():
        np.testing.assert_allclose(array, expected(x + 1)[task], rtol=1e-5)


def test_a_program_that_the_engine_does_not_load(native: Native, make_bundle):
    """Its line begins with the bundle and names the program; the engine's own words follow."""
    path = make_bundle({"head-plus.onnx": plus_head(external("w", "weights.bin"), "NoSuchOperator")})
    with native.session(path) as c, pytest.raises(NativeError) as caught:
        c.plan(("plus",))
    assert caught.value.code == "load"
    assert str(caught.value).startswith(f"{path}: program head-plus.onnx: onnxruntime cannot load it")


def test_a_program_that_fails_in_the_engine(native: Native, make_bundle):
    """A tensor of another size than the program's weight: only running it shows."""
    path = make_bundle(edit=lambda m: m["inputs"][0].update(shape=["batch", CHANNELS, 7, SIZE]))
    x = np.zeros((1, CHANNELS, 7, SIZE), np.float32)
    with native.session(path) as c, pytest.raises(NativeError) as caught:
        c.run(x, ("plus",))
    assert caught.value.code == "run"
    assert "program 'trunk' failed" in str(caught.value)
