"""Describes the engine's shape, and packs a layer's work for it: descriptors, token words, queues and weight beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError
from mtlc.hw.rtl.reference import Int8, QuantisedLinear

PARAMETER_BEATS = 7
"""Beats of a tile that carry requantisation parameters: 4 bytes of bias, 2 of multiplier, 1 of shift, in each lane."""


@dataclass(frozen=True)
class Engine:
    """`rows` × `columns` INT8 multipliers and the memories beside them. The parameters of ``gemm_engine.v``.

    `k_max`: the longest sum. `token_bytes`: the token memory. `places`: of all queues of one run. All are powers of
    two, and `columns` at most four times `rows`: the result queue's room is made for that. Raises `UserError` where one
    is not so, or a memory is too small for the array.
    """

    rows: int = 8
    columns: int = 8
    k_max: int = 2048
    token_bytes: int = 65536
    places: int = 2048

    def __post_init__(self) -> None:
        for name, least in (("rows", 4), ("columns", 4), ("k_max", 4), ("token_bytes", 4), ("places", 4)):
            value = getattr(self, name)
            if value < least or value & (value - 1):
                raise UserError(f"{name} = {value}: must be a power of two, {least} or more")
        # The result queue has 8R rows; a wider array would have more on the way than it can hold.
        if self.columns > 4 * self.rows:
            raise UserError(f"columns = {self.columns}: must be at most 4 * rows = {4 * self.rows}")
        if self.k_max < 4 * self.rows or self.token_bytes < 4 * self.rows or self.places < 2 * self.rows:
            raise UserError(
                f"rows = {self.rows}: needs k_max and token_bytes of {4 * self.rows}, places of {2 * self.rows}"
            )

    @property
    def token_words(self) -> int:
        """Words of `rows` features in the token memory."""
        return self.token_bytes // self.rows

    def words(self, k: int) -> int:
        """Words that a token of `k` features takes: two at least, so that sums do not meet in the chain."""
        return max(2, -(-k // self.rows))

    def defines(self) -> dict[str, int]:
        """The Verilog parameters."""
        return {
            "R": self.rows, "C": self.columns, "KMAX": self.k_max, "XWORDS": self.token_words, "QMAX": self.places,
        }  # fmt: skip


def engine_for(rows: int, columns: int, layers: Iterable[tuple[int, int, int, int]]) -> Engine:
    """An engine whose memories hold any frame of `layers`: (tokens, top-k, width, hidden) each. The default's are the
    least.

    Raises `UserError` for an array that is not possible.
    """
    least = Engine()
    features, size, places = [least.k_max, 4 * rows], [least.token_bytes, 4 * rows], [least.places, 2 * rows]
    for tokens, top_k, width, hidden in layers:
        features += [width, hidden]
        places.append(tokens * top_k)
        size += [
            count * max(2, -(-k // rows)) * rows for count, k in ((tokens, width), (tokens * top_k, hidden)) if rows > 0
        ]
    return Engine(rows, columns, *(1 << (max(one) - 1).bit_length() for one in (features, size, places)))


@dataclass(frozen=True)
class Work:
    """What a run is given. `descriptors` (E, 7) INT64: expert, base, k, words, tiles, queue, count; `tokens` (words,
    rows) INT8; `queue` (places,) UINT16; `beats` (beats, columns) UINT8. Empty queues bring no beats.
    """

    descriptors: NDArray[np.int64]
    tokens: Int8
    queue: NDArray[np.uint16]
    beats: NDArray[np.uint8]


def pack(engine: Engine, x: Int8, queues: Sequence[NDArray[np.intp]], layers: Sequence[QuantisedLinear]) -> Work:
    """The work of `layers` (one of each expert) on the tokens of `x` (T, K) that `queues` name by their index.

    Raises `UserError` where shapes do not agree, a queue names a token that is not there, or a memory is too small.
    """
    if x.dtype != np.int8 or x.ndim != 2 or not x.size:
        raise UserError(f"x: must be INT8 of shape (T, K), not {x.dtype} {x.shape}")
    tokens, k = x.shape
    if len(queues) != len(layers):
        raise UserError(f"{len(queues)} queues for {len(layers)} experts")
    if len(layers) > 256:
        raise UserError(f"{len(layers)} experts: a descriptor numbers 256 at most")
    for expert, (queue, layer) in enumerate(zip(queues, layers, strict=True)):
        if layer.inputs != k:
            raise UserError(f"expert {expert}: its layer takes {layer.inputs} features, the tokens have {k}")
        if len(queue) and not (np.min(queue) >= 0 and np.max(queue) < tokens):
            raise UserError(f"expert {expert}: its queue names token {np.max(queue)} of {tokens}")
    words = engine.words(k)
    places = sum(map(len, queues))
    for what, needed, there, key in (
        ("features", k, engine.k_max, "k_max"),
        ("bytes of tokens", tokens * words * engine.rows, engine.token_bytes, "token_bytes"),
        ("places in queues", places, engine.places, "places"),
        ("tokens", tokens, 1 << 16, None),
    ):
        if needed > there:
            raise UserError(f"{needed} {what}: the engine holds {there}" + (f"; give it a larger {key}" if key else ""))
    descriptors, beats, at = [], [np.zeros((0, engine.columns), np.uint8)], 0
    for expert, (queue, layer) in enumerate(zip(queues, layers, strict=True)):
        tiles = -(-layer.outputs // engine.columns)
        # An empty queue keeps its descriptor, which the engine passes over, but the stream must not bring its tiles.
        descriptors.append((expert, 0, k, words, tiles, at, len(queue)))
        at += len(queue)
        if len(queue):
            beats += [tile_beats(engine, layer, tile) for tile in range(tiles)]
    return Work(
        np.array(descriptors, np.int64).reshape(-1, 7),
        token_words(engine, x),
        np.concatenate([np.asarray(queue, np.uint16) for queue in queues] or [np.zeros(0, np.uint16)]),
        np.concatenate(beats),
    )


def token_words(engine: Engine, x: Int8) -> Int8:
    """Tokens (T, K) as the words (T · words, rows) of the token memory, padded with zeros."""
    padded = np.zeros((len(x), engine.words(x.shape[1]) * engine.rows), np.int8)
    padded[:, : x.shape[1]] = x
    return padded.reshape(-1, engine.rows)


def tile_beats(engine: Engine, layer: QuantisedLinear, tile: int) -> NDArray[np.uint8]:
    """(K + 7, columns) bytes: the tile's weights row by row, then its parameters; zeros beyond the layer."""
    # A tile on the port, a byte for each lane and beat (K features, C columns):
    #
    #                      lane 0      lane 1     …  lane C−1
    #     beat 0           w[0, 0]     w[1, 0]       w[C−1, 0]        weights, feature by feature
    #     …
    #     beat K−1         w[0, K−1]   …
    #     beat K … K+3     bias, low byte first
    #     beat K+4, K+5    multiplier
    #     beat K+6         shift − 1, so that 1 … 64 fit 6 bits
    lanes = slice(tile * engine.columns, (tile + 1) * engine.columns)
    weight = layer.weight[lanes]
    made = np.zeros((layer.inputs + PARAMETER_BEATS, engine.columns), np.uint8)
    made[: layer.inputs, : len(weight)] = weight.T.view(np.uint8)
    parameters = made[layer.inputs :, : len(weight)].T
    parameters[:, :4] = np.ascontiguousarray(layer.bias[lanes].astype("<i4")).view(np.uint8).reshape(-1, 4)
    parameters[:, 4:6] = np.ascontiguousarray(layer.multiplier[lanes].astype("<u2")).view(np.uint8).reshape(-1, 2)
    parameters[:, 6] = layer.shift[lanes] - 1
    return made


def layer_of(engine: Engine, beats: NDArray[np.uint8], outputs: int) -> QuantisedLinear:
    """The layer whose tiles are `beats` (tiles · (K + 7), columns): what `tile_beats` made, read back."""
    tiles = -(-outputs // engine.columns)
    one = beats.reshape(tiles, -1, engine.columns)
    weight = one[:, :-PARAMETER_BEATS].transpose(0, 2, 1).reshape(tiles * engine.columns, -1)
    parameters = np.ascontiguousarray(one[:, -PARAMETER_BEATS:].transpose(0, 2, 1)).reshape(-1, PARAMETER_BEATS)
    return QuantisedLinear(
        np.ascontiguousarray(weight[:outputs]).view(np.int8),
        np.ascontiguousarray(parameters[:outputs, :4]).view("<i4").astype(np.int32)[:, 0],
        np.ascontiguousarray(parameters[:outputs, 4:6]).view("<u2").astype(np.uint16)[:, 0],
        parameters[:outputs, 6] + np.uint8(1),
    )
