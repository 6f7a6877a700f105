"""The command line: thin click commands, each one call into `mtlc.compile`.

Results go to stdout, progress and logs to stderr. Exit codes: 0 done; 1 a fault in mtlc; 2 usage or bad input; 3 budget
or limits missed, best effort written; 4 verification failed; 5 a backend or device is not available; 130
interrupted. Whatever happens is one line, or a traceback with ``--debug``. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

from pathlib import Path

import click

import mtlc
from mtlc import cli_bundle
from mtlc.cli_fpga import export, fpga
from mtlc.errors import BudgetMissed, UserError
from mtlc.front import DEBUG, JSON, PATH, QUIET, Front, emit, listener, log_line

JOB = click.argument("job", type=PATH)


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
    """Show the tasks, costs and history of TARGET: a checkpoint, a bundle, a job or any ONNX file."""
    from mtlc.compile import text
    from mtlc.compile.inspect import inspect as look

    emit(as_json, look(target, job), text.inspect)


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


for verb in cli_bundle.VERBS:
    main.add_command(verb)
main.add_command(export)
main.add_command(fpga)


if __name__ == "__main__":
    main()
