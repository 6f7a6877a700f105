"""How fast the doctor says that a machine is: from its calibration, measured now, or why it is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlc.commands.doctor import text
from mtlc.hw.devices.device import Figure
from mtlc.hw.measure import machine_rates
from mtlc.hw.measure.this_machine import cpu_name, usable_cores
from mtlc.workflows.calibrate import calibrate
from mtlc.workflows.doctor import doctor


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that are known: 4 GMAC/s in float32, 10 in INT8, none in FP16."""

    def rates(threads: list[int], seconds: float, **_: object) -> machine_rates.Rates:
        stem = f"threads.{threads[-1]}."
        figures = {
            f"{stem}peak.int8.dense": Figure(10, "GMAC/s", "made up", "measured"),
            f"{stem}peak.fp32.dense": Figure(4, "GMAC/s", "made up", "measured"),
            f"{stem}bandwidth": Figure(3, "GB/s", "made up", "measured"),
            "launch_floor": Figure(2, "us", "made up", "measured"),
        }
        return machine_rates.Rates(figures, {"peak.fp16": "no kernel"})

    for place in ("mtlc.hw.measure.machine_rates", "mtlc.workflows.calibrate"):
        monkeypatch.setattr(f"{place}.measure_rates", rates)


def test_a_machine_that_was_never_measured() -> None:
    found = doctor()
    assert found.speed is None
    assert found.speed_why == "not measured: mtlc calibrate (10 s, kept) or mtlc doctor --speed (2 s)"
    assert f"speed: {found.speed_why}" in text(found).splitlines()


@pytest.mark.usefixtures("known")
def test_the_rates_of_the_calibration(home: Path) -> None:
    calibrate()
    found = doctor().speed
    assert found is not None
    assert found.file == str(home / "mtlc" / "devices" / "local-cpu.toml")
    assert {name: (rate.value, rate.unit, rate.ms_per_gmac) for name, rate in found.rates.items()} == {
        "fp32": (4e9, "MAC/s", 250.0),
        "int8": (10e9, "MAC/s", 100.0),
        "memory": (3e9, "B/s", None),
    }


@pytest.mark.usefixtures("known")
def test_the_rates_of_now() -> None:
    found = doctor(speed=True)
    assert found.speed is not None
    assert (found.speed.measured, found.speed.file, found.speed.missing) == ("now", None, {"fp16": "no kernel"})
    lines = text(found).splitlines()
    start = lines.index("speed at best, measured now:")
    assert lines[start + 1 : start + 5] == [
        "  fp32: 4 GMAC/s, so 1 GMAC takes 250 ms or more",
        "  int8: 10 GMAC/s, so 1 GMAC takes 100 ms or more",
        "  memory: 3 GB/s",
        "  fp16: none; no kernel",
    ]


@pytest.mark.usefixtures("known")
def test_a_calibration_of_another_processor_says_nothing(home: Path) -> None:
    calibrate()
    path = home / "mtlc" / "devices" / "local-cpu.toml"
    path.write_text(path.read_text().replace(f'cpu = "{cpu_name()}"', 'cpu = "a Z80"'))
    found = doctor()
    assert found.speed is None
    assert found.speed_why == f"{path} is of another processor (a Z80): run mtlc calibrate here"
    path.write_text("schema = ")
    assert str(path) in str(doctor().speed_why)


def test_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, small."""
    monkeypatch.setattr("mtlc.workflows.doctor._SECONDS", 0.01)
    monkeypatch.setattr(machine_rates, "SIZE", 64)
    found = doctor(speed=True).speed
    assert found is not None
    assert found.rates["fp32"].value > 1e7
    assert f"{usable_cores()} thread" in found.rates["fp32"].source
