"""Lists ways to damage a good bundle, each with the code that it must be refused with, for readers in any language.

``PYTHONPATH=tests python -m testkit.refusal_vectors`` writes them to ``tests/vectors/refusals.json`` as plain steps;
`damage` does them.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from testkit.hand_bundle import SHAPE, external, manifest, payloads, plus_head, slim_manifest, slim_payloads
from testkit.places import ROOT

VECTORS = ROOT / "tests" / "vectors" / "refusals.json"
Step = dict[str, Any]
Vector = dict[str, Any]

BOXES = {"kind": "detection", "size": [20, 20], "strides": [4, 10]}
"""25 + 4 points; with objectness five columns before the classes."""


def bases() -> dict[str, tuple[dict[str, bytes], dict[str, Any]]]:
    """The good bundles that are damaged: their payloads, and the manifest."""
    files, slim = payloads(), slim_payloads()
    return {"hand": (files, manifest(files)), "slim": (slim, slim_manifest(slim))}


def at(key: str, value: Any) -> Step:
    """Set the manifest's value at the dotted key; ``@`` in a part stands for a dot."""
    return {"set": [part.replace("@", ".") for part in key.split(".")], "value": value}


def without(key: str) -> Step:
    return {"remove": [part.replace("@", ".") for part in key.split(".")]}


def payload(name: str, data: bytes) -> Step:
    """Put these bytes in a payload's place; the manifest has their size and sum."""
    return {"payload": name, "base64": base64.b64encode(data).decode()}


def _head(nodes: Sequence[Any], stored: Mapping[str, Any] | None = None) -> bytes:
    """The program of less, which makes something beside what it is for."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (stored or {}).items()]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)] for name in ("s", "less")]
    made = helper.make_graph([*nodes, helper.make_node("Identity", ["s"], ["less"])], "g", *ports, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def _changed(change: Any) -> bytes:
    """The program plus with its model changed by a function."""
    model = ModelProto.FromString(plus_head(external("w", "weights.bin")))
    change(model)
    return model.SerializeToString()


def _nested(depth: int) -> bytes:
    """Branches of an If inside each other, written by hand: protobuf's library nests less."""

    def field(number: int, content: bytes) -> bytes:
        size, written = len(content), bytearray([number << 3 | 2])
        while size > 0x7F:
            written.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes([*written, size]) + content

    made = b""
    for _ in range(depth):  # GraphProto.node, NodeProto.op_type, .attribute, AttributeProto.name, .g
        made = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, made)))
    return b"\x08\x0a" + field(7, made)


def _programs() -> list[tuple[str, str, Step]]:
    def node(operator: str, inputs: list[str], made: str = "made", **attributes: Any) -> Any:
        return helper.make_node(operator, inputs, [made], **attributes)

    def ints(*numbers: int) -> np.ndarray:
        return np.array(numbers, np.int64)

    weight = external("w", "weights.bin")
    twice = external("w", "weights.bin")
    twice.external_data.add(key="offset", value="0")
    odd = external("w", "weights.bin")
    odd.external_data.add(key="basepath", value="/etc")
    written = external("w", "weights.bin")
    written.external_data[1].value = "0x0"
    body = helper.make_graph([], "body", [], [])
    plus = [
        ("a domain of somebody's", "graph-operator", plus_head(weight, "Evil", "my.domain")),
        ("an operator that loads files", "graph-operator", plus_head(weight, "EPContext", "com.microsoft")),
        ("weights beside the bundle", "graph-weights", plus_head(external("w", "../weights.bin"))),
        ("weights of the system", "graph-weights", plus_head(external("w", "/etc/passwd"))),
        ("weights beyond the end", "graph-weights", plus_head(external("w", "weights.bin", offset=8))),
        ("weights before the begin", "graph-weights", plus_head(external("w", "weights.bin", offset=-8))),
        ("a place given twice", "graph-weights", plus_head(twice)),
        ("a place with an unknown key", "graph-weights", plus_head(odd)),
        ("an offset that is no number", "graph-weights", plus_head(written)),
        ("a truncated program", "graph-damaged", plus_head(weight)[:-7]),
        ("text for a program", "graph-damaged", b"not an onnx file at all"),
        ("an empty program", "graph-damaged", b""),
        ("a model given twice", "graph-damaged", plus_head(weight) * 2),
        ("a field that ONNX does not have", "graph-damaged", plus_head(weight) + b"\xf8\x01\x01"),
        ("a tag of more than 32 bits", "graph-damaged", plus_head(weight) + b"\xba\x80\x80\x80\x80\x01\x00"),
        ("a function", "graph-content", _changed(lambda m: m.functions.add(name="f"))),
        ("a graph for training", "graph-content", _changed(lambda m: m.training_info.add())),
        (
            "options of the engine",
            "graph-content",
            _changed(lambda m: m.metadata_props.add(key="ort_config", value="{}")),
        ),
        ("a version of ONNX that is none", "graph-content", _changed(lambda m: setattr(m, "ir_version", 1001))),
        (
            "a version of operators that is none",
            "graph-content",
            _changed(lambda m: setattr(m.opset_import[0], "version", 1001)),
        ),
        ("a good program written anew", "ok", plus_head(weight)),
    ]
    less = [
        ("a loop", "graph-work", _head([node("Loop", ["n", ""], body=body)], {"n": np.int64(5)})),
        ("a constant of 4 GB", "graph-work", _head([node("ConstantOfShape", ["n"])], {"n": ints(1 << 30)})),
        (
            "a constant by a product",
            "graph-work",
            _head([node("Mul", ["n", "n"], "m"), node("ConstantOfShape", ["m"])], {"n": ints(1 << 20)}),
        ),
        (
            "a constant by Concat",
            "graph-work",
            _head([node("Concat", ["n", "n"], "m", axis=0), node("ConstantOfShape", ["m"])], {"n": ints(1 << 20)}),
        ),
        (
            "a constant by value_ints",
            "graph-work",
            _head([node("Constant", [], "n", value_ints=[1 << 20, 1 << 20]), node("ConstantOfShape", ["n"])]),
        ),
        (
            "a size that is computed in another way",
            "graph-work",
            _head([node("Abs", ["n"], "m"), node("ConstantOfShape", ["m"])], {"n": ints(4)}),
        ),
        ("repeats", "graph-work", _head([node("Tile", ["s", "n"])], {"n": ints(1 << 10, 1 << 10, 1 << 10, 1)})),
        (
            "a range of fractions",
            "graph-work",
            _head(
                [node("Range", ["a", "b", "c"])],
                {"a": np.float32(0), "b": np.float32(1), "c": np.float32(1e-20)},
            ),
        ),
        ("noise", "graph-work", _head([node("RandomNormal", [], shape=[1 << 20, 1 << 20])])),
        (
            "padding",
            "graph-work",
            _head([node("Pad", ["s", "n"])], {"n": ints(0, 0, 0, 0, 0, 0, 0, 1 << 40)}),
        ),
        (
            "a resize by scales",
            "graph-work",
            _head([node("Resize", ["s", "", "n"])], {"n": np.array([1, 1, 1e6, 1e6], np.float32)}),
        ),
        ("a stride", "graph-work", _head([node("MaxPool", ["s"], kernel_shape=[1 << 20, 1])])),
        ("graphs nested too deep", "graph-content", _nested(40)),
        ("graphs nested", "ok", _nested(10)),
        ("constants of modest size", "ok", _head([node("ConstantOfShape", ["n"])], {"n": ints(4, 4)})),
    ]
    return [(name, code, payload("head-plus.onnx", data)) for name, code, data in plus] + [
        (name, code, payload("head-less.onnx", data)) for name, code, data in less
    ]


def _keys() -> list[tuple[str, Step]]:
    """Codes, and the manifest's values that they are for."""
    task = manifest(payloads())["tasks"]["plus"]
    return [
        ("manifest-schema", at("schema", 2)),
        ("manifest-schema", at("schema", True)),
        ("manifest-schema", at("schema", 1.0)),
        ("manifest-schema", without("schema")),
        ("key-missing", without("tasks")),
        ("key-type", at("tasks", [])),
        ("key-value", at("tasks", {})),
        ("key-value", at("tasks.not a name", task)),
        ("key-value", at("tasks.1st", task)),
        ("flow", at("tasks.größe", {**task, "output": "größe"})),
        ("key-missing", without("tasks.plus.kind")),
        ("key-value", at("tasks.plus.kind", "sound")),
        ("key-value", at("tasks.plus.dtype", "complex64")),
        ("key-value", at("tasks.plus.shape", ["batch", -1])),
        ("key-value", at("tasks.plus.shape", ["batch", True])),
        ("key-value", at("tasks.plus.shape", ["batch", ""])),
        ("key-value", at("tasks.plus.shape", ["batch", 2.0])),
        ("key-type", at("tasks.plus.unit", None)),
        ("limit", at("tasks.plus.unit", "m" * 1001)),
        ("ok", at("tasks.plus.unit", "ü" * 1000)),
        ("key-value", at("tasks.plus.unit", "m\0")),
        ("flow", at("tasks.plus.output", "nowhere")),
        ("flow", at("tasks.plus.output", "square")),
        ("flow", at("tasks.plus.output", "x")),
        ("key-type", at("tasks.plus.classes", [1])),
        ("ok", at("tasks.plus.classes", ["sky", "road"])),
        ("ok", at("tasks.plus.classes", None)),
        ("key-value", at("inputs", [])),
        ("key-value", at("inputs.0.dtype", 5)),
        ("limit", at("inputs.0.shape", [1] * 33)),
        ("limit", at("inputs.0.shape", ["batch", 1 << 20, 1 << 20])),
        ("limit", at("inputs.0.shape", [1 << 70])),
        ("ok", at("inputs.0.shape", [1 << 70, 0])),
        ("twice", at("inputs", [{"name": "x", "shape": SHAPE, "dtype": "float32"}] * 2)),
        ("ok", at("preprocessing", None)),
        ("ok", at("preprocessing", {})),
        ("ok", at("preprocessing", {"mean": 2, "std": 3})),
        ("key-value", at("preprocessing.std", [0, 1, 1])),
        ("key-value", at("preprocessing.mean", [1, 2])),
        ("key-value", at("preprocessing.color", "CMYK")),
        ("key-type", at("preprocessing.scale", "big")),
        ("key-type", at("preprocessing.scale", True)),
        ("key-value", at("preprocessing.scale", 10**400)),
        ("key-unknown", at("preprocessing.gamma", 2)),
        ("ok", at("preprocessing", {"resize": "pad", "fill": 255})),
        ("key-value", at("preprocessing.resize", "crop")),
        ("key-value", at("preprocessing.fill", 256)),
        ("key-type", at("preprocessing.fill", None)),
        ("flow", at("programs.0.inputs", ["y"])),
        ("flow", at("programs.0.tasks", ["plus"])),
        ("reference", at("programs.0.tasks", ["other"])),
        ("reference", at("programs.0.tasks", [])),
        ("reference", at("programs.0.file", "other.onnx")),
        ("file-name", at("programs.0.file", "weights.bin")),
        ("twice", at("programs.1.name", "trunk")),
        ("flow", at("programs.1.outputs", ["t"])),
        ("flow", at("programs.1.outputs", ["s", "s"])),
        ("reference", at("programs.0.names", {"z": "y"})),
        ("ok", at("programs.0.names", {"x": "x"})),
        ("key-type", at("programs.0.constants", {"task": "1"})),
        ("key-value", at("programs.0.constants", {"task": -1})),
        ("key-value", at("programs.0.macs", -1)),
        ("key-value", at("programs.0.macs", 1 << 62)),
        ("key-type", at("programs.0.macs", 1.5)),
        ("experts", at("programs.0.experts", _layer(stride=1))),
        ("experts", at("programs.0.experts", _layer())),
        ("experts", at("programs.0.experts", _layer(width=1 << 40, hidden=1 << 40, stride=1 << 61))),
        ("key-missing", at("configurations", [])),
        ("reference", at("configurations.0.programs", ["no"])),
        ("key-missing", at("configurations.0.encoder", "e")),
        ("key-type", at("device", 5)),
        ("ok", at("device", "raspberry-pi-5")),
        ("key-type", at("provenance", [])),
        ("ok", at("provenance", {"a": [[{"b" * 2000: None}]]})),
        ("key-type", at("files", {"weights.bin": 5})),
        ("key-value", at("files.weights@bin.sha256", "0" * 63)),
        ("key-value", at("files.weights@bin.sha256", "A" * 64)),
        ("key-value", at("files.weights@bin.bytes", -1)),
        ("key-value", at("files.weights@bin.bytes", 1.5)),
        ("file-size", at("files.weights@bin.bytes", 5)),
        ("limit", at("files.weights@bin.bytes", 1 << 40)),
        ("limit", at("files.weights@bin.bytes", 1 << 90)),
        *(
            ("file-name", at(f"files.{name}", {"sha256": "0" * 64, "bytes": 1}))
            for name in (
                "@@/outside",
                "/etc/passwd",
                "a/b",
                "@@",
                "c:x",
                "back\\slash",
                "",
                "manifest@json",
                "a\u202eb",
            )
        ),
        ("file-missing", at("files.other@bin", {"sha256": "0" * 64, "bytes": 1})),
        ("file-missing", at("files.größe@bin", {"sha256": "0" * 64, "bytes": 1})),
        ("twice", at("files.Weights@bin", manifest(payloads())["files"]["weights.bin"])),
        ("ok", at("dimensions", {"batch": [1, 2, 8]})),
        ("key-value", at("dimensions", {"batch": [2, 1, 8]})),
        ("key-value", at("dimensions", {"batch": [1, 2]})),
        ("key-type", at("dimensions", {"batch": [1, 2, "8"]})),
        ("ok", at("quantization", {"precision": "int8", "target": "x86", "weights": "reduced"})),
        ("key-value", at("quantization", {"precision": "int4", "target": "x86", "weights": "reduced"})),
        ("twice", at("engines", {"trunk.onnx": _engine("shared.onnx")})),
        ("ok", at("engines", {"trunk.onnx": _engine("weights.bin")})),
        ("reference", at("engines", {"other.onnx": _engine("weights.bin")})),
        ("reference", at("engines", {"trunk.onnx": _engine("trunk.engine")})),
        ("key-value", at("engines", {"trunk.onnx": {**_engine("weights.bin"), "compute_capabilities": ["8"]}})),
        ("key-value", at("engines", {"trunk.onnx": {**_engine("weights.bin"), "compute_capabilities": []}})),
        ("reference", at("openvino", _ir({}))),
        ("reference", at("openvino", _ir({name: "a.xml" for name in payloads() if name.endswith("onnx")}))),
        ("postprocess", at("tasks.plus.postprocess", BOXES)),
        ("postprocess", at("tasks.plus.decoder", "trunk.onnx")),
        ("postprocess", at("tasks.plus", {**task, "kind": "boxes", "postprocess": {**BOXES, "strides": [4, 4]}})),
        ("postprocess", at("tasks.plus", _boxes([1, 28, 8]))),
        ("postprocess", at("tasks.plus", _boxes([1, 29, 5]))),
        ("postprocess", at("tasks.plus", _boxes([1, 29, 8], names=["a"]))),
        ("postprocess", at("tasks.plus", _boxes([1, 29, 8], score=0))),
        ("postprocess", at("tasks.plus", _boxes([1, 29, 8], size=[24, 20], strides=[4]))),
        ("ok", at("tasks.plus", _boxes([1, 29, 8], names=["a", "b", "c"], objectness=True))),
        ("ok", at("tasks.plus", _boxes(["batch", 29, 5], objectness=False, encoding="center_size", most=1))),
        ("twice", at("tasks.plus", {**_boxes([1, 29, 8]), "decoder": "trunk.onnx"})),
    ]


def _layer(**changed: int) -> dict[str, Any]:
    return {"file": "weights.bin", "offset": 0, "stride": 4096, "count": 1, "width": 4, "hidden": 4} | changed


def _engine(file: str) -> dict[str, Any]:
    return {
        "file": file, "precision": "fp16", "module": "tensorrt", "version": "10.0", "gpu": None,
        "compute_capabilities": ["8.6", "12.0"],
    }  # fmt: skip


def _ir(files: dict[str, str]) -> dict[str, Any]:
    return {"files": files, "weights": "weights.bin", "shared_bytes": 0, "half": False, "version": "2026"}


def _boxes(shape: list[Any], **changed: Any) -> dict[str, Any]:
    task = copy.deepcopy(manifest(payloads())["tasks"]["plus"])
    return {**task, "kind": "boxes", "shape": shape, "postprocess": BOXES | changed}


def _slim_keys() -> list[tuple[str, Step]]:
    first = "widths.encoders.0"
    return [
        ("key-value", at("widths.widths", [1.0, 0.5])),
        ("key-value", at("widths.widths", [0, 0.5])),
        ("key-value", at("widths.widths", [])),
        ("widths", at("widths.stages", ["one"])),
        ("widths", at("widths.reference.near", 0)),
        ("reference", without("widths.reference.near")),
        ("reference", at("widths.reference.sky", 1)),
        ("key-type", at("widths.higher_is_better.near", 0)),
        ("key-value", at("widths.encoders", [])),
        ("twice", at("widths.encoders.1.name", "wide")),
        ("widths", at(f"{first}.widths", [1.0])),
        ("reference", at(f"{first}.programs", ["trunk@wide", "nothing"])),
        ("reference", at(f"{first}.programs", ["trunk"])),
        ("reference", without(f"{first}.decoders.near")),
        ("key-value", at(f"{first}.decoders.near", [])),
        ("key-value", at(f"{first}.decoders.near.0.width", 0.5)),
        ("key-value", at(f"{first}.decoders.near.0.width", 1.5)),
        ("key-value", at(f"{first}.decoders.near.0.metric", 10**400)),
        ("widths", at("widths.reference.near", 1e-320)),
        ("flow", at(f"{first}.decoders.near.0.programs", [])),
        ("key-missing", without("programs.0.macs")),
        ("twice", at("configurations.1.name", "default")),
        ("reference", at("configurations.0.encoder", "vast")),
        ("reference", at("configurations.0.decoders.near", 0.75)),
        ("reference", without("configurations.0.decoders.near")),
        ("widths", at("configurations.0.encoder", "middle")),
        ("flow", without("widths")),
        ("flow", at("configurations.1.programs", [])),
    ]


def _steps() -> list[tuple[str, str, str, list[Step]]]:
    """Name, base, code, steps."""
    made = [("nothing", base, "ok", []) for base in bases()]
    made += [(name, "hand", code, [step]) for name, code, step in _programs()]
    made += [
        ("an altered byte", "hand", "file-digest", [{"flip": "weights.bin", "at": 100}]),
        ("a truncated file", "hand", "file-size", [{"truncate": "weights.bin", "by": 1}]),
        ("a file that grew", "hand", "file-size", [{"append": "weights.bin", "text": "x"}]),
        ("a file that is gone", "hand", "file-missing", [{"delete": "trunk.onnx"}]),
        ("a link in a file's place", "hand", "file-kind", [{"link": "weights.bin"}]),
        ("a folder in a file's place", "hand", "file-kind", [{"folder": "weights.bin"}]),
        ("a pipe in a file's place", "hand", "file-kind", [{"pipe": "weights.bin"}]),
        ("a file that is not listed", "hand", "ok", [{"text": "notes.txt", "content": "mine"}]),
        ("no manifest", "hand", "not-a-bundle", [{"delete": "manifest.json"}]),
        ("a linked manifest", "hand", "file-kind", [{"link": "manifest.json"}]),
        ("a manifest of 8 MiB and more", "hand", "manifest-size", [{"pad": "manifest.json", "bytes": (8 << 20) + 1}]),
    ]
    texts = [
        "", "{", "[1", "nul", "{} {}", '{"schema": NaN}', '{"schema": -Infinity}', '{"schema": 1, "schema": 1}',
        "[" * 100_000, "\0", "\ufeff{}", '"\t"', '"\\x"', '"\\u12"', "[01]", "[1.]", "[.5]", "[1e]", "[+1]", "[1,]",
        '{"a" 1}', "{1: 2}", "'a'", '{"provenance": {"a": 1, "b": {"c": 1, "c": 2}}}', "9" * 5000,
    ]  # fmt: skip
    made += [(f"a manifest {text[:20]!r}", "hand", "manifest-damaged", [_manifest(text)]) for text in texts]
    made += [
        (f"a manifest {text[:20]!r}", "hand", code, [_manifest(text)])
        for text, code in (
            ("[]", "key-type"), ("null", "key-type"), ('"\\ud800\\udc00"', "key-type"), ("1E400", "key-type"),
            ('{"schema": 2}', "manifest-schema"), ('{"\\ud800": 1}', "key-value"),
        )
    ]  # fmt: skip
    latin = {"hex": "manifest.json", "content": "22ff22"}
    made.append(("a manifest that is not UTF-8", "hand", "manifest-damaged", [latin]))
    for number, (code, step) in enumerate(_keys()):
        made.append((f"{_key(step)} ({number})", "hand", code, [step]))
    for number, (code, step) in enumerate(_slim_keys()):
        made.append((f"slim {_key(step)} ({number})", "slim", code, [step]))
    return made


def _manifest(content: str) -> Step:
    return {"text": "manifest.json", "content": content}


def _key(step: Step) -> str:
    return ".".join(step.get("set", step.get("remove", [])))


def vectors() -> list[Vector]:
    """All of them, as they are written."""
    return [{"name": name, "base": base, "code": code, "steps": steps} for name, base, code, steps in _steps()]


def write_vectors() -> None:
    made = {
        "bases": {
            name: {
                "manifest": described,
                "payloads": {file: base64.b64encode(data).decode() for file, data in files.items()},
            }
            for name, (files, described) in bases().items()
        },
        "vectors": vectors(),
    }
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(made, indent=1) + "\n")


def read_vectors() -> tuple[dict[str, Any], list[Vector]]:
    """The bases and the vectors of the file."""
    read = json.loads(VECTORS.read_text())
    return read["bases"], read["vectors"]


def damage(folder: Path, base: Mapping[str, Any], steps: Sequence[Step]) -> Path:
    """Write the base at `folder`, with the steps done to it: first those of the manifest, then those of files."""
    described = copy.deepcopy(base["manifest"])
    files = {name: base64.b64decode(data) for name, data in base["payloads"].items()}
    for step in steps:
        if "payload" in step:
            data = files[step["payload"]] = base64.b64decode(step["base64"])
            described["files"][step["payload"]] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        elif "set" in step or "remove" in step:
            _edit(described, step)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(described))
    for step in steps:
        _damage_file(folder, step)
    return folder


def _edit(described: dict[str, Any], step: Step) -> None:
    *path, last = step.get("set", step.get("remove"))
    inside: Any = described
    for part in path:
        inside = inside[int(part)] if isinstance(inside, list) else inside[part]
    place: Any = int(last) if isinstance(inside, list) else last
    if "remove" in step:
        del inside[place]
    else:
        inside[place] = step["value"]


def _damage_file(folder: Path, step: Step) -> None:
    kind, name = next(iter(step.items()))
    if kind in ("set", "remove", "payload"):
        return
    path = folder / name
    if kind in ("delete", "folder", "pipe"):
        path.unlink()
    if kind == "flip":
        data = bytearray(path.read_bytes())
        data[step["at"]] ^= 1
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(path.read_bytes()[: -step["by"]])
    elif kind == "append":
        path.write_bytes(path.read_bytes() + step["text"].encode())
    elif kind == "link":
        shutil.move(path, folder / "elsewhere")
        path.symlink_to(folder / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text(step["content"])
    elif kind == "hex":
        path.write_bytes(bytes.fromhex(step["content"]))
    elif kind == "pad":
        path.write_bytes(path.read_bytes().ljust(step["bytes"]))


if __name__ == "__main__":
    write_vectors()
