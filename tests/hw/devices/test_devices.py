"""Devices: the files of mtlc, those of the user, and what a wrong file is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from testkit.places import DOCS

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.hw.devices.catalogue import device, devices, local_device, user_folder
from mtlc.hw.devices.device import CONFIDENCE, KINDS, Device, Figure
from mtlc.hw.devices.device_file import device_text, parse_device, read_device_file, write_device_file
from mtlc.hw.measure.program_latency import latency_ms

SHIPPED = {
    "coral", "core-ultra-npu-lunar-lake", "core-ultra-npu-meteor-lake", "h100", "hailo-8", "hailo-8l", "intel-n100",
    "jetson-agx-orin", "jetson-orin-nano", "jetson-orin-nano-super", "kv260", "local-cpu", "raspberry-pi-4",
    "raspberry-pi-5", "zcu102", "zcu104",
}  # fmt: skip

BOARD = """schema = 1
title = "A board"
kind = "npu"

[memory.bandwidth]
value = 12.8
unit = "GB/s"
source = "its data sheet"
confidence = "datasheet"

[peak.int8.dense]
value = 2
unit = "TOPS"
source = "its data sheet"
confidence = "datasheet"
"""


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with no devices of their own."""
    folder = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder


def mtlc(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def changed(old: str, new: str) -> str:
    assert old in BOARD
    return BOARD.replace(old, new, 1)


# -- the files of mtlc -------------------------------------------------------------------------------------------------


def test_the_devices_that_come_with_mtlc() -> None:
    assert set(devices()) == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_figure_says_where_it_is_from(name: str) -> None:
    found = device(name)
    assert found.title
    assert found.kind in KINDS
    assert found.local == (name == "local-cpu") == (not found.figures)
    for figure in found.figures.values():
        assert figure.source
        assert figure.confidence in set(CONFIDENCE) - {"measured"}
        assert figure.base > 0
    assert parse_device(name, device_text(found), "again") == found


def test_the_figures_of_some_devices() -> None:
    zcu104 = device("zcu104")
    assert zcu104.resources == {"lut": 230400, "ff": 460800, "dsp": 1728, "bram36": 312, "uram": 96}
    assert zcu104.peak("int8") == pytest.approx(1.23e12)
    assert zcu104.figures["memory.bandwidth"].confidence == "unconfirmed"
    # Two operations to a multiply–accumulate, and 4096 of them a cycle: what a B4096 is named after.
    for board, cores, clock in (("zcu104", 2, 300e6), ("zcu102", 3, 281e6)):
        assert device(board).peak("int8") == pytest.approx(cores * 4096 * clock / 2, rel=2e-3)
        assert device(board).value("clock") == clock
    assert device("zcu102").resources == {"lut": 274080, "ff": 548160, "dsp": 2520, "bram36": 912}
    assert device("kv260").resources == {"lut": 117120, "dsp": 1248, "bram36": 144, "uram": 64}
    nano = device("jetson-orin-nano")
    assert (nano.peak("int8"), nano.peak("int8", "sparse")) == (10e12, 20e12)
    assert nano.bandwidth() == 68e9
    fast = device("jetson-orin-nano-super")
    assert (fast.bandwidth(), fast.value("power.min"), fast.value("power.max")) == (102e9, 7, 25)
    assert device("h100").peak("bf16") == 494.5e12
    assert device("h100").bandwidth() == pytest.approx(3.35e12)
    assert device("raspberry-pi-4").bandwidth() == pytest.approx(5.56e9)


def test_a_sparse_rate_never_passes_for_a_dense_one() -> None:
    orin = device("jetson-agx-orin")
    assert (orin.peak("int8"), orin.peak("int8", "sparse")) == (42.5e12, 137.5e12)
    assert device("coral").peak("int8") == 2e12, "a source that does not say is taken at its word"
    assert device("coral").peak("int8", "dense") is None
    assert device("coral").peak("fp32") is None


# -- the user's own ----------------------------------------------------------------------------------------------------


def test_a_device_by_the_path_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(BOARD)
    for name in (tmp_path / "board.toml", str(tmp_path / "board.toml")):
        found = device(name)
        assert (found.name, found.title, found.origin) == ("board", "A board", str(tmp_path / "board.toml"))
        assert found.bandwidth() == pytest.approx(12.8e9)
    assert "board" not in devices()


def test_the_folder_of_the_user_counts_first(home: Path) -> None:
    folder = home / "mtlc" / "devices"
    assert user_folder() == folder
    folder.mkdir(parents=True)
    (folder / "board.toml").write_text(BOARD)
    (folder / "zcu104.toml").write_text(BOARD)
    (folder / ".board.toml.x1").write_text("half a file")
    assert set(devices()) == SHIPPED | {"board"}
    assert device("zcu104").title == "A board"
    with pytest.raises(UserError, match="no device 'bord'; did you mean 'board'"):
        device("bord")


def test_a_relative_config_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    assert user_folder() == tmp_path / ".config" / "mtlc" / "devices"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert user_folder() == tmp_path / ".config" / "mtlc" / "devices"


def test_latency_is_measured_on_a_local_device_only(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('title = "Mine"\nkind = "cpu"\nlocal = true\nbackend = "onnxruntime"\n')
    assert local_device(mine).backend == "onnxruntime"
    with pytest.raises(UserError, match="device 'zcu104': latency is measured, and only on this machine"):
        latency_ms(None, "zcu104")  # type: ignore[arg-type]  # refused before the program is looked at


# -- wrong files -------------------------------------------------------------------------------------------------------

FIGURE = '{value = 1, unit = "W", source = "s", confidence = "vendor"}'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (changed('kind = "npu"\n', ""), "kind: missing; give one of cpu, gpu, npu, fpga"),
        (changed('title = "A board"\n', ""), "title: missing; give what to call the device"),
        (changed('"A board"', '"A \\u001b[31mboard"'), "title = 'A \\x1b[31mboard': must be one line of text"),
        (
            changed('"npu"', '"nqu"'),
            "kind = 'nqu': must be one of cpu, gpu, npu, fpga; did you mean 'npu'?",
        ),
        (changed("schema = 1", "schema = 2"), "schema = 2: this mtlc reads schema 1"),
        (changed("[memory.bandwidth]", "[memori.bandwidth]"), "memori: unknown key; did you mean 'memory'?"),
        (
            changed("[memory.bandwidth]", "[memory.bandwith]"),
            "[memory] bandwith: unknown key; did you mean 'bandwidth'?",
        ),
        (
            changed('unit = "GB/s"', 'unti = "GB/s"'),
            "[memory.bandwidth] unti: unknown key; did you mean 'unit'?",
        ),
        (
            changed('unit = "GB/s"', 'unit = "GHz"'),
            "[memory.bandwidth] unit: 'GHz' is no unit of a bandwidth: write TB/s, GB/s, MB/s",
        ),
        (
            changed('unit = "GB/s"\n', ""),
            "[memory.bandwidth] unit: missing; give the unit of the value (TB/s, GB/s, MB/s)",
        ),
        (changed("value = 12.8\n", ""), "[memory.bandwidth] value: missing; give the number"),
        (
            changed('source = "its data sheet"\n', ""),
            "[memory.bandwidth] source: missing; give the document or page that the figure is from",
        ),
        (
            changed('confidence = "datasheet"\n', ""),
            "[memory.bandwidth] confidence: missing; give one of datasheet, vendor, measured, derived, secondary, "
            "unconfirmed",
        ),
        (
            changed('confidence = "datasheet"', 'confidence = "data sheet"'),
            "[memory.bandwidth] confidence = 'data sheet': must be one of datasheet, vendor, measured, derived, "
            "secondary, unconfirmed; did you mean 'datasheet'?",
        ),
        (changed("12.8", '"12.8"'), "[memory.bandwidth] value = '12.8': must be a number"),
        (changed("12.8", "true"), "[memory.bandwidth] value = True: must be a number"),
        (changed("12.8", "nan"), "[memory.bandwidth] value: nan GB/s is no bandwidth: it must be a number above 0"),
        (changed("12.8", "0"), "[memory.bandwidth] value: 0 GB/s is no bandwidth: it must be a number above 0"),
        (changed("12.8", "-1"), "[memory.bandwidth] value: -1 GB/s is no bandwidth: it must be a number above 0"),
        (
            changed("12.8", "12800"),
            "[memory.bandwidth] value: 12800 GB/s is more than any device has (10 TB/s): check the number and its unit",
        ),
        (
            changed("12.8", "1" + 400 * "0"),
            "[memory.bandwidth] value: a number of 401 digits is not plausible",
        ),
        (
            BOARD.replace("[peak.int8.dense]", "[peak.int8]"),
            "[peak.int8] value: is no figure by itself; write [peak.int8.dense] or [peak.int8.sparse] or "
            "[peak.int8.unstated]",
        ),
        (BOARD.replace("[peak.int8.dense]", "[peak.int4.dense]"), "[peak] int4: unknown key; did you mean 'int8'?"),
        (
            BOARD.replace('"TOPS"', '"TFLOP/s"'),
            "[peak.int8.dense] unit: 'TFLOP/s' is no unit of a rate of integer arithmetic: write TOPS, GOPS, TMAC/s, "
            "GMAC/s, MMAC/s, MAC/s",
        ),
        (
            BOARD + '[peak.int8.sparse]\nvalue = 1\nunit = "TOPS"\nsource = "s"\nconfidence = "vendor"\n',
            "[peak.int8.dense] value: is above that of [peak.int8.sparse]; are they swapped?",
        ),
        (
            BOARD.replace('kind = "npu"', 'kind = "npu"\ncores = 4'),
            'cores = 4: a figure is a table: cores = {value = …, unit = "…", source = "…", confidence = "…"}',
        ),
        (
            BOARD + '[fpga.dsp]\nvalue = 10\nunit = "count"\nsource = "s"\nconfidence = "vendor"\n',
            "[fpga.dsp]: belongs to a device of kind 'fpga', and this one is of kind 'npu'",
        ),
        (
            BOARD + f"[power]\nmin = {FIGURE.replace('1', '9')}\nmax = {FIGURE}\n",
            "[power.min] value: is above that of [power.max]; are they swapped?",
        ),
        (
            BOARD + f"[threads.all]\nbandwidth = {FIGURE}\n",
            "[threads.all]: 'all' is no number of threads: write [threads.4]",
        ),
        (changed('kind = "npu"', 'kind = "npu"\nlocal = 1'), "local = 1: must be true or false"),
        (
            changed('kind = "npu"', 'kind = "npu"\nlocal = true'),
            'backend: missing; a local device is measured through one: backend = "onnxruntime"',
        ),
        (
            changed('kind = "npu"', 'kind = "npu"\nbackend = "onnxruntime"'),
            "backend: belongs to a local device; leave it out",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line_with_the_file_and_the_key(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "board.toml"
    path.write_text(text)
    result = mtlc("devices", "show", path, code=2)
    assert result.stderr == f"error: {path}: {line}\n"
    assert result.stdout == ""


@pytest.mark.parametrize("text", ["title", "[" * 5000, "value = " + "1" * 5000])
def test_what_is_no_toml(text: str) -> None:
    with pytest.raises(UserError, match=r"^board\.toml: not valid TOML: "):
        parse_device("board", text, "board.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes('title = "Bürd"'.encode("latin-1"))
    (tmp_path / "folder.toml").mkdir()
    for name, words in (
        ("none.toml", "none.toml: no such device file"),
        ("latin.toml", "latin.toml: not a text file in UTF-8"),
        ("folder.toml", "folder.toml: cannot be read (Is a directory)"),
    ):
        with pytest.raises(UserError) as caught:
            read_device_file(tmp_path / name)
        assert str(caught.value).endswith(words)


def test_a_wrong_file_of_the_user_is_named_by_the_list(home: Path) -> None:
    folder = home / "mtlc" / "devices"
    folder.mkdir(parents=True)
    (folder / "board.toml").write_text(changed('unit = "GB/s"', 'unit = "GB"'))
    assert mtlc("devices", code=2).stderr.startswith(f"error: {folder / 'board.toml'}: [memory.bandwidth] unit: 'GB'")


# -- writing -----------------------------------------------------------------------------------------------------------

LINES = st.text(min_size=1).filter(lambda text: text.isprintable() and text.strip())
FIGURES = st.builds(
    Figure,
    value=st.floats(1e-2, 9e3),
    unit=st.just("GB/s"),
    source=LINES,
    confidence=st.sampled_from(sorted(CONFIDENCE)),
    note=st.none() | LINES,
    spread=st.none() | st.floats(0, 100),
)


@given(LINES, FIGURES)
def test_what_is_written_reads_back(title: str, figure: Figure) -> None:
    made = Device("board", title, kind="fpga", figures={"threads.4.bandwidth": figure}, measured_on={"cpu": title})
    assert parse_device("board", device_text(made), "board.toml") == made


def test_a_device_that_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    wrong = Device("board", "A board", kind="cpu", figures={"clock": Figure(1, "W", "s", "vendor")})
    with pytest.raises(UserError, match=r"\[clock\] unit: 'W' is no unit of a clock rate"):
        write_device_file(wrong, tmp_path / "board.toml")
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_the_manual_is_a_device() -> None:
    manual = (DOCS / "devices.md").read_text()
    found = parse_device("acme", manual.split("```toml\n")[1].split("```")[0], "devices.md")
    assert (found.peak("int8"), found.peak("fp16"), found.bandwidth()) == (4e12, 1e12, 25.6e9)
    assert found.value("launch_floor") == pytest.approx(12e-6)
    for word, meaning in CONFIDENCE.items():
        assert f"| `{word}` |" in manual, meaning
    for name in SHIPPED:
        assert f"`{name}`" in manual


# -- where a device is named ------------------------------------------------------------------------------------------


def test_a_job_names_a_device_file_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from testkit import toy_job

    from mtlc.job.job import load_job
    from mtlc.workflows.opened_job import check_devices

    job = load_job(toy_job.write(tmp_path, toy_job.JOB + '[report]\ndevices = ["mine.toml"]\n'))
    assert job.resolve_device("zcu104") == "zcu104"
    assert job.resolve_device("mine.toml") == str(tmp_path / "mine.toml")
    with pytest.raises(UserError, match=r"^\[report\] devices: .*mine\.toml: no such device file$"):
        check_devices(job)
    (tmp_path / "mine.toml").write_text('title = "Mine"\nkind = "cpu"\nlocal = true\nbackend = "onnxruntime"\n')
    check_devices(job)
    (tmp_path / "mine.toml").write_text(BOARD)
    with pytest.raises(UserError, match=r"^\[report\] devices: .* no published times of such devices were fitted"):
        check_devices(job)
    (tmp_path / "mine.toml").write_text(BOARD.replace("schema = 1\n", 'schema = 1\nroofline = "dpu"\n'))
    assert [one.machine.peak for one in check_devices(job)] == [1e12]


def test_a_search_refuses_a_device_before_it_reads_anything(tmp_path: Path) -> None:
    (tmp_path / "program.json").write_text("{}")
    for name, words in (("zcu14", "no device 'zcu14'; did you mean 'zcu104'?"), ("zcu104", "only on this machine")):
        result = mtlc("search", tmp_path, "--budget", "5ms", "--job", "job.toml", "--device", name, code=2)
        assert words in result.stderr


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_list() -> None:
    lines = mtlc("devices").stdout.splitlines()
    assert lines[0].split()[:3] == ["device", "kind", "int8"]
    nano = next(line for line in lines if line.startswith("jetson-orin-nano "))
    assert "20 TOPS dense, 40 TOPS sparse" in nano
    assert nano.split()[-4:] == ["GB/s", "8", "GB", "-"]
    assert "19.2 GB/s (unconfirmed)" in next(line for line in lines if line.startswith("zcu104"))
    assert "15 W to 60 W" in next(line for line in lines if line.startswith("jetson-agx-orin"))
    found = json.loads(mtlc("devices", "--json").stdout)
    assert {entry["name"] for entry in found} == SHIPPED


def test_one_device() -> None:
    lines = mtlc("devices", "show", "zcu104").stdout.splitlines()
    assert lines[0] == "zcu104: AMD Zynq UltraScale+ ZCU104 (XCZU7EV)"
    dsp = next(line for line in lines if line.startswith("fpga.dsp"))
    assert dsp.split()[:6] == ["fpga.dsp", "1728", "count", "datasheet", "AMD", "UG1393,"]
    found = json.loads(mtlc("devices", "show", "jetson-orin-nano", "--json").stdout)
    assert found["figures"]["peak.int8.dense"] == {
        "value": 20, "unit": "TOPS", "base": 1e13, "base_unit": "MAC/s",
        "source": "NVIDIA Jetson Orin Nano data sheet", "confidence": "datasheet",
    }  # fmt: skip
    assert "no figures" in mtlc("devices", "show", "local-cpu").stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["show", "zcu10"], "error: no device 'zcu10'; did you mean 'zcu104'?\n"),
        (["show", "missing.toml"], "error: missing.toml: no such device file\n"),
        (["shwo", "zcu104"], "error: no such verb 'shwo'; did you mean 'show'?\n"),
        (["--json", "show", "zcu104"], "error: --json goes behind the verb: mtlc devices show … --json\n"),
    ],
)
def test_wrong_usage(arguments: list[str], line: str) -> None:
    assert mtlc("devices", *arguments, code=2).stderr == line
