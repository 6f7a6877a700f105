"""Reads the grid of a sweep: the keys of a job that vary, with the values that each of them takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtlc.errors import UserError
from mtlc.job.overrides import Override, read_overrides
from mtlc.toml_files import toml_text

Grid = Mapping[str, Sequence[Any]] | Iterable[str]
"""What a caller may give: lists of values by key, or texts ``KEY=V1,V2``."""
Choices = tuple[tuple[Override, ...], ...]
"""For each key of a grid the overrides of which a cell has one."""

_OPEN, _CLOSED, _QUOTES = "[{", "]}", "\"'"


def read_grid(given: Grid) -> Choices:
    """The choices of each key, in the order given. Raises `UserError` for what is no grid.

    In a text, commas in brackets, braces and quotes separate nothing: ``passes.0.ratios=[0.1,0.2],[0.3]`` are two
    values.
    """
    if isinstance(given, str):
        raise UserError(f"grid = {given!r}: give a dict of lists by key, or a list of texts: [{given!r}]")
    if isinstance(given, Mapping):
        found = [_of_values(key, values) for key, values in given.items()]
    else:
        found = [_of_text(text) for text in given]
    seen: set[str] = set()
    for choices in found:
        key = choices[0].key
        if key in seen:
            raise UserError(f"{choices[0].door}: is there twice; write all its values at once: {key}=V1,V2")
        if key == "seed" and len(choices) > 1:
            raise UserError(f"{choices[0].door}: seeds are asked for by their number, from the job's own on: --seeds N")
        seen.add(key)
        for index, one in enumerate(choices):
            # As they are written: 1, 1.0 and true are three values, which Python takes for one.
            if toml_text(one.value) in [toml_text(other.value) for other in choices[:index]]:
                raise UserError(f"{one.door}: the value {toml_text(one.value)} is there twice")
    return tuple(found)


def combinations(choices: Choices) -> list[tuple[Override, ...]]:
    """Every combination of one override a key, the last key varying fastest."""
    return list(itertools.product(*choices))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """What keys are called in a table: their last part, where no other key ends alike, else the whole."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def _of_values(key: str, values: Any) -> tuple[Override, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise UserError(f"grid[{key!r}] = {values!r}: give a list of values")
    if not values:
        raise UserError(f"grid[{key!r}]: has no values")
    return tuple(read_overrides({key: value})[0] for value in values)


def _of_text(text: str) -> tuple[Override, ...]:
    key, equals, listed = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: write KEY=V1,V2, such as --set passes.0.round_to=8,16")
    values = _between_commas(listed)
    if not all(values):
        raise UserError(f'--set {text}: a value is missing; write "" for an empty text')
    return read_overrides([f"{key}={value}" for value in values])


def _between_commas(text: str) -> list[str]:
    cuts = [place for place, character in _outside(text) if character == ","]
    starts, ends = [0, *(place + 1 for place in cuts)], [*cuts, len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _outside(text: str) -> Iterator[tuple[int, str]]:
    """The characters, with their places, that are in no quotes, brackets or braces."""
    quote, depth, escaped = "", 0, False
    for place, character in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif character == "\\" and quote == '"':
                escaped = True
            elif character == quote:
                quote = ""
        # A quote without a second one, as in don't, is a letter.
        elif character in _QUOTES and text.find(character, place + 1) >= 0:
            quote = character
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSED:
            depth = max(0, depth - 1)
        elif depth == 0:
            yield place, character
