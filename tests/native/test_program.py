"""mtlc-run: what it prints and writes, its exit codes, and what sanitizers find while it does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testkit.hand_bundle import CHANNELS, SIZE, expected
from testkit.native_library import ENGINE, Native

from mtlc.runtime import Session


def run(program: Path, *arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {key: value for key, value in os.environ.items() if key != "MTLC_ONNXRUNTIME"}
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120,
        env=known | {"MTLC_ONNXRUNTIME": str(ENGINE)} | environment,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def x(tmp_path: Path) -> np.ndarray:
    made = np.random.default_rng(0).standard_normal((2, CHANNELS, SIZE, SIZE), np.float32)
    np.save(tmp_path / "x.npy", made)
    made.tofile(tmp_path / "x.raw")
    return made


@pytest.mark.parametrize("name", ["x.npy", "x=x.npy", "x.raw"])
def test_infer_writes_the_results(native: Native, bundle: Path, tmp_path: Path, x: np.ndarray, name: str):
    given = name.replace("x.", f"{tmp_path}/x.")
    done = run(native.program, "infer", bundle, "--input", given, "--out", tmp_path / "out", "--tasks", "less,plus")
    assert done.stdout.split() == [str(tmp_path / "out" / f"{task}.npy") for task in ("plus", "less")]
    for task in ("plus", "less"):
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"{task}.npy"), expected(x)[task], rtol=1e-6)
    assert not (tmp_path / "out" / "square.npy").exists()


def test_infer_on_a_picture(native: Native, bundle: Path, tmp_path: Path):
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    (tmp_path / "street.ppm").write_bytes(b"P6\n# made\n20 20\n255\n" + pixels.tobytes())
    run(native.program, "infer", bundle, "--input", tmp_path / "street.ppm", "--out", tmp_path / "out")
    with Session(bundle) as session:
        for task, array in session.run(session.preprocess(pixels)).items():
            np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{task}.npy"), array)


def test_info_and_bench(native: Native, slim_bundle: Path):
    told = json.loads(run(native.program, "info", slim_bundle).stdout)
    assert told["configurations"] == ["default", "small"]
    assert told["inputs"] == {"x": {"dtype": "float32", "shape": ["batch", 3, 20, 20]}}
    assert list(told["tasks"]) == ["near", "far"]
    for options in ((), ("--budget", "40%", "--prefer", "near=3,far=1"), ("--configuration", "small", "--batch", "3")):
        measured = json.loads(run(native.program, "bench", slim_bundle, "--runs", 5, "--json", *options).stdout)
        assert measured["programs"] == 4
        assert 0 < measured["min_ms"] <= measured["median_ms"] <= measured["p95_ms"]
    assert run(native.program, "check", slim_bundle).stdout == "the bundle is whole\n"


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["infer", "{b}"], 2, "infer needs --input FILE and --out FOLDER"),
        (["infer", "{b}", "--input", "{t}/no.npy", "--out", "{t}/o"], 2, "no.npy: No such file"),
        (["infer", "{b}", "--input", "{t}/bad.npy", "--out", "{t}/o"], 2, "not a whole .npy file"),
        (["infer", "{b}", "--input", "{t}/bad.ppm", "--out", "{t}/o"], 2, "not a whole binary PPM"),
        (["infer", "{b}", "--input", "{t}/bad.raw", "--out", "{t}/o"], 2, "are not those of the input x"),
        (["bench", "{b}", "--tasks", "depth"], 2, "no task 'depth' [task]"),
        (["bench", "{b}", "--runs", "0"], 2, "--runs 0: there is no such option, or it has no such value"),
        (["bench", "{b}", "--budget", "40%"], 2, "the bundle runs at one width only"),
        (["bench", "{b}", "--budget", "1%", "--configuration", "x"], 2, "give one of them"),
        (["bench", "{b}", "--prefer", "plus=1"], 2, "give a budget"),
        (["bench", "{b}", "--engine", "/nowhere.so"], 5, "onnxruntime's shared library is not found"),
        (["check", "{t}/nothing"], 2, "no such bundle [not-found]"),
        (["dance", "{b}"], 2, "no verb dance"),
        (["info"], 2, "give a verb and a bundle"),
        ([], 2, "mtlc-run VERB BUNDLE"),
    ],
)
def test_bad_input_is_one_line(
    native: Native, bundle: Path, tmp_path: Path, arguments: list[str], code: int, part: str
):
    for name in ("bad.npy", "bad.ppm", "bad.raw"):
        (tmp_path / name).write_bytes(b"P6 99999 99999 255 \x93NUMPY")
    filled = [one.format(b=bundle, t=tmp_path) for one in arguments]
    done = run(native.program, *filled, code=code)
    assert part in done.stderr
    assert not arguments or done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Counts what the program itself, and not a library, takes from the heap. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
static long taken;
static unsigned long low, high;

static int first(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size, (void)data;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X)) {
            low = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            high = low + info->dlpi_phdr[i].p_memsz;
        }
    }
    return 1;
}

static void count(void *caller)
{
    const unsigned long at = (unsigned long)caller;
    taken += at >= low && at < high;
}

__attribute__((constructor)) static void begin(void) { dl_iterate_phdr(first, NULL); }
__attribute__((destructor)) static void end(void) { fprintf(stderr, "taken %ld\n", taken); }
void *malloc(size_t size) { count(__builtin_return_address(0)); return __libc_malloc(size); }
void *calloc(size_t many, size_t size) { count(__builtin_return_address(0)); return __libc_calloc(many, size); }
void *realloc(void *of, size_t size) { count(__builtin_return_address(0)); return __libc_realloc(of, size); }
"""


def test_runs_take_nothing_from_the_heap(native: Native, bundle: Path, tmp_path: Path):
    (tmp_path / "counter.c").write_text(COUNTER)
    counter = tmp_path / "counter.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(counter), str(tmp_path / "counter.c"), "-ldl"], check=True
    )
    taken = []
    for runs in (1, 2000):
        done = run(native.program, "bench", bundle, "--runs", runs, LD_PRELOAD=str(counter))
        taken.append(int(re.findall(r"taken (\d+)", done.stderr)[0]))
    assert taken[0] > 10  # opening does
    assert taken[1] == taken[0]


def test_the_library_is_small_and_shows_its_own_functions_only(native: Native):
    library = (native.folder / "libmtlc.so").resolve()
    assert library.stat().st_size < 200_000
    listed = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names
    assert {name for name in names if not name.startswith("mtlc_")} == set()
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    others = set(re.findall(r"\(NEEDED\).*\[(.*?)\.so", needed)) - {"libc", "libm", "libdl", "libpthread"}
    assert all(name.startswith("ld-linux") for name in others)  # the loader, which is libc's


def sanitized_run(folder: Path, program: str, *arguments: object) -> Any:
    return run(
        folder / program, *arguments, ASAN_OPTIONS="detect_leaks=1:abort_on_error=0", UBSAN_OPTIONS="halt_on_error=1"
    )


def test_sanitizers_find_nothing(sanitized: Path, bundle: Path, slim_bundle: Path, tmp_path: Path, x: np.ndarray):
    sanitized_run(sanitized, "mtlc-run", "infer", bundle, "--input", tmp_path / "x.npy", "--out", tmp_path / "out")
    sanitized_run(
        sanitized, "mtlc-run", "bench", slim_bundle, "--budget", "40%", "--prefer", "near=2,far=1", "--runs", 20
    )
    sanitized_run(sanitized, "mtlc-run", "info", slim_bundle)
    damaged = bytearray((bundle / "weights.bin").read_bytes())
    damaged[7] ^= 1
    (bundle / "weights.bin").write_bytes(damaged)
    done = run(sanitized / "mtlc-run", "check", bundle, code=2)
    assert "[file-digest]" in done.stderr


@pytest.mark.parametrize("made", ["bundle", "slim_bundle"])
def test_threads_share_a_session_without_a_race(watched: Path, made: str, request: pytest.FixtureRequest):
    """Taking the lock out of session.c makes this fail."""
    done = run(watched / "mtlc-threads", request.getfixturevalue(made), 4, 30, TSAN_OPTIONS="halt_on_error=1")
    assert json.loads(done.stdout) == {"threads": 4, "runs": 30}
    assert not done.stderr


@pytest.mark.parametrize(
    ("kind", "file"), [("manifest", "manifest.json"), ("graph", "head-plus.onnx"), ("zip", "bundle.zip")]
)
def test_random_damage_under_sanitizers(sanitized: Path, slim_bundle: Path, bundle: Path, kind: str, file: str):
    with zipfile.ZipFile(bundle / "bundle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(bundle.iterdir()):
            if path.name != "bundle.zip":
                archive.write(path, path.name)
    done = sanitized_run(sanitized, "mtlc-fuzz", kind, bundle / file, "--seconds", 5, "--runs", 20_000)
    counts = json.loads(done.stdout)
    assert counts["executions"] > 200
    assert counts["ok"] > 10  # some damage is none
    assert len(counts) > 3
