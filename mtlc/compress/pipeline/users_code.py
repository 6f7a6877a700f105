"""Hashes the code of a job's owner: the modules that its references and classes lie in, and all that those import.

The modules are found by reading import statements and not by looking at what is loaded: the same code has the same hash
in every process, whatever ran in it before, and an import inside a function counts before it was ever made. A module
counts under its name and not its path, so a folder may move.

What is found ends in one of four ways:

    a file of the owner's     by content: source, a .pyc without a source, an extension; its own imports are followed
    an installed package      by name, version and the checksums it was installed with; with what it requires
    mtlc                      by a rule of its own (`mtlc.compress.pipeline.own_code`)
    the standard library      by Python's version

A module without a file (a notebook, ``python -c``) cannot be known again: its hash is another one each time.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import site
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import mtlc

_CODE = (".py", ".pyc", *EXTENSION_SUFFIXES)
# Calls that import what no reader of the file can name.
_COMPUTED = {
    *("import_module", "__import__", "iter_modules", "walk_packages"),
    *("spec_from_file_location", "run_path", "run_module", "exec"),
}


@dataclass(frozen=True)
class _Module:
    """Where a module lies: `file` is None for a namespace package; `folders` are those of its submodules, if any."""

    name: str
    file: Path | None
    folders: tuple[str, ...] | None

    @property
    def package(self) -> str:
        """What relative imports in it start from."""
        return self.name if self.folders is not None else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class _Imports:
    """The modules that a file may import, by absolute name; `computed` where some are named only as it runs."""

    names: frozenset[str]
    computed: bool


def code_hash(modules: Iterable[str]) -> str:
    """SHA-256 of the code that lies in `modules` (dotted names) and of all that it imports.

    Files are read once in a process: what was edited since is not what the process runs. Where a module has no file,
    every call gives another hash.
    """
    names = frozenset(modules)
    digest = hashlib.sha256("\n".join(_reached(names)).encode())
    if without_file(names):
        digest.update(uuid.uuid4().bytes)
    return digest.hexdigest()


def without_file(modules: Iterable[str]) -> list[str]:
    """Those of `modules` whose code is in no file, such as the cells of a notebook."""
    return sorted(name for name in set(modules) if _is_lost(name))


def distributions(packages: Iterable[str]) -> list[str]:
    """The installed distributions that the top-level `packages` belong to, and those that they require, a line each."""
    known = packages_of_distributions()
    lines: dict[str, str] = {}
    pending = [name for package in packages for name in known.get(package, ())]
    while pending:
        name = _normal(pending.pop())
        if name in lines:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        lines[name] = f"{name}=={found.version} {_installed_content(found)}"
        pending += _requirements(found)
    return [lines[name] for name in sorted(lines)]


@cache
def packages_of_distributions() -> dict[str, list[str]]:
    """The distributions by the top-level package that they install."""
    return {name: sorted(set(found)) for name, found in packages_distributions().items()}


@cache
def imports(file: Path, package: str) -> _Imports:
    """What a file of a package imports anywhere in it. One that cannot be parsed, and no source, imports nothing."""
    if file.suffix != ".py":
        return _Imports(frozenset(), False)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return _Imports(frozenset(), False)
    names, computed = set[str](), False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            if base:
                # `from package import name`: the name may be a module.
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")}
        elif isinstance(node, ast.Call) and _called(node) in _COMPUTED:
            literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if isinstance(literal, str) and _called(node) in ("import_module", "__import__"):
                names.add(_absolute(literal.lstrip("."), len(literal) - len(literal.lstrip(".")), package))
            else:
                computed = True
    return _Imports(frozenset(names - {""}), computed)


@cache
def file_hash(path: Path) -> str:
    """SHA-256 of a file as it was when this process first asked."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _reached(roots: frozenset[str]) -> tuple[str, ...]:
    """A line for each module and each installed distribution that is reached from `roots`, sorted."""
    lines, packages, seen = dict[str, str](), set[str](), set[str]()
    pending = [module for name in sorted(roots) for module in _with_package(name)]
    while pending:
        module = pending.pop()
        if module.name in seen:
            continue
        seen.add(module.name)
        if module.file is not None:
            if _belongs_elsewhere(module.file):
                continue
            if _is_installed(module):
                packages.add(module.name.partition(".")[0])
                if module.name in roots:  # an edit in place is not in what the installer wrote down
                    lines[module.name] = file_hash(module.file)
                continue
            lines[module.name] = file_hash(module.file)
            asked = imports(module.file, module.package)
            if asked.computed:
                pending += _below(module.file.parent, module.package)
            pending += [one for name in sorted(asked.names) for one in _with_parents(name)]
    return (*(f"{name}:{value}" for name, value in sorted(lines.items())), *distributions(sorted(packages)))


def _with_package(name: str) -> list[_Module]:
    """A root with what encloses it, and every module of the package that it lies in: they belong together."""
    found = _with_parents(name)
    module = _find(name)
    if module is None or module.file is None or _belongs_elsewhere(module.file) or _is_installed(module):
        return found
    package = _find(module.package) if module.package else None
    if package is not None and package.file is not None and package.file.stem == "__init__":
        found += _below(package.file.parent, package.name)
    return found


def _with_parents(name: str) -> list[_Module]:
    """A module and the packages above it, whose ``__init__`` runs before it; none of those that are not there."""
    parts = name.split(".")
    found = (_find(".".join(parts[:count])) for count in range(1, len(parts) + 1))
    return [module for module in found if module is not None]


def _find(name: str) -> _Module | None:
    """A module by its name, loaded or not, without importing it or what is above it."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        file, folders = getattr(loaded, "__file__", None), getattr(loaded, "__path__", None)
        return _Module(name, Path(file) if file else None, None if folders is None else tuple(folders))
    above = name.rpartition(".")[0]
    folders = None
    if above:
        parent = _find(above)
        if parent is None or parent.folders is None:
            return None
        folders = list(parent.folders)
    return _search(name, None if folders is None else tuple(folders))


def _search(name: str, folders: tuple[str, ...] | None) -> _Module | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, folders)
        except KeyError:  # a namespace package within one that was not imported
            inside = tuple(str(Path(folder, name.rpartition(".")[2])) for folder in folders or ())
            return _Module(name, None, tuple(folder for folder in inside if os.path.isdir(folder)))
        except (ImportError, AttributeError, ValueError):
            continue
        if spec is not None:
            file = Path(spec.origin) if spec.has_location and spec.origin else None
            below = spec.submodule_search_locations
            return _Module(name, file, None if below is None else tuple(below))
    return None


def _below(folder: Path, package: str) -> Iterator[_Module]:
    """Every module in a folder and the folders in it, links followed; no hidden ones, and no virtual environments."""
    been = set[str]()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in been or "pyvenv.cfg" in files:
            folders.clear()
            continue
        been.add(real)
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in sorted(files):
            suffix = next((one for one in sorted(_CODE, key=len, reverse=True) if name.endswith(one)), None)
            if suffix is None:
                continue
            parts = [part for part in (package, *Path(here).relative_to(folder).parts) if part]
            stem = name.removesuffix(suffix)
            if stem == "__init__":
                yield _Module(".".join(parts), Path(here, name), (here,))
            else:
                yield _Module(".".join((*parts, stem)), Path(here, name), None)


def _is_lost(name: str) -> bool:
    if name.partition(".")[0] in packages_of_distributions() or name.partition(".")[0] in sys.stdlib_module_names:
        return False  # made by a library as it runs, such as torch.fx's classes
    module = _find(name)
    return module is None or (module.file is None and module.folders is None)


@cache
def _belongs_elsewhere(file: Path) -> bool:
    """Whether a file is mtlc's own or the standard library's."""
    if file.is_relative_to(Path(mtlc.__file__).parent):
        return True
    library = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    inside = any(file.is_relative_to(one) or file.resolve().is_relative_to(one.resolve()) for one in library)
    return inside and not {"site-packages", "dist-packages"} & set(file.parts)


def _is_installed(module: _Module) -> bool:
    """Whether a distribution installed the module's file: an editable installation only points at it."""
    assert module.file is not None
    inside = any(module.file.is_relative_to(folder) for folder in _site_folders())
    return inside and module.name.partition(".")[0] in packages_of_distributions()


@cache
def _site_folders() -> tuple[Path, ...]:
    named = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    named |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    return tuple(Path(path) for path in sorted({*named, site.getusersitepackages()}))


@cache
def _content(name: str, version: str, record: str) -> str:
    # Scripts hold the path of the environment and .pyc files times: neither is what the package computes.
    rows = [row for row in record.splitlines() if not row.startswith("..") and ".pyc," not in row]
    rows = [row for row in rows if ".dist-info/" not in row]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def _installed_content(found: Distribution) -> str:
    """A hash of the checksums of what was installed; empty for an installer that wrote none down."""
    return _content(found.name, found.version, found.read_text("RECORD") or "")


def _requirements(found: Distribution) -> Iterator[str]:
    """The distributions that one needs; not those of its extras, which nobody may have asked for."""
    for line in found.requires or ():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name is not None and not re.search(r"extra\s*==", line):
            yield name[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _absolute(module: str, level: int, package: str) -> str:
    """The absolute name of a module that is named with `level` dots in front, in a file of a package."""
    if not level:
        return module
    base = package.split(".")[: len(package.split(".")) - level + 1] if package else []
    return ".".join(part for part in (*base, module) if part)


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        # `module.exec(…)` is a method of somebody's.
        return node.func.attr if node.func.attr != "exec" else ""
    return node.func.id if isinstance(node.func, ast.Name) else ""
