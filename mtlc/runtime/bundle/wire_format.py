"""Reads the protobuf wire format strictly: what two parsers could read in two ways is refused.

The runtime depends on no protobuf package. A backend reads the same bytes with one of its own, and must not find
anything that was not seen here. So a field has to be one that the message has, written as that field is, at most once
where it can hold one value (parsers merge a message that is there twice), with a tag of 32 bits (they drop the bits
above). Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

Buffer = memoryview

VARINT, BITS64, BYTES, BITS32 = 1 << 0, 1 << 1, 1 << 2, 1 << 5
"""Bits of a field's wire types; a repeated number may be packed, which adds `BYTES`."""
REPEATED = 1 << 8
"""Bit of a field that may be there more than once."""

_TAG_BYTES = _LENGTH_BYTES = 5  # 32 bits, 7 a byte
_NUMBER_BYTES = 10  # 64 bits


class UnknownField(Exception):
    """A field that the message does not have, or not so written, or not so often; the text says which."""


def fields(
    buffer: Buffer, known: Mapping[int, int], numbers: MutableMapping[int, int] | None = None
) -> Iterator[tuple[int, Buffer]]:
    """The length-delimited fields of a message, as (field number, content). Other fields are checked and skipped.

    Whole numbers are put into `numbers` by field, without their sign (−1 is 2⁶⁴ − 1). `known` has the wire types by
    field number, as bits. Raises `UnknownField`, and `IndexError` for a message that is cut off or is none.
    """
    position, end, seen = 0, len(buffer), 0
    while position < end:
        tag, position = _varint(buffer, position, _TAG_BYTES)
        number, kind = tag >> 3, tag & 7
        allowed = known.get(number, 0)
        if tag >> 32 or not allowed >> kind & 1:
            raise UnknownField(f"field {number} of wire type {kind}")
        if not allowed & REPEATED:
            if seen >> number & 1:
                raise UnknownField(f"field {number} twice")
            seen |= 1 << number
        if kind == 2:
            length, position = _varint(buffer, position, _LENGTH_BYTES)
            if position + length > end:
                raise IndexError
            yield number, buffer[position : position + length]
            position += length
        elif kind == 0:
            value, position = _varint(buffer, position, _NUMBER_BYTES)
            if numbers is not None:
                numbers[number] = value
        else:
            position += 8 if kind == 1 else 4
            if position > end:
                raise IndexError


def _varint(buffer: Buffer, position: int, most: int) -> tuple[int, int]:
    """A number of at most `most` bytes, and the position behind it."""
    value = 0
    for place in range(most):
        byte = buffer[position + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    raise IndexError
