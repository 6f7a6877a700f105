"""Bundles that change under an open session: what is loaded stays, and nothing else is mixed with it."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from testkit.hand_bundle import W, expected, payloads, write
from testkit.places import environment

from mtlc.errors import BundleError
from mtlc.files import atomic_folder
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle.manifest import ExpertLayer
from mtlc.runtime.expert_cache import ExpertCache

OTHER = payloads() | {"weights.bin": (W + 1).tobytes()}
"""Another bundle: its task `plus` gives 1 more."""


def replace(bundle: Path, files: dict[str, bytes], scratch: Path) -> None:
    made = write(scratch / "other", files)
    with atomic_folder(bundle) as temporary:
        shutil.copytree(made, temporary, dirs_exist_ok=True)


def overwrite(name: str, data: bytes):
    return lambda bundle, scratch: (bundle / name).write_bytes(data)


def flip(name: str):
    def change(bundle: Path, scratch: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    return change


CHANGES = {
    "replaced": lambda bundle, scratch: replace(bundle, OTHER, scratch),
    "weights": overwrite("weights.bin", OTHER["weights.bin"]),
    "program": overwrite("head-plus.onnx", OTHER["head-square.onnx"]),
    "bit": flip("weights.bin"),
    "manifest": flip("manifest.json"),
    "gone": lambda bundle, scratch: shutil.rmtree(bundle),
    "cut": lambda bundle, scratch: os.truncate(bundle / "weights.bin", W.nbytes - 4),
}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("change", CHANGES)
def test_new_programs_are_not_mixed_with_the_old_trunk(bundle, x, tmp_path, change, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    with Session(bundle, backend) as session:
        np.testing.assert_allclose(session.run(x, "square")["square"], expected(x)["square"], rtol=1e-5)
        CHANGES[change](bundle, tmp_path)
        with pytest.raises(BundleError) as caught:
            session.run(x, "plus")
        assert str(caught.value).startswith(f"{bundle}: ")
        assert str(caught.value).endswith(
            " is not what it was when the bundle was opened: it was replaced or changed; open it again"
        )
        np.testing.assert_allclose(session.run(x, "square")["square"], expected(x)["square"], rtol=1e-5)


def test_the_same_content_in_other_files_is_fine(bundle, x, tmp_path):
    """A copy that took the bundle's place, or files that were touched, are what was checked."""
    with Session(bundle) as session:
        session.run(x, "square")
        replace(bundle, payloads(), tmp_path)
        os.utime(bundle / "head-plus.onnx", (1, 1))
        np.testing.assert_allclose(session.run(x, "plus")["plus"], expected(x)["plus"], rtol=1e-6)


def test_a_change_while_a_program_is_loaded_is_seen(bundle, x, tmp_path):
    with Session(bundle) as session:
        session.run(x, "square")
        load = session._backend.load

        def slow(file, threads, profile):
            executable = load(file, threads, profile)
            replace(bundle, OTHER, tmp_path)
            return executable

        session._backend.load = slow
        with pytest.raises(BundleError, match="was replaced or changed; open it again"):
            session.run(x, "plus")
        assert "head-plus" not in session.loaded


def test_what_is_read_from_a_bundle_later_is_checked_again(bundle, tmp_path):
    with open_bundle(bundle) as opened:
        assert opened.program_path("head-plus") == opened.file("head-plus.onnx") == bundle / "head-plus.onnx"
        replace(bundle, OTHER, tmp_path)
        for read in (lambda: opened.program_path("head-plus"), lambda: opened.file("head-square.onnx")):
            with pytest.raises(BundleError, match="was replaced or changed; open it again"):
                read()


FORKS = """
import os, sys, threading, time
import numpy as np
from pathlib import Path
from mtlc.errors import UserError
from mtlc.runtime import Session
path, how = sys.argv[1], sys.argv[2]
x = np.ones((2, 3, 20, 20), np.float32)
session = Session(path, threads=2)
unpacked = session._bundle.folder
before = session.run(x)
child = os.fork()
if child == 0:
    try:
        session.run(x)
    except UserError as error:
        print(error, flush=True)
    if how == "close":
        session.close()
    if how == "forget":
        del session
    if how == "own":
        with Session(path, threads=2) as own:
            after = own.run(x)
            assert all(np.array_equal(before[task], after[task]) for task in before)
    sys.exit(7)
assert os.waitpid(child, 0)[1] >> 8 == 7
assert unpacked.is_dir()
with Session(path) as other:  # which removes what is abandoned: this is not
    assert unpacked.is_dir() and (Path(path).is_dir() or other._bundle.folder != unpacked)
again = session.run(x)
assert all(np.array_equal(before[task], again[task]) for task in before)
session.close()
assert unpacked.is_dir() == Path(path).is_dir()
print("done")
"""


@pytest.mark.parametrize("how", ["exit", "close", "forget", "own"])
@pytest.mark.parametrize("archive", [True, False])
def test_a_forked_child_leaves_its_parents_session_alone_and_ends(bundle, tmp_path, how, archive):
    """With two threads a call in the child would wait for ever on a thread that only its parent has."""
    path = bundle
    if archive:
        path = Path(shutil.make_archive(str(tmp_path / "b"), "zip", bundle))
    done = subprocess.run(
        [sys.executable, "-c", FORKS, path, how], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    line = f"{path}: the session was opened in the process that this one was forked from; open one of its own here"
    assert done.stdout.splitlines() == [line, "done"]


KILLED = """
import os, sys
from mtlc.runtime import Session
session = Session(sys.argv[1])
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_unpacked_goes_with_the_next_one(bundle, tmp_path, monkeypatch):
    path = shutil.make_archive(str(tmp_path / "b"), "zip", bundle)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    given = environment(TMPDIR=str(scratch))
    assert subprocess.run([sys.executable, "-c", KILLED, path], env=given).returncode == -9
    assert len(os.listdir(scratch)) == 1
    code = "import sys; from mtlc.runtime import Session; Session(sys.argv[1]).close()"
    assert subprocess.run([sys.executable, "-c", code, path], env=given).returncode == 0
    assert os.listdir(scratch) == []


def test_experts_that_are_written_to_are_not_read_and_those_that_are_replaced_stay(tmp_path):
    """Experts of one layer, a page apart, are mapped when they are asked for, from a file that is held open."""
    layer = ExpertLayer("experts.bin", 0, mmap.PAGESIZE, 3, 2, 2)
    path = tmp_path / "experts.bin"
    data = np.repeat(np.arange(3, dtype=np.float32), mmap.PAGESIZE // 4)
    path.write_bytes(data.tobytes())
    cache = ExpertCache(tmp_path, [layer], None)

    def weight(expert: int) -> float:
        cache.claim(0, [expert])
        cache.acquire(0, expert)
        try:
            return float(cache.weights(0, expert)[0][0, 0])
        finally:
            cache.release(0, expert)

    assert weight(0) == 0.0
    (tmp_path / "new").write_bytes((data + 10).tobytes())
    os.replace(tmp_path / "new", path)
    assert weight(1) == 1.0
    cache.close()
    cache = ExpertCache(tmp_path, [layer], None)
    assert weight(1) == 11.0
    with path.open("r+b") as file:
        file.write(bytes(4))
    with pytest.raises(BundleError, match="was written to since the bundle was opened: open it again"):
        weight(2)
    cache.close()
