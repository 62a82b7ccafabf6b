"""How two that find one person are compared: on which pictures, by which joints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from suite import WrongAnswerError

from fastpose.datasets import PoseData
from fastpose.evaluate import evaluate_predictions
from fastpose.types import People

FRAMES = 20  # of a part of the video
SIDE, GREY = 512, 128  # of the padded pictures
APART = 0.3  # of a torso, between the middles of both sides' joints: else it is another person
MARKS = {  # MediaPipe's landmarks
    f"{side}_{joint}": first + number
    for number, side in enumerate(("left", "right"))
    for joint, first in {
        "shoulder": 11,
        "elbow": 13,
        "wrist": 15,
        "hip": 23,
        "knee": 25,
        "ankle": 27,
    }.items()
}

Answers = list[list[People]]
"""The people of each frame of each part."""


@dataclass(frozen=True)
class Pictures:
    """LSP's test set as both get it.

    Attributes:
        data: the truth, in the pictures' own pixels.
        files: the padded pictures.
        zooms: [N, 1] pixels of a picture per pixel of its padded one.
        shifts: [N, 2] (x, y) of a picture's corner, in its pixels, in the padded one.
    """

    data: PoseData
    files: tuple[Path, ...]
    zooms: np.ndarray
    shifts: np.ndarray

    def pck(self, points: np.ndarray) -> dict[str, float]:
        """PCKs of joints [N, 14, 2] in the pixels of the padded pictures, NaN of those not found.

        Returns:
            pck: a picture without a person counts as wrong; pck_found: it does not count;
            found_percent: pictures with a person; pictures: how many there are.
        """
        zooms, shifts = self.zooms[:, None], self.shifts[:, None]
        own = (points + 0.5) * zooms - shifts - 0.5
        found = np.isfinite(own).any(axis=(1, 2))
        figures = {
            "pck": limbs(self.data, own),
            "found_percent": round(100 * float(found.mean()), 2),
            "pictures": len(found),
        }
        if found.any():
            samples = tuple(s for s, here in zip(self.data.samples, found, strict=True) if here)
            figures["pck_found"] = limbs(replace(self.data, samples=samples), own[found])
        return figures


def limbs(data: PoseData, points: np.ndarray) -> float:
    """PCK@0.2 of the limb joints in percent."""
    return round(evaluate_predictions(data, points).metrics["pck@0.2_limbs"], 2)


def pad(picture: np.ndarray) -> tuple[np.ndarray, float, tuple[int, int]]:
    """A picture in the middle of a grey square of twice its longer side, SIDE pixels wide."""
    height, width = picture.shape[:2]
    side = 2 * max(height, width)
    x, y = (side - width) // 2, (side - height) // 2
    square = np.full((side, side, 3), GREY, np.uint8)
    square[y : y + height, x : x + width] = picture
    return cv2.resize(square, (SIDE, SIDE)), side / SIDE, (x, y)


def seen(answers: Answers) -> float:
    """Percent of the frames in which somebody was found."""
    return round(100 * float(np.mean([len(people) > 0 for part in answers for people in part])), 2)


def check_people(answers: Answers, people: int) -> str:
    """As many people in each frame as can be seen there, but for one frame in a hundred."""
    counts = np.array([len(found) for part in answers for found in part])
    if len(counts) != FRAMES * len(answers):
        raise WrongAnswerError(f"{len(counts)} frames instead of {FRAMES * len(answers)}")
    right = float((counts == people).mean())
    if right < 0.99:
        raise WrongAnswerError(f"{people} people found in {100 * right:.0f} % of the frames")
    return f"{people} people found in {100 * right:.0f} % of {len(counts)} frames, by looking"


def check_marks(marks: np.ndarray, answers: Answers) -> str:
    """How far its limb joints [S, T, 33, 2] are from ours where both found one person.

    The median of single joints is told. What must fit is their middle: of people who turn their
    backs the two may take left for right.
    """
    people = [p for part in answers for p in part]
    rows = [i for i, p in enumerate(people) if len(p) == 1]
    both = [i for i in rows if np.isfinite(marks.reshape(len(people), -1)[i]).all()]
    if not both:
        return "nobody whom both find"
    index = [people[both[0]].skeleton.joints.index(name) for name in MARKS]
    every = marks.reshape(len(people), -1, 2)[both]
    theirs = every[:, list(MARKS.values())]
    ours = np.stack([people[i].keypoints[0, index] for i in both])
    torsos = np.linalg.norm(every[:, MARKS["left_shoulder"]] - every[:, MARKS["right_hip"]], axis=1)
    single = np.nanmedian(np.linalg.norm(ours - theirs, axis=2) / torsos[:, None])
    middle = np.nanmedian(
        np.linalg.norm(np.nanmean(ours, axis=1) - theirs.mean(axis=1), axis=1) / torsos
    )
    if not middle <= APART:
        raise WrongAnswerError(f"MediaPipe's person is {middle:.2f} torsos apart from ours")
    return f"{single:.2f} torsos, the median joint in {len(both)} frames with both"
