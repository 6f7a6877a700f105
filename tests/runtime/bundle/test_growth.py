"""What opening a bundle costs grows with its bytes and no faster, whatever is in its manifest."""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from testkit.hand_bundle import manifest, payloads, slim_manifest, slim_payloads, write

from mtlc.errors import BundleError
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle import limits, payload_checks
from mtlc.runtime.bundle.manifest_reader import read_manifest

FILES = dict.fromkeys(payloads(), b"")
SLIM_FILES = dict.fromkeys(slim_payloads(), b"")


def names(count: int, stem: str = "n") -> list[str]:
    return [f"{stem}{i}" for i in range(count)]


def plain(**changes: Any) -> dict:
    return manifest(FILES) | changes


def with_inputs(n: int) -> dict:
    """Many inputs and many tasks, each of one byte or two: every task on every input."""
    described = plain()
    described["inputs"] += [{"name": name, "shape": [], "dtype": "bool"} for name in names(n)]
    one = described["tasks"]["plus"]
    described["tasks"] |= dict.fromkeys(names(min(n, 900), "t"), one)
    described["programs"][0]["tasks"] = described["programs"][2]["tasks"] = list(described["tasks"])
    return described


def with_names(n: int) -> dict:
    described = plain()
    described["programs"][0] |= {"inputs": ["x"], "outputs": ["t", *names(n)], "names": dict.fromkeys(names(n), "y")}
    return described


def with_an_unknown_name(n: int) -> dict:
    described = with_names(n)
    described["programs"][0]["names"]["no"] = "y"
    return described


def with_a_long_name(n: int) -> dict:
    """The name is in the key of each of its classes."""
    described = plain()
    described["tasks"]["a" * n] = described["tasks"]["plus"] | {"classes": [""] * n}
    return described


def with_a_long_text(n: int) -> dict:
    described = plain()
    described["configurations"][0]["name"] = "d" * n
    described["configurations"] += [{"name": f"{i}", "programs": ["no" * n]} for i in range(3)]
    return described


def with_tasks_read_again(n: int) -> dict:
    """A program of many tasks that reads many tensors of such programs."""
    described = plain()
    tasks = names(min(n, 900), "t")
    described["tasks"] |= dict.fromkeys(tasks, described["tasks"]["plus"])
    every = list(described["tasks"])
    described["programs"][0] |= {"tasks": every, "outputs": ["t", *names(n)]}
    described["programs"][2] |= {"tasks": every, "inputs": ["t", *names(n)]}
    described["configurations"][0]["programs"] = [p["name"] for p in described["programs"]]
    return described


def with_programs_of_one_file(n: int) -> dict:
    described = plain()
    described["programs"] += [
        {"name": name, "file": "trunk.onnx", "inputs": ["x"], "outputs": [name], "tasks": ["plus"]} for name in names(n)
    ]
    return described


def with_engines(n: int) -> dict:
    described = with_programs_of_one_file(n)
    described["files"] |= {f"{name}.onnx": described["files"]["trunk.onnx"] for name in names(n)}
    for place, name in enumerate(names(n)):
        described["programs"][5 + place]["file"] = f"{name}.onnx"
    described["engines"] = {
        f"{name}.onnx": {
            "file": "weights.bin", "precision": "fp32", "module": "tensorrt", "version": "1", "gpu": None,
            "compute_capabilities": ["8.6"],
        }
        for name in reversed(names(n))
    }  # fmt: skip
    for place, engine in enumerate(described["engines"].values()):
        described["engines"][list(described["engines"])[place]] = engine | {"file": f"e{place}"}
        described["files"][f"e{place}"] = described["files"]["trunk.onnx"]
    return described


def with_configurations(n: int) -> dict:
    described = plain()
    described["configurations"] += [{"name": name, "programs": ["trunk"]} for name in names(n)]
    return described


def with_encoders(n: int) -> dict:
    """Many encoders, each of which names programs of many tensors, among many inputs of the bundle."""
    described = slim_manifest(SLIM_FILES)
    described["inputs"] += [{"name": name, "shape": [], "dtype": "bool"} for name in names(n)]
    described["programs"][0]["outputs"] += names(n, "o")
    first = described["widths"]["encoders"][0]
    described["widths"]["encoders"] += [first | {"name": name} for name in names(n // 4)]
    return described


def with_slim_configurations(n: int) -> dict:
    described = slim_manifest(SLIM_FILES)
    first = described["configurations"][0]
    described["programs"][0]["outputs"] += names(n, "o")
    described["configurations"] += [first | {"name": name} for name in names(n)]
    return described


def with_a_name_twice(n: int) -> dict:
    described = with_slim_configurations(n)
    described["programs"][0]["outputs"] = ["t"]
    described["configurations"].append(described["configurations"][-1])
    return described


def with_decoders(n: int) -> dict:
    described = slim_manifest(SLIM_FILES)
    row = described["widths"]["encoders"][0]["decoders"]["near"]
    described["widths"]["encoders"][0]["decoders"]["near"] = [
        row[0] | {"width": (i + 1) / (n + 1)} for i in range(n)
    ] + row[-1:]
    return described


def with_an_unknown_program(n: int) -> dict:
    described = slim_manifest(SLIM_FILES)
    described["widths"]["encoders"][0]["programs"][0] = "p" * 900
    described["programs"] += [described["programs"][0] | {"name": f"{'q' * 100}{i}"} for i in range(n // 5)]
    return described


def with_provenance(n: int) -> dict:
    return plain(provenance={"a" * n: [[[]]] * n})


def with_a_wrong_value(n: int) -> dict:
    return plain(device=["x" * n] * 3, quantization={"precision": ["y" * n]})


FAMILIES = [
    with_inputs, with_names, with_an_unknown_name, with_a_long_name, with_a_long_text, with_tasks_read_again,
    with_programs_of_one_file, with_engines, with_configurations, with_encoders, with_slim_configurations,
    with_a_name_twice, with_decoders, with_an_unknown_program, with_provenance, with_a_wrong_value,
]  # fmt: skip


LINES_ALLOWED = 12 * limits.FREE_TENSORS
"""What may be looked at whatever the manifest's size, in lines."""


def opened(data: bytes) -> None:
    try:
        read_manifest(data)
    except BundleError as error:
        if len(str(error)) > 2000:
            raise AssertionError("a message without an end") from error


def lines_run(data: bytes) -> int:
    """How many lines of mtlc are run to read a manifest."""
    count = 0

    def step(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return step

    def begin(frame: FrameType, event: str, argument: object) -> Any:
        return step if "mtlc" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        opened(data)
    finally:
        sys.settrace(before)
    return count


def peak(data: bytes) -> int:
    """The most bytes that reading a manifest takes at a time."""
    tracemalloc.start()
    try:
        opened(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_lines_and_memory_grow_with_the_bytes(family: Callable[[int], dict]):
    small, large = (json.dumps(family(n)).encode() for n in (150, 600))
    factor = len(large) / len(small)
    assert factor > 1.5
    assert lines_run(large) <= 1.3 * factor * lines_run(small) + LINES_ALLOWED
    assert peak(large) <= peak(small) + 60 * (len(large) - len(small))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_seconds_grow_with_the_bytes(family: Callable[[int], dict]):
    """What no line shows: sets that are made, texts that are copied."""

    def seconds(data: bytes) -> float:
        found = []
        for _ in range(3):
            begun = time.process_time()
            opened(data)
            found.append(time.process_time() - begun)
        return min(found)

    small, large = (json.dumps(family(n)).encode() for n in (2000, 16000))
    assert seconds(large) <= 2 * len(large) / len(small) * seconds(small) + 0.02
    assert seconds(large) < 2e-6 * len(large) + 0.05


def test_limits(tmp_path):
    """Each is refused in one line that says how many there may be."""
    for described, message in (
        (with_programs_of_one_file(limits.MAX_PROGRAMS), "programs has 10005 entries, more than 10000"),
        (plain(tasks=dict.fromkeys(names(1001), plain()["tasks"]["plus"])), "tasks has 1001 entries, more than 1000"),
        (with_slim_configurations(2000), "name large programs too often: they have more than"),
        (with_decoders(64), "decoders.near has 65 entries, more than 64"),
        (with_encoders(16_000), "widths.encoders has 4003 entries, more than 4000"),
        (with_a_long_name(1001), "tasks: 'aaaaaaaaaaaaaaaaaaaa'… has 1001 characters, more than the 1000 of a name"),
        (plain(device="d" * 1001), "device: 'dddddddddddddddddddd'… has 1001 characters, more than the 1000"),
    ):
        with pytest.raises(BundleError) as caught:
            read_manifest(json.dumps(described).encode())
        assert message in str(caught.value)


def test_experts_have_a_limit():
    described = plain()
    layer = {"file": "weights.bin", "offset": 0, "stride": 16, "count": 60_000, "width": 1, "hidden": 1}
    described["files"]["weights.bin"]["bytes"] = 16 * 60_000
    described["programs"][0] |= {"inputs": ["x"] * 3, "experts": layer}
    read_manifest(json.dumps(described).encode())
    described["programs"][1] |= {"inputs": ["t"] * 3, "experts": layer}
    with pytest.raises(BundleError, match="programs have more than 100000 experts in all"):
        read_manifest(json.dumps(described).encode())


def test_a_file_of_many_programs_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looked = []
    check = payload_checks.check_graph
    monkeypatch.setattr(
        payload_checks, "check_graph", lambda path, sizes: looked.append(path.name) or check(path, sizes)
    )
    described = manifest(payloads())
    described["programs"] += with_programs_of_one_file(500)["programs"][5:]
    with open_bundle(write(tmp_path / "b", payloads(), described)):
        pass
    assert sorted(looked) == sorted(name for name in payloads() if name.endswith(".onnx"))


def test_a_session_takes_lines_in_proportion_too(tmp_path: Path):
    """A plan of many expert layers looks each of them up, not through all."""
    taken = []
    for n in (200, 800):
        files = payloads() | {"e.bin": bytes(16 * n)}
        described = manifest(files)
        described["programs"] += [
            {
                "name": name, "file": "shared.onnx", "inputs": ["x"] * 3, "outputs": [name], "tasks": ["plus"],
                "experts": {"file": "e.bin", "offset": 16 * i, "stride": 16, "count": 1, "width": 1, "hidden": 1},
            }
            for i, name in enumerate(names(n))
        ]  # fmt: skip
        compared = 0
        with Session(write(tmp_path / f"{n}", files, described)) as session:
            layer = type(session.manifest.programs[-1].experts)
            equal = layer.__eq__

            def count(one: object, other: object, equal: Any = equal) -> Any:
                nonlocal compared
                compared += 1
                return equal(one, other)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(layer, "__eq__", count)
                assert len(session.programs(["plus"])) == 2 + n
        taken.append(compared)
    assert taken[1] <= 5 * max(taken[0], 200)
