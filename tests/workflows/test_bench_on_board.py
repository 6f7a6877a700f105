"""A board behind a real OpenSSH server on loopback: measured, cut off, full, of another kind, and cleaned."""

from __future__ import annotations

import fcntl
import json
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit.native_library import Native
from testkit.ssh_server import SshServer, ssh_server

from mtlc.commands.board_table import board_text
from mtlc.errors import MtlcError, Unavailable, UserError
from mtlc.export.package import library
from mtlc.export.package.target import TARGETS, find_target
from mtlc.hw.boards import copying, timing
from mtlc.hw.boards.copying import ConnectionLost
from mtlc.hw.boards.ssh import Board
from mtlc.workflows import bench_on_board as workflow
from mtlc.workflows import package as packaging
from mtlc.workflows.bench_on_board import bench_on_board, clean_board

pytest.importorskip("elftools")
if not any(target.is_this_machine() for target in TARGETS.values()):
    pytest.skip("packages are for Linux on x86-64 and aarch64", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh") / "server") as started:
        yield started


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder on the board."""
    return tmp_path / "there" / "mtlc"


@pytest.fixture
def board(server: SshServer, native: Native, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The board's device file. The library is not compiled again, and packages are kept for this test alone."""

    def install(target, into, work, compiler, log):
        subprocess.run(["cmake", "--install", native.folder, "--prefix", into], check=True, capture_output=True)
        library._without_links(into)
        return "cc"

    monkeypatch.setattr(packaging, "build_library", install)
    monkeypatch.setenv("MTLC_SSH", server.command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MTLC_ONNXRUNTIME", raising=False)
    return device_file(tmp_path / "desk.toml", f"{server.user}@127.0.0.1", there)


def device_file(path: Path, place: str, folder: Path) -> str:
    path.write_text(f'title = "a board"\nkind = "cpu"\n[reach]\nssh = "{place}"\nfolder = "{folder}"\n')
    return str(path)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_two_bundles_in_turns_and_nothing_is_sent_twice(
    board: str, there: Path, bundle: Path, slim_bundle: Path, server: SshServer
) -> None:
    result = bench_on_board([bundle], board, threads=[1, 2], runs=20)
    assert [(row.bundle, row.threads) for row in result.rows] == [(str(bundle), 1), (str(bundle), 2)]
    assert (result.kind, result.place, result.runs) == ("measured", f"{server.user}@127.0.0.1", 20)
    assert result.sent_bytes > 30_000_000
    assert (
        result.before.machine
        == result.after.machine
        == next(target.machine for target in TARGETS.values() if target.is_this_machine())
    )
    first, second = result.rows
    assert first.faster is None
    assert second.faster is not None
    assert len(second.faster) == len(first.turns_ms) == 5
    assert second.faster[0] == pytest.approx(first.turns_ms[0] / second.turns_ms[0])
    assert sorted(first.turns_ms)[2] == first.median_ms
    assert 0 < first.min_ms <= first.median_ms <= first.p95_ms
    assert 10 * 2**20 < first.peak_bytes < 2**30
    assert "measured on" in board_text(result)

    again = bench_on_board([bundle], board, runs=5)
    assert again.sent_bytes == 0
    # Another bundle has the same library and engine: only itself is sent.
    other = bench_on_board([slim_bundle], board, configurations=["default", "small"], tasks=["near"], runs=5)
    assert 0 < other.sent_bytes < 100_000
    assert [row.configuration for row in other.rows] == ["default", "small"]
    assert not [name for name in listing(there) if "part." in name]


def test_clean_leaves_nothing_of_ours_and_all_of_others(board: str, there: Path, bundle: Path) -> None:
    bench_on_board([bundle], board, runs=2)
    assert clean_board(board) > 30_000_000
    assert not there.exists()
    assert clean_board(board) == 0
    bench_on_board([bundle], board, runs=2)
    (there / "mine.txt").write_text("not mtlc's")
    clean_board(board)
    assert listing(there) == {"mine.txt"}


def test_a_folder_that_is_not_ours_is_neither_used_nor_cleaned(board: str, there: Path, bundle: Path) -> None:
    """It is what a device file from somebody else names, and has a folder that is called as one of ours."""
    (there / "files").mkdir(parents=True)
    (there / "files" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"cannot be written \(it has other files in it\)"):
        bench_on_board([bundle], board, runs=2)
    with pytest.raises(UserError, match=r"cannot be removed \(it is not mtlc's\)"):
        clean_board(board)
    assert listing(there) == {"files", "files/thesis.tex"}


def test_another_compiler_makes_another_package(board: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a board's glibc is too old one installs Zig: what gcc made must not be taken for it."""
    names = []
    for compiler in (["/usr/bin/cc"], ["python", "-m", "ziglang", "cc"], ["/usr/bin/cc"]):
        monkeypatch.setattr(workflow, "find_compiler", lambda _, compiler=compiler: compiler)
        names.append(workflow._packaged(bundle, find_target(None), lambda _: None)[1])
    assert names[0] == names[2] != names[1]


def test_a_connection_that_is_cut_is_taken_up_again(
    board: str, there: Path, bundle: Path, server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut in the middle of the engine, once; what had arrived whole is not sent again."""
    lines: list[str] = []
    cuts = iter([True])
    real = copying.tarfile.TarFile.addfile

    def addfile(tar, entry, content=None):
        if entry.size > 10_000_000 and next(cuts, False):
            tar.fileobj.write(entry.tobuf(tarfile.USTAR_FORMAT) + content.read(3_000_000))
            time.sleep(0.5)
            server.hang_up()
            time.sleep(0.3)
        real(tar, entry, content)

    monkeypatch.setattr(copying.tarfile.TarFile, "addfile", addfile)
    result = bench_on_board([bundle], board, runs=2, log=lines.append)
    assert result.rows[0].median_ms > 0
    sending = [line for line in lines if "sending" in line]
    assert len(sending) == 2
    assert sending[0].endswith("0.0 MB are there")
    assert not sending[1].endswith(" 0.0 MB are there")
    assert any("trying again" in line for line in lines)
    assert not [name for name in listing(there) if "part." in name]


def test_what_does_not_arrive_is_sent_again_and_told(board: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that seems whole and is not, as from a disk or a tar that lies."""
    tried = []
    monkeypatch.setattr(copying, "_RECEIVE", "cat > /dev/null")
    monkeypatch.setattr(copying, "_send_files", lambda *given, real=copying._send_files: tried.append(real(*given)))
    with pytest.raises(UserError, match=r"\d+ files do not arrive as they were sent"):
        bench_on_board([bundle], board, runs=2)
    assert len(tried) == 3


def test_a_connection_that_is_always_cut_is_one_line(board: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def lost(*_):
        tried.append(1)
        raise ConnectionLost("board 'desk': Connection reset")

    monkeypatch.setattr(copying, "_send_files", lost)
    with pytest.raises(ConnectionLost, match="Connection reset"):
        bench_on_board([bundle], board, runs=2)
    assert len(tried) == 3


def test_a_wrong_key_an_unknown_host_and_nobody_there(
    board: str, bundle: Path, server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server.folder / "authorized").rename(server.folder / "aside")
    try:
        with pytest.raises(ConnectionLost, match=r"board '.*desk.toml' \(.*\): .*Permission denied") as raised:
            bench_on_board([bundle], board)
        assert raised.value.exit_code == 5
        assert "\n" not in str(raised.value)
    finally:
        (server.folder / "aside").rename(server.folder / "authorized")
    monkeypatch.setenv("MTLC_SSH", server.command.replace("known", "unknown"))
    with pytest.raises(ConnectionLost, match="Host key verification failed"):
        bench_on_board([bundle], board)
    monkeypatch.setenv("MTLC_SSH", server.command.replace(str(server.port), "1"))
    with pytest.raises(ConnectionLost, match="Connection refused"):
        bench_on_board([bundle], board)
    monkeypatch.setenv("MTLC_SSH", "no-such-ssh")
    with pytest.raises(Unavailable, match="no-such-ssh is not installed"):
        bench_on_board([bundle], board)


def test_a_full_board_is_told_and_keeps_no_rest(board: str, there: Path, bundle: Path, monkeypatch) -> None:
    """There a file may have 1 MB at most: the engine does not fit."""
    receive = copying._RECEIVE.replace("tar -xf", "ulimit -f 1000; tar -xf")
    monkeypatch.setattr(copying, "_RECEIVE", receive)
    with pytest.raises(UserError, match=r"MB cannot be kept in .* there \(.*\); mtlc devices clean"):
        bench_on_board([bundle], board, runs=2)
    assert not [name for name in listing(there) if "part." in name]
    assert not list((there / "packages").iterdir())


def test_a_folder_that_cannot_be_written(board: str, there: Path, bundle: Path) -> None:
    there.parent.mkdir()
    there.write_text("a file")
    with pytest.raises(UserError, match=r"board .*: .* cannot be written \("):
        bench_on_board([bundle], board, runs=2)
    assert there.read_text() == "a file"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("armv7l\nLinux\n", "is Linux on armv7l; packages are for Linux on x86_64 or aarch64"),
        ("arm64\nDarwin\n", "is Darwin on arm64"),
        ("x86_64\nLinux\nlacks sha256sum\nlacks tar\n", "has no sha256sum, tar"),
        ("", "is no system with a POSIX shell"),
    ],
)
def test_boards_of_other_kinds(board: str, bundle: Path, said: str, message: str, monkeypatch) -> None:
    monkeypatch.setattr(timing, "_STATE", f"printf '%b' {json.dumps(said)}")
    with pytest.raises(Unavailable, match=message):
        bench_on_board([bundle], board)


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("echo '{}'", UserError, "what it measured cannot be read"),
        ("echo nonsense", UserError, "what it measured cannot be read"),
        ("echo \"x: version 'GLIBC_2.99' not found\" >&2; exit 1", Unavailable, "its glibc is too old"),
        ("echo 'no engine' >&2; exit 5", Unavailable, "no engine"),
        ("echo 'task: bad' >&2; exit 2", UserError, "task: bad"),
        ("kill -9 $$", Unavailable, "the command there was ended"),
        ("exit 75", Unavailable, "somebody else has been measuring there"),
    ],
)
def test_what_goes_wrong_there(
    board: str, bundle: Path, script: str, kind: type[MtlcError], message: str, monkeypatch
) -> None:
    monkeypatch.setattr(timing, "_RUN", f"sh -c {json.dumps(script)}" if "kill" in script else script)
    with pytest.raises(kind, match=message) as raised:
        bench_on_board([bundle], board)
    assert "\n" not in str(raised.value)


def test_measurements_wait_for_each_other(board: str, there: Path, bundle: Path) -> None:
    bench_on_board([bundle], board, runs=2)
    name = next((there / "packages").iterdir()).name
    reached, found = Board("desk", workflow._reach(board)[0].ssh), []
    other = threading.Thread(
        target=lambda: found.append(timing.time_package(reached, str(there), name, ["--runs", "2"], 60))
    )
    with (there / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other.start()
        time.sleep(2)
        assert not found
    other.join(100)
    assert found[0].runs == 2


def test_mistakes(board: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device 'raspberry-pi-5': does not say where a board is.*\[reach\]"):
        bench_on_board([bundle], "raspberry-pi-5")
    with pytest.raises(UserError, match="half"):
        bench_on_board([bundle], board, configurations=["half"], runs=2)
    with pytest.raises(UserError, match="depht"):
        bench_on_board([bundle], board, tasks=["depht"], runs=2)
