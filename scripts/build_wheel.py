"""Builds the wheel of a commit's files, byte for byte the same wherever and whenever.

    python scripts/build_wheel.py [--out dist]

Only what git knows is in it: files that lie about in a checkout, and the residue of an earlier build, are not. All
files get the time of the last commit and one mode, so that neither the clock nor the umask shows.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(out: Path, root: Path = ROOT) -> Path:
    """Build the wheel into the folder `out` from what git knows of `root`; its path.

    Raises `SystemExit` with what the build printed where it fails, and then leaves `out` as it was.
    """
    when = _git(root, "log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        _copy(root, source, int(when))
        done = subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(made), str(source)],
            env={**os.environ, "SOURCE_DATE_EPOCH": when},
            umask=0o022,
            text=True,
            capture_output=True,
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}".strip())
        out.mkdir(parents=True, exist_ok=True)
        (wheel,) = made.iterdir()
        return Path(shutil.copy(wheel, out))


def _copy(root: Path, source: Path, when: int) -> None:
    """Copy the files that git knows, as they are now; one that was deleted and not committed is left out."""
    for name in _git(root, "ls-files", "-z").split("\0"):
        original, copy = root / name, source / name
        if name and original.is_symlink():  # to the C library's sources, which are another folder of git's
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(os.readlink(original))
        elif name and original.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, copy)
            copy.chmod(0o755 if os.access(original, os.X_OK) else 0o644)
            os.utime(copy, (when, when))


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, text=True, capture_output=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    print(build(parser.parse_args().out))


if __name__ == "__main__":
    main()
