"""Networks that mtlc has never seen: three of `transformers`, built from a config, with heads of one's own.

Nothing in mtlc names them. Their data set is a plain one of torch with (image, labels) samples.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import images, same_state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from mtlc.compress.pass_interface import Budget, Context, PassResult
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits, load_splits
from mtlc.export.bundle.write_bundle import export_bundle
from mtlc.hw.cost.count import workload
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

SIZE = 32


class Pictures(Dataset):
    """The labels follow from the picture: depth is 2 + its brightness, the class its brightest channel."""

    def __init__(self, count: int, seed: int) -> None:
        self.pictures = images(count, SIZE, seed)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = self.pictures[index]
        return image, {"d": 2 + image.mean(0, keepdim=True), "classes": image.argmax(0)}


def pictures(train: int = 24) -> dict[str, Pictures]:
    return {"train": Pictures(train, 0), "calibration": Pictures(6, 1), "validation": Pictures(4, 2)}


class Heads(nn.Module):
    """A backbone's features (N, C, h, w) → depth (N, 1, 32, 32) and class scores (N, 3, 32, 32)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, 1, 1)
        self.classes = nn.Conv2d(width, 3, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        depth, classes = self.depth(features), self.classes(features)
        scale = SIZE / features.shape[-1]
        return F.interpolate(depth, scale_factor=scale), F.interpolate(classes, scale_factor=scale)


class SegFormer(nn.Module):
    """Outputs a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = tiny_networks.segformer()
        self.heads = Heads(32)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.backbone(image).last_hidden_state)


class ResNet(nn.Module):
    """Outputs a dict."""

    def __init__(self) -> None:
        from transformers import ResNetConfig, ResNetModel

        super().__init__()
        config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="bottleneck")
        self.backbone = ResNetModel(config)
        self.heads = Heads(64)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        depth, classes = self.heads(self.backbone(image).last_hidden_state)
        return {"d": depth, "parts": {"classes": classes}}


class ViT(nn.Module):
    """Tokens become a map."""

    def __init__(self) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIZE,
            patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.backbone = ViTModel(config, add_pooling_layer=False)
        self.heads = Heads(32)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(image).last_hidden_state[:, 1:]
        return self.heads(tokens.transpose(1, 2).unflatten(2, (SIZE // 8, SIZE // 8)))


def vit() -> nn.Module:
    return ViT()


def segformer() -> nn.Module:
    return SegFormer()


def resnet() -> nn.Module:
    return ResNet()


def program(factory: str, depth: str, classes: str) -> Program:
    tasks = (
        TaskSpec("depth", "l1", "rmse", output=depth, target="d"),
        TaskSpec("semseg", "cross_entropy", "miou", output=classes, target="classes"),
    )
    source = ModelSource(f"{__name__}:{factory}")
    torch.manual_seed(0)
    return Program(source.build().eval(), tasks, {"image": torch.zeros(2, 3, SIZE, SIZE)}, source)


def pruned(start: Program, splits: Splits, workdir: Path, **settings) -> PassResult:
    budget = Budget("macs", 0.7 * workload(start).macs)
    context = Context(splits, Criteria(start.tasks), start, workdir, budget)
    tune = FinetuneConfig(epochs=2, batch_size=8, ema=0.5, lr=1e-3)
    one = Prune(PruneConfig(finetune=tune, **settings))
    one.requires(start, context)
    return one.run(start, context)


def check(start: Program, result: PassResult, folder: Path) -> None:
    """−30 % MACs as claimed; the outputs are finite, keep their shapes, replay bit for bit and export."""
    after = result.program
    assert result.missed is None
    assert workload(after).macs == result.cost_claimed["macs"] <= 0.7 * workload(start).macs
    batch = {"image": images(4, SIZE, 7)}
    with torch.no_grad():
        before, outputs = start.outputs(batch), after.outputs(batch)
    assert {t: o.shape for t, o in outputs.items()} == {t: o.shape for t, o in before.items()}
    assert {t: tuple(o.shape) for t, o in outputs.items()} == {"depth": (4, 1, 32, 32), "semseg": (4, 3, 32, 32)}
    assert all(bool(o.isfinite().all()) and float(o.std()) > 0 for o in outputs.values())
    after.save(folder / "saved")
    torch.manual_seed(99)
    loaded = Program.load(folder / "saved", start.source)
    assert same_state(loaded.module, after.module)
    with torch.no_grad():
        replayed = loaded.outputs(batch)
    assert all(torch.equal(replayed[t], outputs[t]) for t in outputs)
    report = export_bundle(loaded, folder / "bundle", samples=batch)
    assert [(p["name"], p["tasks"]) for p in report["programs"]] == [
        ("trunk", ["depth", "semseg"]),
        ("head-depth", ["depth"]),
        ("head-semseg", ["semseg"]),
    ]
    assert [report["verification"][task]["vacuous"] for task in ("depth", "semseg")] == [None, None]


def left_alone(result: PassResult) -> dict[str, str]:
    return {item["name"]: item["why"] for item in result.report["left_alone"]}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(f"{__name__}:pictures", train=24)


def test_a_resnet_of_transformers(tmp_path, splits):
    start = program("resnet", "d", "parts.classes")
    result = pruned(start, splits, tmp_path / "work")
    check(start, result, tmp_path)
    assert left_alone(result) == {"heads.classes": "an output of the network"}


@pytest.mark.slow
def test_a_segformer_of_transformers(tmp_path, splits):
    """Its feed-forward layers and the second stage's heads and residual stream lose channels. The first stage has one
    head, and its `sequence_reduction` reshapes to the width of its own input, which no graph of layers shows.
    """
    start = program("segformer", "0", "1")
    result = pruned(start, splits, tmp_path / "work", residual=True)
    check(start, result, tmp_path)
    left = left_alone(result)
    first = "backbone.stages.0.blocks.0.attention"
    assert left.pop("heads.classes") == "an output of the network"
    assert [left.pop(name) for name in (first, f"{first}#2")] == ["it has one head"] * 2  # its keys', its values'
    assert set(left) == {f"{first}.o_proj", f"{first}.sequence_reduction.sequence_reduction"}
    assert all(why.startswith("the network does not run without its channels (RuntimeError: ") for why in left.values())
    stream = result.program.module.backbone.stages[1]
    width = stream.patch_embeddings.proj.out_channels
    assert stream.layer_norm.normalized_shape == (width,)
    assert result.program.module.heads.depth.in_channels == width
    assert stream.blocks[0].attention.q_proj.in_features == width


def test_a_vit_of_transformers(tmp_path, splits):
    """Separate queries, keys and values: of two heads of 16 one can go, whatever `round_to` says of channels."""
    start = program("vit", "0", "1")
    result = pruned(start, splits, tmp_path / "work", ignore=("*.layers.0.mlp.fc1",), initial_thres=100.0)
    check(start, result, tmp_path)
    layers = result.program.module.backbone.layers
    pruned_heads = [layer.attention for layer in layers if layer.attention.num_attention_heads == 1]
    assert pruned_heads
    for attention in pruned_heads:
        assert {attention.q_proj.out_features, attention.k_proj.out_features, attention.v_proj.out_features} == {16}
        assert (attention.o_proj.in_features, attention.o_proj.out_features, attention.head_dim) == (16, 32, 16)
    why = left_alone(result)["backbone.embeddings.patch_embeddings.projection"]
    assert why == "the width of a transformer, which all its blocks share: residual = true lets it go"
