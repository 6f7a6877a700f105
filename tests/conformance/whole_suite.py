"""Runs the suite: every network in a process of its own, whose time and memory are watched.

    python -m conformance.whole_suite [NAME...] [--work FOLDER] [--own] [--part 1/2] [--verbs VERB...] [--again VERB...]

What is finished is not run again (`FOLDER/NAME.json`). A verb that takes too long, or too much memory, is ended and
kept as such; the next goes on. At the end what breaks the rules (`rules`) is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # before torch is imported

import torch
from testkit.places import ROOT

from conformance.catalogue import OF_OTHERS, OWN, collection, modules
from conformance.one_network import VERBS, run_verbs
from mtlc.compress.pipeline.own_code import code_version
from mtlc.compress.pipeline.users_code import code_hash
from mtlc.telemetry import switch_off_onnxruntime, switch_off_openvino

WORK = ROOT / "runs" / "conformance"
SECONDS = {"plan": 60.0, "torch_pruning": 45.0, "prune": 420.0, "slim": 180.0}
"""The most processor time that a verb may take, in s; of other verbs `OTHERWISE`."""
OTHERWISE = 120.0
WAITING = 10
"""A verb may take as many times as long by the clock: others may use the processor too, but something may hang."""
BYTES = 6 * 2**30
"""The most memory that a network may take."""
_POLL = 0.25


def record(work: Path, name: str) -> dict[str, Any]:
    """What is known of a network so far."""
    path = work / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def run(name: str, work: Path, verbs: Sequence[str] = VERBS) -> None:
    """Run all verbs of one network. A process that had to be ended is followed by one that goes on behind it."""
    for _ in range(12):  # more often than there are verbs
        if {"facts", *verbs} <= set(record(work, name)):
            return
        ended = _watched(name, work, verbs)
        if ended is None:
            continue
        found = record(work, name)
        verb = found.pop("now", {"verb": "facts"})["verb"]
        found[verb] = {"exit": 1, "error": ended}
        (work / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        if verb == "facts":
            return  # it cannot even be built


def _watched(name: str, work: Path, verbs: Sequence[str]) -> str | None:
    """Run the verbs that are left in one process; why it ended before its end, or None."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(name, work, verbs), daemon=True)
    process.start()
    first = {"verb": "facts", "since": time.time(), "spent": 0.0}
    while process.is_alive():
        process.join(_POLL)
        known = record(work, name)
        now = known.get("now", {} if "facts" in known else first)
        if not now:  # between two verbs
            continue
        since = max(now["since"], first["since"])  # what an ended process began is not this one's
        limit = SECONDS.get(now["verb"], OTHERWISE)
        why = None
        if _spent(process.pid or 0) - now["spent"] > limit:
            why = f"not done after {limit:g} s of processor time"
        elif time.time() - since > WAITING * limit:
            why = f"not done after {WAITING * limit:g} s"
        elif _memory(process.pid or 0) > BYTES:
            why = f"more than {BYTES / 2**30:g} GiB of memory"
        if why is not None:
            process.kill()
            process.join()
            return why
    if process.exitcode == 0:
        return None
    last = [line for line in (work / f"{name}.log").read_text().splitlines() if line.strip()]
    return f"ended with {process.exitcode}: {last[-1] if last else 'no output'}"


def _child(name: str, work: Path, verbs: Sequence[str]) -> None:
    """What the process of one network does; what libraries print goes to its log."""
    log = os.open(work / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    run_verbs(name, work, verbs)


def _import_once(names: Sequence[str]) -> None:
    """What the processes of these networks need is imported once, before they are forked: it takes longer than most
    verbs."""
    switch_off_onnxruntime()
    switch_off_openvino()
    warnings.simplefilter("ignore")
    code_version()
    code_hash(["conformance.catalogue", "conformance.noise"])
    layer = torch.nn.Conv2d(1, 1, 1)  # exporting one loads what exporting any needs
    torch.onnx.export(layer, (torch.zeros(1, 1, 2, 2),), dynamo=True, verbose=False)
    for module in ("torch_pruning", "onnxscript", "onnxruntime", "nncf", "openvino", "mtlc.workflows.run",
                   "mtlc.workflows.slim", "mtlc.workflows.quantize", "mtlc.workflows.plan"):  # fmt: skip
        import_module(module)
    for package in {name.partition("_")[0] for name in names} & set(OF_OTHERS):
        import_module(f"conformance.{OF_OTHERS[package]}")


def _spent(process: int) -> float:
    """Seconds of processor time that a process has used, 0 where it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)
    except (OSError, IndexError, ValueError):
        return 0.0


def _memory(process: int) -> int:
    """Bytes that a process holds, 0 where it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="default: all that can be built here")
    parser.add_argument("--work", type=Path, default=WORK, help="where results lie and networks are worked on")
    parser.add_argument("--own", action="store_true", help="only networks of the suite's own code")
    parser.add_argument("--again", nargs="*", default=None, metavar="VERB", help="forget these verbs' results first")
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=VERBS, help="default: all")
    parser.add_argument("--part", default="1/1", help="of N processes, this one's share: 1/2 and 2/2")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    names = options.names or [name for module in (OWN if options.own else modules()) for name in collection(module)]
    part, parts = (int(number) for number in options.part.split("/"))
    names = names[part - 1 :: parts]
    _import_once(names)
    for number, name in enumerate(names, 1):
        if options.again is not None:
            kept = {k: v for k, v in record(options.work, name).items() if options.again and k not in options.again}
            (options.work / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
        started = time.monotonic()
        run(name, options.work, options.verbs)
        found = record(options.work, name)
        exits = " ".join(f"{verb}={entry['exit']}" for verb, entry in found.items() if "exit" in (entry or {}))
        print(f"{number}/{len(names)} {name}: {exits} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
