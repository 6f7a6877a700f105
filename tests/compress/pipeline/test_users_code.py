"""The hash of the owner's code, for every kind of file that a module may come from: each in a fresh process."""

from __future__ import annotations

import importlib.machinery
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from testkit.places import environment

EXTENSION = importlib.machinery.EXTENSION_SUFFIXES[0]


def hash_of(folder: Path, module: str = "net", *more: Path) -> str:
    """What a process that runs in `folder`, with `more` on its path, finds for `module`."""
    paths = [str(path) for path in (folder, *more)]
    code = (
        f"import sys, site; sys.path[:0] = {paths!r}\n"
        "from mtlc.compress.pipeline.users_code import code_hash\n"
        f"print(code_hash([{module!r}]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=folder, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def edited(folder: Path, file: Path, content: str | bytes, *more: Path) -> bool:
    """Whether another content of `file` makes another hash."""
    before = hash_of(folder, "net", *more)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return hash_of(folder, "net", *more) != before


def compiled(source: str, target: Path) -> bytes:
    """The bytes of a .pyc, with the source's hash in it instead of a time."""
    written = target.with_suffix(".src")
    written.write_text(source)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(written), str(target), "helper.py", doraise=True, invalidation_mode=mode)
    written.unlink()
    return target.read_bytes()


def test_a_module_without_a_source(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import helper\n")
    target = tmp_path / "helper.pyc"
    compiled("VALUE = 1\n", target)
    other = compiled("VALUE = 2\n", tmp_path / "other.pyc")
    (tmp_path / "other.pyc").unlink()
    assert edited(tmp_path, target, other)


def test_an_extension(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make():\n    import kernel\n    return kernel.net()\n")
    library = tmp_path / f"kernel{EXTENSION}"
    library.write_bytes(b"\x7fELF one")  # it is hashed, never loaded
    assert edited(tmp_path, library, b"\x7fELF two")


def test_a_package_without_init(tmp_path: Path) -> None:
    part = tmp_path / "elsewhere" / "parts" / "act.py"
    part.parent.mkdir(parents=True)
    part.write_text("VALUE = 1\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "block.py").write_text("from parts import act\n")
    (tmp_path / "net.py").write_text("from parts.block import *\n")
    assert edited(tmp_path, part, "VALUE = 2\n", tmp_path / "elsewhere")


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_links_are_followed(tmp_path: Path, linked: str) -> None:
    real = tmp_path / "real" / "helper.py"
    real.parent.mkdir()
    real.write_text("VALUE = 1\n")
    job = tmp_path / "job"
    job.mkdir()
    (job / "helpers").symlink_to(real.parent) if linked == "folder" else (job / "helper.py").symlink_to(real)
    name = "helpers.helper" if linked == "folder" else "helper"
    (job / "net.py").write_text(f"import {name}\n")
    assert edited(job, real, "VALUE = 2\n")


def test_an_editable_installation(tmp_path: Path) -> None:
    """It is a line in a .pth file: the code lies in the owner's folder, and an edit there counts."""
    source = tmp_path / "checkout" / "src" / "acme"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("")
    (source / "blocks.py").write_text("VALUE = 1\n")
    installed = tmp_path / "lib" / "site-packages"
    information = installed / "acme-1.0.dist-info"
    information.mkdir(parents=True)
    (installed / "__editable__.acme-1.0.pth").write_text(f"{source.parent}\n")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (information / "top_level.txt").write_text("acme\n")
    (information / "RECORD").write_text("__editable__.acme-1.0.pth,sha256=abc,1\nacme-1.0.dist-info/METADATA,,\n")
    job = tmp_path / "job"
    job.mkdir()
    (job / "net.py").write_text("from acme.blocks import VALUE\n")
    assert edited(job, source / "blocks.py", "VALUE = 2\n", source.parent, installed)


def test_an_installed_package_counts_by_what_the_installer_wrote_down(tmp_path: Path) -> None:
    installed = tmp_path / "lib" / "site-packages"
    information = installed / "acme-1.0.dist-info"
    information.mkdir(parents=True)
    (installed / "acme.py").write_text("VALUE = 1\n")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (information / "top_level.txt").write_text("acme\n")
    record = information / "RECORD"
    record.write_text("acme.py,sha256=one,10\n")
    job = tmp_path / "job"
    job.mkdir()
    (job / "net.py").write_text("import acme\n")
    assert edited(job, record, "acme.py,sha256=two,10\n", installed)


def test_a_file_that_nothing_imports_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("")
    unrelated = tmp_path / "unrelated.py"
    unrelated.write_text("VALUE = 1\n")
    assert not edited(tmp_path, unrelated, "VALUE = 2\n")
