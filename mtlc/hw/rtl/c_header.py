"""Writes the C header of exported experts: what ``layout.json`` says, for a host program in C99."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = """\
/* The experts of task {task} for an array of {rows} x {columns}, written by mtlc {version}. See docs/export.md. C99. */
#ifndef MTLC_EXPERTS_H
#define MTLC_EXPERTS_H

#include <stdint.h>

#define MTLC_ROWS {rows}          /* of the array: places of a row tile, features of a token word */
#define MTLC_COLUMNS {columns}       /* of the array: outputs of a column tile, bytes of a beat */
#define MTLC_K_MAX {k_max}
#define MTLC_TOKEN_BYTES {token_bytes}
#define MTLC_PLACES {places}
#define MTLC_PARAMETER_BEATS 7 /* of a tile, behind its weights: bias 4, multiplier 2, shift - 1; low byte first */
#define MTLC_LAYERS {layers}

/* A descriptor of descriptors.bin, little-endian: the engine's ports d_*. */
typedef struct {{
    uint32_t base;   /* first word of token 0 in the token memory */
    uint32_t queue;  /* first place of its queue in the queue memory */
    uint32_t count;  /* places of its queue; 0: nothing is fetched, send no weights */
    uint16_t expert; /* handed through to the results */
    uint16_t k;      /* features */
    uint16_t words;  /* of a token */
    uint16_t tiles;  /* column tiles */
}} mtlc_descriptor;
typedef char mtlc_descriptor_has_20_bytes[sizeof(mtlc_descriptor) == 20 ? 1 : -1];

/* One matrix of every expert of a layer. Expert e is weights.bin from offset + e * expert_bytes on: tile by tile,
 * `inputs` beats of weights and 7 of parameters, a byte of a beat for each output of the tile. */
typedef struct {{
    uint32_t outputs, inputs, words, tiles;
    uint32_t offset, expert_bytes;
    uint32_t descriptors, queue; /* of the recorded frame: offsets in descriptors.bin and queues.bin */
}} mtlc_matrix;

/* A layer: fc1 of the tokens in an expert's queue, gelu[value + 128], fc2. A real value is its INT8 times the scale. */
typedef struct {{
    const char *path;
    uint32_t experts;  /* here */
    uint32_t routed;   /* that the router scores */
    uint32_t top_k;
    const int16_t *row; /* for each of those the expert here, -1 for none */
    const int8_t *gelu; /* 256 values, from -128 to 127 */
    float token_scale, hidden_scale, activated_scale, output_scale;
    mtlc_matrix fc1, fc2;
    uint32_t tokens, places;                 /* of the recorded frame */
    uint32_t tokens_at, hidden_at, outputs_at; /* offsets in tokens.bin, hidden.bin and outputs.bin */
}} mtlc_layer;

/* The descriptor of one expert's matrix for a queue of `count` places from place `queue` on, tokens from word 0 on. */
static inline mtlc_descriptor mtlc_describe(const mtlc_matrix *matrix, uint16_t expert, uint32_t queue, uint32_t count)
{{
    mtlc_descriptor made;
    made.base = 0;
    made.queue = queue;
    made.count = count;
    made.expert = expert;
    made.k = (uint16_t)matrix->inputs;
    made.words = (uint16_t)matrix->words;
    made.tiles = (uint16_t)matrix->tiles;
    return made;
}}
"""


def c_header(layout: Mapping[str, Any]) -> str:
    """The header for a layout; compiles alone, and warns of nothing with ``-std=c99 -Wall -Wextra -pedantic``."""
    import mtlc

    layers = layout["layers"]
    parts = [
        _HEAD.format(
            task=_comment(layout["task"]), version=mtlc.__version__, layers=len(layers), **layout["engine"]
        )
    ]  # fmt: skip
    for index, layer in enumerate(layers):
        parts.append(_array("int16_t", f"mtlc_row_{index}", layer["row"]))
        parts.append(_array("int8_t", f"mtlc_gelu_{index}", layer["gelu"]))
    entries = ",\n".join(_layer(index, layer) for index, layer in enumerate(layers))
    parts.append(f"static const mtlc_layer mtlc_layers[MTLC_LAYERS] = {{\n{entries}\n}};\n")
    return "\n".join(parts) + "\n#endif\n"


def _layer(index: int, layer: Mapping[str, Any]) -> str:
    scales, frame = layer["scales"], layer["frame"]
    matrices = ",\n     ".join(_matrix(layer["matrices"][name]) for name in ("fc1", "fc2"))
    values = ", ".join(_float(scales[name]) for name in ("tokens", "hidden", "activated", "outputs"))
    return (
        f"    {{{_string(layer['path'])}, {layer['experts']}u, {len(layer['row'])}u, {layer['top_k']}u, "
        f"mtlc_row_{index}, mtlc_gelu_{index},\n     {values},\n"
        f"     {matrices},\n     {frame['tokens']['shape'][0]}u, {frame['outputs']['shape'][0]}u, "
        f"{frame['tokens']['offset']}u, {frame['hidden']['offset']}u, {frame['outputs']['offset']}u}}"
    )


def _matrix(one: Mapping[str, Any]) -> str:
    values = [one[key] for key in ("outputs", "inputs", "words", "tiles", "offset", "expert_bytes")]
    return f"{{{', '.join(f'{v}u' for v in (*values, one['descriptors']['offset'], one['queue']['offset']))}}}"


def _array(kind: str, name: str, values: Sequence[int]) -> str:
    lines = textwrap.wrap(", ".join(map(str, values)), 110)
    return f"static const {kind} {name}[{len(values)}] = {{\n    " + "\n    ".join(lines) + "\n};"


def _float(value: float) -> str:
    """Nine digits hold a float of 32 bits."""
    # C takes 3f for no number: a float has a point or an exponent.
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _string(text: str) -> str:
    return json.dumps(text.encode("ascii", "replace").decode())


def _comment(text: str) -> str:
    """The text as a part of a comment that it cannot end."""
    return text.encode("ascii", "replace").decode().replace("*/", "* /").replace("\n", " ")
