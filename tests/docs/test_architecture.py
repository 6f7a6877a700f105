"""Checks that the picture of the rooms is that of the code: rooms, floors and arrows, not where they are drawn."""

from __future__ import annotations

import draw_architecture
from testkit.places import DOCS


def test_the_picture_is_not_stale():
    lines = draw_architecture.differences((DOCS / "architecture.svg").read_text())
    assert lines == [], "run python scripts/draw_architecture.py"


def test_a_room_that_moved_and_an_arrow_that_went_are_told():
    svg = (DOCS / "architecture.svg").read_text()
    svg = svg.replace('id="room:cli:0"', 'id="room:cli:1"').replace('id="arrow:cli:commands"', "")
    assert draw_architecture.differences(svg) == [
        "floor 1: cli is not drawn", "floor 2: cli is drawn, and is not there", "cli imports commands: not drawn",
    ]  # fmt: skip


def test_an_arrow_that_other_rooms_stand_for_is_left_out():
    assert draw_architecture.arrows({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}
    assert draw_architecture.arrows({("a", "b"), ("a", "c")}) == {("a", "b"), ("a", "c")}


def test_every_room_has_a_line_in_the_page():
    text = (DOCS / "architecture.md").read_text()
    assert [room for floor in draw_architecture.floors() for room in floor if f"`{room}`" not in text] == []
