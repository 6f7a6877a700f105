"""Writes a slimmable network as one bundle: several encoders, each with every task's decoder at several widths.

Every weight is in ``weights.bin`` once, as the widest network has it; the programs of narrower layers select their part
of it (`mtlc.export.widths.shared_slices`). Statistics of batch norms are each network's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto
from torch import Tensor

from mtlc.errors import UserError
from mtlc.evaluation.splits import read_preprocessing
from mtlc.export.bundle.publish import check_target, file_info, publish, write_manifest
from mtlc.export.bundle.verify import check_samples
from mtlc.export.bundle.write_bundle import (
    BATCH_SIZES,
    WEIGHTS,
    file_name,
    input_infos,
    program_infos,
    provenance_of,
    task_infos,
)
from mtlc.export.graph.batch_norms import scale_weights
from mtlc.export.graph.countable_graph import with_fixed_shapes
from mtlc.export.graph.detection_program import write_decoders
from mtlc.export.graph.expert_forms import place_experts
from mtlc.export.graph.expert_operators import FORMS, ExpertNode, Form, expand, expert_nodes
from mtlc.export.graph.lower import BATCH, Lowered, lower
from mtlc.export.graph.partition import Part, partition
from mtlc.export.graph.small_graphs import shrink_graph
from mtlc.export.graph.weights_file import WeightsFile
from mtlc.export.widths.shared_slices import SharedWeights
from mtlc.export.widths.slimmable_network import DecoderWidth, EncoderWidths, SlimmableNetwork, check_network
from mtlc.export.widths.verify_widths import named_configuration, verify_configurations, verify_pairs
from mtlc.runtime.bundle.manifest import (
    DecoderPoint,
    EncoderPoint,
    Manifest,
    Preprocessing,
    ProgramInfo,
    Sizes,
    TaskInfo,
    TensorInfo,
    Widths,
)
from mtlc.runtime.bundle.payload_checks import MANIFEST

if TYPE_CHECKING:
    from mtlc.evaluation.criteria import Criteria

CountMacs = Callable[[ModelProto], int]


def export_widths(
    network: SlimmableNetwork,
    path: Path,
    *,
    samples: Mapping[str, Tensor],
    count_macs: CountMacs,
    criteria: Criteria | None = None,
    archive: bool = False,
    tolerance: float = 1e-4,
    provenance: Mapping[str, Any] | None = None,
    device: str | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    experts: str = "auto",
    backend: str = "auto",
    batch: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Export a slimmable network as one bundle at `path`: a folder, or one zip file if `archive`.

    `count_macs` counts the multiply-accumulates of an ONNX model of standard operators for one sample. All else is as
    `mtlc.export.export_bundle` takes it; the form of an expert layer is the same at all widths.

    Every encoder is verified with every width of decoders against the narrow network. Returns the report: ``path``,
    ``bytes`` (of all files), ``weights_bytes``, ``graph_bytes``, ``own_bytes`` (of tensors that are not parts of the
    widest network's), ``programs``, ``experts``, ``tolerance`` and ``verification`` by encoder and width (see
    `verify_bundle`). Raises `UserError` for what cannot be exported, and `VerificationError` if bundle and network
    disagree: nothing is written then, and what was at `path` stays.
    """
    path = Path(path)
    check_target(path, archive)
    check_network(network)
    check_samples(samples, network.widest, max(BATCH_SIZES))
    how = read_preprocessing(network.widest.preprocessing)
    if experts not in (*FORMS, "auto"):
        raise UserError(f"[export] experts = {experts!r}: must be one of auto, {', '.join(FORMS)} at several widths")
    writer = _Writer(network, count_macs, criteria, classes or {}, experts, backend, batch)
    checked: dict[str, Any] = {}

    def write(folder: Path) -> Manifest:
        manifest = writer.write(folder, how, device, provenance)
        checked.update(verify_pairs(folder, manifest, network, samples, tolerance, backend))
        return manifest

    manifest, _ = publish(
        path, archive, write, lambda written: verify_configurations(written, network, samples, tolerance)
    )
    return {
        "path": str(path),
        "bytes": writer.manifest_bytes + sum(file.bytes for file in manifest.files.values()),
        "weights_bytes": manifest.files[WEIGHTS].bytes if WEIGHTS in manifest.files else 0,
        "graph_bytes": sum(file.bytes for name, file in manifest.files.items() if name != WEIGHTS),
        "own_bytes": writer.own_bytes,
        "programs": len(manifest.programs),
        "experts": {"forms": writer.forms or {}, "measured_ms": writer.timings},
        "tolerance": tolerance,
        "verification": checked,
    }


class _Writer:
    """Writes the payloads and the manifest; one narrow network is in memory as a graph at a time."""

    def __init__(
        self,
        network: SlimmableNetwork,
        count_macs: CountMacs,
        criteria: Criteria | None,
        classes: Mapping[str, Sequence[str]],
        experts: str,
        backend: str,
        batch: Sequence[int] | None,
    ) -> None:
        self.network, self.count_macs = network, count_macs
        self.criteria, self.classes = criteria, classes
        self.experts, self.backend = experts, backend
        self.dimensions = {} if batch is None else {BATCH: Sizes(*batch)}
        self.forms: dict[str, str] | None = None  # by module path; what the first network measured
        self.timings: dict[str, dict[str, float]] = {}
        self.own_bytes = self.manifest_bytes = 0
        self._own: dict[str, int] = {}  # bytes by part of the network at hand
        self.programs: list[ProgramInfo] = []
        self.tasks: dict[str, TaskInfo] = {}
        self.inputs: tuple[TensorInfo, ...] = ()
        self._files = 0

    def write(
        self, folder: Path, how: Preprocessing | None, device: str | None, provenance: Mapping[str, Any] | None
    ) -> Manifest:
        network = self.network
        with WeightsFile(folder / WEIGHTS) as weights:
            points = tuple(self._encoder(folder, weights, encoder) for encoder in network.encoders)
        if (folder / WEIGHTS).stat().st_size == 0:
            (folder / WEIGHTS).unlink()
        write_decoders(folder, self.tasks)
        manifest = Manifest(
            tasks=self.tasks,
            inputs=self.inputs,
            programs=tuple(self.programs),
            files={file.name: file_info(file) for file in sorted(folder.iterdir())},
            preprocessing=how,
            configurations=tuple(
                named_configuration(name, *chosen, points) for name, chosen in network.configurations.items()
            ),
            device=device,
            provenance=provenance_of(network.widest, provenance),
            widths=Widths(
                tuple(sorted(network.widths)),
                network.stages,
                dict(network.reference),
                dict(network.higher_is_better),
                points,
            ),
            dimensions=self.dimensions,
        )
        write_manifest(folder, manifest)
        self.manifest_bytes = (folder / MANIFEST).stat().st_size
        return manifest

    def _encoder(self, folder: Path, weights: WeightsFile, encoder: EncoderWidths) -> EncoderPoint:
        """Write the programs of one encoder and of all its decoders."""
        shared: list[tuple[str, bytes]] | None = None  # the encoder's programs, as the first network has them
        own: tuple[str, ...] = ()
        points: dict[str, list[DecoderPoint]] = {task: [] for task in self.network.widest.task_names}
        # What tasks share must come out the same whatever the decoders' width; it is written with the first, and
        # compared with each of the others:
        #
        #     decoders at 0.5    trunk --> head-a at 0.5, head-b at 0.5          trunk is written
        #     decoders at 1.0    trunk --> head-a at 1.0, head-b at 1.0          trunk must be the same bytes
        for decoders in sorted(encoder.decoders, key=lambda decoders: decoders.width):
            lowered, parts, macs = self._parts(decoders)
            tops = [part for part in parts if len(part.tasks) > 1]
            contents = [(part.name, _digest(part)) for part in tops]
            if shared is None:
                shared = contents
                own = self._write(folder, weights, tops, parts, lowered, macs, f"{encoder.name}.{{}}")
            elif contents != shared:
                raise UserError(
                    f"widths: encoder {encoder.name!r}: what tasks share is not the same with decoders at "
                    f"{decoders.width:g}: the decoders' width must change nothing else"
                )
            for task, found in points.items():
                heads = [part for part in parts if part.tasks == (task,)]
                names = self._write(
                    folder, weights, heads, parts, lowered, macs,
                    f"{encoder.name}.{{}}.{decoders.width:g}",
                )  # fmt: skip
                found.append(DecoderPoint(decoders.width, names, decoders.metrics[task]))
        return EncoderPoint(encoder.name, encoder.widths, own, {task: tuple(found) for task, found in points.items()})

    def _parts(self, decoders: DecoderWidth) -> tuple[Lowered, list[Part], dict[str, int]]:
        """The programs of one network, small and with shared weights, and the MACs of each by name."""
        lowered = lower(decoders.program, fold_norms=False)
        layers = expert_nodes(lowered.model.graph)
        self._place_experts(lowered.model, layers)
        tasks = task_infos(decoders.program, lowered, self.criteria, self.classes)
        inputs = input_infos(lowered)
        self.tasks, self.inputs = self.tasks or tasks, self.inputs or inputs
        if tasks != self.tasks or inputs != self.inputs:
            raise UserError(
                f"widths: a network with decoders at {decoders.width:g}: "
                "an input or a task's output has another shape or "
                "type than those of the first network"
            )
        parts = partition(lowered)
        # Counted before weights become selections, whose operators are not the network's work.
        macs = {part.name: self.count_macs(with_fixed_shapes(part.model, layers)) for part in parts}
        shared = SharedWeights(self.network.widest.module, decoders.program.module, decoders.kept)
        results = set(lowered.outputs.values())
        # Tensors between programs are named after the program that makes them. The exporter's own names may differ from
        # width to width, and shared programs must be the same bytes.
        edges = {
            name: f"{part.name}.{index}"
            for part in parts
            for index, name in enumerate(name for name in part.outputs if name not in results)
        }
        small = []
        for part in parts:
            # The order matters: norms are written as scales only of weights that are tensors, not yet selections;
            # selections are named after their tensors, whose names shrinking takes away.
            scale_weights(part.model.graph)
            self._own[part.name] = shared.replace(part.model.graph)
            shrink_graph(part.model, edges)
            reads, makes = (tuple(edges.get(name, name) for name in names) for names in (part.inputs, part.outputs))
            small.append(replace(part, inputs=reads, outputs=makes))
        return lowered, small, macs

    def _place_experts(self, model: ModelProto, layers: Sequence[ExpertNode]) -> None:
        """Expand the expert layers, each at all widths in one form: its weights are then stored in one arrangement."""
        paths = {layer.node.name: layer.node.name.rpartition("/")[0] for layer in layers}
        if self.forms is None:
            forms, self.timings = place_experts(model, self.experts, self.backend)
            self.forms = {paths[name]: form for name, form in forms.items()}
        else:
            chosen: dict[str, Form] = {name: self.forms[path] for name, path in paths.items()}  # type: ignore[misc]
            expand(model, chosen)

    def _write(
        self,
        folder: Path,
        weights: WeightsFile,
        parts: Sequence[Part],
        every: Sequence[Part],
        lowered: Lowered,
        macs: Mapping[str, int],
        pattern: str,
    ) -> tuple[str, ...]:
        """Write programs, whose names in the bundle `pattern` makes of their own; returns these."""
        names = []
        for part in parts:
            self.own_bytes += self._own[part.name]
            weights.externalize(part.model)
            file = file_name(self._files, pattern.format(part.name))
            self._files += 1
            (folder / file).write_bytes(part.model.SerializeToString(deterministic=True))
            for info in program_infos(part, every, lowered, {part.name: file}, {}):
                self.programs.append(replace(info, name=pattern.format(info.name), macs=macs[part.name]))
                names.append(self.programs[-1].name)
        return tuple(names)


def _digest(part: Part) -> bytes:
    return hashlib.sha256(part.model.SerializeToString(deterministic=True)).digest()
