"""The command line: thin click commands, each one call into `mtlc.compile`.

Results go to stdout, progress and logs to stderr. Exit codes: 0 done; 1 a fault in mtlc; 2 usage or bad input; 3 budget
or limits missed, best effort written; 4 verification failed; 5 a backend or device is not available; 130
interrupted. Whatever happens is one line, or a traceback with ``--debug``. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import mtlc
from mtlc.cli_fpga import export, fpga
from mtlc.errors import BudgetMissed, UserError, VerificationError
from mtlc.front import DEBUG, JSON, PATH, QUIET, Front, emit, listener, log_line

JOB = click.argument("job", type=PATH)
BUNDLE = click.argument("bundle", type=PATH)
THREADS = click.option("--threads", type=click.IntRange(1, 1024), help="Threads per program. Default: the backend's.")
BACKEND = click.option("--backend", default="auto", show_default=True, help="onnxruntime, openvino or tensorrt.")
CONFIGURATION = click.option("--configuration", metavar="NAME", help="What to run a bundle of several widths in.")


@click.group(cls=Front, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(mtlc.__version__, prog_name="mtlc", message="%(prog)s %(version)s")
def main() -> None:
    """Compile a multi-task network for a small device: prune, export, verify, measure, task by task.

    Start with: mtlc init, mtlc train job.toml, mtlc run job.toml.
    """


@main.command()
@click.argument("folder", type=PATH, default=".")
@click.option("--force", is_flag=True, help="Overwrite a job that is there.")
@DEBUG
def init(folder: Path, force: bool) -> None:
    """Write a commented job.toml into FOLDER that works as it is."""
    from mtlc.compile.init import init as write

    target = write(folder, force)
    click.echo(str(target))
    log_line(f"next: mtlc train {target}, then mtlc run {target}")


@main.command()
@JOB
@JSON
@DEBUG
@QUIET
def plan(job: Path, as_json: bool, quiet: bool) -> None:
    """Say what JOB would do, what the network costs and whether the budget can be reached. Nothing is trained."""
    from mtlc.compile import text
    from mtlc.compile.plan import plan_job
    from mtlc.job import load_job

    emit(as_json, plan_job(load_job(job), log=listener(quiet)["log"]), text.plan)


@main.command()
@JOB
@click.option("--out", type=PATH, help="Output folder. Default: NAME-out beside the job.")
@JSON
@DEBUG
@QUIET
def run(job: Path, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Run JOB: compress, export, verify, measure, report. A run that was cut off goes on where it stopped."""
    from mtlc.compile import text
    from mtlc.compile.run import run_job
    from mtlc.job import load_job

    results = run_job(load_job(job), out or job.with_name(f"{job.stem}-out"), **listener(quiet))
    emit(as_json, results, text.run)
    if results["missed"]:
        raise BudgetMissed("; ".join(results["missed"]))


@main.command()
@JOB
@click.option("--out", type=PATH, help="Where the weights go. Default: [model] weights of the job.")
@click.option("--from", "start", type=PATH, help="Fine-tune from these weights instead of training from scratch.")
@click.option("--half", is_flag=True, help="Write float16: half the size.")
@JSON
@DEBUG
@QUIET
def train(job: Path, out: Path | None, start: Path | None, half: bool, as_json: bool, quiet: bool) -> None:
    """Train the network of JOB, from scratch or from given weights, and write its weights."""
    from mtlc.compile import text
    from mtlc.compile.train import train_job
    from mtlc.job import load_job

    emit(as_json, train_job(load_job(job), out, start=start, half=half, **listener(quiet)), text.train)


@main.command()
@JOB
@click.option("--out", type=PATH, help="Output folder. Default: NAME-out beside the job.")
@click.option("--from", "trained", type=PATH, help="A slimmable checkpoint: nothing is trained, the rest is done.")
@JSON
@DEBUG
@QUIET
def slim(job: Path, out: Path | None, trained: Path | None, as_json: bool, quiet: bool) -> None:
    """Train JOB's network to run at many widths, chosen after deployment; export one bundle of them all."""
    from mtlc.compile import text
    from mtlc.compile.slim import slim_job
    from mtlc.job import load_job

    target = out or job.with_name(f"{job.stem}-out")
    emit(as_json, slim_job(load_job(job), target, trained=trained, **listener(quiet)), text.slim)


@main.command()
@click.argument("target", type=PATH)
@click.option("--budget", required=True, help="Such as 40% of the widest's MACs, 25MMACs or 12ms.")
@click.option("--prefer", metavar="TASK=N,…", help="What tasks are worth, as depth=0.7,semseg=0.3. Default: all alike.")
@click.option("--job", type=PATH, help="The job whose data a checkpoint is measured on.")
@click.option("--strategy", default="joint", show_default=True, help="joint, ecmt, greedy, evolution or uniform.")
@click.option("--samples", type=click.IntRange(1), help="Calibration samples per measurement. Default: all.")
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes that measure.")
@click.option("--ray", metavar="ADDRESS", help="Measure on a Ray cluster; 'local' for one on this machine.")
@click.option("--device", help="The device of a budget in ms, or its file. Default: local-cpu.")
@click.option("--out", type=PATH, help="Cut the configuration out and export it here.")
@JSON
@DEBUG
@QUIET
def search(
    target: Path,
    budget: str,
    prefer: str | None,
    job: Path | None,
    strategy: str,
    samples: int | None,
    workers: int,
    ray: str | None,
    device: str | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the widths for a budget and a preference: in TARGET, a slimmable checkpoint (with --job) or a bundle."""
    from mtlc.compile import text
    from mtlc.compile.search import search as find

    result = find(
        target, budget, prefer, job=job, strategy=strategy, samples=samples, workers=workers, ray=ray, device=device,
        out=out, log=listener(quiet)["log"],
    )  # fmt: skip
    emit(as_json, result, text.search)


@main.command()
@JOB
@click.option(
    "--from", "checkpoint", type=PATH, help="A checkpoint of the job's network, such as a run's output folder."
)
@click.option("--trace", "recorded", type=PATH, help="Show this trace and record none.")
@click.option("--samples", type=click.IntRange(1), help="Calibration samples to record. Default: 16.")
@click.option("--task", "tasks", multiple=True, help="A task to record; may be given again. Default: all.")
@click.option("--out", type=PATH, help="Where the trace goes, an .npz file. Default: none is written.")
@JSON
@DEBUG
@QUIET
def trace(
    job: Path,
    checkpoint: Path | None,
    recorded: Path | None,
    samples: int | None,
    tasks: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Record where the tokens of JOB's calibration samples go: tokens per expert and active MACs, by layer and task."""
    from mtlc.compile import text_trace
    from mtlc.compile.trace import trace_job
    from mtlc.job import load_job

    result = trace_job(
        load_job(job), checkpoint=checkpoint, recorded=recorded, samples=samples, tasks=tasks, out=out,
        log=listener(quiet)["log"],
    )  # fmt: skip
    emit(as_json, result, text_trace.trace)


@main.command()
@click.argument("target", type=PATH)
@click.option("--job", type=PATH, help="The job that a checkpoint was made by, if its factory is not from mtlc.zoo.")
@JSON
@DEBUG
def inspect(target: Path, job: Path | None, as_json: bool) -> None:
    """Show the tasks, costs and history of TARGET: a checkpoint, a bundle or a job."""
    from mtlc.compile import text
    from mtlc.compile.inspect import inspect as look

    emit(as_json, look(target, job), text.inspect)


@main.command()
@BUNDLE
@click.argument("other", type=PATH, required=False)
@click.option("--against", type=PATH, help="A checkpoint folder whose outputs the bundle must give.")
@click.option("--backend", help="What BUNDLE runs in. Default: onnxruntime.")
@click.option("--against-backend", help="What OTHER runs in, or BUNDLE a second time. Default: as BUNDLE; onnxruntime.")
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

    if other is None and backend is None and against_backend is None and split is None and samples is None:
        emit(as_json, check(bundle, against, job, tolerance), text.verify)
        return
    if against is not None:
        raise UserError("--against compares with a checkpoint: leave out OTHER, backends, --split and --samples")
    result = verify_pair(
        bundle, other, backend=backend, against_backend=against_backend, job=job, split=split, samples=samples,
        tolerance=tolerance,
    )  # fmt: skip
    emit(as_json, result, verify_text.verify_pair)
    if result["failed"]:
        raise VerificationError("; ".join(result["failed"]))
    if result["missed"]:
        raise BudgetMissed("; ".join(result["missed"]))


@main.command()
@BUNDLE
@click.option("--job", type=PATH, required=True, help="The job: its data, metrics and limits, and its [quantize].")
@click.option("--out", type=PATH, required=True, help="The INT8 bundle: a folder, or one file that ends in .mtlc.")
@click.option("--target", help="cpu (this machine), x86, x86-vnni, arm or tensorrt. Default: the job's, or cpu.")
@click.option("--against", type=PATH, help="The bundle that limits are measured against. Default: BUNDLE.")
@JSON
@DEBUG
@QUIET
def quantize(
    bundle: Path, job: Path, out: Path, target: str | None, against: Path | None, as_json: bool, quiet: bool
) -> None:
    """Write BUNDLE in INT8, with floating point left where a task's limit needs it."""
    from mtlc.compile import quantize_text
    from mtlc.compile.quantize import quantize as convert
    from mtlc.job import load_job

    result = convert(bundle, load_job(job), out, target, against, log=listener(quiet)["log"])
    emit(as_json, result, quantize_text.quantize)
    if result["missed"]:
        raise BudgetMissed("; ".join(result["missed"]))


@main.command()
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


@main.command()
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


@main.command()
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--backend", "backends", multiple=True, help="May be given again. Default: onnxruntime.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Threads per program; may be given again. Default: 1.",
)
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(2, 1_000_000), default=200, show_default=True, help="Timed calls.")
@JSON
@DEBUG
def bench(
    bundles: tuple[Path, ...],
    backends: tuple[str, ...],
    threads: tuple[int, ...],
    tasks: tuple[str, ...],
    batch: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure every BUNDLE in every --backend with all --threads, in turns: latency, throughput, memory, start."""
    from mtlc.compile import bench_text
    from mtlc.compile.bench import bench as measure

    result = measure(bundles, backends=backends, threads=threads, tasks=tasks, batch=batch, rounds=rounds)
    emit(as_json, result, bench_text.bench)


@main.command()
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


@main.command()
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


@main.command()
@click.argument("out", type=PATH)
@JSON
@DEBUG
def report(out: Path, as_json: bool) -> None:
    """Render report.html again from the results.json in OUT, the folder that a run wrote."""
    from mtlc.compile.report import report as render

    emit(as_json, {"report": str(render(out))}, lambda result: result["report"])


@main.group("import", cls=Front)
def import_() -> None:
    """Turn the checkpoint of another code into weights of a network of mtlc.zoo."""


@import_.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where the weights go, a .safetensors file.")
@click.option("--size", help="tiny, small, base or micro. Default: what the checkpoint is.")
@click.option("--image-size", metavar="HxW", help="What it was trained with, such as 480x640. Default: the size's.")
@click.option("--top-k", type=click.IntRange(min=1), default=4, show_default=True, help="Experts per token.")
@JSON
@DEBUG
def m3vit(checkpoint: Path, out: Path, size: str | None, image_size: str | None, top_k: int, as_json: bool) -> None:
    """Import an official M³ViT CHECKPOINT: a file, or the folder of a distributed one.

    Writes the weights, and prints the [model] and [tasks] of a job that uses them.
    """
    from mtlc.compile.import_m3vit import import_m3vit

    emit(as_json, import_m3vit(checkpoint, out, size, image_size, top_k), lambda result: result["job"])


@main.group(cls=Front, invoke_without_command=True)
@JSON
@DEBUG
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List the devices that are known: peak rates, bandwidth, memory, power."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise UserError(f"--json goes behind the verb: mtlc devices {context.invoked_subcommand} … --json")
        return
    from mtlc.compile import text
    from mtlc.compile.devices import list_devices

    emit(as_json, list_devices(), text.devices)


@devices.command()
@click.argument("name")
@JSON
@DEBUG
def show(name: str, as_json: bool) -> None:
    """Show every figure of the device NAME, or of the device file NAME, with its unit, source and confidence."""
    from mtlc.compile import text
    from mtlc.compile.devices import show_device

    emit(as_json, show_device(name), text.device)


@main.command()
@click.option("--out", type=PATH, help="The device file. Default: local-cpu.toml in your folder of devices.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), multiple=True,
    help="A number of threads to measure with; may be given again. Default: 1, and all cores.",
)  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10, show_default=True, help="How long to measure.")
@JSON
@DEBUG
@QUIET
def calibrate(out: Path | None, threads: tuple[int, ...], seconds: float, as_json: bool, quiet: bool) -> None:
    """Measure what this machine can do and write it to the device file of local-cpu."""
    from mtlc.compile import text
    from mtlc.compile.calibrate import calibrate as measure

    emit(as_json, measure(out, threads, seconds, log=listener(quiet)["log"]), text.calibrate)


@main.command()
@JSON
@DEBUG
def doctor(as_json: bool) -> None:
    """Say what is installed, what is missing and how to get it, and what this processor can do."""
    from mtlc.compile import text
    from mtlc.compile.doctor import doctor as examine

    emit(as_json, examine(), text.doctor)


main.add_command(export)
main.add_command(fpga)


if __name__ == "__main__":
    main()
