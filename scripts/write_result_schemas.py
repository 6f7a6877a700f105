"""Writes the tables of results into the docs: a table a model, with each field, its type, and what it is with its unit.

Run it after a change of a model in `mtlc.results`; with ``--check`` it writes nothing and fails if a page is not what
it would write. A model has a place in its page between ``<!-- schema: NAME -->`` and ``<!-- end of schema: NAME -->``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).parent.parent / "docs"

SCHEMAS = (
    ("mtlc.results.run:RunResults", "report.md"),
    ("mtlc.results.train:TrainResults", "report.md"),
    *(
        (f"mtlc.results.{place}", "json.md")
        for place in (
            "plan:Plan",
            "slim:SlimResult",
            "search:WidthSearchResult",
            "sweep:SweepResult",
            "trace:TraceResult",
            "import_m3vit:ImportResult",
            "inspect:InspectedJob",
            "inspect:InspectedCheckpoint",
            "inspect:InspectedBundle",
            "inspect:InspectedOnnx",
            "verify:VerifyResult",
            "verify:PairResult",
            "build:EnginesResult",
            "build:IrResult",
            "package:PackageResult",
            "quantize:QuantizeResult",
            "infer:InferResult",
            "infer:InferSeveralResult",
            "profile:ProfileResult",
            "bench:BenchResult",
            "board_bench:BoardBenchResult",
            "compare:Comparison",
            "runs_comparison:RunsComparison",
            "known_devices:KnownDevice",
            "known_devices:CalibrationResult",
            "fpga:SimulationResult",
            "fpga:DesignSearchResult",
            "rtl:FpgaExport",
            "rtl:VerilogRun",
            "rtl:SynthesisResult",
            "doctor:DoctorResult",
        )
    ),
)
"""The results that a page shows: where the model is, and the page in ``docs/``. Models inside it come along, once."""

_NAMES = {"Any": "any", "NoneType": "None"}


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or say which are stale. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for page in dict.fromkeys(page for _, page in SCHEMAS):
        path = DOCS / page
        old = path.read_text()
        new = with_schemas(old, [model_at(place) for place, at in SCHEMAS if at == page])
        if new == old:
            continue
        stale.append(page)
        if not check:
            path.write_text(new)
    for page in stale:
        print(f"docs/{page}: {'stale: run scripts/write_result_schemas.py' if check else 'written'}")
    return 1 if check and stale else 0


def model_at(place: str) -> type[BaseModel]:
    """The model at ``module:NAME``."""
    module, _, name = place.partition(":")
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    return model


def with_schemas(page: str, models: list[type[BaseModel]]) -> str:
    """The page with the tables of each model between its marks. Raises `ValueError` for a page without them."""
    shown: set[type[BaseModel]] = set(models)
    for model in models:
        begin, end = f"<!-- schema: {model.__name__} -->", f"<!-- end of schema: {model.__name__} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page needs the lines {begin} and {end} once each")
        above, _, rest = page.partition(begin)
        page = f"{above}{begin}\n\n{tables(model, shown)}\n{end}{rest.partition(end)[2]}"
    return page


def tables(model: type[BaseModel], shown: set[type[BaseModel]]) -> str:
    """Markdown: the table of the model, then those of the models in it that are not yet `shown`, as they are met."""
    new = [model, *(one for one in met(model) if one not in shown)]
    shown.update(new)
    return "\n".join(table(one, heading=one is not model) for one in new)


def met(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and those in it, each once."""
    found = [model]
    for one in found:  # grows while it is gone through
        for field in one.model_fields.values():
            found += [inner for inner in inside(field.annotation) if inner not in found]
    return found


def inside(kind: Any) -> list[type[BaseModel]]:
    """The models that a type names."""
    if isinstance(kind, type) and get_origin(kind) is None:
        return [kind] if issubclass(kind, BaseModel) else []
    return list(dict.fromkeys(model for part in get_args(kind) for model in inside(part)))


def table(model: type[BaseModel], heading: bool) -> str:
    """One table. The docstring of a model stands above it, that of a field in its row."""
    rows = [
        f"| `{field.alias or name}` | {as_words(field.annotation)} | {meaning(model, name, field)} |"
        for name, field in model.model_fields.items()
    ]
    above = [f"#### {model.__name__}", ""] if heading else []
    return "\n".join([*above, one_line(model.__doc__), "", "| key | type | what it is |", "|---|---|---|", *rows, ""])


def meaning(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """The docstring of a field. Raises `ValueError` for a field without one: it would be a riddle in the docs."""
    if not field.description:
        raise ValueError(f"{model.__name__}.{name} has no docstring")
    return one_line(field.description).replace("|", "\\|")


def as_words(kind: Any) -> str:
    """A type as a person reads it: ``{name: TaskResult}``, ``list of str``, ``float or None``."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(as_words(part) for part in parts)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list of {as_words(parts[0])}"
    if origin is tuple:
        return f"[{', '.join('…' if part is Ellipsis else as_words(part) for part in parts)}]"
    if origin is dict:
        return f"{{{as_words(parts[0])}: {as_words(parts[1])}}}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    name = getattr(kind, "__name__", str(kind))
    return _NAMES.get(name, name)


def one_line(text: str | None) -> str:
    """A docstring as one line of Markdown: code in single quotes."""
    return " ".join((text or "").split()).replace("``", "`")


if __name__ == "__main__":
    sys.exit(main())
