"""What is kept of a graph: by hand on a chain and a block, and its rules for all graphs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlc.compress.pagcp.kept_activations import GraphWork, worth_keeping

CHAIN = GraphWork([[], [0], [1], [2], [3]], [1.0] * 5, [8, 4, 2, 2, 2])


def test_what_is_not_kept_runs_again_from_what_is():
    assert CHAIN.run_again({3}, set()) == {0, 1, 2, 3}
    assert CHAIN.run_again({3}, {1}) == {2, 3}
    assert CHAIN.run_again({3}, {3}) == set()
    assert CHAIN.cost({2, 3}) == 2.0


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (18, {0, 1, 2, 3, 4}),  # all that is read
        (0, set()),
        (1, set()),
        (2, {2}),
        (4, {2, 3}),  # beside 2, nodes 3 and 4 save 2 each: the first of them
    ],
)
def test_a_chain(budget, kept):
    """Each node is read by a trial. Node k saves k + 1 in each of the 5 - k from it on: 5, 8, 9, 8, 5 in all."""
    assert worth_keeping(CHAIN, [{0}, {1}, {2}, {3}, {4}], budget) == kept


def test_the_end_of_a_block_is_worth_more_than_its_inside():
    """0 is the dear input of a block 1-2 with a shortcut, 3 the sum, 4-5 a second one. Inside is cheap to run again."""
    graph = GraphWork([[], [0], [1], [0, 2], [3], [4], [3, 5]], [9, 1, 1, 1, 1, 1, 1], [4] * 7)
    trials = [{0}, {1, 0}, {2, 0}, {3}, {4, 3}, {5, 3}]
    assert worth_keeping(graph, trials, 4) == {0}  # 9 in each of 6; node 3 would save 12 in each of 3
    assert worth_keeping(graph, trials, 8) == {0, 3}


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 12))
    sources = [draw(st.sets(st.integers(0, node - 1), max_size=3)) if node else set() for node in range(count)]
    numbers = st.lists(st.integers(1, 20), min_size=count, max_size=count)
    trials = draw(st.lists(st.sets(st.integers(0, count - 1), min_size=1), min_size=1, max_size=6))
    return GraphWork([sorted(s) for s in sources], draw(numbers), draw(numbers)), trials


@given(graphs(), st.integers(0, 120))
def test_memory_is_kept_to_and_never_makes_a_trial_dearer(case, budget):
    graph, trials = case
    kept = worth_keeping(graph, trials, budget)
    read = set().union(*trials)
    assert kept <= read
    assert sum(graph.sizes[node] for node in kept) <= budget

    def cost(kept):
        return sum(graph.cost(graph.run_again(nodes, kept)) for nodes in trials)

    assert cost(kept) <= cost(set())
    # What is left out would not fit, or saves nothing beside what is kept.
    left = budget - sum(graph.sizes[node] for node in kept)
    assert all(graph.sizes[node] > left or cost(kept | {node}) == cost(kept) for node in read - kept)
