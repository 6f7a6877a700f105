"""Chooses which activations of a graph to keep so that what trials run again costs least, within a number of bytes.

A trial reads some nodes that its own changes leave as they were. One that is not kept is computed again, from what is
kept before it or from the inputs::

    image --> a --> b --> c --> d* --> ...        d* reads c
                    |
                    kept                          so a trial of d* runs c again, and neither a nor b

To keep all that trials read would not fit for large pictures; to keep the ends of a few blocks saves most of it. The
choice is greedy: the node that saves most work for its bytes comes next. Training with checkpoints makes the same
choice (Chen et al., arXiv 1604.06174), with the backward pass in the place of trials.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_TRIED = 4000
"""Savings that are worked out at most: of a graph of thousands of nodes what was found by then is kept."""


@dataclass(frozen=True)
class GraphWork:
    """A graph whose nodes are numbers in the order in which they run; inputs and weights are none of them.

    `sources` are the nodes that each one reads, `work` what it costs to run, `sizes` the bytes of its result.
    """

    sources: Sequence[Sequence[int]]
    work: Sequence[float]
    sizes: Sequence[int]

    def run_again(self, read: Collection[int], kept: Collection[int]) -> set[int]:
        """The nodes that have to run for the `read` ones to be there, if the `kept` ones are."""
        needed: set[int] = set()
        waiting = [node for node in read if node not in kept]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += [source for source in self.sources[node] if source not in kept and source not in needed]
        return needed

    def cost(self, nodes: Collection[int]) -> float:
        """The work of `nodes`."""
        return sum(self.work[node] for node in nodes)


def worth_keeping(graph: GraphWork, trials: Sequence[Collection[int]], budget: int) -> set[int]:
    """The nodes to keep in at most `budget` bytes; each of the `trials` reads some nodes.

    All that is read, if it fits.
    """
    read = {node for nodes in trials for node in nodes}
    if sum(graph.sizes[node] for node in read) <= budget:
        return read
    kept: set[int] = set()
    again = [graph.run_again(nodes, kept) for nodes in trials]

    def saved(node: int) -> float:
        """The work that all trials save if `node` is kept too."""
        total = 0.0
        for nodes, running in zip(trials, again, strict=True):
            if node in running:
                total += graph.cost(running) - graph.cost(graph.run_again(nodes, kept | {node}))
        return total

    # Lazily: what a node saves mostly falls as others are kept, so only the one that looks best is worked out anew.
    # Two that a trial reads side by side may save more together than apart; that is left unused.
    left, tried = budget, 0
    heap = [(-saved(node) / max(1, graph.sizes[node]), node) for node in sorted(read) if graph.sizes[node] <= budget]
    heapq.heapify(heap)
    while heap and tried < _TRIED:
        _, node = heapq.heappop(heap)
        if graph.sizes[node] > left:
            continue
        tried += 1
        value = -saved(node) / max(1, graph.sizes[node])
        if heap and value > heap[0][0]:
            heapq.heappush(heap, (value, node))
            continue
        if value == 0:
            break
        kept.add(node)
        left -= graph.sizes[node]
        again = [
            graph.run_again(nodes, kept) if node in running else running
            for nodes, running in zip(trials, again, strict=True)
        ]
    return kept
