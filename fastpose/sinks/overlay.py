"""People drawn on a picture: one hue a side, sized by the person, joints gated by their score."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fastpose.skeleton import Skeleton
from fastpose.types import People

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# Blue and orange are told apart with every common colour deficiency (Okabe and Ito, Color Universal
# Design, 2008); BGR.
LEFT: Colour = (245, 158, 46)
RIGHT: Colour = (20, 140, 255)
CENTRE: Colour = (236, 236, 236)
OUTLINE: Colour = (32, 26, 24)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_BITS = 4  # fractional bits of the coordinates given to OpenCV: 1/16 pixel
_FACE = frozenset(("nose", "left_eye", "right_eye", "left_ear", "right_ear"))


class _Part(NamedTuple):
    """Limbs and joints that are drawn with one width, by colour."""

    limbs: npt.NDArray[np.bool_]  # [L]
    joints: npt.NDArray[np.bool_]  # [K]
    limbs_by_colour: tuple[tuple[Colour, npt.NDArray[np.bool_]], ...]


class _Plan(NamedTuple):
    """What to draw of a skeleton."""

    limbs: npt.NDArray[np.int64]  # [L, 2] joint indices
    body: _Part
    face: _Part
    joint_colours: tuple[Colour, ...]  # [K]


def draw(
    image: Image,
    people: People,
    *,
    min_score: float = 0.3,
    boxes: bool = False,
    ids: bool = True,
) -> Image:
    """Return a copy of the picture with the people drawn on it.

    The person's own left is blue, right orange, what is in the middle or crosses it light grey.
    A joint is drawn when its score reaches `min_score`, a limb when both of its joints are. Width
    follows the size of the person within limits set by the picture. Small people are drawn first.

    Args:
        image: [H, W, 3] uint8 BGR; not changed.
        people: in pixels of `image`. NaN and joints farther outside than the picture is large are
            left out.
        min_score: from 0 to 1.
        boxes: draw the boxes as well.
        ids: write the track numbers of people that have one.

    Returns:
        [H, W, 3] uint8 BGR.
    """
    drawn = np.ascontiguousarray(image).copy()
    shown = _shown(people, image.shape[:2], min_score)
    extents = [_extent(points[s]) for points, s in zip(people.keypoints, shown, strict=True)]
    order = np.argsort(extents, kind="stable")
    plan = _plan(people.skeleton)
    thickest = max(2.0, math.hypot(*image.shape[:2]) * 0.005)
    for i in order:
        width = round(min(max(extents[i] * 0.018, 1.0), thickest))
        if boxes and np.isfinite(people.boxes[i]).all():
            _draw_box(drawn, people.boxes[i], max(1, width // 3))
        if shown[i].any():
            _draw_person(drawn, plan, people.keypoints[i], shown[i], width)
    if ids and people.ids is not None:
        for i in order:
            if shown[i].any():
                _draw_id(drawn, int(people.ids[i]), people.keypoints[i][shown[i]])
    return drawn


def _shown(people: People, size: tuple[int, int], min_score: float) -> npt.NDArray[np.bool_]:
    """[N, K]: joints with the score, and within one picture's size around the picture."""
    h, w = size
    x, y = people.keypoints[..., 0], people.keypoints[..., 1]
    # A comparison with NaN is false.
    near = (x > -w) & (x < 2 * w) & (y > -h) & (y < 2 * h)
    return near & (people.scores >= min_score)


def _extent(points: npt.NDArray[np.floating]) -> float:
    """The longer side of the points' bounding box, in pixels."""
    return float(np.ptp(points, axis=0).max()) if len(points) else 0.0


@functools.lru_cache(maxsize=16)
def _plan(skeleton: Skeleton) -> _Plan:
    sides = [name.split("_")[0] for name in skeleton.joints]
    hues = {"left": LEFT, "right": RIGHT}
    face = np.array([name in _FACE for name in skeleton.joints], np.bool_)
    limbs = np.array(skeleton.limbs, np.int64).reshape(-1, 2)
    colours = []
    for a, b in limbs:
        named = {sides[a], sides[b]} & set(hues)
        colours.append(hues[named.pop()] if len(named) == 1 else CENTRE)

    def part(joints: npt.NDArray[np.bool_], members: npt.NDArray[np.bool_]) -> _Part:
        by_colour = [
            (colour, np.array([c == colour for c in colours], np.bool_) & members)
            for colour in (CENTRE, LEFT, RIGHT)
        ]
        return _Part(members, joints, tuple(by_colour))

    in_face: npt.NDArray[np.bool_] = np.array(face[limbs].all(axis=1))
    joint_colours = tuple(_lightened(hues.get(side, CENTRE)) for side in sides)
    return _Plan(limbs, part(~face, ~in_face), part(face, in_face), joint_colours)


def _lightened(colour: Colour) -> Colour:
    blue, green, red = (round(c + (255 - c) * 0.55) for c in colour)
    return blue, green, red


def _draw_person(
    drawn: Image,
    plan: _Plan,
    points: npt.NDArray[np.float32],
    shown: npt.NDArray[np.bool_],
    width: int,
) -> None:
    """Dark outlines first, then limbs, then joints: no outline cuts through a limb."""
    fixed = _fixed(np.where(shown[:, None], points, 0))
    centres = fixed.tolist()
    lines, whole = fixed[plan.limbs], shown[plan.limbs].all(axis=1)
    for part, wide in ((plan.body, width), (plan.face, max(1, width // 2))):
        edge, radius = max(1, round(wide * 0.3)), wide * 0.75
        joints = np.flatnonzero(part.joints & shown)
        _lines(drawn, lines[part.limbs & whole], OUTLINE, wide + 2 * edge)
        for k in joints:
            _dot(drawn, centres[k], OUTLINE, radius + edge)
        for colour, members in part.limbs_by_colour:
            _lines(drawn, lines[members & whole], colour, wide)
        for k in joints:
            _dot(drawn, centres[k], plan.joint_colours[k], radius)


def _fixed(points: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    return np.rint(points * (1 << _BITS)).astype(np.int32)


def _lines(drawn: Image, lines: npt.NDArray[np.int32], colour: Colour, width: int) -> None:
    if len(lines):
        cv2.polylines(drawn, list(lines), False, colour, width, cv2.LINE_AA, _BITS)


def _dot(drawn: Image, centre: list[int], colour: Colour, radius: float) -> None:
    fixed_radius = round(radius * (1 << _BITS))
    cv2.circle(drawn, centre, fixed_radius, colour, cv2.FILLED, cv2.LINE_AA, _BITS)


def _draw_box(drawn: Image, box: npt.NDArray[np.float32], width: int) -> None:
    h, w = drawn.shape[:2]
    inside = np.clip(box, (-w, -h, -w, -h), (2 * w, 2 * h, 2 * w, 2 * h)).reshape(2, 2)
    first, last = _fixed(inside).tolist()
    for colour, thickness in ((OUTLINE, width + 2), (CENTRE, width)):
        cv2.rectangle(drawn, first, last, colour, thickness, cv2.LINE_AA, _BITS)


def _draw_id(drawn: Image, number: int, points: npt.NDArray[np.floating]) -> None:
    """The number in a dark label above the person, moved inside the picture."""
    h, w = drawn.shape[:2]
    scale = min(max(h / 1600, 0.35), 1.2)
    (text_w, text_h), _ = cv2.getTextSize(str(number), _FONT, scale, 1)
    label_h = round(1.8 * text_h)
    label_w = max(text_w, text_h) + label_h
    middle = float(points[:, 0].min() + points[:, 0].max()) / 2
    x = int(min(max(middle - label_w / 2, 0), max(w - label_w, 0)))
    y = int(min(max(float(points[:, 1].min()) - 1.6 * label_h, 0), max(h - label_h, 0)))
    # A thick line has round ends.
    half = label_h // 2
    first, last = (x + half, y + half), (x + label_w - half, y + half)
    cv2.line(drawn, first, last, OUTLINE, label_h, cv2.LINE_AA)
    at = (x + (label_w - text_w) // 2, y + (label_h + text_h) // 2)
    cv2.putText(drawn, str(number), at, _FONT, scale, CENTRE, 1, cv2.LINE_AA)
