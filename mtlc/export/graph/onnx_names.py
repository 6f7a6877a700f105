"""Reads from the names that torch's exporter leaves in an ONNX graph which module a node comes from."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
NO_MODULE = "_empty_nn_module_stack"
"""What torch.export writes where an operator belongs to no module."""
WRAPPER = "network"
"""Where the module that is exported keeps the user's."""


def module_path(node: onnx.NodeProto) -> str | None:
    """The path of the module that the node was exported from, or None where the exporter left no trace.

    The exporter writes the scopes from the root to the operator; a wrapper called ``network`` around the model is not
    part of the path. A batch norm that was folded into a convolution leaves its own scope on it: there the weight's
    name tells. Other weights tell as long as they name a neighbour: equal ones may be stored once, under one name.
    """
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if scopes is None:
        return None
    try:
        levels = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return None
    if not isinstance(levels, list) or len(levels) < 2 or not all(isinstance(level, str) for level in levels):
        return None
    if levels[0].startswith(NO_MODULE):
        return None
    path = levels[-2]
    if len(node.input) > 1 and node.input[1].endswith(".weight"):
        owner = node.input[1].removesuffix(".weight")
        if node.op_type in ("Conv", "ConvTranspose") or owner.rpartition(".")[0] == path.rpartition(".")[0]:
            path = owner
    return "" if path == WRAPPER else path.removeprefix(f"{WRAPPER}.")
