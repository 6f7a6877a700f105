"""Lists the tests that take long, from how long they took: ``make test`` leaves them to ``make test-long``.

    pytest -m "not slow" --durations=0 -vv | tee log.txt
    python scripts/list_long_tests.py log.txt > tests/long_tests.txt

A test is long if it takes `CALL` seconds, and so are all tests of a module or class whose fixtures take `SETUP`: what
makes these fixtures would else be counted to the next test. Modules of `KEPT` are judged test by test.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

CALL, SETUP = 3.0, 4.0
KEPT = ("tests/native/test_vectors.py", "tests/test_cli.py", "tests/zoo/test_shipped_experts.py")
"""Modules whose short tests are worth a fixture that takes long."""
_LINE = re.compile(r"\s*([\d.]+)s (call|setup)\s+(tests/\S.*\S)\s*")


def long_tests(log: str) -> list[str]:
    """Names of modules, classes, functions and cases, sorted; each covers all that is in it."""
    groups: set[str] = set()
    cases: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for seconds, phase, name in (match.groups() for line in log.splitlines() if (match := _LINE.fullmatch(line))):
        function = name.partition("[")[0]
        if phase == "call":
            cases[function].append((name, float(seconds) >= CALL))
        elif float(seconds) >= SETUP and not function.startswith(KEPT):
            groups.add(function.rpartition("::")[0])
    found = set(groups)
    for function, timed in cases.items():
        if not any(function.startswith(group + "::") for group in groups):
            found |= (
                {function} if all(is_long for _, is_long in timed) else {name for name, is_long in timed if is_long}
            )
    return sorted(found)


def main() -> None:
    print("\n".join(long_tests(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
