"""Runs a function in several processes that train together, forked from the test's: nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from mtlc.compress.training.process_group import ProcessGroup, join, leave
from mtlc.compress.training.shared_training import all_done, help_until_done, packed, unpacked
from mtlc.evaluation.splits import Splits


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def together(splits: Splits, lead: Callable[[], Any], count: int = 2) -> Any:
    """What `lead` returns in the first of `count` processes, while the others take part in its trainings.

    What it raises, or another process does, is an AssertionError with the traceback.
    """

    def body(group: ProcessGroup) -> Any:
        if group.leads:
            found = lead()
            all_done(group)
            return found
        return help_until_done(group, splits)

    return each(body, count)[0]


def each(body: Callable[[ProcessGroup], Any], count: int = 2) -> list[Any]:
    """What `body` returns in each of `count` processes."""
    context = multiprocessing.get_context("fork")
    port, pipes, children = free_port(), [], []
    for rank in range(count):
        ours, theirs = context.Pipe(duplex=False)
        children.append(context.Process(target=_child, args=(rank, count, port, body, theirs)))
        children[-1].start()
        theirs.close()
        pipes.append(ours)
    found = []
    try:
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(100), f"process {rank} does not end"
            kind, value = pipe.recv()
            assert kind == "done", f"process {rank}: {value}"
            found.append(unpacked(value))
    finally:
        for child in children:
            child.join(5)
            child.kill()
    return found


def _child(rank: int, count: int, port: int, body: Callable[[ProcessGroup], Any], pipe: Any) -> None:
    torch.set_num_threads(1)  # OpenMP's threads did not come along into the fork
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        group = join()
        assert group is not None
        value = body(group)
        leave()
        pipe.send(("done", packed(value)))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
    finally:
        pipe.close()
        os._exit(0)
