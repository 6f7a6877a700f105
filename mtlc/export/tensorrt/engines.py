"""Puts a TensorRT engine beside the ONNX of every program of a bundle, which other backends can still run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlc.errors import MtlcError, Unavailable, UserError
from mtlc.export.bundle.compare_programs import compare_programs
from mtlc.export.bundle.publish import check_target, file_info, publish, write_manifest
from mtlc.export.tensorrt.build import EngineBuilder, profile_shapes
from mtlc.extras import missing_extra
from mtlc.files import scratch_folder
from mtlc.log import Log, silent
from mtlc.runtime.bundle.manifest import PRECISIONS, EngineInfo, Manifest, Sizes
from mtlc.runtime.bundle.open_bundle import OpenBundle, open_bundle
from mtlc.runtime.inputs import BATCH
from mtlc.runtime.random_inputs import random_inputs

if TYPE_CHECKING:
    from onnx import ModelProto

NOT_RUN = "built, not run"
_INLINE_BYTES = 1 << 30
"""Converted graphs with more weights than this are handed to the parser with the weights in a file of their own."""


def build_engines(
    bundle: Path,
    out: Path,
    precision: str,
    *,
    dimensions: Mapping[str, Sizes] | None = None,
    timing_cache: Path | None = None,
    workspace_bytes: int | None = None,
    log: Log = silent,
) -> dict[str, Any]:
    """Build the engines of the bundle's programs in `precision` and write a bundle that holds them at `out`, in the
    form (folder or archive) of `bundle`. Engines that the bundle has are replaced.

    `dimensions` are the sizes of named dimensions; None takes those of the manifest. ``"int8"`` needs a bundle with a
    quantised program; there, operators without Q/DQ stay in float32.

    Returns the report: the engines by program file, with seconds, bytes and the nodes that stayed in float32, and what
    they were built by and for. Where a GPU here can run them, every program is compared with its ONNX in onnxruntime on
    random inputs (`mtlc.export.bundle.compare_programs`): ``kind`` is ``"built and compared"`` and ``from_onnxruntime``
    has the differences by task; elsewhere they are ``"built, not run"`` and None.

    Raises `Unavailable` where TensorRT or a GPU that it needs is missing, `UserError` for a bundle that TensorRT does
    not take, and `VerificationError` for engines that compute something else: nothing is written then.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: must be one of {', '.join(PRECISIONS)}")
    builder = EngineBuilder(timing_cache, workspace_bytes)
    with open_bundle(bundle) as opened:
        archive = not bundle.is_dir()
        check_target(out, archive, bundle)
        _check_precision(opened, precision)
        sizes = dict(opened.manifest.dimensions if dimensions is None else dimensions)
        for info in opened.manifest.inputs:
            profile_shapes([str(size) for size in info.shape], sizes, f"{opened.path}: input {info.name!r}")
        engines: dict[str, EngineInfo] = {}
        built: list[dict[str, Any]] = []

        def write(folder: Path) -> Manifest:
            old = {engine.file for engine in opened.manifest.engines.values()}
            for name in opened.manifest.files:
                if name not in old:
                    shutil.copyfile(opened.file(name), folder / name)
            files = list(dict.fromkeys(program.file for program in opened.manifest.programs))
            for place, file in enumerate(files, 1):
                log(f"building {file} in {precision} ({place} of {len(files)})")
                name = f"{Path(file).stem}.{precision}.engine"
                built.append(
                    {"program": file, "file": name, **_build(builder, opened, file, folder / name, precision, sizes)}
                )
                engines[file] = EngineInfo(
                    name, precision, builder.module, builder.version, builder.gpu, builder.compute_capabilities, sizes
                )
            manifest = replace(
                opened.manifest,
                dimensions=sizes,
                engines=engines,
                files={file.name: file_info(file) for file in sorted(folder.iterdir())},
            )
            write_manifest(folder, manifest)
            return manifest

        _, differences = publish(out, archive, write, lambda written: _compared(written, precision, sizes, log))
    return {
        "bundle": str(bundle),
        "out": str(out),
        "kind": NOT_RUN if differences is None else "built and compared",
        "from_onnxruntime": differences,
        "precision": precision,
        "module": builder.module,
        "version": builder.version,
        "gpu": builder.gpu,
        "compute_capabilities": list(builder.compute_capabilities),
        "dimensions": {name: size.to_list() for name, size in sizes.items()},
        "engines": built,
    }


def _compared(path: Path, precision: str, dimensions: Mapping[str, Sizes], log: Log) -> dict[str, float] | None:
    """The differences of the engines from onnxruntime by task; None where nothing here can run the two."""
    sizes = dimensions.get(BATCH)
    batches = sorted({sizes.smallest, sizes.usual}) if sizes is not None else [1]
    with open_bundle(path) as opened:
        samples = [random_inputs(opened.manifest, batch) for batch in batches]
    try:
        return compare_programs(path, "tensorrt", precision=precision, samples=samples)
    except Unavailable as error:
        log(f"the engines are built and not run: {error}")
        return None


def _check_precision(opened: OpenBundle, precision: str) -> None:
    """Raise `UserError` unless the bundle is quantised where, and only where, the engines are to be int8."""
    try:
        import onnx
    except ImportError:
        raise missing_extra("onnx", extra="tensorrt") from None
    from mtlc.export.tensorrt.int8 import is_quantised

    files = {program.file for program in opened.manifest.programs}
    quantised = any(is_quantised(onnx.load(opened.file(f), load_external_data=False)) for f in files)
    known = opened.manifest.quantization
    if known is not None and known.target != "tensorrt":
        raise UserError(
            f"{opened.path}: is in INT8 for {known.target}, which TensorRT does not take: "
            "mtlc quantize --target tensorrt"
        )
    if quantised and precision != "int8":
        raise UserError(f"{opened.path}: is quantised: build it with --precision int8")
    if not quantised and precision == "int8":
        raise UserError(
            f"{opened.path}: no program has a QuantizeLinear: quantise the bundle before building it as int8"
        )


def _build(
    builder: EngineBuilder, opened: OpenBundle, file: str, target: Path, precision: str, sizes: Mapping[str, Sizes]
) -> dict[str, Any]:
    """Write the engine of a program's file to `target`; its part of the report."""
    source, label = opened.file(file), f"{opened.path}: {file}"
    with scratch_folder("engine") as scratch:
        try:
            model, kept = _converted(source, precision)
        except MtlcError as error:
            raise UserError(f"{label}: {error}") from error
        if model is not None:
            source = Path(scratch) / file
            _save(model, source)
        engine = builder.build(source, sizes, label)
    target.write_bytes(engine.data)
    return {
        "bytes": len(engine.data),
        "layers": engine.layers,
        "parse_seconds": engine.parse_seconds,
        "build_seconds": engine.build_seconds,
        "in_float32": kept,
    }


def _converted(source: Path, precision: str) -> tuple[ModelProto | None, list[dict[str, str]]]:
    """The graph in that precision, None where the file is it already, and the nodes that stay in float32."""
    import onnx

    from mtlc.export.tensorrt.fp16 import to_half
    from mtlc.export.tensorrt.int8 import to_symmetric

    if precision == "fp32":
        return None, []
    model = onnx.load(source)
    if precision == "int8":
        return to_symmetric(model), []
    half = to_half(model)
    return half.model, [{"node": k.node, "operator": k.operator, "reason": k.reason} for k in half.kept]


def _save(model: ModelProto, path: Path) -> None:
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _INLINE_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.weights" if large else None)
