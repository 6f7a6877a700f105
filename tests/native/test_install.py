"""The library as others use it: installed, found by CMake and pkg-config, from C and through the C++ header."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from testkit.native_library import ENGINE, SOURCES, Native
from testkit.places import ROOT

USER = """
cmake_minimum_required(VERSION 3.16)
project(user LANGUAGES C CXX)
find_package(mtlc 0.1 REQUIRED)
add_executable(in_c in_c.c)
target_link_libraries(in_c mtlc::mtlc)
add_executable(in_cpp in_cpp.cpp)
set_target_properties(in_cpp PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
target_compile_options(in_cpp PRIVATE -Wall -Wextra -Werror)
target_link_libraries(in_cpp mtlc::mtlc_static)
"""
CPP = """
#include <mtlc.hpp>
#include <iostream>
#include <numeric>

int main(int, char **arguments)
{
    mtlc::Session session(arguments[1]);
    auto small = session.named("small");
    auto cheap = session.within("40%", {{"near", 3}, {"far", 1}});
    auto plan = session.plan({"near"}, &small);
    float *x = plan.input<float>("x", {1, 3, 20, 20});
    std::iota(x, x + 1200, 0.0f);
    plan.run();
    auto near = plan.output("near");
    std::cout << near.count() << " " << near.as<float>()[1199] << " " << cheap.macs() << std::endl;
    try {
        session.plan({"depth"});
    } catch (const mtlc::Error &error) {
        std::cout << (error.code == MTLC_TASK) << std::endl;
    }
}
"""


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"MTLC_ONNXRUNTIME": str(ENGINE)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(native: Native, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", native.folder, "--prefix", folder)
    return folder


def c_of_the_page() -> str:
    """The C program that the page shows."""
    return re.findall(r"```c\n(.*?)```", (ROOT / "docs" / "native.md").read_text(), re.DOTALL)[0]


def test_programs_of_others(installed: Path, slim_bundle: Path, bundle: Path, tmp_path: Path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler found: install g++ to test the C++ header")
    (tmp_path / "CMakeLists.txt").write_text(USER)
    (tmp_path / "in_cpp.cpp").write_text(CPP)
    (tmp_path / "in_c.c").write_text(c_of_the_page())
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path / "build")
    # The narrow encoder scales by 1 and its narrowest decoder of near adds 0.25; see testkit.hand_bundle.
    assert run(tmp_path / "build" / "in_cpp", slim_bundle).split("\n")[:2] == ["1200 1199.25 28000000", "1"]
    # plus = 2x + w, and w counts from 0: with x = 0 its last number is 1199.
    assert (
        run(tmp_path / "build" / "in_c", bundle, "plus", LD_LIBRARY_PATH=str(installed / "lib"))
        == "plus: 1200 numbers, the last is 1199\n"
    )


def test_pkg_config(installed: Path, bundle: Path, tmp_path: Path):
    described = next(installed.rglob("mtlc.pc")).read_text()
    assert "Libs: -L${libdir} -lmtlc" in described
    version = re.findall(r"project\(mtlc VERSION ([\d.]+)", (SOURCES / "CMakeLists.txt").read_text())[0]
    assert f"Version: {version}" in described
    assert f'#define MTLC_VERSION "{version}"' in (installed / "include" / "mtlc.h").read_text()
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config found")
    (tmp_path / "in_c.c").write_text(c_of_the_page())
    path = str(next(installed.rglob("pkgconfig")))
    flags = run("pkg-config", "--cflags", "--libs", "mtlc", PKG_CONFIG_PATH=path).split()
    run("cc", tmp_path / "in_c.c", "-o", tmp_path / "in_c", *flags)
    assert "numbers" in run(
        tmp_path / "in_c", bundle, "plus", LD_LIBRARY_PATH=str(next(installed.rglob("libmtlc.so")).parent)
    )


def test_every_source_says_what_it_does():
    for path in sorted(SOURCES.rglob("*.[ch]")):
        first = path.read_text().split("\n")[0]
        assert re.match(r"/\* [A-Za-z`].*", first), path
        assert max(map(len, path.read_text().split("\n"))) <= 120, path
        assert path.name == "character_tables.h" or path.read_text().count("\n") <= 450, path


def test_clang_tidy_finds_nothing(tmp_path: Path) -> None:
    """The checks of native/.clang-tidy, on every file."""
    if shutil.which("clang-tidy") is None:
        if os.environ.get("CI"):
            pytest.fail("no clang-tidy found: the C library must be read by it (apt-get install clang-tidy)")
        pytest.skip("no clang-tidy found: apt-get install clang-tidy")
    run(
        "cmake", "-S", SOURCES, "-B", tmp_path, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DMTLC_FUZZ=ON",
        "-DMTLC_SANITIZE_THREADS=ON",
    )  # fmt: skip
    files = [path for folder in ("src", "tools", "fuzz") for path in sorted((SOURCES / folder).glob("*.c"))]
    assert len(files) > 30
    run("clang-tidy", "-p", tmp_path, "--quiet", *files, SOURCES / "tests" / "threads_test.c")
