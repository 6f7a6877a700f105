"""Hashes mtlc's own code that a step's numbers can follow from, by one rule over the floors of the package.

Everything from the passes down counts, whether or not today's passes import it: a rule by floor cannot go stale as a
list of files does. Left out is only what stands above the passes, which calls them and shows what they found, but which
they cannot import: nothing they compute can follow from it.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from functools import cache
from pathlib import Path

import torch

import mtlc
from mtlc.compress.pipeline.users_code import distributions, file_hash

# Every package that a line may import: parsing hundreds of our own files would take seconds of every command. A line of
# prose that begins so names no installed package, or one too many.
_IMPORTED = re.compile(r"""^\s*(?:from|import)\s+(\w+)|import_module\(\s*["'](\w+)""", re.MULTILINE)
ABOVE_PASSES = frozenset({"cli", "commands", "workflows", "job", "report"})


@cache
def code_version() -> str:
    """SHA-256 of mtlc's code from the passes down, its data files too, and of what it computes with.

    That is the Python version, every installed distribution that this code imports, the kind of processor, and whether
    there is a GPU.
    """
    root, digest, packages = Path(mtlc.__file__).parent, hashlib.sha256(), set[str]()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if not path.is_file() or not counts(relative):
            continue
        digest.update(f"{relative.as_posix()}:{file_hash(path)};".encode())
        if path.suffix == ".py":
            packages |= {one or other for one, other in _IMPORTED.findall(path.read_text(encoding="utf-8"))}
    digest.update("\n".join(distributions(packages - {"mtlc"})).encode())
    digest.update(f"{sys.version}:{platform.machine()}:{torch.cuda.is_available()}".encode())
    return digest.hexdigest()


def counts(file: Path) -> bool:
    """Whether numbers of a step can follow from this file, relative to the package's folder."""
    return Path(file.parts[0]).stem not in ABOVE_PASSES and "__pycache__" not in file.parts
