"""Writes the reference of the Python interface into ``docs/python.md``, from signatures and docstrings.

Run it after a change of a docstring or a signature; with ``--check`` it writes nothing and fails if the page is not
what it would write. The reference stands between ``<!-- reference -->`` and ``<!-- end of reference -->``.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import mtlc

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
BEGIN, END = "<!-- reference -->", "<!-- end of reference -->"

SECTIONS = (
    ("Verbs", ("compress", "plan", "slim", "search", "sweep", "quantize", "export", "package", "bench", "profile")),
    ("Passes by hand", ("from_model", "run_pass", "prune", "finetune", "extract", "calibrate", "load")),
    ("Objects", ("Task", "Compressed", "Slimmed", "Splits")),
)
"""What is in the reference, in its order: the names of `mtlc` that are not described elsewhere."""

_SHOWN = {"Args": "Arguments", "Returns": "Gives:", "Raises": "Raises"}
_LABEL = re.compile(r"^(Args|Returns|Raises):$")
_ENTRY = re.compile(r"^    ([\w, ]+): (.*)$")


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say that it is stale. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    check = parser.parse_args(arguments).check
    old = PAGE.read_text(encoding="utf-8")
    above, _, rest = old.partition(BEGIN)
    new = f"{above}{BEGIN}\n\n{reference()}\n{END}{rest.partition(END)[2]}"
    if new == old:
        return 0
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    print(f"docs/python.md: {'stale: run scripts/write_python_page.py' if check else 'written'}")
    return 1 if check else 0


def reference() -> str:
    """The reference as Markdown."""
    parts = []
    for title, names in SECTIONS:
        parts.append(f"### {title}\n")
        parts += [described(name) for name in names]
    return "\n".join(parts)


def described(name: str) -> str:
    """One name: its signature, its docstring, and of a class the properties and methods."""
    what = getattr(mtlc, name)
    function = inspect.isclass(what) is False
    if inspect.ismodule(what):  # a verb that is called as the package of its name
        from mtlc.workflows import python_verbs

        what = getattr(python_verbs, name)
    lines = [f"#### `mtlc.{name}`", ""]
    if function or name == "Task":
        lines += ["```text", signature(name, what), "```", ""]
    lines += [docstring(what), ""]
    if not function and name != "Task":
        lines += [*members(what), ""]
    return "\n".join(lines)


def signature(name: str, what: Any) -> str:
    """The call with its arguments and defaults, without their types, on lines of at most 100 characters."""
    shown, starred = [], False
    for one in inspect.signature(what).parameters.values():
        if one.kind is one.VAR_KEYWORD:
            shown.append(f"**{one.name}")
            continue
        if one.kind is one.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        shown.append(one.name if one.default is one.empty else f"{one.name}={default(one.default)}")
    lines, line = [], f"mtlc.{name}("
    for index, part in enumerate(shown):
        part += ")" if index == len(shown) - 1 else ", "
        if len(line) + len(part) > 100:
            lines.append(line.rstrip())
            line = "    "
        line += part
    return "\n".join([*lines, line])


def default(value: Any) -> str:
    """A default as it is written."""
    return "{}" if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS" else repr(value)


def docstring(what: Any) -> str:
    """A docstring as Markdown: arguments become a list, code has single quotes."""
    lines, section = list[str](), ""
    for line in (inspect.getdoc(what) or "").splitlines():
        label, entry = _LABEL.match(line), _ENTRY.match(line)
        section = label[1] if label else section if line.startswith("    ") or not line else ""
        if label:
            lines.append(f"**{_SHOWN[label[1]]}**" if label[1] == "Returns" else f"**{_SHOWN[label[1]]}**\n")
        elif entry and section in ("Args", "Raises"):
            names = ", ".join(f"`{one.strip()}`" for one in entry[1].split(","))
            lines.append(f"- {names}: {entry[2]}")
        else:
            indent = "" if section in ("", "Returns") else "  "
            lines.append(f"{indent}{line.strip()}" if line.startswith("    ") else line)
    return "\n".join(lines).replace("``", "`")


def members(cls: type) -> list[str]:
    """What an object of a class has: fields, properties and methods that are documented."""
    rows = []
    if dataclasses.is_dataclass(cls):
        rows += [f"| `{one.name}` | a field |" for one in dataclasses.fields(cls)]
    for name, value in vars(cls).items():
        text = inspect.getdoc(value.fget if isinstance(value, property) else value)
        if name.startswith("_") or not text or not (isinstance(value, property) or inspect.isfunction(value)):
            continue
        call = "" if isinstance(value, property) else "()"
        rows.append(f"| `{name}{call}` | {' '.join(text.split())} |".replace("``", "`"))
    return ["| it has | what |", "|---|---|", *rows] if rows else []


if __name__ == "__main__":
    sys.exit(main())
