"""What a manifest may declare of post-processing, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from mtlc.errors import BundleError
from mtlc.runtime.bundle.manifest_reader import read_manifest

TABLE = {"kind": "detection", "size": [16, 16], "strides": [8]}


def described() -> dict[str, Any]:
    """A bundle of one program whose output is raw detections of two classes, and its decoder."""
    return {
        "schema": 1,
        "tasks": {
            "detection": {
                "output": "raw", "shape": ["batch", 4, 7], "dtype": "float32", "kind": "boxes", "metric": "map",
                "unit": "%", "postprocess": dict(TABLE), "decoder": "decode.onnx",
            }
        },
        "inputs": [{"name": "image", "shape": ["batch", 3, 16, 16], "dtype": "float32"}],
        "preprocessing": None,
        "programs": [
            {"name": "net", "file": "net.onnx", "inputs": ["image"], "outputs": ["raw"], "tasks": ["detection"]}
        ],
        "configurations": [{"name": "default", "programs": ["net"]}],
        "device": None,
        "provenance": {},
        "files": {name: {"sha256": "0" * 64, "bytes": 1} for name in ("net.onnx", "decode.onnx", "decode.bin")},
    }  # fmt: skip


def read(manifest: dict[str, Any]) -> Any:
    return read_manifest(json.dumps(manifest).encode())


def test_a_good_one_comes_back():
    manifest = read(described())
    task = manifest.tasks["detection"]
    assert (task.postprocess.size, task.postprocess.score, task.decoder) == ((16, 16), 0.25, "decode.onnx")
    assert read(manifest.to_dict()) == manifest
    without = described()
    del without["tasks"]["detection"]["decoder"]  # the runtime needs none
    assert read(without).tasks["detection"].decoder is None
    for shape in (["batch", 3, "height", "width"], ["batch", 3, 16, "width"]):
        free = described()
        free["inputs"][0]["shape"] = shape
        assert read(free).tasks["detection"].postprocess is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"postprocess": []}, "tasks.detection.postprocess must be a table, it is "),
        ({"postprocess": TABLE | {"kind": "nms"}}, "tasks.detection.postprocess.kind = 'nms': must be 'detection'"),
        ({"postprocess": TABLE | {"iou": 2}}, "tasks.detection.postprocess.iou = 2: must lie between 0.0001 and 1"),
        ({"postprocess": TABLE | {"most": 10**9}}, "tasks.detection.postprocess.most = 1000000000: must be a whole"),
        ({"postprocess": TABLE | {"x": 1}}, "tasks.detection.postprocess.x is unknown; known: encoding, iou, kind, "),
        (
            {"postprocess": TABLE | {"strides": [4]}},
            "tasks.detection.postprocess: expected an output (N, 16, 5 + classes)",
        ),
        (
            {"postprocess": TABLE | {"names": ["a"]}},
            "tasks.detection.postprocess: postprocess.names has 1 names, but the output ('batch', 4, 7) has 2 classes",
        ),
        (
            {"postprocess": TABLE | {"size": [9, 16], "strides": [8]}},
            "tasks.detection.postprocess.size = [9, 16]: the bundle's inputs are [16, 16]",
        ),
        ({"shape": ["batch", 4, "d"]}, "tasks.detection.postprocess: expected an output (N, 4, 5 + classes)"),
        ({"shape": ["batch", 4]}, "tasks.detection.postprocess: expected an output (N, 4, 5 + classes)"),
        ({"kind": "labels"}, "tasks.detection.postprocess: is for a task of kind 'boxes', and this one is of 'labels'"),
        (
            {"dtype": "int64"},
            "tasks.detection.postprocess: is for an output in float16 or float32, and this one is int64",
        ),
        ({"postprocess": None}, "tasks.detection.decoder: the task has no postprocess for it to do"),
        ({"decoder": "other.onnx"}, "tasks.detection.decoder: its file 'other.onnx' is not in files"),
        ({"decoder": "decode.bin"}, "tasks.detection.decoder: its file 'decode.bin' must end in .onnx"),
        ({"decoder": "net.onnx"}, "tasks.detection.decoder: 'net.onnx' is another payload's file"),
        ({"decoder": "../decode.onnx"}, "tasks.detection.decoder: '../decode.onnx' is not a plain file name"),
    ],
)
def test_refusals(change: dict[str, Any], words: str):
    manifest = described()
    manifest["tasks"]["detection"] |= change
    with pytest.raises(BundleError) as caught:
        read(manifest)
    assert str(caught.value).startswith("manifest.json: " + words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_tasks_have_decoders_of_their_own():
    manifest = described()
    manifest["tasks"]["again"] = copy.deepcopy(manifest["tasks"]["detection"])
    manifest["programs"][0]["tasks"].append("again")
    with pytest.raises(BundleError, match=r"tasks.again.decoder: 'decode.onnx' is another payload's file"):
        read(manifest)
