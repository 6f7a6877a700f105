"""Memory and time of exporting and opening networks of up to 600 million parameters, as ONNX external data over 2 GB.

    python -m benchmarks.scale.large_export --out benchmarks/results/large_export.json
    python -m benchmarks.scale.large_export --millions 67 --millions 268

The network is a stack of linear layers of 8192 × 8192 with generated weights and two small heads. A process of its own
exports it with verification, another opens the bundle and runs one task and both. Memory is the largest resident set;
`ratio` is how many times the weights it holds, `network` the same before the export. A bundle's weights are mapped, so
what a session holds is what it has touched.

Expected, before it was run: an export within 2 × the size of the network on top of the network itself, and a bundle of
more than 2 GB that opens.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from mtlc.files import atomic_file, scratch_folder

WIDTH = 8192
LAYER = WIDTH * WIDTH
SAMPLES = 3


def peak_mb() -> float:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def network(millions: int) -> Any:
    """About as many parameters, in layers that keep the size of what goes through them."""
    import torch
    from torch import nn

    class Stack(nn.Module):
        def __init__(self, layers: int) -> None:
            super().__init__()
            self.body = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
            self.depth, self.normals = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 3)

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            for layer in self.body:
                image = layer(image).relu()
            return {"depth": self.depth(image), "normals": self.normals(image)}

    torch.manual_seed(0)
    with torch.device("meta"):
        made = Stack(max(1, round(millions * 1e6 / LAYER)))
    made = made.to_empty(device="cpu")
    for parameter in made.parameters():
        torch.nn.init.uniform_(parameter, -1.5 / WIDTH**0.5, 1.5 / WIDTH**0.5)
    return made.eval()


def exported(millions: int, folder: Path) -> dict[str, Any]:
    """Export in this process."""
    import torch

    from mtlc.export import export_bundle
    from mtlc.program.program import ModelSource, Program
    from mtlc.tasks.task import TaskSpec

    torch.set_num_threads(1)
    made = network(millions)
    samples = {"image": torch.randn(SAMPLES, WIDTH)}
    tasks = (TaskSpec("depth", "mse", "rmse"), TaskSpec("normals", "mse", "rmse"))
    program = Program(made, tasks, {"image": samples["image"][:2]}, ModelSource("none:none"))
    with torch.inference_mode():
        made(samples["image"])
    size = sum(parameter.numel() * parameter.element_size() for parameter in made.parameters()) / 2**20
    before, started = peak_mb(), time.monotonic()
    report = export_bundle(program, folder, samples=samples)
    return {
        "parameters": sum(parameter.numel() for parameter in made.parameters()),
        "weights_mb": size,
        "bundle_bytes": report["bytes"],
        "seconds": time.monotonic() - started,
        "network_ratio": before / size,
        "peak_mb": peak_mb(),
        "ratio": peak_mb() / size,
    }


def opened(folder: Path) -> dict[str, Any]:
    """Open the bundle and run it in this process."""
    import numpy as np

    from mtlc.runtime import Session

    started = time.monotonic()
    with Session(folder, threads=1) as session:
        ready = time.monotonic() - started
        image = np.zeros((1, WIDTH), np.float32)
        session.run(image, tasks=["depth"])
        both = session.run(image)
    return {"open_seconds": ready, "session_peak_mb": peak_mb(), "tasks": sorted(both)}


@click.command()
@click.option("--millions", type=click.IntRange(min=1), multiple=True, default=(67, 268, 604), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--child", nargs=2, type=str, hidden=True)
def main(millions: tuple[int, ...], out: Path | None, child: tuple[str, str] | None) -> None:
    """Measure, and write or print the result as JSON."""
    if child is not None:
        what, folder = child
        found = exported(millions[0], Path(folder)) if what == "export" else opened(Path(folder))
        click.echo(json.dumps(found))
        return
    rows = []
    for count in millions:
        with scratch_folder("large") as folder:
            row = {"millions": count}
            for what in ("export", "open"):
                command = [sys.executable, "-m", "benchmarks.scale.large_export", "--millions", str(count)]
                done = subprocess.run(
                    [*command, "--child", what, str(folder / "bundle")], check=True, capture_output=True, text=True
                )
                row |= json.loads(done.stdout)
            rows.append(row)
            click.echo(json.dumps(row), err=True)
    text = json.dumps({"width": WIDTH, "rows": rows}, indent=1) + "\n"
    if out is None:
        click.echo(text)
        return
    with atomic_file(out) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
