"""Pictures of a data set are decoded within the same limits as others."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from mtlc.errors import UserError
from mtlc.runtime import pictures
from mtlc.zoo.checked_files import open_image


def test_a_picture_that_is_too_large_or_none(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == (6, 4)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 23)
    with pytest.raises(UserError, match=r"a\.png: 6 × 4 pixels, more than the 23 that are read"):
        open_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png: not a plain file"):
        open_image(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"c\.png: not a picture that can be read"):
        open_image(tmp_path / "c.png")
