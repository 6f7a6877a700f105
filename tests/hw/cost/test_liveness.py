"""Peak memory of step lists, by hand and against a plain simulation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mtlc.hw.cost.liveness import Step, needed, peak_bytes


def test_a_chain_holds_two_neighbours() -> None:
    steps = [Step(("x",), ("a",)), Step(("a",), ("b",)), Step(("b",), ("c",))]
    assert peak_bytes(steps, {"x": 1, "a": 10, "b": 4, "c": 2}, ["x"], ["c"]) == 14


def test_the_callers_input_is_never_written_over() -> None:
    assert peak_bytes([Step(("x",), ("a",), in_place=True)], {"x": 8, "a": 8}, ["x"], ["a"]) == 16


def test_in_place_needs_a_dying_input_of_the_same_size() -> None:
    sizes = {"x": 1, "a": 8, "b": 8}
    first = Step(("x",), ("a",))
    assert peak_bytes([first, Step(("a",), ("b",), True)], sizes, ["x"], ["b"]) == 9
    assert peak_bytes([first, Step(("a",), ("b",), True)], sizes, ["x"], ["a", "b"]) == 16
    assert peak_bytes([first, Step(("a",), ("b",), True)], {**sizes, "b": 4}, ["x"], ["b"]) == 12


def test_outputs_that_nobody_reads_take_nothing() -> None:
    assert peak_bytes([Step(("x",), ("a", "indices"))], {"x": 4, "a": 4, "indices": 100}, ["x"], ["a"]) == 8


def test_only_steps_that_a_result_depends_on_are_needed() -> None:
    steps = [Step(("x",), ("a",)), Step(("x",), ("b",)), Step(("a",), ("c",))]
    assert needed(steps, ["c"]) == [True, False, True]


@given(st.data())
def test_agrees_with_counting_what_is_still_read_at_every_step(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    sizes: dict[object, int] = {0: data.draw(st.integers(1, 20))}
    steps = []
    for index in range(1, count + 1):
        reads = data.draw(st.lists(st.integers(0, index - 1), min_size=1, max_size=3, unique=True))
        steps.append(Step(tuple(reads), (index,)))
        sizes[index] = data.draw(st.integers(1, 20))
    results = [count]
    best = sizes[0] if any(0 in step.reads for step in steps) else 0
    for now, step in enumerate(steps):
        later = {buffer for after in steps[now:] for buffer in after.reads} | set(results)
        written = {0} | {buffer for before in steps[: now + 1] for buffer in before.writes}
        unread = {b for b in step.writes if b not in later}
        best = max(best, sum(sizes[buffer] for buffer in (later & written) - unread))
    # An input that nothing reads stays with the caller from start to end and is counted; the count above leaves it out.
    unused = 0 if any(0 in step.reads for step in steps) else sizes[0]
    assert peak_bytes(steps, sizes, [0], results) == best + unused
