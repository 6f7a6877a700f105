"""Results of a made-up slimmable network, of a realistic size, for the tests of its report."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

STAGES = ("stage1", "stage2", "stage3", "stage4")
WIDTHS = (0.25, 0.5, 0.75, 1.0)
METRICS = {
    "semseg": ("miou", "%", True, 61.42),
    "depth": ("rmse", "m", False, 0.5713),
    "normals": ("mean_angle", "°", False, 18.22),
    "edge": ("f1", "", True, 0.7124),
    "sal": ("miou", "%", True, 77.3),
}
TASKS = tuple(METRICS)
_STAGE_MACS = (31e6, 27e6, 24e6, 17.7e6)
_DECODER_MACS = 4e6


def results() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    every = [
        (encoder, decoders)
        for encoder in itertools.product(WIDTHS, repeat=4)
        for decoders in ((w,) * 5 for w in WIDTHS)
    ]
    known = sorted((macs(e, d), gain(e, d) + rng.normal(0, 0.004), e, d) for e, d in every)
    known[-1] = (known[-1][0], 0.0, *known[-1][2:])
    front, best = [], -1.0
    for cost, value, encoder, decoders in known:
        if value > best:
            best = value
            front.append({"macs": cost, "gain": value, **widths(encoder, decoders)})
    widest, narrowest = known[-1][0], known[0][0]
    points = []
    for share in (1.0, 0.8, 0.6, 0.4, 0.25, 0.15):
        chosen = max((one for one in front if one["macs"] <= share * widest), key=lambda one: one["gain"])
        points.append(point(f"{share:.0%}", chosen, rng))
    points[0]["name"] = "default"
    narrow = {"macs": narrowest, "gain": known[0][1], **widths(known[0][2], known[0][3])}
    points += [
        point("depth first", {**points[3], "gain": points[3]["gain"] - 0.012}, rng),
        point("narrowest", narrow, rng),
    ]
    measured = [
        {"macs": cost, "gain": value, "kind": "uniform" if len({*e, *d}) == 1 else "searched"}
        for cost, value, e, d in known
        if len({*e, *d}) == 1 or rng.random() < 0.1
    ]
    return {
        "title": "Scenes at any width",
        "tasks": {
            task: {"metric": metric, "unit": unit, "higher_is_better": higher}
            for task, (metric, unit, higher, _) in METRICS.items()
        },
        "stages": list(STAGES),
        "widths": list(WIDTHS),
        "cost": {"widest": widest, "narrowest": narrowest},
        "reference": {task: values[3] for task, values in METRICS.items()},
        "points": points,
        "front": front,
        "measured": [*measured, {"macs": 0.5 * widest, "gain": -0.9, "kind": "other"}],
        "controllability": controllability(0.4 * widest),
        "single_task": {task: values[3] * 1.004 for task, values in METRICS.items()},
        "groups": {
            **{
                stage: {
                    "options": list(WIDTHS),
                    "units": {
                        f"encoder.stages.{s}.{b}.conv1": [int(32 * 2**s * w) for w in WIDTHS] for b in range(3)
                    },
                }
                for s, stage in enumerate(STAGES)
            },
            **{
                task: {
                    "options": list(WIDTHS),
                    "units": {f"decoders.{task}.smooth.{i}.conv": [8, 16, 24, 32] for i in range(2)},
                }
                for task in TASKS
            },
        },
        "left_alone": [
            {"name": "encoder.stem.conv", "channels": 16, "why": "ignored by the job"},
            {"name": "decoders.semseg.head", "channels": 13, "why": "its channels reach an output"},
        ],
        "bundle": {
            "bytes": 11_240_000,
            "widest_bytes": 9_412_608,
            "encoders": 24,
            "programs": 504,
            "verification": {
                f"e{i}": {f"{w:g}": {task: {"1": {"max_abs": 2e-6, "max_rel": 3e-6}} for task in TASKS} for w in WIDTHS}
                for i in range(24)
            },
        },
        "training": {"steps": 12_000, "samples": 768_000, "seconds": 5400.0, "losses": {"semseg": 0.41, "depth": 0.12}},
        "measurements": 412,
        "seconds": 9120.0,
        "job": {"model": {"factory": "mtlc.zoo:mtl_resnet"}, "widths": list(WIDTHS), "seed": 0},
        "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
    }  # fmt: skip


def macs(encoder: tuple[float, ...], decoders: tuple[float, ...]) -> int:
    return int(sum(m * (w**2) for m, w in zip(_STAGE_MACS, encoder, strict=True)) + _DECODER_MACS * sum(decoders))


def gain(encoder: tuple[float, ...], decoders: tuple[float, ...]) -> float:
    lost = sum((1 - w) ** 1.6 * share for w, share in zip(encoder, (0.02, 0.03, 0.05, 0.07), strict=True))
    return -lost - 0.08 * sum((1 - w) ** 2 for w in decoders) / 5


def widths(encoder: tuple[float, ...], decoders: tuple[float, ...]) -> dict[str, Any]:
    return {"encoder": dict(zip(STAGES, encoder, strict=True)), "decoders": dict(zip(TASKS, decoders, strict=True))}


def point(name: str, chosen: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    found = {}
    for split in ("metrics", "validation"):
        found[split] = {
            task: value * (1 + (1 if higher else -1) * (chosen["gain"] + rng.normal(0, 0.004)))
            for task, (_, _, higher, value) in METRICS.items()
        }
    return {
        "name": name, "encoder": chosen["encoder"], "decoders": chosen["decoders"], "macs": chosen["macs"],
        "gain": chosen["gain"], **found, "delta_m": 100 * chosen["gain"] * 1.05,
    }  # fmt: skip


def controllability(budget: float) -> dict[str, Any]:
    curves, ranges = {}, {}
    for index, (task, (_, _, higher, value)) in enumerate(METRICS.items()):
        changes = [-0.055 + (0.01 + 0.009 * index) * p**0.6 for p in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)]
        curves[task] = [
            {"preference": p, "gain": change, "metric": value * (1 + (change if higher else -change))}
            for p, change in zip((0.0, 0.1, 0.2, 0.4, 0.7, 1.0), changes, strict=True)
        ]
        ranges[task] = 100 * (max(changes) - min(changes))
    return {
        "budget": budget,
        "share": 0.4,
        "tasks": curves,
        "range": ranges,
        "monotonicity": dict.fromkeys(METRICS, 0.94),
    }
