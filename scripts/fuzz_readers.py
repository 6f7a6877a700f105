"""Searches inputs that the readers of bundles and pictures fail on, guided by the code that each input reaches.

    python scripts/fuzz_readers.py graph -- -max_total_time=600

What follows ``--`` goes to libFuzzer (https://llvm.org/docs/LibFuzzer.html). An input may be taken, or refused in one
line of ours; anything else ends the search and leaves the input in a file, and ``python scripts/fuzz_readers.py graph
--again FILE`` shows it. Needs atheris, which comes for Linux on x86-64 (``pip install 'mtlc[dev]'``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bundle_mutations import MANIFEST, edited_json, edited_message, edited_xml, edited_zip, flipped, packed, read_folder

INSTRUMENTED = [f"mtlc.runtime.bundle.{name}" for name in (
    "archive", "graph_check", "ir_check", "manifest_check", "manifest_reader", "payload_checks", "wire_format",
)] + ["mtlc.runtime.pictures", "json.decoder", "zipfile"]  # fmt: skip


class Fault(Exception):
    """A refusal that is not one line that a terminal can show."""


def _refusing(read: Callable[[], object]) -> bool:
    """Whether it was refused, as it should be. Raises whatever else went wrong."""
    from mtlc.errors import MtlcError

    try:
        read()
    except MtlcError as error:
        if not str(error).isprintable() or not str(error):
            raise Fault(f"not one line: {error!s}") from error
        return True
    return False


@contextlib.contextmanager
def _file(data: bytes, suffix: str) -> Iterator[Path]:
    """A file that holds the data, in memory where the system has such a folder."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        (folder / f"f{suffix}").write_bytes(data)
        yield folder / f"f{suffix}"
    finally:
        shutil.rmtree(folder)


def read_as_manifest(data: bytes) -> bool:
    """Whether `data` is refused as a ``manifest.json``; one that is taken is written and read again."""
    import json

    from mtlc.runtime.bundle.manifest_reader import read_manifest

    def read() -> None:
        manifest = read_manifest(data)
        if read_manifest(json.dumps(manifest.to_dict()).encode()) != manifest:
            raise Fault("another manifest is read from what it is written as")

    return _refusing(read)


def read_as_graph(data: bytes) -> bool:
    """Whether `data` is refused as an ONNX file."""
    from mtlc.runtime.bundle.graph_check import check_graph

    with _file(data, ".onnx") as path:
        return _refusing(lambda: check_graph(path, {"weights.bin": 4800}))


def read_as_ir(data: bytes) -> bool:
    """Whether `data` is refused as an IR's XML."""
    from mtlc.runtime.bundle.ir_check import check_ir

    with _file(data, ".xml") as path:
        return _refusing(lambda: check_ir(path, 4800))


def read_as_archive(data: bytes) -> bool:
    """Whether `data` is refused as a bundle in one file."""
    from mtlc.runtime.bundle.open_bundle import open_bundle

    with _file(data, ".mtlc") as path:
        return _refusing(lambda: open_bundle(path).close())


def read_as_picture(data: bytes) -> bool:
    """Whether `data` is refused as a picture."""
    from mtlc.runtime.pictures import read_image

    with _file(data, ".png") as path:
        return _refusing(lambda: read_image(path))


TARGETS: Mapping[str, Callable[[bytes], bool]] = {
    "manifest": read_as_manifest,
    "graph": read_as_graph,
    "ir": read_as_ir,
    "archive": read_as_archive,
    "picture": read_as_picture,
}


EDITS: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "manifest": edited_json,
    "graph": edited_message,
    "ir": edited_xml,
    "archive": edited_zip,
    "picture": flipped,
}
"""Changes that leave an input's form whole, so that a search gets beyond the parser."""


def whole_inputs(target: str, bundles: list[Path]) -> list[bytes]:
    """Inputs that the reader takes, of these bundles (folders): what a search begins with."""
    files = [read_folder(bundle) for bundle in bundles]
    if target == "archive":
        return [packed(one, random.Random(seed)) for one in files for seed in range(2)]
    if target == "picture":
        return _pictures()
    suffix = {"manifest": MANIFEST, "graph": ".onnx", "ir": ".xml"}[target]
    return list(dict.fromkeys(data for one in files for name, data in one.items() if name.endswith(suffix)))


def _pictures() -> list[bytes]:
    """A small picture in each format that is read."""
    import numpy as np
    from PIL import Image

    from mtlc.runtime.pictures import FORMATS

    image = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))
    found = []
    for kind in FORMATS:
        buffer = io.BytesIO()
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def main(arguments: list[str]) -> None:
    """Search, or read one input again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--again", type=Path, help="a file that a search left")
    parser.add_argument("--corpus", type=Path, help="a folder in which inputs that reach more code are kept")
    here = arguments.index("--") if "--" in arguments else len(arguments)
    asked = parser.parse_args(arguments[:here])
    if asked.again is not None:
        print("refused" if TARGETS[asked.target](asked.again.read_bytes()) else "taken")
        return
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install 'mtlc[dev]' (Linux on x86-64)")
    from mutate_bundles import own_sources

    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as scratch:
        backend = "openvino" if asked.target == "ir" else "onnxruntime"
        (Path(scratch) / "sources").mkdir()
        begin = whole_inputs(asked.target, own_sources(Path(scratch) / "sources", backend))
        # What was imported until here goes: only what is imported within the block is watched.
        for name in [name for name in sys.modules if name.split(".")[0] == "mtlc"]:
            del sys.modules[name]
        with atheris.instrument_imports(include=INSTRUMENTED):
            for name in INSTRUMENTED:
                __import__(name)
        corpus = asked.corpus or Path(scratch) / "corpus"
        corpus.mkdir(exist_ok=True)
        for place, data in enumerate(begin):
            (corpus / f"whole-{place}").write_bytes(data)

        def mutated(data: bytes, most: int, seed: int) -> bytes:
            draw = random.Random(seed)
            if draw.random() < 0.5:
                changed: bytes = atheris.Mutate(data, most)
                return changed
            return EDITS[asked.target](data, draw)[:most]

        options = [sys.argv[0], str(corpus), *arguments[here + 1 :]]
        atheris.Setup(options, TARGETS[asked.target], custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
