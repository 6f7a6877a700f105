"""What each verb prints for people. Every function takes the verb's result and gives text; nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NETWORK = "(network)"
"""What operators in the forward of the network itself, in no layer of it, are listed under."""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns two spaces apart; numbers to the right, words to the left."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-")[:1].isdigit()


def count(value: float | None, unit: str = "") -> str:
    """A count with three digits and a prefix: ``25.3 M``."""
    if value is None:
        return "-"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def _change(before: float | None, after: float | None) -> str:
    return "-" if not before or after is None else f"{100 * (after / before - 1):+.1f}%"


def _config(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in config.items())


def plan(result: Mapping[str, Any]) -> str:
    """The plan: data, cost, layers, what can be pruned, budget, passes."""
    data, cost = result["data"], result["cost"]
    lines = [
        f"data      {data['train']} train, {data['calibration']} calibration, {data['validation']} validation samples",
        f"network   {count(cost['macs'], 'MACs')}, {count(cost['params'])} parameters ({cost['kind']})",
    ]
    weights = result["weights"]
    if weights is not None and not weights["exists"]:
        lines.append(f"weights   {weights['path']} is not there yet: mtlc train {result['job']}")
    for task in result["tasks"]:
        limit = task["max_drop"]
        share = "no limit" if limit is None else f"may lose {_limit(limit, task['unit'])}"
        lines.append(f"task      {task['name']}: {task['loss']}, {task['metric']}, {share}")
    budget = result.get("budget")
    if budget is not None:
        lines.append(f"budget    {_budget(budget)}")
    for index, entry in enumerate(result["passes"], 1):
        lines.append(f"pass {index}    {entry['name']}: {_config(entry['config'])}")
    lines.append(f"export    {_config(result['export'])}")
    lines.append("")
    lines.append(table(("layer", "operator", "MACs", "parameters"), _layer_rows(result["layers"])))
    units = result.get("units")
    if units is not None:
        rows = [(unit["name"], unit["channels"], unit["narrowest"], "") for unit in units["prunable"]]
        rows += [(unit["name"], unit["channels"], "", unit["why"]) for unit in units["left_alone"]]
        lines += ["", table(("channel group", "channels", "narrowest", "left alone because"), rows)]
    experts = result.get("experts")
    if experts is not None:
        rows = [(layer["layer"], layer["experts"], layer["top_k"], layer["keeps"]) for layer in experts["layers"]]
        lines += ["", f"tasks that stay: {', '.join(experts['tasks'])}"]
        lines += [table(("experts of", "experts", "top k", "keeps at least"), rows)]
    return "\n".join(lines)


def _layer_rows(layers: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    rows = []
    for layer in layers:
        name = layer.get("layer") or layer.get("name") or NETWORK
        rows.append((name, layer.get("kind") or layer.get("op", ""), layer["macs"], layer.get("parameters", "")))
    return rows


def _limit(limit: Mapping[str, Any], unit: str) -> str:
    return f"{limit['value'] * 100:g}%" if limit["relative"] else f"{limit['value']:g} {unit}".rstrip()


def _budget(budget: Mapping[str, Any]) -> str:
    if budget["kind"] == "latency":
        return f"{budget['target']:.3g} ms on {budget['device']}"
    unit = "MACs" if budget["kind"] == "macs" else "parameters"
    text = f"{count(budget['target'])} of {count(budget['original'])} {unit}"
    if budget["met_already"]:
        return f"{text}: met already"
    if budget["reachable"] is None:
        return f"{text}: what is in reach shows as the passes run"
    verdict = "within reach if the tasks' limits allow" if budget["reachable"] else "OUT OF REACH"
    return f"{text}: {verdict} (the pass alone can go to {count(budget['least'])})"


def run(result: Mapping[str, Any]) -> str:
    """A finished run: what each task paid, what the network costs, and what was missed."""
    rows = []
    for name, task in result["tasks"].items():
        verdict = {None: "", True: "kept", False: "MISSED"}[task["within"]]
        numbers = (f"{task['before']:.4g}", f"{task['after']:.4g}", _change(task["before"], task["after"]))
        rows.append((name, task["metric"], *numbers, task["unit"], task["limit"] or "-", verdict))
    lines = [table(("task", "metric", "before", "after", "change", "unit", "limit", ""), rows), ""]
    delta = result["delta_m"]
    for key, what in (("vs_original", "the original network"), ("vs_single_task", "single-task networks")):
        if delta[key] is not None:
            lines.append(f"delta m {delta[key]:+.2f} % against {what}")
    before, after = result["cost"]["before"], result["cost"]["after"]
    names = {"macs": "MACs", "parameters": "parameters", "peak_activation_bytes": "peak activation bytes"}
    names["bundle_bytes"] = "bundle bytes"
    if before.get("active_macs") is not None:
        names["active_macs"] = "MACs, routed (measured)"
    costs = [(label, count(before[k]), count(after[k]), _change(before[k], after[k])) for k, label in names.items()]
    latency = result["latency"]
    if latency is not None:
        old, new = (latency[side]["median_ms"] for side in ("before", "after"))
        costs.append((f"ms, {latency['threads']} thread", f"{old:.3f}", f"{new:.3f}", _change(old, new)))
    lines += ["", table(("cost", "before", "after", "change"), costs)]
    if result.get("dropped_tasks"):
        lines.append("before: the original network, running the tasks that are left")
    lines += _experts(result.get("experts"))
    lines += [f"missed: {line}" for line in result["missed"]]
    lines += ["", f"bundle: {result['bundles']['after']['path']}"]
    made = result.get("quantization")
    if made is not None:
        lines += [f"in INT8: {made['path']}, {made['macs_int8']:.1%} of the MACs for {made['target']}"]
    return "\n".join(lines)


def _experts(found: Mapping[str, Any] | None) -> list[str]:
    """What an extraction took out: experts kept by layer, the score mass that each task keeps, and what is exact."""
    if found is None:
        return []
    tasks = found["tasks"]
    rows = []
    for layer in found["layers"]:
        shares = (f"{100 * layer['tasks'][task]['coverage']:.1f}" for task in tasks)
        rows.append((layer["layer"], f"{len(layer['kept'])} of {layer['experts']}", *shares))
    lines = ["", table(("experts of", "kept", *(f"% of the scores of {task}" for task in tasks)), rows)]
    lines += [f"exact: {line}" for line in found["exact"]]
    lines += [f"approximate: {line}" for line in found["approximate"]]
    if found["dropped_tasks"]:
        lines.append(f"gone: {', '.join(found['dropped_tasks'])}")
    return [*lines, ""]


def train(result: Mapping[str, Any]) -> str:
    """A finished training: metrics on validation, and the file."""
    validation = result["validation"]
    rows = [
        (name, f"{validation['losses'][name]:.4g}", f"{metric:.4g}", result["units"][name])
        for name, metric in validation["metrics"].items()
    ]
    return table(("task", "loss", "metric", "unit"), rows) + f"\n\nweights: {result['weights']}"


def slim(result: Mapping[str, Any]) -> str:
    """What `slim_job` made, for people."""
    groups = [*result["stages"], *result["tasks"]]
    rows = [
        (
            point["name"], count(point["macs"]), f"{point['delta_m']:+.2f} %",
            *(f"{width:g}" for width in (*point["encoder"].values(), *point["decoders"].values())),
        )
        for point in result["points"]
    ]  # fmt: skip
    bundle = result["bundle"]
    lines = [table(("configuration", "MACs", "Δm", *groups), rows), ""]
    lines.append(
        f"bundle: {bundle['path']}, {count(bundle['bytes'], 'B')} ({bundle['bytes'] / bundle['widest_bytes']:.2f} × the widest network's), "
        f"{bundle['encoders']} encoders with every width of each decoder"
    )
    return "\n".join(lines)


def search(result: Mapping[str, Any]) -> str:
    """What `search` found, for people."""
    lines = [
        table(("stage", "width"), ((stage, f"{width:g}") for stage, width in result["encoder"].items())),
        "",
        table(
            ("task", "decoder", "metric"),
            ((task, f"{width:g}", f"{result['metrics'][task]:.4g}") for task, width in result["decoders"].items()),
        ),
        "",
        f"cost: {count(result['macs'])} MACs" + (f", {result['share']:.1%} of the widest" if result["share"] else ""),
    ]
    if result.get("latency_ms") is not None:
        lines.append(f"latency: {result['latency_ms']:.3g} ms, measured")
    if "gain" in result:
        lines.append(
            f"gain: {100 * result['gain']:+.2f} % by preference, after {result['runs']} measurements in {result['seconds']:.0f} s"
        )
    if result.get("bundle"):
        lines.append(f"bundle: {result['bundle']}")
    return "\n".join(lines)


def inspect(result: Mapping[str, Any]) -> str:
    """A checkpoint, a bundle or a job: one line each for what it is, its tasks and its history."""
    lines = [f"{result['is']} {result['path']}"]
    if "factory" in result:
        lines.append(f"factory   {result['factory']}")
    if result.get("cost"):
        lines.append(f"cost      {count(result['cost']['macs'], 'MACs')}, {count(result['cost']['params'])} parameters")
    if "bytes" in result:
        lines.append(f"size      {count(result['bytes'], 'B')}")
    for name, task in result["tasks"].items():
        shown = {key: task[key] for key in ("metric", "kind", "unit", "loss", "shape") if task.get(key)}
        lines.append(f"task      {name}: {_config(shown)}")
    if result.get("widths"):
        lines += _widths(result)
    for program in [] if result.get("widths") else result.get("programs", []):
        lines.append(f"program   {program['name']}: {program['file']}, for {', '.join(program['tasks'])}")
    for index, entry in enumerate(result.get("passes") or result.get("history") or [], 1):
        lines.append(f"pass {index}    {entry['name']}: {_config(entry['config'])}")
    if result.get("layers"):
        rows = [
            (
                layer["name"] or NETWORK,
                layer["kind"],
                "x".join(map(str, layer["shape"])),
                count(layer["macs"]),
                count(layer["parameters"]),
            )
            for layer in result["layers"]
            if layer["macs"] or layer["parameters"]
        ]
        lines += ["", table(("layer", "kind", "output", "MACs", "parameters"), rows)]
    return "\n".join(lines)


def _widths(bundle: Mapping[str, Any]) -> list[str]:
    """What a bundle of several widths can run, a line for each named configuration."""
    widths = bundle["widths"]
    encoders = {encoder["name"]: encoder["widths"] for encoder in widths["encoders"]}
    macs = {program["name"]: program["macs"] for program in bundle["programs"]}
    lines = [f"widths    {len(encoders)} encoders with every width of each decoder, {len(macs)} programs"]
    for one in bundle["configurations"]:
        stages = " ".join(f"{width:g}" for width in encoders[one["encoder"]])
        decoders = " ".join(f"{task} {width:g}" for task, width in one["decoders"].items())
        cost = count(sum(macs[name] for name in one["programs"]), "MACs")
        lines.append(f"runs as   {one['name']}: {cost}, encoder {stages}, {decoders}")
    return lines


def verify(result: Mapping[str, Any]) -> str:
    """What was checked of a bundle."""
    lines = [f"{result['bundle']}: {result['files']} files, {count(result['bytes'], 'B')}, whole and safe to open"]
    for task, found in (result["compared"] or {}).items():
        worst = max(error["max_rel"] for error in found.values() if isinstance(error, Mapping))
        lines.append(f"{task}: differs from the checkpoint by at most {worst:.1e} of the output's largest value")
        if found.get("vacuous"):
            lines.append(f"  but the check says little: {found['vacuous']}")
    return "\n".join(lines)


def infer(result: Mapping[str, Any]) -> str:
    """The files that were written, a line each."""
    return "\n".join(entry["picture"] for entry in result["tasks"].values())


def doctor(result: Mapping[str, Any]) -> str:
    """The state of this machine."""
    cpu = result["cpu"]
    flags = ", ".join(
        f"{flag} {'unknown' if has is None else 'yes' if has else 'no'}" for flag, has in cpu["flags"].items()
    )
    lines = [
        f"mtlc {result['mtlc']}, Python {result['python']}, {result['system']}",
        f"{cpu['name']}, {cpu['threads']} threads: {flags}",
        f"CUDA: {result['cuda'] or 'none'}",
        f"instructions: {result['instructions']['why'] or 'can be counted'}",
        f"TensorRT: {_tensorrt(result['tensorrt'])}",
        "",
        table(
            ("package", "version", "for", "to get it"),
            [
                (name, found["version"] or "missing", found["for"], found.get("install", ""))
                for name, found in result["packages"].items()
            ],
        ),
    ]
    return "\n".join(lines)


def _tensorrt(found: Mapping[str, Any]) -> str:
    """What is here of a TensorRT, a GPU and its driver, and what is missing."""
    parts = [f"{found['module']} {found['version']}"] if found["module"] else []
    if found["gpu"]:
        parts.append(
            f"{found['gpu']} (compute capability {found['compute_capability']}, driver for CUDA {found['driver_cuda']})"
        )
    return "; ".join([*parts, *found["missing"]])


def devices(result: Iterable[Mapping[str, Any]]) -> str:
    """All devices, a line each. A figure that no document confirms is marked."""
    rows = []
    for device in result:
        figures = device["figures"]
        power = [_figure(figures[f"power.{key}"]) for key in ("min", "typical", "max") if f"power.{key}" in figures]
        rows.append(
            (
                device["name"], device["kind"] or "-", _peaks(figures, "int8"), _peaks(figures, "fp16", "bf16"),
                _figure(figures.get("memory.bandwidth")), _figure(figures.get("memory.capacity")),
                " to ".join(power) or "-",
            )
        )  # fmt: skip
    return table(("device", "kind", "int8 peak", "fp16 or bf16 peak", "bandwidth", "memory", "power"), rows)


def _peaks(figures: Mapping[str, Any], *precisions: str) -> str:
    """The peak rates in these precisions, each with what it counts: ``20 TOPS dense, 40 TOPS sparse``."""
    shown = []
    for precision in precisions:
        for structure in ("dense", "sparse", "unstated"):
            figure = figures.get(f"peak.{precision}.{structure}")
            if figure is not None:
                words = {"unstated": "(dense or sparse: unstated)"}.get(structure, structure)
                shown.append(f"{_figure(figure)} {words}" + (f" {precision}" if len(precisions) > 1 else ""))
    return ", ".join(shown) or "-"


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    unit = "" if figure["unit"] == "count" else f" {figure['unit']}"
    return f"{figure['value']:.10g}{unit}" + (" (unconfirmed)" if figure["confidence"] == "unconfirmed" else "")


def device(result: Mapping[str, Any]) -> str:
    """One device, a line for each figure."""
    lines = [f"{result['name']}: {result['title']}"]
    lines += [f"kind      {result['kind']}"] if result["kind"] else []
    lines += [f"local     measured through {result['backend']}"] if result["local"] else []
    lines += [f"modelled  as class {result['roofline']}"] if result["roofline"] else []
    lines += [f"from      {result['origin']}"] if result["origin"] else []
    if result["measured_on"]:
        lines.append(f"measured  {_config(result['measured_on'])}")
    lines += [f"notes     {result['notes']}"] if result["notes"] else []
    columns = ["figure", "value", "unit", "spread", "confidence", "source", "note"]
    rows = []
    for key, figure in result["figures"].items():
        spread = f"{figure['spread']:.0%}" if "spread" in figure else ""
        unit, confidence, source = (figure[name] for name in ("unit", "confidence", "source"))
        rows.append([key, f"{figure['value']:.10g}", unit, spread, confidence, source, figure.get("note", "")])
    for column in ("spread", "note"):  # which most devices have none of
        at = columns.index(column)
        if not any(row[at] for row in rows):
            for row in (columns, *rows):
                del row[at]
    return "\n".join([*lines, "", table(columns, rows) if rows else "no figures"])


def calibrate(result: Mapping[str, Any]) -> str:
    """What was measured, what was not, and where it is written."""
    lines = [device(result["device"]), ""]
    lines += [f"doubt: {line}" for line in result["doubts"]]
    return "\n".join([*lines, f"written: {result['path']}"])
