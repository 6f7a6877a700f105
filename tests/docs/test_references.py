"""What the pages name exists: links and their anchors, files, modules and their contents, verbs and their options."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from functools import cache
from pathlib import Path

import click
import pytest
from testkit.places import DOCS, ROOT

from mtlc.cli import main
from mtlc.compress.passes.registry import pass_types
from mtlc.job.schema import JobFile, Section

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted(DOCS.glob("*.md")),
]
ENTRY_POINTS = re.compile(r'"(mtlc\.\w+)"')
"""Groups of entry points look like modules; the code names them in quotes."""
BUNDLES = {"mtlc.toml"}


def texts() -> list[pytest.param]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def resolve(dotted: str) -> object:
    """The module, or what a module holds, of that dotted path."""
    parts = dotted.split(".")
    found: object = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part)
    return found


@cache
def entry_points() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "mtlc").rglob("*.py"))
    return set(re.findall(r'entry_points\(group="(mtlc\.\w+)"', text)) | set(
        re.findall(r'^[A-Z_]*GROUP\w* = "(mtlc\.\w+)"', text, re.M)
    )


@pytest.mark.parametrize("page", texts())
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
        if re.match(r"\w+://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", texts())
def test_files_that_are_named_are_there(page):
    named = re.findall(r"(?<![\w/.<-])(?:mtlc|tests|benchmarks|scripts|examples|docs)/[\w./*-]*\w", page.read_text())
    missing = {name for name in named if not list(ROOT.glob(any_name(name))) and not wanted_elsewhere(name)}
    assert missing == set()


def any_name(path: str) -> str:
    """A pattern of glob, for a path in which the reader is to put a name."""
    return re.sub("NAME|SUBJECT", "*", path)


def wanted_elsewhere(name: str) -> bool:
    """What is not of this repository: files that a run makes, and folders of the user's."""
    return name in {"mtlc/rtl", "mtlc/latency", "mtlc/devices", "mtlc/arm-root"}


def is_native_file(name: str) -> bool:
    """Whether this is a header of the C library, or a file that its build makes, and no path of Python."""
    return any((ROOT / "native").rglob(name)) or any((ROOT / "native").rglob(f"{name}.in"))


@pytest.mark.parametrize("page", texts())
def test_python_paths_that_are_named_exist(page):
    missing = []
    text = (
        re.sub(r"^ *\| `mtlc[^|]*\|", "|", page.read_text(), flags=re.M)
        if page.name == "CHANGELOG.md"
        else page.read_text()
    )
    for dotted in sorted(set(re.findall(r"(?<![\w./\\-])mtlc(?:\.[A-Za-z_]\w*)+(?![\w:*])", text))):
        if dotted in entry_points() or dotted in BUNDLES or is_native_file(dotted):
            continue
        try:
            resolve(dotted)
        except (ImportError, AttributeError):
            missing.append(dotted)
    assert missing == []


@pytest.mark.parametrize("page", texts())
def test_factories_that_are_named_exist(page):
    named = set(re.findall(r"(?<![\w.])(mtlc(?:\.\w+)*):([A-Za-z_]\w*)", page.read_text()))
    missing = [f"{module}:{name}" for module, name in named if not hasattr(importlib.import_module(module), name)]
    assert missing == []


@pytest.mark.parametrize("page", texts())
def test_what_python_examples_import_exists(page):
    missing = []
    for block in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mtlc":
                for alias in node.names:
                    try:
                        resolve(f"{node.module}.{alias.name}")
                    except (ImportError, AttributeError):
                        missing.append(f"{node.module}.{alias.name}")
    assert missing == []


@pytest.mark.parametrize("page", texts())
def test_benchmarks_that_are_named_run_as_modules(page):
    named = re.findall(r"python -m (benchmarks(?:\.\w+)+)", page.read_text())
    assert [name for name in named if not list(ROOT.glob(f"{any_name(name).replace('.', '/')}.py"))] == []


def commands(text: str) -> list[str]:
    """Every command of mtlc that a page shows, on one line, without comments.

    Usage lines go on where they are indented.
    """
    shown = re.findall(r"`(mtlc [^`\n]+)`", without_blocks(text))
    for block in blocks(text, "(?:[a-z]*)"):
        lines = re.sub(r"\\?\n {4,}(?=[\[-])", " ", block).splitlines()
        shown += [line[line.index("mtlc ") :] for line in lines if re.match(r"(\$ |.*&& |\S*/)?mtlc [a-z]", line)]
    return [line.split(" # ")[0].split("  #")[0] for line in shown]


def option_names(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {
        "--help",
        "--debug",
    }


def unknown(line: str) -> list[str]:
    """What of a command the command line does not know: its verb, or options."""
    words = line.split()[1:]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z0-9-]*", words[0]):
        word = words.pop(0)
        found = command.get_command(context, word)
        if found is None:
            return [word]
        command = found
    options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(words))
    return [option for option in options if option not in option_names(command)]


@pytest.mark.parametrize("page", texts())
def test_commands_that_are_shown_exist(page):
    wrong = {line: unknown(line) for line in commands(page.read_text())}
    assert {line: words for line, words in wrong.items() if words} == {}


def test_commands_are_found_and_wrong_ones_are_told():
    text = "`mtlc plan JOB --jsn`\n\n```\nmtlc bench A [--fixed-batch]\n           [--no-such N]\n```\n"
    assert [unknown(line) for line in commands(text)] == [["--jsn"], ["--no-such"]]
    assert unknown("mtlc fpga rtl FOLDER --bytes-per-cycle 8") == []
    assert unknown("mtlc comprss") == ["comprss"]


def test_every_verb_has_a_section_in_the_manual():
    text = (DOCS / "cli.md").read_text()
    assert [verb for verb in main.list_commands(click.Context(main)) if f"| [`{verb}`](" not in text] == []


def test_every_pass_has_a_line_in_the_page_of_the_job():
    """Of all passes and no others: the table of the section on passes is that of the registry."""
    section = (DOCS / "job.md").read_text().split("## `[[passes]]`")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", section, re.M)) == sorted(pass_types())


def test_every_section_of_a_job_and_its_keys_are_in_its_page():
    text = (DOCS / "job.md").read_text()
    fields = [field.alias or name for name, field in JobFile.model_fields.items()]
    assert [name for name in fields if f"`{name}`" not in text and f"[{name}" not in text] == []
    sections = [section for section in Section.__subclasses__() if section is not JobFile]
    keys = {field.alias or name for section in sections for name, field in section.model_fields.items()}
    assert {key for key in keys if f"`{key}`" not in text and f".{key}]" not in text} == set()


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text()
    assert [
        page.name for page in PAGES if page.parent == DOCS and page.name != "index.md" and f"({page.name}" not in index
    ] == []
