"""What takes long is listed once, by the smallest name that covers it."""

from __future__ import annotations

from list_long_tests import long_tests

LOG = """
============ slowest durations ============
5.00s setup    tests/a/test_a.py::test_first
0.10s call     tests/a/test_a.py::test_first
4.00s call     tests/a/test_a.py::test_long
9.00s setup    tests/b/test_b.py::TestOne::test_first[x]
3.00s call     tests/c/test_c.py::test_cases[a [b]]
2.99s call     tests/c/test_c.py::test_cases[c]
3.50s call     tests/c/test_c.py::test_all[1]
4.50s call     tests/c/test_c.py::test_all[2]
9.00s teardown tests/c/test_c.py::test_all[2]
9.00s setup    tests/native/test_vectors.py::test_kept
"""


def test_a_long_fixture_takes_its_module_and_long_cases_are_named():
    assert long_tests(LOG) == [
        "tests/a/test_a.py",
        "tests/b/test_b.py::TestOne",
        "tests/c/test_c.py::test_all",
        "tests/c/test_c.py::test_cases[a [b]]",
    ]
