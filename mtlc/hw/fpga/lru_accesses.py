"""Follows an LRU cache of experts through a route: which places hit, and what each miss throws out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mtlc.errors import UserError
from mtlc.hw.fpga.accelerator import LruSettings
from mtlc.hw.routing.routing_trace import Route


@dataclass(frozen=True)
class Access:
    """A token's use of an expert; on a miss, `evicted` is the expert that makes room, if the cache was full."""

    token: int
    expert: int
    hit: bool
    evicted: int | None


def accesses(route: Route, cache: LruSettings) -> Iterator[Access]:
    """The accesses of a route (N, K), token by token, from an empty cache.

    ``in_order`` takes a token's experts in the router's order. ``hits_first`` takes those that are cached before the
    others, which a sum over experts allows; recency still follows the router's order. Raises `UserError` where
    ``hits_first`` has a cache that does not hold a token's experts.
    """
    if cache.lookup == "hits_first" and cache.cache < route.shape[1]:
        raise UserError(f"[experts] cache = {cache.cache}: lookup = 'hits_first' needs room for top-{route.shape[1]}")
    recent: list[int] = []  # least recently used first
    for token, row in enumerate(route.tolist()):
        wanted = [expert for expert in row if expert >= 0]
        if cache.lookup == "hits_first":
            cached = set(recent)
            hits = [expert for expert in wanted if expert in cached]
            # To the young end before any miss looks for a victim: a token's own experts are never thrown out.
            recent = [expert for expert in recent if expert not in hits] + hits
            for expert in hits:
                yield Access(token, expert, True, None)
            for expert in wanted:
                if expert not in cached:
                    yield Access(token, expert, False, _insert(recent, expert, cache.cache))
            recent = [expert for expert in recent if expert not in wanted] + wanted
            continue
        for expert in wanted:
            if expert in recent:
                recent.remove(expert)
                recent.append(expert)
                yield Access(token, expert, True, None)
            else:
                yield Access(token, expert, False, _insert(recent, expert, cache.cache))


def misses(route: Route, cache: LruSettings) -> int:
    """How many places of a route (N, K) load an expert."""
    return sum(not access.hit for access in accesses(route, cache))


def _insert(recent: list[int], expert: int, capacity: int) -> int | None:
    evicted = recent.pop(0) if len(recent) >= capacity else None
    recent.append(expert)
    return evicted
