"""Makes the tables of INT8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.tables.markdown_tables import read, table


def int8_losses(found: dict[str, Any], name: str) -> dict[str, dict[str, float]]:
    """By backend and task: how much worse, in per cent, INT8 makes a network's metric than its own float32 is."""
    plain, int8 = (found["metrics"][f"{name} {precision}"] for precision in ("fp32", "int8"))
    better = {task: one["higher_is_better"] for task, one in found["networks"][f"{name}, fused"]["tasks"].items()}
    losses = {}
    for backend, metrics in int8.items():
        lost = {task: 100 * (value / plain[backend][task] - 1) for task, value in metrics.items()}
        losses[backend] = {task: -change if better[task] else change for task, change in lost.items()}
    return losses


def quantization() -> str:
    """INT8 against float32 by network and backend: CPU time, bytes, the worst task against its own float32."""
    found = read("quantization")
    names = [name.removesuffix(" fp32") for name in next(iter(found["latency_ms"]["fused"].values())) if "fp32" in name]
    columns = [f"{name} {precision}" for name in names for precision in ("fp32", "int8")]
    rows = []
    for form, settings in found["latency_ms"].items():
        for setting, by_network in settings.items():
            cells = [
                f"{by_network[name]['cpu_median_ms']:.2f} ({by_network[name]['cpu_speedup']:.2f}×)" for name in columns
            ]
            rows.append([f"{form}, {setting}", *cells])
    times = table(["ms of CPU time", *columns], rows)
    lines = []
    for name in names:
        words = []
        for backend, lost in int8_losses(found, name).items():
            task = max(lost, key=lost.__getitem__)
            words.append(f"{task} {lost[task]:+.2f} % in {backend}")
        one = found["networks"][f"{name}, task by task"]
        lines.append(
            f"{name}: {', '.join(words)}; {one['bytes_before'] / 1e6:.2f} → {one['bytes'] / 1e6:.2f} MB, "
            f"{one['operators']['int8']} operators in INT8, {len(one['operators']['float'])} given back"
        )
    return f"{times}\n\nWhat INT8 costs the worst task, bundle sizes: {'. '.join(lines)}."


def quantization_m3vit() -> str:
    """The same of M³ViT: micro with its tasks, tiny with its architecture only."""
    rows = []
    for size, name in (("micro", "quantization_m3vit"), ("tiny", "quantization_m3vit_tiny")):
        found = read(name)
        for form, settings in found["latency_ms"].items():
            for setting, by_network in settings.items():
                cells = [f"{by_network[f'dense {p}']['cpu_median_ms']:.1f}" for p in ("fp32", "int8")]
                rows.append([size, f"{form}, {setting}", *cells, f"{by_network['dense int8']['cpu_speedup']:.2f}×"])
    return table(["M³ViT", "setting", "float32, ms of CPU", "INT8", "faster"], rows)


def openvino_resize() -> str:
    """What the two rewritings save OpenVINO on the dense network."""
    rows = []
    for batch, forms in read("openvino_resize")["network"].items():
        for name, one in forms.items():
            rows.append([batch, name, f"{one['ms']:.2f}", f"{one['faster']['median']:.2f}×"])
    return table(["batch", "linear resizes, shapes", "ms of CPU time", "faster"], rows)


def quantization_control() -> str:
    """Our limit for each task beside NNCF's control of one averaged score."""
    words = {
        "per_task": "a limit for each task (mtlc)", "averaged": "one averaged score (NNCF)",
        "averaged_same_count": "one averaged score, as many iterations as mtlc gave back",
    }  # fmt: skip
    rows = []
    for limit, ways in read("quantization_control")["limits"].items():
        for way, one in ways.items():
            worst = one["worst"]["validation"]
            cells = [str(one["int8_operators"]), worst["task"], f"{worst['drop_percent']:.2f} %"]
            rows.append([limit, words[way], *cells])
    return table(["limit", "control", "operators in INT8", "worst task", "its drop, validation"], rows)


def quantization_widths() -> str:
    """The shipped slimmable network in INT8: bytes, and the worst task of each named configuration."""
    found = read("quantization_widths")
    rows = []
    for name in found["worse_percent"]["onnxruntime"]:
        cells = []
        for backend in ("onnxruntime", "openvino"):
            task, lost = max(found["worse_percent"][backend][name].items(), key=lambda entry: entry[1])
            times = found["cpu_ms"][backend][name]
            cells += [f"{task} {lost:+.2f} %", f"{times['fp32']:.2f} → {times['int8']:.2f}"]
        rows.append([name, *cells])
    heads = [
        f"{what}, {backend}" for backend in ("onnxruntime", "OpenVINO") for what in ("worst task", "ms of CPU time")
    ]
    return table(["configuration", *heads], rows)


def qat() -> str:
    """INT8 after quantisation-aware fine-tuning, after plain fine-tuning, and without either."""
    rows = []
    runs = read("qat")["runs"]
    for form in dict.fromkeys(run["form"] for run in runs):
        mine = [run for run in runs if run["form"] == form]
        drops = [
            "/".join(f"{run['everything']['drop_percent'][task]:.2f}" for run in mine)
            for task in ("semseg", "depth", "normals")
        ]
        worst = "/".join(f"{run['everything']['worst_drop_percent']:.2f}" for run in mine)
        rows.append([form, worst, *drops])
    return table(["before INT8", "worst task, %", "semseg", "depth", "normals"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "quantization": quantization, "quantization_m3vit": quantization_m3vit, "openvino_resize": openvino_resize,
    "quantization_control": quantization_control, "quantization_widths": quantization_widths, "qat": qat,
}  # fmt: skip
