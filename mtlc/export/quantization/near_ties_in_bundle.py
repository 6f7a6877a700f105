"""Finds near ties of the routing in a bundle, from its ONNX files alone.

A near tie: a token's last chosen and best refused expert score almost the same, so that rounding decides between them
(`mtlc.export.bundle.near_ties` says why that matters, and looks at the network itself)::

    scores of a token   .41   .32 | .319   .02      k = 2: the cut lies between .32 and .319
                        chosen    | refused         gap = 1 - .319 / .32
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, helper

from mtlc.export.quantization.execution import Execution
from mtlc.runtime.bundle.open_bundle import OpenBundle


class BundleMargins:
    """The programs of a bundle's `configuration` with the scores that their TopK choose by as further outputs.

    Programs run in onnxruntime. `sees` is False for a bundle without a TopK, and for one whose experts lie outside the
    graphs, which is not run here.
    """

    def __init__(self, opened: OpenBundle, configuration: str = "default") -> None:
        manifest = opened.manifest
        names = next(c.programs for c in manifest.configurations if c.name == configuration)
        self._programs = [program for program in manifest.programs if program.name in names]
        self._choices: dict[str, list[tuple[str, str]]] = {}
        models: dict[str, ModelProto] = {}
        for file in {program.file for program in self._programs}:
            models[file] = onnx.load(opened.file(file))
            self._choices[file] = _show_choices(models[file])
        self._execution = Execution(manifest, models)
        self.sees = any(self._choices.values()) and all(program.experts is None for program in self._programs)

    def least(self, inputs: Mapping[str, np.ndarray], task: str) -> np.ndarray:
        """By sample (n,) the least difference between the last chosen and the best refused score on the way to `task`,
        as a share of the chosen one; exact ties do not count, which the lower index wins everywhere.
        """
        count = len(next(iter(inputs.values())))
        least = np.full(count, np.inf)
        values = dict(inputs)
        for program in self._programs:
            if task not in program.tasks:
                continue
            shown = [name for pair in self._choices[program.file] for name in pair]
            made, extra = self._execution.run_with(program, values, shown)
            values |= made
            least = np.minimum(least, _least_gap(extra, count))
        return least


def program_margins(opened: OpenBundle, program: str, inputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """By sample (`count`,) the same for one program alone, fed with `inputs` by the bundle's names; infinite for a
    program without a TopK.
    """
    info = next(one for one in opened.manifest.programs if one.name == program)
    if info.experts is not None:
        return np.full(count, np.inf)
    model = onnx.load(opened.folder / info.file)
    shown = [name for pair in _show_choices(model) for name in pair]
    if not shown:
        return np.full(count, np.inf)
    return _least_gap(Execution(opened.manifest, {info.file: model}).run_with(info, inputs, shown)[1], count)


def _least_gap(choices: Sequence[np.ndarray], count: int) -> np.ndarray:
    """By sample (`count`,) the least gap of the `choices`: the scores that a TopK read and those that it chose, in
    turn.
    """
    least = np.full(count, np.inf)
    for scores, chosen in zip(choices[::2], choices[1::2], strict=True):
        k = chosen.shape[-1]
        if k < scores.shape[-1]:
            best = -np.partition(-scores.astype(np.float64), (k - 1, k), -1)
            gap = 1 - best[..., k] / np.maximum(best[..., k - 1], np.finfo(scores.dtype).tiny)
            gap = np.where(gap > 0, gap, np.inf)
            # Choices that are not sample by sample concern all of them.
            least = np.minimum(least, gap.min() if gap.size % count else gap.reshape(count, -1).min(1))
    return least


def _show_choices(model: ModelProto) -> list[tuple[str, str]]:
    """Make the scores and the choice of each TopK outputs of the graph; their names."""
    given = {value.name for value in model.graph.input}
    found = []
    for node in [node for node in model.graph.node if node.op_type == "TopK"]:
        scores = node.input[0]
        if scores in given:  # an input cannot be fetched, a copy of it can
            scores = f"{scores}.shown"
            model.graph.node.append(helper.make_node("Identity", [node.input[0]], [scores]))
        found.append((scores, node.output[1]))
    known = {value.name for value in model.graph.output}
    for name in dict.fromkeys(name for pair in found for name in pair):
        if name not in known:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    return found
