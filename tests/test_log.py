"""Levels of what is told, and bars: who sees which line, and that work has a bar where one is wanted."""

from __future__ import annotations

import pytest

from mtlc.log import LevelledLog, bar, debug, hidden_bars, shown_bars, silent, tracked


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["[    0.00 s] fact", "[    1.50 s] news", "[    3.00 s] warning: beware"]),
        ("info", ["news", "warning: beware"]),
        ("warning", ["warning: beware"]),
        ("error", []),
    ],
)
def test_a_level_tells_what_is_of_it_and_above(level, told):
    lines, now = [], iter((0.0, 1.5, 3.0))
    log = LevelledLog(lines.append, level, lambda: next(now))
    debug(log, "fact")
    log("news")
    log("warning: beware")
    assert lines == told


def test_a_plain_function_is_told_no_details():
    lines: list[str] = []
    debug(lines.append, "fact")
    debug(silent, "fact")
    assert lines == []


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("mtlc.log._DELAY", 0)


def test_bars_are_shown_where_they_are_wanted_only(capsys):
    assert list(tracked("abc", "letters")) == ["a", "b", "c"]
    with shown_bars(False):
        assert list(tracked("abc", "letters")) == ["a", "b", "c"]
    with shown_bars(), hidden_bars():
        assert list(tracked("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    with shown_bars():
        assert list(tracked("abc", "letters")) == ["a", "b", "c"]
    shown = capsys.readouterr().err
    assert "letters:   0%" in shown
    assert "0/3 [00:00<?" in shown  # how long it takes is not known yet


def test_a_bar_within_a_bar_and_no_more(capsys):
    with shown_bars(), bar("outer", 1), bar("middle", 1), bar("inner", 1) as done:
        done(1)
    shown = capsys.readouterr().err
    assert "outer" in shown
    assert "middle" in shown
    assert "inner" not in shown
    with shown_bars():  # what was left early is no longer counted
        for _ in tracked(range(9), "left"):
            break
        with bar("other", 1), bar("after", 2):
            pass
    assert "after" in capsys.readouterr().err
