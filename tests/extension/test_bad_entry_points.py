"""What is wrong with a package's entry point is one line that names the package and the entry point."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mtlc.compress.pass_interface import Pass, PassConfig
from mtlc.compress.passes import registry
from mtlc.compress.passes.registry import pass_type
from mtlc.entry_points import Addition, additions, find_addition
from mtlc.errors import Unavailable, UserError
from mtlc.hw.devices.catalogue import device, devices
from mtlc.hw.devices.device import Device
from mtlc.report.sections.added_section import AddedSection
from mtlc.report.sections.registry import sections
from mtlc.results.run import RunResults
from mtlc.runtime.backends.find_backend import find_backend
from mtlc.tasks.losses import resolve_loss
from mtlc.tasks.metrics import resolve_metric
from mtlc.tracking.registry import make_tracker

FIND = {
    "mtlc.passes": pass_type,
    "mtlc.backends": find_backend,
    "mtlc.devices": device,
    "mtlc.metrics": resolve_metric,
    "mtlc.losses": resolve_loss,
    "mtlc.trackers": lambda name: make_tracker(name, {}),
    "mtlc.report_sections": lambda name: sections({}),
}
OURS = {
    "mtlc.passes": "prune",
    "mtlc.devices": "coral",
    "mtlc.metrics": "rmse",
    "mtlc.losses": "l1",
    "mtlc.trackers": "tensorboard",
    "mtlc.report_sections": "budget",
}
BY_NAME = [group for group in FIND if group != "mtlc.report_sections"]
"""The groups of which a thing is asked for by its name; a report has all sections."""


class NoSettings(Pass):
    name = "thing"

    def run(self, program, context):
        raise NotImplementedError


class OtherName(Pass[PassConfig]):
    name = "other"

    def run(self, program, context):
        raise NotImplementedError


class NeedsArguments:
    name = "thing"

    def __init__(self, device: str) -> None:
        self.device = device


class Needs:
    def __init__(self) -> None:
        raise Unavailable("acme-driver is not installed: pip install acme-driver")


class NoBody:
    title = "A heading"


class Raises:
    title = "A heading"

    def html(self, results):
        return results.passes[0].no_such_field


class Numbers(Raises):
    def html(self, results):
        return 3


class Package:
    """An installed package of entry points, of which tests need the name only."""

    name = "acme"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Make a package with one entry point seem installed, whose object is `what`; None: its module cannot be found."""
    acme = types.ModuleType("acme_things")
    monkeypatch.setitem(sys.modules, "acme_things", acme)
    installed: list[Addition] = []

    def go(group: str, name: str, what: object = None, package: type = Package) -> None:
        value = "acme_missing:thing" if what is None else f"acme_things:thing{len(installed)}"
        setattr(acme, f"thing{len(installed)}", what)
        installed.append(Addition(EntryPoint(name, value, group)._for(package)))

    def found(group: str) -> tuple[Addition, ...]:
        return tuple(one for one in installed if one.point.group == group)

    monkeypatch.setattr("mtlc.entry_points.additions", found)
    return go


@pytest.mark.parametrize("group", FIND)
def test_what_cannot_be_imported(install, group: str):
    install(group, "thing")
    with pytest.raises(UserError) as caught:
        FIND[group]("thing")
    assert str(caught.value) == (
        f"package 'acme', entry point 'thing' of {group} (acme_missing:thing): "
        "importing it raised ModuleNotFoundError: No module named 'acme_missing'"
    )


@pytest.mark.parametrize(
    ("group", "what", "why"),
    [
        ("mtlc.passes", "text", "it is not a class derived from mtlc.compress.pass_interface.Pass"),
        ("mtlc.passes", NoSettings, r"its settings have no type; write: class NoSettings\(Pass\[SettingsOfThePass\]\)"),
        ("mtlc.passes", OtherName, "its name is 'other'; give both one name"),
        ("mtlc.backends", dict, "a dict has no name and load"),
        ("mtlc.backends", NeedsArguments, "making it without arguments raised TypeError"),
        ("mtlc.devices", "text", "it is a str, not a mtlc.hw.devices.device.Device"),
        ("mtlc.devices", Device("other", "Other"), "its device is called 'other'; give both one name"),
        ("mtlc.losses", 3, "it is a int, not a function"),
        ("mtlc.report_sections", NoBody, "must name a class with a `title` and"),
        ("mtlc.report_sections", "text", "must name a class with a `title` and"),
        ("mtlc.trackers", 3, "it is a int, not a class of trackers"),
        ("mtlc.trackers", dict, r"a dict is no tracker: it has no start\(\)"),
        ("mtlc.trackers", NeedsArguments, "making it raised TypeError"),
        ("mtlc.metrics", 3, "it is a int, not a class derived from mtlc.tasks.metrics.Metric"),
    ],
)
def test_what_is_of_the_wrong_kind(install, group: str, what: object, why: str):
    install(group, "thing", what)
    with pytest.raises(
        UserError, match=rf"^package 'acme', entry point 'thing' of {group} \(acme_things:thing0\): {why}"
    ):
        FIND[group]("thing")


@pytest.mark.parametrize("group", OURS)
def test_a_name_of_ours_is_refused_where_it_is_asked_for(install, group: str):
    FIND[group](OURS[group])
    install(group, OURS[group], object())
    with pytest.raises(
        UserError, match=rf"^package 'acme', entry point '{OURS[group]}' .*mtlc has a '{OURS[group]}' of its own"
    ):
        FIND[group](OURS[group])


def test_a_backend_with_a_name_of_ours_is_refused_with_the_package_s_others(install):
    install("mtlc.backends", "openvino", object)
    with pytest.raises(UserError, match=r"package 'acme', entry point 'openvino' .*mtlc has a 'openvino' of its own"):
        find_backend("thing")


@pytest.mark.parametrize("group", FIND)
def test_two_packages_with_one_name(install, group: str):
    install(group, "thing", object(), Package)
    install(group, "thing", object(), type("Package", (), {"name": "zenith"}))
    with pytest.raises(UserError, match=r"package 'acme', .*package 'zenith', .* has the same name; uninstall one"):
        FIND[group]("thing")


@pytest.mark.parametrize("group", BY_NAME)
def test_the_nearest_name_may_be_a_package_s(install, group: str):
    install(group, "thing", object())
    with pytest.raises((UserError, Unavailable), match="did you mean 'thing'"):
        FIND[group]("tihng")


@pytest.mark.parametrize(
    ("section", "why"), [(Raises, "html\\(\\) raised IndexError"), (Numbers, "html\\(\\) gave int")]
)
def test_a_section_that_fails_is_one_line(install, section: type, why: str):
    install("mtlc.report_sections", "thing", section)
    (added,) = (one for one in sections({}) if isinstance(one, AddedSection))
    empty = RunResults.model_construct(passes=[])
    with pytest.raises(UserError, match=rf"^package 'acme', entry point 'thing' of mtlc\.report_sections .*{why}"):
        added.section(empty)


def test_a_package_that_is_broken_stops_nobody_else(install):
    for group in BY_NAME:
        install(group, "thing")
    assert pass_type("prune") is registry.pass_types()["prune"]
    assert resolve_loss("l1") is not None
    assert resolve_metric("rmse").unit == "m"
    assert device("coral").name == "coral"
    assert "thing" in devices()


def test_a_backend_says_itself_what_is_missing(install):
    install("mtlc.backends", "thing", Needs)
    with pytest.raises(Unavailable, match=r"^acme-driver is not installed: pip install acme-driver$"):
        find_backend("thing")


def test_a_package_that_is_found_twice_is_one(monkeypatch: pytest.MonkeyPatch):
    """An editable install lies on the path twice where the path has its folder, too."""
    points = [EntryPoint("thing", "acme:thing", "mtlc.losses")] * 2
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    additions.cache_clear()
    try:
        assert find_addition("mtlc.losses", "thing") is not None
    finally:
        additions.cache_clear()


def test_a_users_device_file_may_have_any_name(install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's own folder comes first: a file there replaces a package's device."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "mtlc" / "devices").mkdir(parents=True)
    (tmp_path / "mtlc" / "devices" / "thing.toml").write_text('schema = 1\ntitle = "Mine"\nkind = "npu"\n')
    install("mtlc.devices", "thing", Device("thing", "The package's"))
    assert device("thing").title == "Mine"
