"""Messages are one line that a terminal shows as it is, however the names in them were chosen."""

from __future__ import annotations

import difflib
import pickle

import pytest

from mtlc.errors import LONGEST, BundleError, MtlcError, escaped, nearest, one_line

HOSTILE = "a\x1b[2J\x1b]0;x\x07\r\nb\u202ec\x9b31m\ud800\u2028d"
"""Clears the screen, sets the window's title, overwrites the line, turns the text's direction; half of a character."""


def test_what_a_terminal_would_act_on_is_written_out():
    assert escaped(HOSTILE) == r"a\x1b[2J\x1b]0;x\x07\r\nb\u202ec\x9b31m\ud800\u2028d"
    assert escaped("depth · 1 µs – é 深") == "depth · 1 µs – é 深"
    assert escaped(escaped(HOSTILE)) == escaped(HOSTILE)


@pytest.mark.parametrize("kind", [MtlcError, BundleError])
def test_errors_are_escaped_wherever_they_are_shown(kind):
    error = kind(f"no task {HOSTILE}")
    assert str(error) == f"no task {escaped(HOSTILE)}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert one_line(ValueError(HOSTILE)) == r"ValueError: a\x1b[2J\x1b]0;x\x07"


def test_a_message_has_an_end():
    error = str(BundleError("files." + "x" * 1_000_000 + ": say what to do"))
    assert len(error) == LONGEST
    assert error.startswith("files.xxx")
    assert error.endswith("x: say what to do")
    assert len(one_line(ValueError("y" * 1_000_000))) == LONGEST


def test_the_nearest_name_costs_little_however_long_and_many_names_are(monkeypatch):
    """What a comparison costs grows with the product of the two lengths."""
    compared = []
    found = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda a, b, n: compared.append((a, b)) or found(a, b, n))
    assert nearest("dept", ["depth", "x" * 100_000, *map(str, range(100_000))]).startswith("; known: 0, 1, 10, ")
    assert nearest("dept", ["depth", "x" * 100_000]) == "; did you mean 'depth'?"
    nearest("x" * 100_000 + "y", ["x" * 100_000] * 20)
    assert [(a, len(b)) for a, b in compared] == [("dept", 2000), ("dept", 1)]
    many = nearest("none", [f"task{i:04}" for i in range(1000)])
    assert many.endswith("task0099 and 900 more")
