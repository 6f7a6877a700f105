"""A device file names a place, and nothing that ssh or a shell would take for more."""

from __future__ import annotations

import pytest

from mtlc.errors import UserError
from mtlc.hw.boards.reach import FOLDER, Reach
from mtlc.hw.devices.device_file import device_text, parse_device

HEAD = 'title = "a board"\nkind = "cpu"\n'


def read(reach: str):
    return parse_device("desk", f"{HEAD}[reach]\n{reach}\n", "desk.toml").reach


PLACES = ["pi@raspberrypi", "desk", "root@10.0.0.7", "user_1@host-2.local", "me@[fe80::1]", "::1"]


@pytest.mark.parametrize("place", PLACES)
def test_places(place: str) -> None:
    assert read(f'ssh = "{place}"') == Reach(place, FOLDER)
    device = parse_device("desk", f'{HEAD}[reach]\nssh = "{place}"\nfolder = "/data/mtlc"\n', "desk.toml")
    assert parse_device("desk", device_text(device), "again").reach == Reach(place, "/data/mtlc")


@pytest.mark.parametrize(
    "place",
    [
        "-oProxyCommand=x",
        "host -p 22",
        "a;b",
        "a$(b)",
        "a`b`",
        "",
        "a@b@c",
        "-",
        "@host",
        "host\\n-x",
        "a'b",
    ],
)
def test_what_is_no_place(place: str) -> None:
    with pytest.raises(UserError, match=r"desk.toml: \[reach\] ssh = .*: must be a host, such as pi@raspberrypi"):
        read(f'ssh = "{place}"')


@pytest.mark.parametrize("folder", ["/", "..", "a/../../b", "~/x y", "-rf/x", "$HOME/x", "a;b/c", "", "cache", "/tmp"])
def test_what_is_no_folder(folder: str) -> None:
    if folder == "/tmp":
        assert read(f'ssh = "desk"\nfolder = "{folder}"') == Reach("desk", folder)
        return
    with pytest.raises(UserError, match=r"\[reach\] folder = .*: must be a"):
        read(f'ssh = "desk"\nfolder = "{folder}"')


def test_keys() -> None:
    with pytest.raises(UserError, match=r"\[reach\] ssh: missing; give the host"):
        read('folder = "a/b"')
    with pytest.raises(UserError, match=r"\[reach\] command: unknown key"):
        read('ssh = "desk"\ncommand = "rm"')
