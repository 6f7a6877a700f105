"""Measures detection by mean average precision, as pycocotools computes it.

Which detections are right is a matter of each picture alone, so pictures are matched as they come, and of a detection
only its score and twenty bits are kept: 14 bytes, of at most 100 detections of a class in a picture. The average over
recalls needs these, in the order of their scores.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mtlc.box_decoding import detect
from mtlc.errors import UserError
from mtlc.extras import missing_extra
from mtlc.tasks.metric import Metric
from mtlc.tasks.simota import check_boxes, detection_of, labelled_pictures


class MeanAveragePrecision(Metric):
    """Mean average precision, %, over the classes that the labels hold and over IoU thresholds from .5 to .95 (COCO).

    Outputs (N, A, D) become boxes as the task's ``postprocess`` says, but from a score of `score` on: the whole curve
    counts, not only what a device would show. Labels (N, M, 5) as `mtlc.tasks.simota` takes them. NaN without a label.
    `details` gives the precision at .5 and at .75, and of each class.
    """

    higher_is_better, unit, kind = True, "%", "boxes"
    thresholds: tuple[float, ...] = tuple(float(x) for x in np.linspace(0.5, 0.95, 10))

    def __init__(
        self, postprocess: Mapping[str, Any] | None = None, score: float = 0.01, ignore_index: int | None = None
    ) -> None:
        if not 0 <= score < 1:
            raise UserError(f"map: score = {score}: give 0 to 1")
        self._how, self._score, self._ignore = detection_of(postprocess), score, ignore_index
        _coco_eval()  # here, and not after an hour of training
        self._classes = 0
        self._kept = KeptMatches()

    def update(self, output: Tensor, target: Tensor) -> None:
        check_boxes(output, target, self._how, self._ignore)
        self._classes = self._how.classes(output.shape)
        labelled = labelled_pictures(output, target, self._how, self._ignore)
        if bool(labelled.any()):
            found = detect(output[labelled].detach().float().cpu().numpy(), self._how, score=self._score)
            self._kept.add(list(target[labelled].detach().cpu().numpy()), list(found), self._classes)

    def compute(self) -> float:
        return _mean(self._precision())

    def details(self) -> dict[str, float]:
        precision = self._precision()
        if math.isnan(_mean(precision)):
            return {}
        every = {"map": precision, "map_50": precision[self._at(0.5)], "map_75": precision[self._at(0.75)]}
        by_class = {f"class_{label}": precision[..., label] for label in range(self._classes)}
        values = {name: _mean(part) for name, part in (every | by_class).items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """The metric (R,) of draws in which picture i is there ``weights[r, i]`` times, (R, pictures)."""
        matches = [one for label in range(self._classes) if (one := self._kept.of(label)) is not None]
        return np.array([self._of_draw(matches, draw) for draw in weights])

    def _of_draw(self, matches: list[Matches], draw: np.ndarray) -> float:
        parts = [precision[self._counted()] for one in matches if (precision := one.precision(draw)) is not None]
        return float(100 * np.mean(parts)) if parts else math.nan

    def _counted(self) -> list[int]:
        """Which of the thresholds `compute` takes the mean of."""
        return list(range(len(_ALL)))

    def _at(self, threshold: float) -> list[int]:
        return [i for i, t in enumerate(_ALL) if abs(t - threshold) < 1e-9]

    def _precision(self) -> np.ndarray:
        """(10, 101, classes): precision by IoU threshold, recall and class; -1 for a class without a label."""
        return self._kept.precision(max(self._classes, 1))


class MeanAveragePrecision50(MeanAveragePrecision):
    """Mean average precision, %, at an IoU of .5 (PASCAL VOC's threshold, COCO's curve); the rest as the parent's."""

    def _counted(self) -> list[int]:
        return self._at(0.5)

    def compute(self) -> float:
        return _mean(self._precision()[self._at(0.5)])


_ALL = MeanAveragePrecision.thresholds
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Matches:
    """All detections of one class, the best first: whether each is right, and whether it is wrong, (10, D), of which
    picture, (D,). COCO counts some as neither. `boxes` (pictures,) are the labels of the class.
    """

    right: np.ndarray
    wrong: np.ndarray
    picture: np.ndarray
    boxes: np.ndarray

    def precision(self, draw: np.ndarray) -> np.ndarray | None:
        """(10, 101): precision at the IoU thresholds and recalls of COCO, where picture i is there ``draw[i]`` times.

        None without a label. A picture that is there twice has its detections twice, one after the other: of these the
        last alone can be the best precision at its recall, so the others need not be looked at.
        """
        boxes = float(draw @ self.boxes)
        if not boxes:
            return None
        times = draw[self.picture]
        right, wrong = np.cumsum(self.right * times, axis=1), np.cumsum(self.wrong * times, axis=1)
        return _at_recalls(right / np.maximum(right + wrong, 1e-300), right / boxes)

    def plain_precision(self) -> np.ndarray | None:
        """The same where each picture is there once, to the last bit as pycocotools has it."""
        boxes = self.boxes.sum()
        if not boxes:
            return None
        right, wrong = (np.cumsum(which, axis=1).astype(float) for which in (self.right, self.wrong))
        return _at_recalls(right / (wrong + right + np.spacing(1)), right / boxes)


def _at_recalls(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """(10, 101): the best precision at COCO's recalls or beyond, of curves (10, D) that go along the detections."""
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    at = np.stack([np.searchsorted(row, _RECALLS, side="left") for row in recall])
    return np.take_along_axis(padded, at, axis=1)


class KeptMatches:
    """Which detections are right, of all pictures so far: a few bytes of each, and how many boxes there are."""

    def __init__(self) -> None:
        self._pictures = 0
        self._boxes: list[np.ndarray] = []  # (pictures, classes)
        self._labels: list[np.ndarray] = []  # (D,) as all below: the class
        self._owners: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._right: list[np.ndarray] = []  # a bit for each IoU threshold
        self._wrong: list[np.ndarray] = []
        self._sorted: dict[int, Matches | None] = {}

    def add(self, truth: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: int) -> None:
        """Match pictures: of each its labels (M, 5) and its detections (K, 6), of which COCO counts the best 100."""
        run, count = _evaluated(truth, found, classes), len(truth)
        boxes = np.zeros((count, classes), np.int32)
        for label in range(classes):
            for place in range(count):
                image = run.evalImgs[label * count + place]
                if image is None:
                    continue
                boxes[place, label] = int((np.asarray(image["gtIgnore"]) == 0).sum())
                matched, ignored = np.asarray(image["dtMatches"]) > 0, np.asarray(image["dtIgnore"]) != 0
                scores = np.asarray(image["dtScores"], float)
                if len(scores):
                    self._labels.append(np.full(len(scores), label, np.uint16))
                    self._owners.append(np.full(len(scores), self._pictures + place, np.int32))
                    self._scores.append(_narrow(scores))
                    self._right.append(_bits(matched & ~ignored))
                    self._wrong.append(_bits(~matched & ~ignored))
        self._boxes.append(boxes)
        self._pictures += count
        self._sorted.clear()
        for kept in (self._labels, self._owners, self._scores, self._right, self._wrong):
            if len(kept) > _PARTS:  # or the heads of small arrays need more than what they hold
                kept[:] = [np.concatenate(kept)]

    def of(self, label: int) -> Matches | None:
        """The detections of a class in the order of their scores; None where it has neither these nor boxes."""
        if label not in self._sorted:
            self._sorted[label] = self._of(label)
        return self._sorted[label]

    def precision(self, classes: int) -> np.ndarray:
        """(10, 101, classes): precision at the IoU thresholds and recalls of COCO, -1 where a class has no label."""
        result = np.full((len(_ALL), len(_RECALLS), classes), -1.0)
        for label in range(classes):
            matches = self.of(label)
            known = None if matches is None else matches.plain_precision()
            if known is not None:
                result[:, :, label] = known
        return result

    def _of(self, label: int) -> Matches | None:
        boxes = np.concatenate([part[:, label] for part in self._boxes]) if self._boxes else np.zeros(0, np.int32)
        mine = np.concatenate([np.zeros(0, np.uint16), *self._labels]) == label
        if not boxes.any() and not mine.any():
            return None
        parts = (self._scores, self._owners, self._right, self._wrong)
        scores, owners, right, wrong = (
            np.concatenate(part)[mine] if part else np.zeros(0, kind)
            for part, kind in zip(parts, (np.float32, np.int32, np.uint16, np.uint16), strict=True)
        )
        order = np.argsort(-scores, kind="mergesort")
        bits = 1 << np.arange(len(_ALL), dtype=np.uint16)[:, None]
        return Matches((right[order] & bits) > 0, (wrong[order] & bits) > 0, owners[order], boxes)


_PARTS = 4096


def _bits(which: np.ndarray) -> np.ndarray:
    """(D,) uint16 of bool (10, D)."""
    powers = 1 << np.arange(len(which), dtype=np.uint16)[:, None]
    result: np.ndarray = (which * powers).sum(0).astype(np.uint16)
    return result


def _narrow(scores: np.ndarray) -> np.ndarray:
    """Scores as float32, if that is what they were."""
    narrow = scores.astype(np.float32)
    return narrow if np.array_equal(narrow, scores) else scores


def average_precision(truth: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Precision (10, 101, classes) at the IoU thresholds and recalls of COCO, -1 where a class has no label.

    `truth` holds the labels (M, 5) of each picture, `found` its detections (K, 6), of which COCO counts the best 100.
    """
    kept = KeptMatches()
    kept.add(truth, found, classes)
    return kept.precision(classes)


def _evaluated(truth: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: int) -> Any:
    """pycocotools' evaluation, with detections matched to labels and nothing added up."""
    coco, evaluation = _coco_eval()
    labels, results = coco(), coco()
    categories = [{"id": label} for label in range(classes)]
    pictures = [{"id": index} for index in range(len(truth))]
    for data, rows_of in ((labels, truth), (results, found)):
        entries: list[dict[str, Any]] = []
        for index, rows in enumerate(rows_of):
            for row in rows[rows[:, 4] >= 0].astype(float):
                width, height = row[2] - row[0], row[3] - row[1]
                entry = {"image_id": index, "category_id": int(row[4]), "bbox": [row[0], row[1], width, height]}
                # Its numbers start from 1: 0 means "matched to nothing" in pycocotools.
                entries.append(entry | {"id": len(entries) + 1, "area": width * height, "iscrowd": 0})
                if len(row) > 5:
                    entries[-1]["score"] = row[5]
        data.dataset = {"images": pictures, "categories": categories, "annotations": entries}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        labels.createIndex()
        results.createIndex()
        run = evaluation(labels, results, "bbox")
        run.params.iouThrs = np.array(_ALL)
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.maxDets = [100]
        run.evaluate()
    return run


def _mean(precision: np.ndarray) -> float:
    seen = precision[precision > -1]
    return float(100 * seen.mean()) if seen.size else math.nan


def _coco_eval() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise missing_extra("pycocotools") from None
    return COCO, COCOeval
