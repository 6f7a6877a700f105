"""Writes what people read and start in a package: ``run.sh`` and ``README.md``."""

from __future__ import annotations

from mtlc.export.package.target import Target

RUN = """\
#!/bin/sh
# Runs the bundle beside this script: run.sh check|info|infer|bench [options]; bin/mtlc-run lists the options.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 5
if [ $# -eq 0 ]; then
  set -- bench
fi
verb=$1
shift
: "${MTLC_ONNXRUNTIME:=$here/lib/libonnxruntime.so}"
export MTLC_ONNXRUNTIME
exec "$here/bin/mtlc-run" "$verb" "$here/bundle" "$@"
"""
"""It needs a POSIX shell alone. An engine that the board has may be named with ``MTLC_ONNXRUNTIME``."""


def readme(
    target: Target, tasks: list[str], inputs: list[str], engine: str | None, glibc: tuple[int, int] | None
) -> str:
    """The page for whoever finds the folder on a board."""
    needs = "" if glibc is None else f", glibc {glibc[0]}.{glibc[1]} or later (`ldd --version`)"
    comes = (
        f"- `lib/libonnxruntime.so`: the engine ({engine}); its licence is in `licences`"
        if engine is not None
        else "- no engine: name onnxruntime's shared library of this board in `MTLC_ONNXRUNTIME`, or put it\n"
        "  into `lib` as `libonnxruntime.so`"
    )
    return f"""\
# A bundle for {target.name}

Copy this folder to the board, where it may lie anywhere. It needs Linux on {target.machine}{needs}, and no Python.

```
sha256sum -c --quiet SHA256SUMS
./run.sh check
./run.sh bench --threads 2
./run.sh infer --input picture.ppm --out results
```

Tasks: {", ".join(tasks)}. Inputs: {", ".join(inputs)}. `bin/mtlc-run --help` lists the options.

- `bundle`: the programs and their weights
- `bin/mtlc-run`: runs it
- `lib/libmtlc.so`, `lib/libmtlc.a`, `include/mtlc.h`, `include/mtlc.hpp`: for programs of yours
{comes}

To build a program of yours against it, here or for this board elsewhere:

```
cc camera.c -o camera $(PKG_CONFIG_PATH=lib/pkgconfig pkg-config --cflags --libs mtlc) -Wl,-rpath,'$ORIGIN/lib'
```

or in CMake `find_package(mtlc)` with this folder in `CMAKE_PREFIX_PATH`, and
`target_link_libraries(camera mtlc::mtlc)`. `libmtlc.so` finds `libonnxruntime.so` beside itself.
"""
