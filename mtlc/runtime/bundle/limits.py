"""Sets how much a bundle may hold. Within these limits opening one takes time and memory in proportion to its bytes.

Real bundles stay far below: a network of five tasks and four widths has a hundred programs and names of a hundred
characters.
"""

from __future__ import annotations

MAX_MANIFEST_BYTES = 8 << 20
MAX_TOTAL_BYTES = 8 << 30
MAX_FILES = 10_000

MAX_NAME = 1000
"""Characters of a name, a unit or another text, and of a key. Every message and key is made of some of these."""
MAX_RANK = 32
"""Dimensions of a tensor: NumPy's arrays have no more in all versions."""
MAX_ELEMENTS = 1 << 31
"""Elements of an input or a result, its free dimensions at 1."""
MAX_TASKS = 1000
MAX_PROGRAMS = 10_000
MAX_ENCODERS = 4000
MAX_DECODERS = 64
"""Widths of one task's decoder."""
MAX_EXPERTS = 100_000
"""Experts of all layers that lie outside the graphs."""
FREE_TENSORS, TENSORS_A_NAME, TENSORS_AGAIN = 20_000, 16, 4
"""Tensors of programs that may be looked at in all, counted each time that an encoder, a decoder or a configuration
names the program: some, as many for each such name, and as many times those that the programs list."""

MAX_RATIO = 100
"""Times its size that a zip's entry may unpack to: mtlc stores, and deflate of real weights gains a few per cent."""
MAX_DIRECTORY_BYTES = 2 << 20
"""Bytes of a zip's directory: 200 for each of `MAX_FILES`."""
