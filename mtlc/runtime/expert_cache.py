"""Experts outside memory: mapped from the bundle, read when a token asks for them, dropped when the budget is full.

A bundle exported with ``[export] experts = "cached"`` keeps its experts in a file of their own, each on pages of its
own. The trunk is cut at every expert layer: a program computes tokens, choices and scores; here the tokens are queued
by expert, and each expert that has a queue is run once, its weights read straight from the mapped file. Every resident
expert is a mapping of its own, which ends when it is dropped: one mapping of the whole file would not do, because the
system maps the neighbours of a page that is touched as well, and more would be resident than this module says. While
the program between two layers runs, a thread reads the experts that the next layer is most likely to ask for: those
that it asked for most often.
"""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mtlc.errors import BundleError, UserError
from mtlc.runtime.backends.find_backend import Executable
from mtlc.runtime.bundle.manifest import ExpertLayer, ProgramInfo
from mtlc.runtime.bundle.payload_checks import file_identity
from mtlc.runtime.bundle.refusals import Refusal

_Key = tuple[int, int]
"""The place of a layer among the layers in order, and an expert of it."""


@dataclass(frozen=True)
class CacheStatistics:
    """What an expert cache did since it was opened. Prefetched experts that were used count as hits."""

    budget_bytes: int
    total_bytes: int
    resident_bytes: int
    peak_bytes: int
    hits: int
    misses: int
    bytes_read: int
    prefetched: int
    evicted: int

    @property
    def hit_rate(self) -> float:
        """Share of the asked experts that were resident already; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class ExpertCache:
    """The experts of all layers of a bundle within a byte budget. Safe to use from several threads."""

    def __init__(self, folder: Path, layers: Sequence[ExpertLayer], budget: int | None) -> None:
        """Raises `UserError` for a budget that holds no two experts: the one that runs, and the next."""
        total, largest = sum(x.count * _pages(x.bytes) for x in layers), max(_pages(x.bytes) for x in layers)
        if budget is not None and budget < 2 * largest:
            raise UserError(f"expert_bytes = {budget:,}: two experts take {2 * largest:,} bytes; give at least these")
        self.budget, self.total = (total if budget is None else budget), total
        self._layers = tuple(layers)
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._files: dict[str, IO[bytes]] = {}
        for name in dict.fromkeys(layer.file for layer in layers):
            self._files[name] = (folder / name).open("rb")
        self._identities = {name: _content_identity(file) for name, file in self._files.items()}
        self._mapped: dict[_Key, mmap.mmap] = {}
        self._lock = threading.RLock()
        self._resident: dict[_Key, int] = {}  # bytes of each
        self._pinned: Counter[_Key] = Counter()  # in use: cannot go
        self._claimed: Counter[_Key] = Counter()  # a layer that runs will use them: go last
        self._asked = [np.zeros(layer.count, np.int64) for layer in layers]
        self._used = self._peak = self._hits = self._misses = self._read = self._prefetched = self._evicted = 0
        self._worker: ThreadPoolExecutor | None = None
        self._prefetching: Future[None] | None = None

    @classmethod
    def of(cls, folder: Path, programs: Iterable[ProgramInfo], budget: int | None) -> ExpertCache | None:
        """The cache of a bundle's programs; None where no program keeps experts outside its graph."""
        layers = list(dict.fromkeys(p.experts for p in programs if p.experts is not None))
        if not layers:
            if budget is not None:
                raise UserError(
                    'expert_bytes: the bundle holds its experts in its graphs; export with experts = "cached"'
                )
            return None
        return cls(folder, layers, budget)

    def layer(self, program: ProgramInfo) -> CachedLayer:
        """What runs an expert layer's program."""
        assert program.experts is not None
        return CachedLayer(self, self._places[program.experts], program.experts)

    def statistics(self) -> CacheStatistics:
        with self._lock:
            return CacheStatistics(
                self.budget, self.total, self._used, self._peak, self._hits, self._misses, self._read,
                self._prefetched, self._evicted,
            )  # fmt: skip

    def claim(self, layer: int, experts: Iterable[int]) -> list[int]:
        """Say that a run of the layer will acquire these experts; the order to do it in: resident ones first."""
        with self._lock:
            # Resident experts run before missing ones are read: what a miss throws out has then been used already.
            wanted = sorted(experts, key=lambda expert: ((layer, expert) not in self._resident, expert))
            self._claimed.update((layer, expert) for expert in wanted)
            return wanted

    def unclaim(self, layer: int, experts: Iterable[int]) -> None:
        """Take back what was claimed and not acquired."""
        with self._lock:
            for expert in experts:
                _less(self._claimed, (layer, expert))

    def acquire(self, layer: int, expert: int) -> None:
        """Make a claimed expert resident; it stays so until `release`."""
        key = (layer, expert)
        with self._lock:
            self._asked[layer][expert] += 1
            # Pinned in the same locked stretch as admitted: between the two another thread could throw it out.
            missing = key not in self._resident
            if missing:
                self._misses += 1
                self._admit(key)
            else:
                self._hits += 1
            _less(self._claimed, key)
            self._pinned[key] += 1
        if missing:
            _touch(self._weights(key))

    def weights(self, layer: int, expert: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The weights of a resident expert, views of its mapping: forget them before `release`."""
        info = self._layers[layer]
        sizes = (info.hidden * info.width, info.hidden, info.width * info.hidden)
        w1, b1, w2, b2 = np.split(self._weights((layer, expert)), np.cumsum(sizes))
        return w1.reshape(info.hidden, info.width), b1, w2.reshape(info.width, info.hidden), b2

    def release(self, layer: int, expert: int) -> None:
        with self._lock:
            _less(self._pinned, (layer, expert))

    def prefetch(self, layer: int) -> None:
        """Begin to read what the layer asks for most often, as far as half the budget goes, in the background."""
        if layer >= len(self._layers):
            return
        with self._lock:
            if self._prefetching is not None and not self._prefetching.done():
                return
            # By counts of the past: what a layer asked for most, it is likely to ask for again. Half of the budget is
            # left to the layers that run meanwhile.
            asked, size = self._asked[layer], _pages(self._layers[layer].bytes)
            likely = [int(e) for e in np.argsort(-asked, kind="stable") if asked[e] > 0][: self.budget // 2 // size]
            wanted = [expert for expert in likely if (layer, expert) not in self._resident]
            if not wanted:
                return
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="mtlc-experts")
            self._prefetching = self._worker.submit(self._fetch, layer, wanted, set(likely))

    def close(self) -> None:
        """Stop reading ahead and unmap the files. May be called twice."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for mapped in self._mapped.values():
                with suppress(BufferError):  # a run in another thread still reads it; it is unmapped when that ends
                    mapped.close()
            self._mapped.clear()
            for file in self._files.values():
                file.close()

    def _fetch(self, layer: int, experts: Sequence[int], likely: set[int]) -> None:
        for expert in experts:
            with self._lock:
                key = (layer, expert)
                if key in self._resident or not self._admit(key, keep={(layer, other) for other in likely}):
                    continue
                self._prefetched += 1
                self._pinned[key] += 1
            _touch(self._weights(key))
            self.release(layer, expert)

    def _admit(self, key: _Key, keep: set[_Key] | None = None) -> bool:
        """Make room and count the expert as resident. A prefetch gives up where only what it must `keep` could go.

        Layers run in turn, so what will be used last goes first: the layer that has just run, before the one before it;
        within a layer what was asked for least. (The least recently used would be what is needed next.)
        """
        # Room for layer 2 of 4. What is used again last goes first; with each layer the runs until it is its turn
        # again:
        #
        #     layers run     0 → 1 → 2 → 3 → 0 → 1 → 2 → …
        #     now                    ^
        #     again after    2   3   4   1                 goes first: 2 (its other experts), then 1, 0, and 3 last
        size, turn = _pages(self._layers[key[0]].bytes), len(self._layers)
        spared = self._pinned.keys() if keep is None else self._pinned.keys() | self._claimed.keys() | keep

        def wait(other: _Key) -> tuple[bool, int, int]:
            distance = (other[0] - key[0]) % turn or turn
            return other in self._claimed, -distance, int(self._asked[other[0]][other[1]])

        # Victims are only listed here, so that a prefetch that cannot get enough room has thrown out nothing.
        victims, free = [], self.budget - self._used
        if free < size:
            for other in sorted(self._resident.keys() - spared, key=lambda other: (wait(other), other)):
                victims.append(other)
                free += self._resident[other]
                if free >= size:
                    break
        if free < size and keep is not None:
            return False
        for other in victims:
            self._evict(other)
        if free < size:
            raise UserError(f"expert_bytes = {self.budget:,} is too little for the threads that run at once")
        info = self._layers[key[0]]
        start = info.offset + key[1] * info.stride
        # A mapping begins where the system allows; the expert is the last `bytes` of it (`_weights`).
        base = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        file = self._files[info.file]
        if _content_identity(file) != self._identities[info.file]:  # a file that was replaced is held open, and stays
            raise BundleError(
                f"{file.name} was written to since the bundle was opened: open it again", code=Refusal.FILE_CHANGED
            )
        self._mapped[key] = mmap.mmap(file.fileno(), start - base + info.bytes, access=mmap.ACCESS_READ, offset=base)
        self._resident[key] = size
        self._used += size
        self._peak = max(self._peak, self._used)
        self._read += size
        return True

    def _evict(self, key: _Key) -> None:
        self._used -= self._resident.pop(key)
        self._evicted += 1
        self._mapped.pop(key).close()

    def _weights(self, key: _Key) -> np.ndarray:
        """An expert's weights in the file's order, float32."""
        info, mapped = self._layers[key[0]], self._mapped[key]
        return np.frombuffer(mapped, np.float32, info.bytes // 4, len(mapped) - info.bytes)


class CachedLayer:
    """One expert layer: queues the tokens by expert and runs the experts that have a queue."""

    def __init__(self, cache: ExpertCache, number: int, info: ExpertLayer) -> None:
        self._cache, self._number, self._info = cache, number, info

    def run(self, executable: Executable, x: np.ndarray, index: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Tokens (n, width), experts (n, K) with −1 for none, scores (n, K) → (n, width)."""
        if index.size and (index.max() >= self._info.count or index.min() < -1):
            wrong = int(index.max() if index.max() >= self._info.count else index.min())
            raise BundleError(f"a router chose expert {wrong} of {self._info.count}", code=Refusal.RUN)
        flat, top_k = index.reshape(-1), index.shape[1]
        # N = 3 tokens, K = 2 places each; −1 is sorted before expert 0 and so lies outside of all bounds:
        #
        #     index      [2 0] [0 −1] [2 0]
        #     flat        2 0   0 −1   2 0             place p belongs to token p // K
        #     places      3 | 1 2 5 | 0 4              by expert: −1, 0, 2
        #     bounds          1       4 4 6            expert 0 has places 1…4, expert 1 none, expert 2 4…6
        places = np.argsort(flat, kind="stable")
        bounds = np.searchsorted(flat[places], np.arange(self._info.count + 1))
        queues = {e: places[bounds[e] : bounds[e + 1]] for e in range(self._info.count) if bounds[e] < bounds[e + 1]}
        result = np.zeros_like(x)
        parts: dict[int, np.ndarray] = {}
        waiting = self._cache.claim(self._number, queues)
        try:
            while waiting:
                expert = waiting.pop(0)
                self._cache.acquire(self._number, expert)
                try:
                    parts[expert] = self._one(executable, expert, x[queues[expert] // top_k])
                finally:
                    self._cache.release(self._number, expert)
        finally:
            self._cache.unclaim(self._number, waiting)
        # The program between this layer and the next is about to run: meanwhile the next one's experts are read.
        self._cache.prefetch(self._number + 1)
        scores = score.reshape(-1, 1)
        for expert in sorted(parts):  # one order of summation, whatever was resident: equal bits with any budget
            tokens, weighted = queues[expert] // top_k, parts[expert] * scores[queues[expert]]
            if (tokens[1:] == tokens[:-1]).any():  # experts that were merged may be chosen twice by a token
                np.add.at(result, tokens, weighted)
            else:
                result[tokens] += weighted
        return result

    def _one(self, executable: Executable, expert: int, tokens: np.ndarray) -> np.ndarray:
        """One expert on its queue. A function of its own, so that no view of the weights outlives it."""
        w1, b1, w2, b2 = self._cache.weights(self._number, expert)
        return executable.run(("y",), {"x": tokens, "w1": w1, "b1": b1, "w2": w2, "b2": b2})[0]


def _content_identity(file: IO[bytes]) -> tuple[int, ...]:
    """`file_identity` without what also changes when the file is linked, renamed or removed: its last part."""
    return file_identity(file)[:-1]


def _less(counts: Counter[_Key], key: _Key) -> None:
    """One less of the key, which is gone at zero."""
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


def _touch(weights: np.ndarray) -> None:
    """Read all pages now: a fault in the middle of a product would be charged to the product."""
    weights[:: mmap.PAGESIZE // 4].sum()


def _pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
