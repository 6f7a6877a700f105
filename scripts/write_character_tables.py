"""Write native/src/character_tables.h: which characters names may have, as the Python that runs this knows them.

The C library and the Python runtime take the same names as far as both know the same version of Unicode.

    python scripts/write_character_tables.py
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

TARGET = Path(__file__).parent.parent / "native" / "src" / "character_tables.h"
_LINE = 110


def characters() -> Iterator[str]:
    """All beyond ASCII but the halves of surrogate pairs."""
    return (chr(c) for c in range(0x80, sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)


def ranges(good: Callable[[str], bool]) -> list[tuple[int, int]]:
    """The first and last character of each run of characters that are `good`."""
    found: list[tuple[int, int]] = []
    for c in characters():
        if not good(c):
            continue
        if found and found[-1][1] == ord(c) - 1:
            found[-1] = (found[-1][0], ord(c))
        else:
            found.append((ord(c), ord(c)))
    return found


def lines(entries: Iterable[str]) -> str:
    """The entries with commas, in lines that are not too long."""
    made = [""]
    for entry in entries:
        if len(made[-1]) + len(entry) > _LINE:
            made.append("")
        made[-1] += f"{entry}, "
    return "\n".join(f"    {line.rstrip()}" for line in made)


def table(name: str, good: Callable[[str], bool]) -> str:
    pairs = lines(f"{{0x{first:x}, 0x{last:x}}}" for first, last in ranges(good))
    return f"static const struct range {name}[] = {{\n{pairs}\n}};\n"


def main() -> None:
    folds = [c for c in characters() if c.casefold() != c]
    folded = lines(f"{{0x{ord(c):x}, {{{', '.join(hex(ord(part)) for part in c.casefold())}}}}}" for c in folds)
    TARGET.write_text(
        "/* Which characters names may have. Written by scripts/write_character_tables.py, "
        f"of Unicode {unicodedata.unidata_version}. */\n\n"
        + "\n".join(
            [
                table("STARTS", str.isidentifier),
                table("CONTINUES", lambda c: f"a{c}".isidentifier()),
                table("PRINTABLE", str.isprintable),
                f"static const struct fold FOLDS[] = {{\n{folded}\n}};\n",
            ]
        )
    )
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
