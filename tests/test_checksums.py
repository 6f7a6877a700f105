"""Checksums: any bit that is not what was written is told, and nothing of it is used."""

from __future__ import annotations

import json

import pytest

from mtlc.checksums import is_whole, read_sealed, seal_folder, write_sealed

VALUE = {"ms": 0.1 + 0.2, "name": "ä", 3: [1, None, True], 10: {"nan": float("inf")}, "empty": {}}


def test_what_was_sealed_reads_back(tmp_path):
    write_sealed(tmp_path / "a.json", VALUE)
    said: list[str] = []
    assert read_sealed(tmp_path / "a.json", said.append) == json.loads(json.dumps(VALUE))
    assert read_sealed(tmp_path / "missing.json", said.append) is None
    assert said == []


def test_every_flipped_bit_is_told(tmp_path):
    """All of the file's, but in the white space between values, where no value is."""
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    data = path.read_bytes()
    harmless = 0
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            said: list[str] = []
            if read_sealed(path, said.append, "measuring anew") is None:
                assert said == [f"{path}: damaged (its SHA-256 is not what was written); measuring anew"]
            else:
                assert json.loads(changed) == json.loads(data)
                harmless += 1
    assert harmless < 0.02 * 8 * len(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"a": 1}', "[" * 100_000, "\udcff"])
def test_what_is_no_sealed_file_is_told(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, errors="surrogateescape")
    said: list[str] = []
    assert read_sealed(path, said.append) is None
    assert len(said) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "another", "gone", "more", "sums"])
def test_a_folder_is_whole_or_not(tmp_path, damage):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(bytes(1000))
    (tmp_path / "state.json").write_text("{}")
    assert not is_whole(tmp_path)
    seal_folder(tmp_path)
    assert is_whole(tmp_path)
    weights = tmp_path / "deep" / "weights"
    if damage == "flip":
        weights.write_bytes(bytes(500) + b"\1" + bytes(499))
    if damage == "cut":
        weights.write_bytes(bytes(999))
    if damage == "another":
        (tmp_path / "state.json").rename(tmp_path / "state2.json")
    if damage == "gone":
        weights.unlink()
    if damage == "more":
        (tmp_path / "deep" / "sha256.json").write_text("{}")
    if damage == "sums":
        (tmp_path / "sha256.json").write_text("{")
    assert not is_whole(tmp_path)
