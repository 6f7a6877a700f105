"""A Ray cluster: what cannot be reached is one line with exit code 5; calls tell lines, and what they raise."""

from __future__ import annotations

import os
import socket
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner
from testkit import toy_job
from testkit.places import TESTS

from mtlc.cli import main
from mtlc.compress.ray_cluster import connected
from mtlc.errors import Unavailable, UserError
from mtlc.log import Log


def greet(name: str, log: Log) -> None:
    """What a worker is to do."""
    if not name:
        raise UserError("nobody to greet")
    log(f"hello, {name}")
    if name == "nobody":
        os._exit(3)


@pytest.fixture
def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_cannot_be_reached_is_said_at_once(closed_port: int, form: str) -> None:
    pytest.importorskip("ray")
    address = form.format(closed_port)
    with pytest.raises(Unavailable) as caught, connected(address):
        pass
    assert str(caught.value).startswith(f"--ray {address}: the cluster cannot be reached (ConnectionRefusedError: ")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("verb", [["run"], ["slim"], ["sweep", "--set", "seed=3"]])
def test_every_verb_says_so(tmp_path: Path, closed_port: int, verb: list[str]) -> None:
    pytest.importorskip("ray")
    text = '[[passes]]\nname = "slim"\n' if verb == ["slim"] else ""
    job, out = toy_job.write(tmp_path, toy_job.JOB, text), tmp_path / "out"
    result = CliRunner().invoke(main, [*verb, str(job), "--ray", f"127.0.0.1:{closed_port}", "--out", str(out)])
    assert result.exit_code == 5
    assert result.stderr.count("\n") == 1
    assert "the cluster cannot be reached" in result.stderr
    assert not out.exists()


def test_what_is_no_address_is_refused() -> None:
    pytest.importorskip("ray")
    with (
        pytest.raises(UserError, match="--ray banana: give HOST:PORT, ray://HOST:PORT, auto or local"),
        connected("banana"),
    ):
        pass


def test_what_is_wrong_with_a_job_is_said_before_the_cluster_is_asked(tmp_path: Path) -> None:
    job = toy_job.write(tmp_path, toy_job.JOB)
    result = CliRunner().invoke(main, ["run", str(job), "--set", "sed=1", "--ray", "127.0.0.1:1"])
    assert result.exit_code == 2
    assert "did you mean 'seed'" in result.stderr


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r"ray is not installed: pip install 'mtlc\[ray\]'"), connected("local"):
        pass


class PretendedRay(types.ModuleType):
    """Ray as far as connecting goes; `init` fails where `refuses`."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__("ray")
        self.refuses, self.asked, self.shut = refuses, dict[str, object](), False

    def is_initialized(self) -> bool:
        return False

    def init(self, **asked: object) -> types.SimpleNamespace:
        self.asked = asked
        if self.refuses:
            raise RuntimeError(self.refuses)
        return types.SimpleNamespace(dashboard_url="192.0.2.1:8265")

    def shutdown(self) -> None:
        self.shut = True


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedRay:
    ray = PretendedRay()
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ray if name == "ray" else types.ModuleType(name))
    return ray


def test_the_dashboard_is_told_and_the_connection_closed(pretended: PretendedRay) -> None:
    lines: list[str] = []
    with connected("auto", lines.append) as cluster:
        assert not pretended.shut
        assert cluster.dashboard == "192.0.2.1:8265"
    assert lines == ["dashboard of the cluster: http://192.0.2.1:8265"]
    assert pretended.shut
    assert pretended.asked["address"] == "auto"
    with connected("local"):
        pass
    assert pretended.asked["include_dashboard"] is False


def test_what_ray_itself_refuses_is_one_line(pretended: PretendedRay) -> None:
    pretended.refuses = "Version mismatch: The cluster was started with:\n  Ray: 2.40.0"
    with pytest.raises(Unavailable) as caught, connected("auto"):
        pass
    assert str(caught.value).startswith(
        "--ray auto: the cluster cannot be reached (RuntimeError: Version mismatch: The cluster was started with:); "
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_calls_tell_lines_and_what_they_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(TESTS), *sys.path]))
    monkeypatch.setattr("mtlc.compress.ray_cluster.RETRIES", 1)
    told: list[tuple[int, str]] = []
    with connected("local") as cluster:
        assert cluster.most_cores() >= 1
        calls = [(greet, "you"), (greet, ""), (greet, "nobody")]
        ended = dict(cluster.run(calls, lambda place, line: told.append((place, line))))
        assert ended[0] is None
        assert isinstance(ended[1], UserError)
        assert str(ended[1]) == "nobody to greet"
        assert str(ended[2]).startswith("Ray gave it up: WorkerCrashedError")
        assert (0, "hello, you") in told
        assert {place for place, _ in told} <= {0, 2}
