"""Official checkpoints become networks of ours bit for bit, and whatever does not fit is an error that names it.

`testkit.official_checkpoint` writes the official layout on its own: every tensor's place is spelt out there once more.
"""

from __future__ import annotations

import argparse
import json
import os
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from testkit.official_checkpoint import HEAD, HIDDEN, IMAGE, PATCH, TASKS, D, E, network, official, randomised, write
from torch import Tensor

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.job.job import load_job
from mtlc.zoo.m3vit import M3ViT, m3vit
from mtlc.zoo.m3vit_checkpoint import Imported, import_checkpoint, read_checkpoint


def read(path: Path, **asked: Any) -> Imported:
    return import_checkpoint(path, **{"image_size": IMAGE, "top_k": 2, "heads": 2, **asked})


def same_outputs(one: M3ViT, other: M3ViT) -> bool:
    image = torch.randn(2, 3, *IMAGE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        a, b = one(image), other(image)
    assert len({value.std().item() for value in a.values()}) == len(a)  # they say something
    return list(a) == list(b) and all(torch.equal(a[task], b[task]) for task in a)


def sharded(state: dict[str, Tensor], folder: Path, ranks: int) -> Path:
    folder.mkdir()
    experts = {key: value.chunk(ranks) for key, value in state.items() if ".experts." in key}
    for rank in range(ranks):
        own = {key: parts[rank].clone() for key, parts in experts.items()}
        torch.save({"state_dict": {**(state if rank == 0 else {}), **own}}, folder / f"{rank}.pth")
    return folder


# --- What comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["multi", "conditioned", "single"])
def test_the_imported_network_computes_the_same(tmp_path: Path, gate: str):
    made = network(gate)
    state = official(made)
    assert state["backbone.blocks.1.mlp.experts.htoh4.weight"].shape == (E, HIDDEN, D)
    assert state["backbone.blocks.1.mlp.experts.h4toh.weight"].shape == (E, D, HIDDEN)
    got = read(write(tmp_path, state))
    assert same_outputs(got.network, made)
    assert not got.network.training
    assert got.args == {
        "size": "micro", "image_size": list(IMAGE), "tasks": TASKS, "gate": gate, "top_k": 2, "experts": E,
        "width": D, "heads": 2, "blocks": 4, "patch": PATCH, "head_width": HEAD, "expert_width": HIDDEN,
    }  # fmt: skip
    again = m3vit(**got.args)
    again.load_state_dict(got.network.state_dict())
    assert same_outputs(again.eval(), made)


def test_tiny_where_a_wrong_transpose_shows(tmp_path: Path):
    torch.manual_seed(0)
    made = randomised(m3vit("tiny", {"semseg": 7, "depth": 1}, expert_width=384, head_width=16))
    state = official(made)
    shapes = {
        "backbone.pos_embed": (1, 129, 192),
        "backbone.blocks.1.mlp.experts.htoh4.weight": (16, 384, 192),
        "backbone.blocks.1.mlp.experts.h4toh.weight": (16, 192, 384),
        "backbone.blocks.11.mlp.gate.1.w_gate": (192, 16),
        "decoders.semseg.conv_4.weight": (7, 16, 1, 1),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    got = import_checkpoint(write(tmp_path, state))
    assert got.args == {
        "size": "tiny", "image_size": [128, 256], "tasks": {"semseg": 7, "depth": 1}, "gate": "multi", "top_k": 4,
        "expert_width": 384, "head_width": 16,
    }  # fmt: skip
    ours, theirs = got.network.state_dict(), made.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "optimizer": {"state": {}}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: state | {"tam_model0.conv.weight": torch.ones(2), "backbone.tam.1.bias": torch.ones(1)},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
)
def test_what_is_around_the_tensors_does_not_matter(tmp_path: Path, wrap: Callable[[dict], dict]):
    made = network()
    assert same_outputs(read(write(tmp_path, wrap(official(made)))).network, made)


def test_the_file_may_be_safetensors(tmp_path: Path):
    made = network()
    save_file(official(made), tmp_path / "c.safetensors")
    assert same_outputs(read(tmp_path / "c.safetensors").network, made)


def test_the_authors_files_are_read_as_they_are(tmp_path: Path):
    """``best_model.pth.tar`` with the epoch, the optimiser, and metrics that are NumPy scalars, inside lists too."""
    made = network()
    state = {f"module.{key}": value for key, value in official(made).items()}
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9).state_dict()
    metrics = {
        "multi_task_performance": np.float64(-2.5),
        "semseg": {"mIoU": np.float64(0.3), "jaccards_all_categs": [np.float32(0.1), np.float64(0.2)]},
        "normals": {"mean": np.float32(14.5), "better": np.bool_(True), "count": np.int64(3)},
    }
    whole = {
        "epoch": 61, "backbone": "VisionTransformer_moe", "state_dict": state, "best_result": metrics,
        "optimizer": optimiser,
    }  # fmt: skip
    for name in ("best_model.pth.tar", "checkpoint.pt.tar", "checkpoint.pth"):
        assert same_outputs(read(write(tmp_path, whole, name)).network, made)
    torch.save(whole, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert same_outputs(read(tmp_path / "old.pth.tar").network, made)
    save_folder = tmp_path / "folder" / "best_model.pth.tar"  # what distributed training leaves under that name
    save_folder.mkdir(parents=True)
    experts = {key: value.chunk(2) for key, value in state.items() if ".experts." in key}
    for rank in range(2):
        own = {key: parts[rank].clone() for key, parts in experts.items()}
        write(save_folder, whole | {"state_dict": {**(state if rank == 0 else {}), **own}}, f"{rank}.pth")
    assert same_outputs(read(save_folder).network, made)


@pytest.mark.parametrize("home", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_scalars_of_either_numpy(tmp_path: Path, home: str):
    """NumPy 1 and 2 name the function differently; a file of either is read with either."""
    made = network()
    path = write(tmp_path, {"state_dict": official(made), "metric": np.float64(0.25)})
    own = np.float64(0).__reduce__()[0].__module__
    rewritten = tmp_path / "other.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rewritten, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert content.count(f"c{own}\nscalar\n".encode()) == 1
                content = content.replace(f"c{own}\n".encode(), f"c{home}\n".encode())
            target.writestr(entry, content)
    assert same_outputs(read(rewritten).network, made)


class Harmful:
    """An object whose unpickling would call something."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = (call, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(lambda path: Harmful(os.mkdir, str(path)), id="a call"),
        pytest.param(lambda path: Harmful(exec, f"import os; os.mkdir({str(path)!r})"), id="code"),
        pytest.param(lambda _: np.ones(3), id="a NumPy array"),
        pytest.param(lambda _: np.array([{}]), id="an array of objects"),
        pytest.param(lambda _: Path("x"), id="a path"),
        pytest.param(lambda _: argparse.Namespace(lr=0.1), id="the options"),
    ],
)
def test_nothing_else_is_allowed(tmp_path: Path, extra: Callable[[Path], Any]):
    """Only NumPy scalars, only while a checkpoint is read, and nothing that a file names is called."""
    allowed = set(torch.serialization.get_safe_globals())
    state = official(network())
    path = write(tmp_path, {"state_dict": state, "metric": np.float64(1), "args": extra(tmp_path / "made")})
    with pytest.raises(UserError, match=r"damaged, or holds objects besides tensors, which are not loaded") as refusal:
        read(path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "made").exists()
    assert set(torch.serialization.get_safe_globals()) == allowed
    read(write(tmp_path, {"state_dict": state}))
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_dtype_described_wrongly_reaches_no_numpy(tmp_path: Path):
    """NumPy itself would refuse these, or worse; here they are not even looked at."""
    made = network()
    for bad in (("O8", b"12345678"), ("f8", b"1"), ("V99999999", b"x"), (3.5, None)):
        scalar = Harmful(np.float64(0).__reduce__()[0], Harmful(np.dtype, bad[0]), bad[1])
        path = write(tmp_path, {"state_dict": official(made), "metric": scalar})
        assert same_outputs(read(path).network, made)


def test_a_scalar_among_the_tensors_is_refused(tmp_path: Path):
    state = official(network()) | {"backbone.scale": np.float64(2)}
    with pytest.raises(UserError, match=r"'backbone.scale' is a NumpyScalar; a state dict holds tensors by name"):
        read(write(tmp_path, state))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_are_joined_in_order(tmp_path: Path, ranks: int):
    made = network()
    folder = sharded(official(made), tmp_path / "ranks", ranks)
    (folder / "log.txt").write_text("not a rank")
    assert same_outputs(read(folder).network, made)


def test_rank_ten_comes_after_rank_two(tmp_path: Path):
    (tmp_path / "ranks").mkdir()
    key = "backbone.blocks.1.mlp.experts.htoh4.bias"
    for rank in range(11):
        torch.save({key: torch.full((1, 3), float(rank))}, tmp_path / "ranks" / f"{rank}.pth")
    assert read_checkpoint(tmp_path / "ranks")[key][:, 0].tolist() == list(range(11))


def test_gates_are_numbered_in_the_order_of_the_tasks(tmp_path: Path):
    """Whatever the order of the decoders in the file."""
    made = network()
    state = official(made)
    heads = {key: value for key, value in state.items() if key.startswith("decoders.")}
    rest = {key: value for key, value in state.items() if key not in heads}
    reordered = dict(reversed(heads.items())) | rest
    got = read(write(tmp_path, reordered)).network
    assert got.tasks == ("semseg", "normals", "depth")
    assert torch.equal(got.backbone.blocks[1].mlp.router.weight[2], state["backbone.blocks.1.mlp.gate.2.w_gate"])
    assert same_outputs(got, made)


def test_a_gate_stored_as_a_linear_layer_is_turned(tmp_path: Path):
    made = network()
    state = {key: value.T.contiguous() if "w_gate" in key else value for key, value in official(made).items()}
    assert state["backbone.blocks.1.mlp.gate.0.w_gate"].shape == (E, D)
    assert same_outputs(read(write(tmp_path, state)).network, made)


def test_half_precision_is_widened(tmp_path: Path):
    state = {key: value.half() if value.is_floating_point() else value for key, value in official(network()).items()}
    got = read(write(tmp_path, state)).network
    assert {parameter.dtype for parameter in got.parameters()} == {torch.float32}
    assert torch.equal(got.backbone.pos_embed, state["backbone.pos_embed"].float())


# --- What is refused ------------------------------------------------------------------------------------------------


def without(*parts: str) -> Callable[[dict], dict]:
    return lambda state: {key: value for key, value in state.items() if not any(part in key for part in parts)}


def changed(key: str, change: Callable[[Tensor], Any]) -> Callable[[dict], dict]:
    return lambda state: {**state, key: change(state[key])}


def with_nan(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


GATE = "backbone.blocks.3.mlp.gate.2.w_gate"
HTOH4 = "backbone.blocks.1.mlp.experts.htoh4.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("cls_token"), r"has no 'backbone.cls_token', so it is no checkpoint of M³ViT"),
        (without("htoh4.weight"), r"has no 'backbone.blocks.1.mlp.experts.htoh4.weight': a network without experts"),
        (without("blocks.3.mlp.experts.h4toh.bias"), r"has no 'backbone.blocks.3.mlp.experts.h4toh.bias'; is the"),
        (without("blocks.1.attn.qkv.bias"), r"has no 'backbone.blocks.1.attn.qkv.bias'"),
        (without("blocks.2."), r"has no 'backbone.blocks.2', though 'backbone.blocks.3' is there"),
        (without("blocks.3.mlp.gate"),
         r"has no '.*blocks.3.mlp.gate.0.w_gate' \(the router of task 'semseg' in block 3\)"),
        (without("gate"), r"the gates are missing"),
        (without("decoders"), r"the heads are missing"),
        (without("depth.conv_0"), r"has no 'decoders.depth.conv_0', though 'decoders.depth.conv_2' is there"),
        (without("depth.syncbn_fc_1.bias"), r"has no '.*syncbn_fc_1.bias' \(the head of task 'depth'\)"),
        (without("decoders.depth"), r"blocks.1.mlp.gate has the gates 0, 1, 2, but the decoders are of 2 tasks"),
        (without("gate.1."), r"blocks.1.mlp.gate has the gates 0, 2, but the decoders are of 3 tasks: semseg, normals"),
        (lambda s: s | {"decoders.dept.norm.bias": s["backbone.cls_token"]},
         r"decoders.dept: an unknown task.*'depth'"),
        (lambda s: s | {"backbone.norm.weight": torch.ones(D)}, r"'backbone.norm.weight' is left over"),
        (lambda s: s | {"a": torch.ones(1), "b": torch.ones(1)}, r"'a' \(and 1 more\) is left over"),
        (lambda s: s | {"module.backbone.cls_token": s["backbone.cls_token"]}, r"'backbone.cls_token' is there twice"),
        (changed("backbone.pos_embed", lambda t: t[:, :-1]),
         r"pos_embed has 6 positions.* images of 8x12 have 6; give"),
        (changed("backbone.pos_embed", lambda t: t[0]),
         r"backbone.pos_embed is \(7, 10\), but it must have 3 dimensions"),
        (changed(HTOH4, lambda t: t.mT), r"blocks.1.mlp.experts.htoh4.weight is \(6, 10, 7\), but it must be"),
        (changed(GATE, lambda t: t[:-1]),
         r"blocks.3.mlp.gate.2.w_gate is \(9, 6\), .*\(the router of task 'depth' in block 3"),
        (changed(GATE, lambda t: t[:, :-1]),
         r"w_gate is \(10, 5\), but there are 6 experts; if the checkpoint is distrib"),
        (changed(GATE, with_nan), r"w_gate holds NaN or infinite values \(the router of task 'depth' in block 3\)"),
        (changed("decoders.semseg.norm.bias", with_nan),
         r"decoders.semseg.norm.bias holds NaN .*head of task 'semseg'"),
        (changed("backbone.cls_token", lambda t: t.int()),
         r"cls_token holds torch.int32, but it must hold torch.float32"),
        (changed("backbone.cls_token", lambda t: 3.0), r"'backbone.cls_token' is a float; a state dict holds tensors"),
        (changed("backbone.patch_embed.proj.weight", lambda t: t[..., :2, :]),
         r"patch_embed.proj.weight is \(10, 3, 2, 4\)"),
        (lambda s: [1], r"holds no tensors by name"),
        (lambda s: {"state_dict": {}}, r"holds no tensors by name"),
        (lambda s: s | {"args": print}, r"damaged, or holds objects besides tensors, which are not loaded"),
    ],
)  # fmt: skip
def test_bad_checkpoints_are_refused_in_one_line(tmp_path: Path, change: Callable[[dict], Any], message: str):
    path = write(tmp_path, change(official(network())))
    with pytest.raises(UserError, match=message) as refusal:
        read(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_conditioned_gates_need_their_representation(tmp_path: Path):
    state = without("gate_task_represent.fc2.bias")(official(network("conditioned")))
    with pytest.raises(UserError, match=r"has no 'backbone.gate_task_represent.fc2.bias'"):
        read(write(tmp_path, state))
    state = without("gate_task_represent")(official(network("conditioned")))
    with pytest.raises(UserError, match=r"blocks.1.mlp.gate.w_gate is \(74, 6\), but it must be \(10, 6\)"):
        read(write(tmp_path, state))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": "smal"}, r"size = 'smal': must be one of micro, tiny, small, base"),
        ({"size": "small"}, r"size = 'small': the checkpoint has width 10, blocks 4, patch 4, small has width 384"),
        ({"heads": None}, r"which is of no size .*so its attention heads are not known"),
        ({"heads": 3}, r"heads = 3 does not divide the width 10"),
        ({"top_k": 7}, r"top_k = 7: must lie between 1 and the number of experts, 6"),
        ({"image_size": (8, 8)}, r"pos_embed has 7 positions, that is 6 patches of 4x4, but images of 8x8 have 4"),
        ({"image_size": (8, 13)}, r"image_size = \[8, 13\]: must be multiples of the patch, 4"),
        ({"image_size": None}, r"but images of 64x64, the default, have 256"),
    ],
)
def test_what_was_asked_is_checked(tmp_path: Path, asked: dict, message: str):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, official(network())), **asked)


def test_nyud_of_size_small_is_recognised_by_its_positions(tmp_path: Path):
    """1201 positions are 480×640 in patches of 16; only small's own default is tried, never another guess."""
    with torch.device("meta"):
        state = official(m3vit("small", {"semseg": 40, "depth": 1}, image_size=(480, 640)))
    state = {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}
    with pytest.raises(
        UserError, match=r"1201 positions.* images of 512x512, the default, have 1024; .*such as 480x640"
    ):
        import_checkpoint(write(tmp_path, state))


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere.pth: no such file or folder"):
        read(tmp_path / "nowhere.pth")
    (tmp_path / "c.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"c.bin: a checkpoint is a .pth, .pt or .safetensors file"):
        read(tmp_path / "c.bin")
    whole = write(tmp_path, official(network())).read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"cut.pth: (damaged|cannot be read)"):
            read(tmp_path / "cut.pth")
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match=r"c.safetensors: cannot be read"):
        read(tmp_path / "c.safetensors")


def test_folders_of_ranks_that_do_not_fit(tmp_path: Path):
    state = official(network())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no 0.pth, 1.pth"):
        read(tmp_path / "empty")
    folder = sharded(state, tmp_path / "ranks", 3)
    with pytest.raises(UserError, match=r"0.pth: .*w_gate is \(10, 6\), but there are 2 experts; .*give its folder"):
        read(folder / "0.pth")
    with pytest.raises(UserError, match=r"1.pth: has no 'backbone.cls_token'"):
        read(folder / "1.pth")
    last = (folder / "2.pth").read_bytes()
    (folder / "2.pth").unlink()
    with pytest.raises(UserError, match=r"w_gate is \(10, 6\), but there are 4 experts"):
        read(folder)
    (folder / "2.pth").write_bytes(last)
    middle = torch.load(folder / "1.pth")["state_dict"]
    for change, message in (
        (without("blocks.3.mlp.experts.h4toh.bias"),
         r"1.pth: has no 'backbone.blocks.3.mlp.experts.h4toh.bias', the exper"),
        (changed(HTOH4, lambda t: t[:1]), r"1.pth: .*htoh4.weight is \(1, 7, 10\), but \(2, 7, 10\) in 0.pth"),
        (lambda s: s | {GATE: state[GATE]},
         r"1.pth: 'backbone.blocks.3.mlp.gate.2.w_gate' is no expert tensor of 0.pth"),
    ):  # fmt: skip
        write(folder, change(middle), "1.pth")
        with pytest.raises(UserError, match=message):
            read(folder)
    (folder / "1.pth").unlink()
    with pytest.raises(UserError, match=r"1.pth is missing, though 2.pth is there"):
        read(folder)


# --- mtlc import m3vit ----------------------------------------------------------------------------------------------


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> tuple[M3ViT, Path]:
    torch.manual_seed(1)
    made = randomised(m3vit("micro", {"semseg": 13, "sal": 1}, head_width=8, image_size=(32, 40), experts=4, top_k=2))
    return made, write(tmp_path_factory.mktemp("micro"), {"model": official(made)})


def test_the_verb_writes_weights_and_prints_the_job(micro: tuple[M3ViT, Path], tmp_path: Path):
    made, checkpoint = micro
    out = tmp_path / "weights" / "w.safetensors"
    arguments = ("import", "m3vit", checkpoint, "--out", out, "--image-size", "32x40", "--top-k", "2")
    printed = mtlc(*arguments)
    assert printed.stderr == ""
    text = printed.stdout
    written = load_file(out)
    assert all(torch.equal(written[key], value) for key, value in made.state_dict().items())
    args = {
        "size": "micro", "image_size": [32, 40], "tasks": {"semseg": 13, "sal": 1}, "gate": "multi", "top_k": 2,
        "head_width": 8, "experts": 4,
    }  # fmt: skip
    assert tomllib.loads(text)["model"] == {"factory": "mtlc.zoo:m3vit", "weights": str(out), "args": args}
    (tmp_path / "job.toml").write_text(f'schema = 1\n{text}\n[data]\nfactory = "mtlc.zoo:scenes"\n')
    job = load_job(tmp_path / "job.toml")
    assert [(task.name, task.loss, task.metric) for task in job.tasks] == [
        ("semseg", "cross_entropy", "miou"),
        ("sal", "balanced_bce", "max_jaccard"),
    ]
    assert job.weights == out
    result = json.loads(mtlc(*arguments, "--size", "micro", "--json").stdout)
    assert result["args"] == args
    assert result["parameters"] == sum(parameter.numel() for parameter in made.parameters())
    assert result["job"] == text.rstrip("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{}/w.pth"], "w.pth: weights are written as .safetensors"),
        (["--out", "{}/folder.safetensors"], "folder.safetensors: is a folder"),
        (["--out", "{}/w.safetensors"], "give the image size that it was trained with"),
        (["--out", "{}/w.safetensors", "--image-size", "32"], "--image-size 32: write height x width in pixels"),
        (["--out", "{}/w.safetensors", "--image-size", "40x32", "--size", "tiny"], "size = 'tiny': the checkpoint has"),
        (["--out", "{}/w.safetensors", "--top-k", "0"], "--top-k"),
        ([], "Missing option '--out'"),
    ],
)
def test_the_verb_fails_in_one_line_and_writes_nothing(
    micro: tuple[M3ViT, Path], tmp_path: Path, options: list[str], message: str
):
    (tmp_path / "folder.safetensors").mkdir()
    result = mtlc("import", "m3vit", micro[1], *(option.format(tmp_path) for option in options), code=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


def test_the_checkpoint_is_not_overwritten(tmp_path: Path):
    save_file(official(network()), tmp_path / "c.safetensors")
    before = (tmp_path / "c.safetensors").read_bytes()
    target = tmp_path / "c.safetensors"
    assert "is the checkpoint itself" in mtlc("import", "m3vit", target, "--out", target, code=2).stderr
    assert target.read_bytes() == before


def test_a_write_that_fails_leaves_nothing(micro: tuple[M3ViT, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtlc.program.tensors_file.save_tensors", full)
    out = tmp_path / "w.safetensors"
    result = mtlc("import", "m3vit", micro[1], "--out", out, "--image-size", "32x40", code=2)
    assert "the disk is full" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_name_the_known_ones():
    assert "did you mean 'm3vit'" in mtlc("import", "m3vitt", "x", code=2).stderr
    assert "m3vit" in mtlc("import", "--help").stdout
