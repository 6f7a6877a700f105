"""Connects to a Ray cluster, and has functions called on its machines that tell how they get on. Needs ``mtlc[ray]``.

Ray itself calls a function again whose worker or machine died; functions are such that they go on from what is kept.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import mtlc
from mtlc.errors import Unavailable, UserError, one_line
from mtlc.extras import missing_extra
from mtlc.log import Log, silent

LOCAL = "local"
"""The address of a cluster that is started on this machine, and ends with this process."""
RETRIES = 10
"""How often a call is made again after the death of its worker or machine."""
_REACH_S, _POLL_S, _FLUSH_S = 5.0, 0.5, 20.0

Call = tuple[Callable[[Any, Log], None], Any]
"""A function of a module that all machines have, and its argument; it is also given where to tell lines."""


class Cluster:
    """A connection to a Ray cluster; see `connected`."""

    def __init__(self, ray: Any, started: bool, dashboard: str) -> None:
        self._ray, self._started = ray, started
        self.dashboard = dashboard
        """Address of the cluster's dashboard; empty where it has none."""

    def run(
        self, calls: Sequence[Call], say: Callable[[int, str], None], *, cores: int = 1, gpus: int = 0,
        at_once: int | None = None,
    ) -> Iterator[tuple[int, BaseException | None]]:  # fmt: skip
        """Make the calls, each with so many cores and GPUs; yield each one's place when it has ended.

        With it comes what it raised, as it was raised there; None where it came to its end. `say` is given the place
        of a call and the lines that it tells. `at_once` is how many run at a time at most, by default all that find
        room.
        """
        ray = self._ray
        self._check_room(cores, gpus, lambda line: say(0, line))
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        # On this machine, so that it does not go with another one; where it does, another one takes its place.
        lines = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Lines).remote()
        # A worker process of its own for each call: what a call leaves in torch or in memory is not the next one's.
        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES, max_calls=1)(_called)
        waiting, running = list(enumerate(calls)), dict[Any, int]()
        try:
            while waiting or running:
                while waiting and (at_once is None or len(running) < at_once):
                    place, (function, argument) = waiting.pop(0)
                    running[remote.remote(mtlc.__version__, function, argument, place, lines)] = place
                done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
                self._pass_on(lines, say)
                for reference in done:
                    place = running.pop(reference)
                    yield place, self._raised(reference)
        finally:
            for reference in running:
                with suppress(Exception):
                    ray.cancel(reference, force=True)
            with suppress(Exception):
                ray.kill(lines)

    def most_cores(self) -> int:
        """The cores of the machine of now that has most."""
        return int(max((node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]), default=0))

    def _check_room(self, cores: int, gpus: int, log: Log) -> None:
        """Tell where no machine of now has room for a call: Ray would wait without a word, for one that may come."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in nodes):
            most = max((node.get("CPU", 0) for node in nodes), default=0)
            wanted = f"{cores} core{'' if cores == 1 else 's'}" + (f" and {gpus} GPU" if gpus else "")
            log(f"warning: no machine of the cluster has {wanted} (the largest has {most:g} cores); waiting for one")

    def _pass_on(self, lines: Any, say: Callable[[int, str], None]) -> None:
        with suppress(self._ray.exceptions.RayError):  # lines may be lost; results may not
            for place, line in self._ray.get(lines.take.remote()):
                say(place, line)

    def _raised(self, reference: Any) -> BaseException | None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else UserError(one_line(error))
        except self._ray.exceptions.RayError as error:
            return UserError(f"Ray gave it up: {one_line(error)}")
        return None


class _Lines:
    """Keeps the lines of calls until they are fetched."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, str]] = []

    def tell(self, place: int, line: str) -> None:
        self._lines.append((place, line))

    def arrived(self) -> None:
        """Nothing: whoever waits for it knows that what it told before is here."""

    def take(self) -> list[tuple[int, str]]:
        taken, self._lines = self._lines, []
        return taken


def _called(version: str, function: Callable[[Any, Log], None], argument: Any, place: int, lines: Any) -> None:
    """What a worker does."""
    if version != mtlc.__version__:
        raise UserError(f"a machine of the cluster has mtlc {mtlc.__version__}, this one {version}: install the same")
    import ray

    try:
        function(argument, lambda line: lines.tell.remote(place, line))
    finally:
        # The worker ends with the call: what it told must have arrived. Its calls arrive in their order.
        with suppress(ray.exceptions.RayError):
            ray.get(lines.arrived.remote(), timeout=_FLUSH_S)


@contextmanager
def connected(address: str, log: Log = silent) -> Iterator[Cluster]:
    """The cluster at `address` for as long as the block runs; ``local`` starts one on this machine.

    `log` is told where its dashboard is. A connection that this process has already is taken as it is, and stays.
    Raises `Unavailable` where Ray is not installed or the cluster cannot be reached.
    """
    ray, started, dashboard = connect(address)
    if dashboard:
        log(f"dashboard of the cluster: http://{dashboard}")
    try:
        yield Cluster(ray, started, dashboard)
    finally:
        if started:
            ray.shutdown()


def connect(address: str) -> tuple[Any, bool, str]:
    """Ray, connected to the cluster; whether it was not so before; and the address of the dashboard, if there is one.

    Raises as `connected` does.
    """
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise missing_extra("ray") from error
    if ray.is_initialized():
        return ray, False, ""
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    else:
        _check_reachable(address)
    try:
        context = ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, AssertionError, …
        raise _unreachable(address, one_line(error)) from error
    return ray, True, str(getattr(context, "dashboard_url", None) or "")


def _check_reachable(address: str) -> None:
    """Raise where nobody listens at ``HOST:PORT`` or ``ray://HOST:PORT``: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        if address == "auto":
            return
        raise UserError(f"--ray {address}: give HOST:PORT, ray://HOST:PORT, auto or {LOCAL}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, one_line(error)) from None


def _unreachable(address: str, why: str) -> Unavailable:
    return Unavailable(
        f"--ray {address}: the cluster cannot be reached ({why}); start one with `ray start --head`, or give "
        f"--ray {LOCAL} for one on this machine"
    )
