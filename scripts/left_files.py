"""Compares what a run left in its folder with what two undisturbed runs left.

Files that the two agree on are compared to the bit; JSON that they do not agree on (it holds times) key by key, in the
values that they agree on; of other files that hold times, that they are there and end as they should.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Snapshot = dict[str, bytes]
"""The files of a folder, by path."""
TIMES = {"ms", "rate", "effort", "cached", "latency", "speedup", "load_1min", "memory", "measurements"}
"""Keys under which values differ from run to run, also where two runs agree by chance; and those of seconds. What a run
has measured itself is less where an earlier one did."""


class LeftFiles:
    """The files that two undisturbed runs leave."""

    def __init__(self, one: Snapshot, other: Snapshot) -> None:
        assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
        self._one, self._other = one, other

    def __contains__(self, path: str) -> bool:
        return path in self._one

    def differences(self, found: Snapshot) -> list[str]:
        """What of this is not as undisturbed, a line each."""
        lines = [f"left over: {path}" for path in sorted(found.keys() - self._one.keys())]
        lines += [f"missing: {path}" for path in sorted(self._one.keys() - found.keys())]
        for path in sorted(found.keys() & self._one.keys()):
            lines += self.difference(path, found[path])
        return lines

    def difference(self, path: str, data: bytes) -> Iterator[str]:
        one, other = self._one[path], self._other[path]
        if one == other == data:
            return
        if path.endswith(".json"):  # two runs that took as long, to what is written, agree on their times
            try:
                values = _leaves(json.loads(data))
            except ValueError:
                yield f"{path}: no JSON"
                return
            known, again = _leaves(json.loads(one)), _leaves(json.loads(other))
            if one == other and values.keys() != known.keys():
                yield f"{path}: other keys: {sorted(values.keys() ^ known.keys())}"
            for key in known.keys() & again.keys():
                if known[key] == again[key] and not _is_time(key) and values.get(key, ...) != known[key]:
                    yield f"{path}: {'.'.join(key)}: {values.get(key)!r}, undisturbed {known[key]!r}"
        elif one == other and not path.endswith(".html"):
            yield f"{path}: {_short(data)}, undisturbed {_short(one)}"
        elif not data or (path.endswith(".html") and not data.rstrip().endswith(b"</html>")):
            yield f"{path}: cut off"


def _is_time(key: tuple[str, ...]) -> bool:
    """Whether a value is a time, or the checksum of JSON that may hold one and is compared itself."""
    last = key[-1] if key else ""
    return (
        last == "sha256"
        or last.endswith(".json")
        or any(part in TIMES or part.endswith(("seconds", "_ms", "_us")) for part in key)
    )


def _short(data: bytes) -> str:
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:8]}"


def _leaves(value: Any, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The values in JSON that are neither a list nor a table, by the keys that lead to each."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = {str(place): item for place, item in enumerate(value)}.items()
    else:
        return {above: value}
    found: dict[tuple[str, ...], Any] = {}
    for key, item in items:
        found |= _leaves(item, (*above, key))
    return found


# Labels that were checked are noted under a key with the times of the files of data, which each run makes anew.
_LABELS = re.compile(r"labels/[0-9a-f]{32}\.json$")


def snapshot(folder: Path) -> Snapshot:
    """All files, by path, with their content; an empty folder has an entry too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = _LABELS.sub("labels/KEY.json", path.relative_to(folder).as_posix())
        if path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found
