"""Memory of a run on pictures of 512² that are streamed from JPEG and PNG files, against how many there are.

For each number of pictures a process of its own opens them in the layout of PASCAL-Context (`mtlc.zoo:pascal_context`:
a JPEG, a map of classes and a mask), checks every label, evaluates, works out the constant predictor, measures
batch-norm statistics of all training samples and trains an epoch, with two worker processes throughout. The network is
tiny, so what is measured is the data's way. Memory is the proportional set size of the process and all its children
(what they share counts once), looked at every second; `main` is the resident set of the process alone.

    python -m benchmarks.scale.streamed_memory --out benchmarks/results/streamed_memory.json
    python -m benchmarks.scale.streamed_memory --pictures 500 --pictures 2000

32 pictures are made; the others are hard links of them, which are files of their own to whoever reads them.

Expected, before it was run: from the fewest to the most pictures the peak grows by less than a tenth, where one sample,
decoded, is 4.7 MB and 10,000 of them would be 47 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click

from mtlc.files import atomic_file, scratch_folder

SIDE, DISTINCT, WORKERS, BATCH = 512, 32, 2, 8
PARTS = {"train": 0.9, "val": 0.1}
_LOOKS = 1.0


def write_pictures(root: Path, count: int, side: int = SIDE) -> None:
    """`count` samples in the layout: `DISTINCT` of them are made."""
    import numpy as np
    from PIL import Image

    folders = {"JPEGImages": ".jpg", "semseg/VOC12": ".png", "sal_distill": ".png"}
    for folder in (*folders, "ImageSets/Context"):
        (root / folder).mkdir(parents=True)
    rows, columns = np.mgrid[:side, :side] / side
    for index in range(min(DISTINCT, count)):
        rng = np.random.default_rng(index)
        waves = [np.sin(rng.uniform(5, 40) * rows + rng.uniform(5, 40) * columns + 3 * channel) for channel in range(3)]
        image = (127 + 100 * np.stack(waves, -1) + rng.normal(0, 6, (side, side, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "JPEGImages" / f"{index:06d}.jpg", quality=90)
        classes = ((waves[0] > 0) + 2 * (waves[1] > 0)).astype(np.uint8)
        classes[: side // 32] = 255
        Image.fromarray(classes).save(root / "semseg/VOC12" / f"{index:06d}.png")
        Image.fromarray((waves[2] > 0.5).astype(np.uint8) * np.uint8(255)).save(
            root / "sal_distill" / f"{index:06d}.png"
        )
    for index in range(DISTINCT, count):
        for folder, suffix in folders.items():
            os.link(root / folder / f"{index % DISTINCT:06d}{suffix}", root / folder / f"{index:06d}{suffix}")
    start = 0
    for split, share in PARTS.items():
        end = start + round(share * count)
        names = "".join(f"{index:06d}\n" for index in range(start, end))
        (root / "ImageSets" / "Context" / f"{split}.txt").write_text(names)
        start = end


class Memory:
    """Looks at the memory of this process and its children until it is closed; `peaks` are MB by phase."""

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, float]] = {}
        self._phase = "open"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        self._phase = name

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_LOOKS):
            peak = self.peaks.setdefault(self._phase, {"all": 0.0, "main": 0.0})
            own = os.getpid()
            together = sum(_field(pid, "Pss") for pid in (own, *_children(own)))
            peak["all"] = round(max(peak["all"], together), 1)
            peak["main"] = round(max(peak["main"], _field(own, "Rss")), 1)


def _field(pid: int, name: str) -> float:
    """MB of a process; 0 of one that has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def _children(pid: int) -> list[int]:
    """All that a process has started, and what these have."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found + [more for child in found for more in _children(child)]


def measured(root: Path, count: int) -> dict[str, Any]:
    """The phases on the pictures at `root`, in this process."""
    import torch

    from mtlc.compress.training.batch_norm import recalibrate_batchnorm
    from mtlc.compress.training.train_config import TrainConfig
    from mtlc.compress.training.trainer import train
    from mtlc.evaluation.constant_predictor import constant_metrics
    from mtlc.evaluation.criteria import Criteria
    from mtlc.evaluation.evaluate import evaluate
    from mtlc.evaluation.label_check import LabelCheck
    from mtlc.program.program import ModelSource, Program
    from mtlc.tasks.task import TaskSpec
    from mtlc.zoo import pascal_context

    torch.set_num_threads(1)
    torch.manual_seed(0)
    memory = Memory()
    tasks = (TaskSpec("semseg", "cross_entropy", "miou"), TaskSpec("sal", "balanced_bce", "max_jaccard"))
    splits = pascal_context(root, tasks=["semseg", "sal"], size=[SIDE, SIDE], workers=WORKERS)
    example = {"image": torch.zeros(2, 3, SIDE, SIDE)}
    program = Program(Tiny(), tasks, example, ModelSource("none:none"))
    criteria = Criteria(tasks)
    splits.identify()
    memory.phase("label check")
    LabelCheck(program, criteria, splits).rest()
    memory.phase("evaluate")
    found = evaluate(program, criteria, splits.validation, BATCH, keep=True)
    memory.phase("constant predictor")
    constant_metrics(criteria, splits.calibration, splits.validation, BATCH, {"semseg": 4})
    memory.phase("batch norm")
    recalibrate_batchnorm(program, splits, len(splits.train), BATCH)
    memory.phase("train")
    config = TrainConfig(epochs=1, batch_size=BATCH, workers=WORKERS)
    trained = train(program, splits, criteria, config)
    memory.close()
    return {
        "pictures": count,
        "samples": {name: len(getattr(splits, name)) for name in ("train", "calibration", "validation")},
        "peak_mb": max(peak["all"] for peak in memory.peaks.values()),
        "peak_mb_main": max(peak["main"] for peak in memory.peaks.values()),
        "phases": memory.peaks,
        "evaluated": found.labelled,
        "steps": trained["steps"],
    }


def Tiny() -> Any:  # noqa: N802  # a network, made where torch is wanted
    """A convolution of stride 8, its norm, and a head for each of two tasks, enlarged to the picture."""
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())
            self.semseg, self.sal = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)

        def forward(self, image: Any) -> dict[str, Any]:
            found = self.body(image)
            return {
                name: nn.functional.interpolate(head(found), scale_factor=8)
                for name, head in (("semseg", self.semseg), ("sal", self.sal))
            }

    return Network().eval()


@click.command()
@click.option("--pictures", type=click.IntRange(min=20), multiple=True, default=(500, 2000, 10_000), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--child", type=click.Path(file_okay=False, path_type=Path), hidden=True)
def main(pictures: tuple[int, ...], out: Path | None, child: Path | None) -> None:
    """Measure, and write or print the result as JSON."""
    if child is not None:
        click.echo(json.dumps(measured(child, pictures[0])))
        return
    import torch

    found: dict[str, Any] = {
        "side": SIDE, "workers": WORKERS, "batch_size": BATCH, "torch": torch.__version__, "cores": os.cpu_count(),
        "runs": [],
    }  # fmt: skip
    for count in pictures:
        with scratch_folder("streamed") as folder:
            write_pictures(folder / "data", count)
            command = [sys.executable, "-m", "benchmarks.scale.streamed_memory", "--child", str(folder / "data")]
            done = subprocess.run([*command, "--pictures", str(count)], stdout=subprocess.PIPE, check=True, text=True)
        found["runs"].append(json.loads(done.stdout.splitlines()[-1]))
        click.echo(f"{count} pictures: {found['runs'][-1]['peak_mb']} MB", err=True)
        if out is not None:  # after each, as the last takes long
            with atomic_file(out) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
    if out is None:
        click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
