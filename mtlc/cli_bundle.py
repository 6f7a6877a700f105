"""The verbs of the command line about bundles: run them, measure them, check them, bring them to other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlc.errors import BudgetMissed, UserError, VerificationError
from mtlc.front import DEBUG, JSON, PATH, QUIET, emit, listener

BUNDLE = click.argument("bundle", type=PATH)
THREADS = click.option("--threads", type=click.IntRange(1, 1024), help="Threads per program. Default: the backend's.")
BACKEND = click.option("--backend", default="auto", show_default=True, help="onnxruntime, openvino or tensorrt.")
CONFIGURATION = click.option("--configuration", metavar="NAME", help="What to run a bundle of several widths in.")


@click.command()
@BUNDLE
@click.argument("other", type=PATH, required=False)
@click.option("--against", type=PATH, help="A checkpoint folder whose outputs the bundle must give.")
@click.option("--backend", help="What BUNDLE runs in. Default: onnxruntime.")
@click.option("--against-backend", help="What OTHER runs in, or BUNDLE a second time. Default: as BUNDLE; onnxruntime.")
@click.option("--configuration", metavar="NAME", help="What BUNDLE runs in, and OTHER if it has several widths too.")
@click.option("--job", type=PATH, help="The job: its data, metrics and limits. Default: random inputs.")
@click.option("--split", type=click.Choice(["calibration", "validation"]), help="Default: calibration.")
@click.option("--samples", type=click.IntRange(1), help="Samples to compare OTHER or a backend on. Default: all.")
@click.option("--tolerance", type=click.FloatRange(0, 1, min_open=True), help="Largest relative difference.")
@JSON
@DEBUG
def verify(
    bundle: Path,
    other: Path | None,
    against: Path | None,
    backend: str | None,
    against_backend: str | None,
    configuration: str | None,
    job: Path | None,
    split: str | None,
    samples: int | None,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Check BUNDLE: its files; against a checkpoint; or against OTHER, or itself in another backend, task by task."""
    from mtlc.compile import text, verify_text
    from mtlc.compile.verify import verify as check
    from mtlc.compile.verify_pair import verify_pair

    if (other, backend, against_backend, configuration, split, samples) == (None,) * 6:
        emit(as_json, check(bundle, against, job, tolerance), text.verify)
        return
    if against is not None:
        raise UserError(
            "--against compares with a checkpoint: leave out OTHER, backends, --configuration, --split and --samples"
        )
    result = verify_pair(
        bundle, other, backend=backend, against_backend=against_backend, configuration=configuration, job=job,
        split=split, samples=samples, tolerance=tolerance,
    )  # fmt: skip
    emit(as_json, result, verify_text.verify_pair)
    if result["failed"]:
        raise VerificationError("; ".join(result["failed"]))
    if result["missed"]:
        raise BudgetMissed("; ".join(result["missed"]))


@click.command()
@BUNDLE
@click.option("--job", type=PATH, required=True, help="The job: its data, metrics and limits, and its [quantize].")
@click.option("--out", type=PATH, required=True, help="The INT8 bundle: a folder, or one file that ends in .mtlc.")
@click.option("--target", help="cpu (this machine), x86, x86-vnni, arm or tensorrt. Default: the job's, or cpu.")
@click.option("--against", type=PATH, help="The bundle that limits are measured against. Default: BUNDLE.")
@click.option("--html", type=PATH, help="Also write what was found as a page to this file.")
@click.option(
    "--backend", help="onnxruntime or openvino: what limits are measured in. Default: the job's, or onnxruntime."
)
@JSON
@DEBUG
@QUIET
def quantize(
    bundle: Path,
    job: Path,
    out: Path,
    target: str | None,
    against: Path | None,
    html: Path | None,
    backend: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write BUNDLE in INT8, with floating point left where a task's limit needs it."""
    from mtlc.compile import quantize_text
    from mtlc.compile.quantize import quantize as convert
    from mtlc.job import load_job

    result = convert(bundle, load_job(job), out, target, against, backend, html=html, log=listener(quiet)["log"])
    emit(as_json, result, quantize_text.quantize)
    if result["missed"]:
        raise BudgetMissed("; ".join(result["missed"]))


@click.command()
@BUNDLE
@click.argument("image", type=PATH)
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--out", type=PATH, default=".", show_default=True, help="Folder for the pictures.")
@click.option("--raw", is_flag=True, help="Also write the numbers, as TASK.npy.")
@CONFIGURATION
@BACKEND
@THREADS
@JSON
@DEBUG
def infer(
    bundle: Path,
    image: Path,
    tasks: tuple[str, ...],
    out: Path,
    raw: bool,
    configuration: str | None,
    backend: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on IMAGE and write one PNG for each task. Needs no torch."""
    from mtlc.compile import text
    from mtlc.compile.infer import infer as predict

    result = predict(bundle, image, tasks, out, raw=raw, backend=backend, threads=threads, configuration=configuration)
    emit(as_json, result, text.infer)


@click.command()
@BUNDLE
@click.option("--against", type=PATH, help="Another bundle, measured in turns with this one.")
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(2, 1_000_000), default=50, show_default=True, help="Timed calls.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads per program.")
@click.option("--layers", is_flag=True, help="Also the time by layer (needs onnx).")
@click.option(
    "--device", "devices_", multiple=True, help="A device or its file; may be given again. Default: local-cpu."
)
@click.option("--operators", is_flag=True, help="Also the time by kind of operator and kernel (needs onnx).")
@click.option("--baseline", type=PATH, help="The JSON of an earlier profile: exit 3 if BUNDLE costs more.")
@click.option("--max-growth", metavar="SHARE", help="What it may cost more. Default: 1% of instructions, 10% of ms.")
@CONFIGURATION
@BACKEND
@JSON
@DEBUG
def profile(
    bundle: Path,
    against: Path | None,
    tasks: tuple[str, ...],
    batch: int,
    rounds: int,
    threads: int,
    layers: bool,
    devices_: tuple[str, ...],
    operators: bool,
    baseline: Path | None,
    max_growth: str | None,
    configuration: str | None,
    backend: str,
    as_json: bool,
) -> None:
    """Measure BUNDLE on this machine: latency, instructions, memory, start; or model it on another --device."""
    from mtlc.compile import device_text, profile_text
    from mtlc.compile.device_profile import profile_devices
    from mtlc.compile.profile import profile as profile_here

    def measure() -> dict[str, Any]:
        return profile_here(
            bundle, against, tasks=tasks, batch=batch, rounds=rounds, threads=threads, backend=backend, layers=layers,
            operators=operators, configuration=configuration, baseline=baseline, max_growth=max_growth,
        )  # fmt: skip

    asked = {"--baseline": baseline, "--max-growth": max_growth, "--layers": layers, "--operators": operators}
    result = profile_devices(
        bundle, devices_, measure, against=against, tasks=tasks, batch=batch, configuration=configuration,
        local_only=[option for option, value in asked.items() if value],
    )  # fmt: skip
    emit(as_json, result, device_text.profile)
    if "regression" in result and result["regression"]["grew"]:
        raise BudgetMissed(profile_text.regression(result["regression"]).splitlines()[0])


@click.command()
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--backend", "backends", multiple=True, help="May be given again. Default: onnxruntime.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Threads per program; may be given again. Default: 1.",
)
@click.option(
    "--configuration",
    "configurations",
    metavar="NAME",
    multiple=True,
    help="What to run bundles of several widths in; may be given again.",
)
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option(
    "--fixed-batch", is_flag=True, help="Tell the sessions that the batch is always this: OpenVINO is faster for it."
)
@click.option("--rounds", type=click.IntRange(2, 1_000_000), default=200, show_default=True, help="Timed calls.")
@JSON
@DEBUG
def bench(
    bundles: tuple[Path, ...],
    backends: tuple[str, ...],
    threads: tuple[int, ...],
    configurations: tuple[str, ...],
    tasks: tuple[str, ...],
    batch: int,
    fixed_batch: bool,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure every BUNDLE in every --configuration and --backend with all --threads, in turns: latency, throughput, memory, start."""
    from mtlc.compile import bench_text
    from mtlc.compile.bench import bench as measure

    result = measure(
        bundles, backends=backends, threads=threads, configurations=configurations, tasks=tasks, batch=batch,
        rounds=rounds, fixed_batch=fixed_batch,
    )  # fmt: skip
    emit(as_json, result, bench_text.bench)


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--job", type=PATH, help="The job whose calibration samples outputs are compared on. Default: random.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(2, 1_000_000), default=50, show_default=True, help="Timed calls.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads per program.")
@click.option("--html", type=PATH, help="Also write the comparison as a page to this file.")
@BACKEND
@JSON
@DEBUG
def compare(
    a: Path,
    b: Path,
    job: Path | None,
    batch: int,
    rounds: int,
    threads: int,
    html: Path | None,
    backend: str,
    as_json: bool,
) -> None:
    """Put A and B side by side: bundles, or the folders of runs (needs onnx)."""
    from mtlc.compile import compare_text
    from mtlc.compile.compare import compare as put

    result = put(a, b, job=job, batch=batch, rounds=rounds, threads=threads, backend=backend, html=html)
    emit(as_json, result, compare_text.compare)


@click.command()
@BUNDLE
@click.option("--out", type=PATH, required=True, help="Where the bundle with the engines or the IR goes.")
@click.option("--target", type=click.Choice(["tensorrt", "openvino"]), default="tensorrt", show_default=True)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Default: fp16 for engines, fp32 for IR."
)
@click.option("--batch", metavar="MIN,OPT,MAX", help="Batch sizes to build for. Default: those of the job's [export].")
@click.option("--timing-cache", type=PATH, help="Keep what TensorRT measures in this file, for the next build.")
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Memory that an engine may work in.")
@JSON
@DEBUG
@QUIET
def build(
    bundle: Path,
    out: Path,
    target: str,
    precision: str | None,
    batch: str | None,
    timing_cache: Path | None,
    workspace: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build TensorRT engines of BUNDLE's programs, here and for this GPU, or convert them to OpenVINO IR. Needs no torch."""
    from mtlc.compile.build import build as make
    from mtlc.compile.build import text

    result = make(
        bundle,
        out,
        target,
        precision,
        batch=batch,
        timing_cache=timing_cache,
        workspace_mib=workspace,
        log=listener(quiet)["log"],
    )
    emit(as_json, result, text)


VERBS = (verify, infer, profile, bench, compare, quantize, build)
