"""Bundles that were damaged or made to harm: each is refused in one line, before a backend sees it."""

import gc
import itertools
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from testkit.hand_bundle import (
    SHAPE,
    W,
    expected,
    external,
    graph,
    info,
    payloads,
    plus_head,
    slim_manifest,
    slim_payloads,
    write,
)

from mtlc.errors import BundleError, UserError
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle.manifest_reader import read_manifest


def refused(path: Path, *parts: str) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message
    return message


def pack(folder: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return target


def test_an_altered_byte(bundle):
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[100] ^= 1
    (bundle / "weights.bin").write_bytes(data)
    refused(bundle, "weights.bin was altered or damaged")


def test_a_truncated_file(bundle):
    data = (bundle / "weights.bin").read_bytes()
    (bundle / "weights.bin").write_bytes(data[:-1])
    refused(bundle, f"weights.bin is {W.nbytes - 1} bytes, the manifest says {W.nbytes}")


def test_missing_files(bundle, tmp_path):
    (bundle / "trunk.onnx").unlink()
    refused(bundle, "trunk.onnx is missing")
    (bundle / "manifest.json").unlink()
    refused(bundle, "not a bundle (no manifest.json)")
    with pytest.raises(UserError, match="no such bundle"):
        open_bundle(tmp_path / "nothing")


def test_a_symbolic_link(bundle, tmp_path):
    shutil.move(bundle / "weights.bin", tmp_path / "elsewhere")
    (bundle / "weights.bin").symlink_to(tmp_path / "elsewhere")
    refused(bundle, "weights.bin is not a plain file")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", "c:x", "back\\slash", "", "manifest.json"])
def test_file_names_that_lead_elsewhere(make_bundle, name):
    made = make_bundle(edit=lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    refused(made, "is not a plain file name inside the bundle")


def test_names_that_differ_in_case(make_bundle):
    def edit(m):
        m["files"]["Weights.bin"] = m["files"]["weights.bin"]

    refused(make_bundle(edit=edit), "are one file where case is ignored")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            plus_head(external("w", "weights.bin"), "Evil", "my.domain"),
            "the operator my.domain.Evil is not on the list",
        ),
        (
            plus_head(external("w", "weights.bin"), "EPContext", "com.microsoft"),
            "com.microsoft.EPContext is not on the list",
        ),
        (
            plus_head(external("w", "../weights.bin")),
            "a weight lies in '../weights.bin', which is not a file of the bundle",
        ),
        (plus_head(external("w", "/etc/passwd")), "a weight lies in '/etc/passwd'"),
        (plus_head(external("w", "weights.bin", offset=8)), "a weight lies beyond the end of 'weights.bin'"),
        (plus_head(external("w", "weights.bin", offset=-8)), "a weight lies beyond the end of 'weights.bin'"),
        (plus_head(external("w", "weights.bin"))[:-7], "not a whole ONNX file"),
        (b"not an onnx file at all", "not a whole ONNX file"),
        (b"", "the file is empty"),
    ],
)
def test_programs_that_are_not_taken(make_bundle, head, message):
    refused(make_bundle({"head-plus.onnx": head}), "head-plus.onnx", message)


def test_operators_and_weights_of_inner_graphs_are_seen(make_bundle):
    """The same checks inside the branches of an If."""

    def conditional(inner, weights):
        branch = helper.make_graph([inner], "branch", [], [info("r")], weights)
        yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        node = helper.make_node("If", ["yes"], ["plus"], then_branch=branch, else_branch=branch)
        return graph("plus", [node], ["t"], ["plus"], [yes])

    evil = conditional(helper.make_node("Evil", ["t"], ["r"], domain="my.domain"), [])
    made = make_bundle({"head-plus.onnx": evil})
    refused(made, "my.domain.Evil")
    shutil.rmtree(made)
    stolen = conditional(helper.make_node("Add", ["t", "w"], ["r"]), [external("w", "/etc/passwd")])
    refused(make_bundle({"head-plus.onnx": stolen}), "/etc/passwd")


def test_a_constant_that_lies_elsewhere(make_bundle):
    nodes = [
        helper.make_node("Constant", [], ["w"], value=external("w", "/etc/passwd")),
        helper.make_node("Add", ["t", "w"], ["plus"]),
    ]
    refused(make_bundle({"head-plus.onnx": graph("plus", nodes, ["t"], ["plus"], [])}), "/etc/passwd")


def test_a_zip_runs_and_leaves_nothing_behind(bundle, x, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    packed = pack(bundle, tmp_path / "bundle.mtlc")
    with Session(packed) as session:
        assert len(list(scratch.iterdir())) == 1
        for task, array in session.run(x).items():
            np.testing.assert_allclose(array, expected(x)[task], rtol=1e-6)
    assert list(scratch.iterdir()) == []


def test_a_forgotten_session_leaves_nothing_behind(bundle, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    session = Session(pack(bundle, tmp_path / "bundle.mtlc"))
    assert len(list(scratch.iterdir())) == 1
    del session
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_a_truncated_zip(bundle, tmp_path):
    packed = pack(bundle, tmp_path / "bundle.zip")
    packed.write_bytes(packed.read_bytes()[:-50])
    refused(packed, "not a bundle folder and not a whole zip file")
    packed.write_bytes(b"")
    refused(packed, "not a whole zip file")


def test_an_altered_zip_leaves_nothing_behind(bundle, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[7] ^= 1
    (bundle / "weights.bin").write_bytes(data)
    refused(pack(bundle, tmp_path / "bundle.zip"), "weights.bin was altered")
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_damaged_byte_of_a_zip_is_one_line(bundle, tmp_path, method):
    path = pack(bundle, tmp_path / "b.mtlc", method)
    whole, generator = path.read_bytes(), np.random.default_rng(method)
    open_bundle(path).close()
    refused: list[str] = []
    for place in generator.choice(len(whole), 60, replace=False).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            open_bundle(path).close()
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert not any("\n" in line or "(Success)" in line for line in refused)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused_before_anything_is_decoded(bundle, tmp_path, method):
    path = pack(bundle, tmp_path / "b.mtlc", method)
    with pytest.raises(UserError, match="is compressed in a way that bundles are not: store or deflate it"):
        open_bundle(path)


def test_a_zip_bomb(bundle, tmp_path):
    files = payloads() | {"weights.bin": bytes(30 << 20)}
    (bundle / "weights.bin").write_bytes(files["weights.bin"])
    packed = pack(bundle, tmp_path / "bomb.zip", zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 100_000
    refused(packed, "the entry 'weights.bin' unpacks to more than 100 times its size")


def test_a_zip_that_is_too_large(bundle, tmp_path, monkeypatch):
    from mtlc.runtime.bundle import archive

    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 2000)
    refused(pack(bundle, tmp_path / "bundle.zip"), "it unpacks to more than")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "c:\\evil"])
def test_zip_entries_that_lead_elsewhere(bundle, tmp_path, name):
    packed = pack(bundle, tmp_path / "bundle.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, b"evil")
    refused(packed, "leads out of the bundle")


def test_zip_entries_twice_or_linked(bundle, tmp_path):
    packed = pack(bundle, tmp_path / "twice.zip")
    with zipfile.ZipFile(packed, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("weights.bin", b"other")
    refused(packed, "the entry 'weights.bin' is there twice")
    packed = pack(bundle, tmp_path / "link.zip")
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(packed, "the entry 'link' is a symbolic link")


def edited(key: str, value: object):
    """An edit of the manifest: set the dotted `key`, or delete it if `value` is ``...``."""

    def edit(m: dict) -> None:
        *path, last = key.split(".")
        for part in path:
            m = m[int(part)] if isinstance(m, list) else m[part]
        if value is ...:
            del m[last]
        elif isinstance(m, list):
            m[int(last)] = value
        else:
            m[last] = value

    return edit


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "schema 2, this mtlc reads 1"),
        ("schema", True, "schema True, this mtlc reads 1"),
        ("schema", ..., "schema None, this mtlc reads 1"),
        ("tasks", ..., "tasks is missing"),
        ("tasks", [], "tasks must be a table, it is a list"),
        ("tasks", {}, "tasks is empty"),
        ("tasks.plus.kind", "sound", "tasks.plus.kind = 'sound': must be one of labels"),
        ("tasks.plus.dtype", "complex64", "tasks.plus.dtype = 'complex64'"),
        ("tasks.plus.shape", ["batch", -1], "tasks.plus.shape[1] must be a size or a name, it is -1"),
        ("tasks.plus.shape", ["batch", True], "tasks.plus.shape[1] must be a size or a name, it is True"),
        ("tasks.plus.unit", None, "tasks.plus.unit must be text, it is nothing"),
        ("tasks.plus.output", "nowhere", "tasks.plus.output: no program of the task makes 'nowhere'"),
        ("tasks.plus.output", "square", "tasks.plus.output: no program of the task makes 'square'"),
        ("tasks.plus.classes", [1], "tasks.plus.classes[0] must be text, it is a int"),
        ("inputs", [], "inputs is empty"),
        ("inputs.0.dtype", 5, "inputs[0].dtype = 5"),
        ("preprocessing.std", [0, 1, 1], "preprocessing.std must be above zero"),
        ("preprocessing.mean", [1, 2], "preprocessing.mean has 2 values"),
        ("preprocessing.scale", "big", "preprocessing.scale must be a finite number"),
        ("preprocessing.scale", 10**400, "preprocessing.scale must be a finite number"),
        ("preprocessing.gamma", 2, "preprocessing.gamma is unknown"),
        ("programs.0.inputs", ["y"], "program 'trunk': no earlier program makes its input 'y'"),
        ("programs.0.tasks", ["plus"], "program 'shared': its input 't' is not made for all of its tasks"),
        ("programs.0.tasks", ["other"], "program 'trunk': tasks must name one or more of"),
        ("programs.0.file", "other.onnx", "program 'trunk': its file 'other.onnx' is not in files"),
        ("programs.0.file", "weights.bin", "program 'trunk': its file 'weights.bin' must end in .onnx"),
        ("programs.1.name", "trunk", "program 'trunk' is listed twice"),
        ("programs.1.outputs", ["t"], "program 'shared': its output 't' is made twice"),
        ("configurations", [], "configurations: there is no 'default'"),
        ("configurations.0.programs", ["no"], "configurations: 'default' names a program that is not there"),
        (
            "configurations.0.encoder",
            "e",
            "configurations[0] has one of encoder and decoders: it needs both or neither",
        ),
        ("programs.0.macs", -1, "programs[0].macs must be a whole number, zero or more, it is -1"),
        ("programs.0.macs", 1.5, "programs[0].macs must be a whole number, zero or more, it is 1.5"),
        ("files", {"weights.bin": 5}, "files.weights.bin must be a table"),
        ("device", 5, "device must be text"),
        ("inputs.0.shape", [1] * 33, "inputs[0].shape has 33 dimensions, more than 32"),
        ("inputs.0.shape", ["batch", 1 << 20, 1 << 20], "more than 2147483648 elements"),
    ],
)
def test_manifests_that_do_not_fit(make_bundle, key, value, message):
    refused(make_bundle(edit=edited(key, value)), message)


@pytest.mark.parametrize(
    "entry", [{"sha256": "xyz", "bytes": 1}, {"sha256": "0" * 64, "bytes": -1}, {"sha256": "0" * 64, "bytes": 1.5}]
)
def test_checksums_that_are_none(make_bundle, entry):
    refused(make_bundle(edit=lambda m: m["files"].update({"weights.bin": entry})), "files.weights.bin.")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": NaN}', '{"schema": 1, "schema": 1}', "[" * 100_000, "\x00"]
)
def test_manifests_that_are_not_json(bundle, text):
    (bundle / "manifest.json").write_text(text)
    refused(bundle, "manifest")


def test_the_manifest_survives_a_round_trip(bundle):
    raw = json.loads((bundle / "manifest.json").read_text())
    manifest = read_manifest(json.dumps(raw).encode())
    assert manifest.to_dict() == raw
    assert list(manifest.inputs[0].shape) == SHAPE


def test_an_encoder_in_a_bundle_without_widths(make_bundle):
    def edit(m):
        m["configurations"][0].update(encoder="e", decoders={})

    refused(make_bundle(edit=edit), "configurations: 'default': it names an encoder, and the bundle has no widths")


def test_a_manifest_with_widths_survives_a_round_trip(slim_bundle):
    raw = json.loads((slim_bundle / "manifest.json").read_text())
    manifest = read_manifest(json.dumps(raw).encode())
    assert manifest.to_dict() == raw
    assert manifest.widths is not None
    assert manifest.widths.encoders[1].decoders["near"][2].metric == 1.05
    assert manifest.programs[0].macs == 40_000_000
    assert manifest.configurations[1].decoders == {"near": 0.25, "far": 0.5}


WIDE = "widths.encoders.0"
NEAR = f"{WIDE}.decoders.near"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("widths", [], "widths must be a table, it is a list"),
        (
            "widths.widths",
            [0.5, 0.25, 1.0],
            "widths.widths: must be one or more widths, from narrow to wide, each once",
        ),
        ("widths.widths", [], "widths.widths: must be one or more widths"),
        ("widths.widths", [0.0, 1.0], "widths.widths[0] must be above 0 and at most 1, it is 0.0"),
        ("widths.stages", ["stage1"], "widths: encoder 'wide': 2 widths for the 1 stages"),
        ("widths.stages.0", 1, "widths.stages[0] must be text, it is a int"),
        ("widths.reference.near", ..., "widths.reference: task 'near' is missing"),
        ("widths.reference.nera", 1.0, "widths.reference: there is no task 'nera'; did you mean 'near'?"),
        ("widths.reference.near", 0, "widths.reference.near is 0: a relative change is undefined"),
        ("widths.reference.near", 10**400, "widths.reference.near must be a finite number"),
        ("widths.reference.near", 1e-310, "wide': near at 0.25: metric 1.075 is out of proportion to its reference"),
        ("widths.higher_is_better.far", 1, "widths.higher_is_better.far must be true or false, it is 1"),
        ("widths.higher_is_better", {"near": True}, "widths.higher_is_better: task 'far' is missing"),
        ("widths.encoders", [], "widths.encoders is empty"),
        ("widths.encoders.1.name", "wide", "widths: encoder 'wide': it is listed twice"),
        (f"{WIDE}.widths", [1.0, 1.5], "widths.encoders[0].widths[1] must be above 0 and at most 1, it is 1.5"),
        (
            f"{WIDE}.programs.0",
            "trunk@wyde",
            "encoder 'wide': there is no program 'trunk@wyde'; did you mean 'trunk@wide'?",
        ),
        (f"{WIDE}.programs.1", "trunk@wide", "encoder 'wide': program 'trunk@wide' is listed twice"),
        (
            f"{WIDE}.programs",
            ["neck@wide", "trunk@wide"],
            "program 'neck@wide': no earlier program makes its input 't'",
        ),
        (
            f"{WIDE}.programs",
            ["trunk@wide"],
            "wide': far at 0.5: program 'head-far@wide-0.5': no earlier program makes its",
        ),
        (
            f"{WIDE}.programs",
            ["trunk@wide", "neck@wide", "trunk@middle"],
            "'trunk@middle': its output 't' is made twice",
        ),
        (f"{WIDE}.decoders.far", ..., "encoder 'wide': decoders: task 'far' is missing"),
        (
            f"{WIDE}.decoders.far",
            [],
            "widths.encoders[0].decoders.far: must be one or more widths, from narrow to wide",
        ),
        (f"{NEAR}.1.width", 0.25, "widths.encoders[0].decoders.near: must be one or more widths, from narrow to wide"),
        (f"{NEAR}.0.width", True, "widths.encoders[0].decoders.near[0].width must be a finite number, it is True"),
        (f"{NEAR}.0.metric", None, "widths.encoders[0].decoders.near[0].metric must be a finite number, it is None"),
        (f"{NEAR}.0.programs", [], "encoder 'wide': near at 0.25: no program makes its output 'near'"),
        (f"{NEAR}.0.programs.0", "head-far@wide-0.5", "program 'head-far@wide-0.5' is not one of near alone"),
        (f"{NEAR}.0.programs.0", "trunk@wide", "program 'trunk@wide' is not one of near alone"),
        ("programs.0.macs", ..., "widths: encoder 'wide': program 'trunk@wide' has no macs"),
        ("programs.2.macs", ..., "widths: encoder 'wide': near at 0.25: program 'head-near@wide-0.25' has no macs"),
        ("programs.2.inputs", ["u"], "program 'head-near@wide-0.25': its input 'u' is not made for all of its tasks"),
        ("programs.2.inputs", ["far"], "program 'head-near@wide-0.25': no earlier program makes its input 'far'"),
        ("programs.2.outputs", ["near", "far"], "far at 0.5: tensor 'far' is also made by a decoder of near"),
        ("programs.2.outputs", ["near", "t"], "program 'head-near@wide-0.25': its output 't' is made twice"),
        ("configurations.0.encoder", "wyde", "'default': there is no encoder 'wyde'; did you mean 'wide'?"),
        ("configurations.0.encoder", "middle", "'default': programs are not those of its encoder and decoders"),
        ("configurations.0.decoders.near", 0.3, "'default': encoder 'wide' has no decoder of near at 0.3"),
        ("configurations.0.decoders.near", 0.5, "'default': programs are not those of its encoder and decoders"),
        ("configurations.0.decoders", {"near": 1}, "'default': decoders: task 'far' is missing"),
        ("configurations.0.decoders", ..., "configurations[0] has one of encoder and decoders"),
        (
            "configurations.0.programs.2",
            "neck@middle",
            "'default': program 'neck@middle': its output 'u' is made twice",
        ),
        ("configurations.1.name", "default", "configurations: 'default' is listed twice"),
        ("configurations.0.name", "all", "configurations: there is no 'default'"),
    ],
)
def test_widths_that_do_not_fit(tmp_path, key, value, message):
    described = slim_manifest()
    edited(key, value)(described)
    refused(write(tmp_path / "made", slim_payloads(), described), message)


def places(value, path=()):
    """The paths of everything inside a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(inner, (*path, key))


DESCRIBED = slim_manifest(dict.fromkeys(slim_payloads(), b""))
PLACES = [path for path in places(DESCRIBED) if path[0] in ("programs", "configurations", "widths", "tasks")]
NAMES = sorted({program["name"] for program in DESCRIBED["programs"]} | {"t", "u", "near", "far", "wide", "x"})
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(NAMES)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), json_values | st.just(...)), min_size=1, max_size=2))
def test_any_damage_is_refused_or_leaves_graphs_that_run(damage):
    """One line, or every encoder with every width of its decoders makes each tensor once, after what it is made of."""
    described = json.loads(json.dumps(DESCRIBED))
    for path, value in damage:
        at = described
        try:
            for part in path[:-1]:
                at = at[part]
            if value is ...:
                del at[path[-1]]
            else:
                at[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            pass  # the damage before it took the place away
    try:
        manifest = read_manifest(json.dumps(described).encode())
    except BundleError as error:
        lines = len(str(error).splitlines())
    else:
        lines = 1
        run_by_hand(manifest)
    assert lines == 1


def run_by_hand(manifest):
    """Every full choice of widths, program by program."""
    programs = {program.name: program for program in manifest.programs}
    for encoder in manifest.widths.encoders if manifest.widths is not None else ():
        for points in itertools.product(*(encoder.decoders[task] for task in manifest.tasks)):
            made = {tensor.name for tensor in manifest.inputs}
            for name in (*encoder.programs, *(name for point in points for name in point.programs)):
                assert programs[name].macs >= 0
                assert made >= set(programs[name].inputs)
                assert made.isdisjoint(programs[name].outputs)
                made.update(programs[name].outputs)
            assert made >= {task.output for task in manifest.tasks.values()}


def test_program_path(bundle):
    with open_bundle(bundle) as opened:
        assert opened.program_path("shared") == bundle / "shared.onnx"
        with pytest.raises(UserError, match="no program 'shard'; did you mean 'shared'"):
            opened.program_path("shard")
