"""PASCAL-Context in the layout of ASTMT: every label pixel by pixel, and what does not fit in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from testkit.dense_samples import SIZE, annotation, write_mat, write_pascal, write_picture

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.loss_totals import LossTotals
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.dense import MEAN, STD
from mtlc.zoo.pascal_context import PARTS, TASKS, VOC, human_parts, pascal_context

VOC12, LABELS = "semseg/VOC12/2008_000001.png", "pascal-context/trainval/2008_000001.mat"
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pascal(tmp_path / "PASCAL_MT")


def test_every_label_is_what_the_files_say(root: Path):
    splits = pascal_context(root, size=None)
    whole = splits.train.whole
    assert whole.tasks == TASKS
    assert len(VOC) == 21
    assert PARTS[4] == "lower arms"
    assert sorted(splits.train.indices + splits.calibration.indices) == [0, 1, 2]
    first, second, third = (whole[index] for index in range(3))
    assert {key: (tuple(value.shape), value.dtype) for key, value in first.items()} == {
        "image": ((3, 6, 8), torch.float32),
        "semseg": ((6, 8), torch.int64),
        "human_parts": ((6, 8), torch.int64),
        "normals": ((3, 6, 8), torch.float32),
        "sal": ((1, 6, 8), torch.float32),
        "edge": ((1, 6, 8), torch.float32),
    }
    np.testing.assert_allclose(first["image"][0], (40 / 255 - MEAN[0]) / STD[0], atol=0.03)
    # Indices of a palette, not its colours; 255 is ignored. The second is not in VOC12.
    voc = np.where(ROWS == 0, 255, np.where(COLUMNS < 4, 15, 0))
    for sample in (first, second, third):
        np.testing.assert_array_equal(sample["semseg"], voc)
    parts = np.where(COLUMNS < 2, 1, np.where(COLUMNS < 5, 2, 0))
    parts[3, 5] = 4
    np.testing.assert_array_equal(first["human_parts"], parts)
    assert (second["human_parts"] == 255).all()  # a horse
    assert (third["human_parts"] == 255).all()  # a person without parts
    # The wall counts, which rooms have; the sky does not. (255, 128, 128) is (1, 0.004, 0.004).
    normals = first["normals"].numpy()
    for axis, expected in enumerate((1, 1 / 255, 1 / 255)):
        np.testing.assert_allclose(normals[axis, :, :4], expected, atol=2e-5)
    assert (normals[:, :, 4:] == 0).all()
    np.testing.assert_array_equal(first["sal"][0], ROWS < 2)  # 128 is above 127
    edge = first["edge"][0].numpy()
    assert set(np.flatnonzero(edge.any(0))) <= {3, 4}  # where wall and sky meet
    np.testing.assert_array_equal(edge[1:-1].sum(1), 1)
    everywhere = pascal_context(root, tasks=["normals"], size=None, normals_where="everywhere")
    assert (everywhere.validation[0]["normals"][0] > 0.99).all()


def test_pictures_without_a_person_count_nowhere(root: Path):
    data = pascal_context(root, tasks=["human_parts"], size=None).train.whole
    task = TaskSpec("human_parts", "cross_entropy", "miou")
    losses = LossTotals(Criteria([task]), 4)
    batch = data.batch([0, 1, 2])
    losses.update({"human_parts": torch.zeros(3, 7, *SIZE)}, batch)
    losses.finish()
    assert losses.counts == {"human_parts": 1}


def test_pictures_of_many_sizes_are_padded_to_one(root: Path):
    Image.fromarray(np.zeros((12, 4, 3), np.uint8)).save(root / "JPEGImages" / "2008_000002.jpg")
    Image.fromarray(np.full((12, 4), 3, np.uint8)).save(root / "semseg" / "pascal-context" / "2008_000002.png")
    splits = pascal_context(root, tasks=["semseg"], size=[8, 10])
    whole = splits.train.whole
    batch = whole.batch([0, 1])
    assert tuple(batch["image"].shape) == (2, 3, 8, 10)
    np.testing.assert_array_equal(batch["semseg"][0, :6, :8], np.where(ROWS == 0, 255, np.where(COLUMNS < 4, 15, 0)))
    assert (batch["semseg"][0, 6:] == 255).all()
    assert (batch["semseg"][0, :, 8:] == 255).all()
    assert batch["image"][0, :, 7, 9].abs().max() < 0.02  # the mean colour
    # 12 × 4 becomes 8 × 3 (2.67) in its own proportions.
    assert (batch["semseg"][1, :, :3] == 3).all()
    assert (batch["semseg"][1, :, 3:] == 255).all()
    with pytest.raises(
        UserError, match=r"pictures of 6 × 8 and of 12 × 4 pixels make no batch: give \[data.args\] size"
    ):
        pascal_context(root, tasks=["semseg"], size=None).train.whole.batch([0, 1])


def test_a_map_of_part_numbers_is_taken_too(tmp_path: Path):
    write_mat(tmp_path / "a.mat", {"anno": np.where(COLUMNS < 3, 6, 0).astype(np.uint8)})
    np.testing.assert_array_equal(human_parts(tmp_path / "a.mat"), np.where(COLUMNS < 3, 6, 0))
    write_mat(tmp_path / "b.mat", {"anno": np.full(SIZE, 255, np.uint8)})
    assert human_parts(tmp_path / "b.mat") is None
    write_mat(tmp_path / "c.mat", {"anno": np.full(SIZE, 7, np.uint8)})
    with pytest.raises(UserError, match=r"c\.mat: class 7, but six parts of persons counts 0 to 6 or 255"):
        human_parts(tmp_path / "c.mat")


@pytest.mark.parametrize(
    ("task", "file", "content", "message"),
    [
        ("semseg", VOC12, np.full(SIZE, 21, np.uint8), "class 21, but PASCAL VOC counts 0 to 20"),
        ("semseg", VOC12, np.zeros((*SIZE, 3), np.uint8), "is it a coloured copy"),
        ("semseg", VOC12, np.full(SIZE, 300, np.uint16), "class 300, but"),
        ("semseg", VOC12, np.zeros((8, 6), np.uint8), r"\(8, 6\) pixels, but its image has \(6, 8\)"),
        ("normals", "normals_distill/2008_000001.png", np.zeros(SIZE, np.uint8), "mode L; normals are x, y, z"),
        ("normals", "normals_distill/2008_000001.png", np.zeros((4, 4, 3), np.uint8), "but 2008_000001.png has"),
        ("sal", "sal_distill/2008_000001.png", b"\x89PNG\r\n\x1a\n....", "not a picture that can be read"),
        ("edge", LABELS, {"Other": 1}, "has no array 'LabelMap'"),
        ("edge", LABELS, {"LabelMap": np.full(SIZE, 460)}, "none of the 459 classes"),
        ("human_parts", "human_parts/2008_000001.mat", {"anno": np.array([["text"]])}, "holds <U4"),
        ("human_parts", "human_parts/2008_000001.mat", {"anno": {"imname": "x"}}, "not an annotation of PASCAL-Part"),
        ("human_parts", "human_parts/2008_000001.mat", b"MATLAB 5.0", "not a .mat file"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_file_and_task(root: Path, task: str, file: str, content: object, message: str):
    path = root / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        write_mat(path, content)
    else:
        write_picture(path, content)
    data = pascal_context(root, tasks=[task], size=None).validation
    with pytest.raises(UserError, match=message) as error:
        data[0]
    assert str(error.value).startswith(f"[data] {task}: ")
    assert "2008_000001" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_picture_is_no_half_grey_one(root: Path):
    picture = root / "JPEGImages" / "2008_000001.jpg"
    picture.write_bytes(picture.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"2008_000001\.jpg: not a picture that can be read"):
        pascal_context(root, tasks=["sal"]).validation[0]


def test_unknown_parts_and_masks_of_other_sizes(root: Path):
    where = np.ones(SIZE, bool)
    path = root / "human_parts" / "2008_000001.mat"
    write_mat(path, {"anno": annotation([("person", 15, where, [("wing", where)])])})
    with pytest.raises(UserError, match="a person has no part 'wing'"):
        human_parts(path)
    write_mat(path, {"anno": annotation([("person", 15, where, [("head", where), ("torso", where.T)])])})
    with pytest.raises(UserError, match=r"the mask of 'torso' is \(8, 6\), that of the first part \(6, 8\)"):
        human_parts(path)


def test_what_is_asked_for_is_checked_first(root: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no such folder; put PASCAL_MT"):
        pascal_context(tmp_path / "nowhere")
    with pytest.raises(UserError, match="unknown task 'semsg'; did you mean 'semseg'"):
        pascal_context(root, tasks=["semsg"])
    with pytest.raises(UserError, match=r"\[data\] normals_where = 'rooms': one of shared, everywhere"):
        pascal_context(root, normals_where="rooms")
    with pytest.raises(UserError, match=r"crop = \[600, 600\]: larger than size = \[512, 512\]"):
        pascal_context(root, crop=[600, 600])
    (root / "json" / "nyu_classes.json").unlink()
    with pytest.raises(UserError, match=r"nyu_classes\.json: no such file, by which normals count; .* normals_where"):
        pascal_context(root)
    pascal_context(root, tasks=["sal"])  # which needs no such list
    (root / "ImageSets" / "Context" / "val.txt").write_text("../../JPEGImages/2008_000001\n")
    with pytest.raises(UserError, match="is not a plain file name"):
        pascal_context(root, tasks=["sal"])


def test_identity_follows_files_and_settings(root: Path):
    one = pascal_context(root, size=None)
    assert pascal_context(root, size=None).identity == one.identity
    assert pascal_context(root, size=None, normals_where="everywhere").identity != one.identity
    assert pascal_context(root, size=[8, 8]).identity != pascal_context(root, size=[8, 8], pad=False).identity
    (root / "sal_distill" / "2008_000003.png").unlink()
    with pytest.raises(UserError, match=r"\[data\] sal: .*2008_000003\.png: missing, though its split lists it"):
        _ = pascal_context(root, size=None).identity
