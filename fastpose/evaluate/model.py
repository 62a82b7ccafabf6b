"""A model over annotated pictures: windows, network, joints in the pictures' pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fastpose.crop import crop_people, view_boxes
from fastpose.datasets import CocoData, PoseData, read_image
from fastpose.errors import ModelError
from fastpose.evaluate.joints import UNSCORED, evaluate_predictions, head_sizes
from fastpose.evaluate.report import Report
from fastpose.geometry import Doubles, frame_box
from fastpose.models.joints import locate_joints
from fastpose.models.spec import ModelSpec
from fastpose.skeleton import Skeleton, joint_places
from fastpose.types import Boxes, Floats, People

if TYPE_CHECKING:
    from fastpose.engines import Engine

Place: TypeAlias = "tuple[Path, Floats | None]"
"""A picture's file and a person's box [4] in it, or None for the whole picture."""


def evaluate_model(
    engine: Engine,
    data: PoseData,
    *,
    flip: bool = False,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Run a model over a data set and score it; arguments and errors as in `predict_joints`.

    Raises:
        DataError: an MPII set without the sizes of heads, told before the model runs.
    """
    if data.name == "mpii":
        head_sizes(data)
    return evaluate_predictions(
        data, predict_joints(engine, data, flip=flip, batch=batch, progress=progress)
    )


def predict_joints(
    engine: Engine,
    data: PoseData,
    *,
    flip: bool = False,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """The joints that a model finds of each person of a data set.

    The box is the annotated one, grown as in prediction, or, in a set without boxes, the whole
    picture, unpadded; it is fitted to the aspect of the network's input. Windows and decoding are
    those of prediction.

    Args:
        engine: the model.
        data: the pictures.
        flip: average the maps with those of the mirrored window.
        batch: windows that are cut and kept at once, at most the engine's largest bucket.
        progress: called after each batch with the number of its people.

    Returns:
        [N, K, 2] float32 (x, y) in the pictures' pixels, in the order of the data's joints; NaN
        for a joint that was not found, or that the model lacks and the figures leave out.

    Raises:
        ModelError: the model does not know a joint of the set that its figures count.
        DataError: a picture is missing or cannot be read.
    """
    order = _joint_order(engine.manifest.spec.joints, data.skeleton, UNSCORED)
    places = [(s.image, s.box) for s in data.samples]
    points, _ = _locate(engine, places, flip=flip, batch=batch, progress=progress)
    return np.where((order >= 0)[:, None], points[:, order], np.float32(np.nan))


def predict_people(
    engine: Engine,
    data: CocoData,
    found: Sequence[Boxes],
    *,
    flip: bool = False,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[People]:
    """The people that a model sees in boxes of each picture of a set.

    Args:
        engine: the model.
        data: its `pictures` are meant.
        found: the boxes of each of them.
        flip: see `predict_joints`.
        batch: as there.
        progress: as there.

    Returns:
        One People per picture, its rows in the order of the boxes, joints in the data's order.

    Raises:
        ModelError, DataError: see `predict_joints`.
    """
    order = _joint_order(engine.manifest.spec.joints, data.skeleton)
    files = data.pictures.values()
    places = [(file, box) for file, b in zip(files, found, strict=True) for box in b.boxes]
    points, scores = _locate(engine, places, flip=flip, batch=batch, progress=progress)
    points, scores = points[:, order], scores[:, order]
    ends = np.cumsum([len(boxes) for boxes in found])
    return [
        People(
            b.boxes, b.scores, points[end - len(b) : end], scores[end - len(b) : end], data.skeleton
        )
        for b, end in zip(found, ends, strict=True)
    ]


def _locate(
    engine: Engine,
    places: Sequence[Place],
    *,
    flip: bool,
    batch: int,
    progress: Callable[[int], None] | None,
) -> tuple[Floats, Floats]:
    """Points [N, K, 2] and scores [N, K], in the order of the model's joints."""
    spec = engine.manifest.spec
    points = np.empty((len(places), len(spec.joints), 2), np.float32)
    scores = np.empty(points.shape[:2], np.float32)
    step = max(1, min(batch, engine.manifest.buckets[-1]) // len(spec.views))
    for start in range(0, len(places), step):
        now = places[start : start + step]
        rows = slice(start, start + len(now))
        windows, affines = _cut(now, spec)
        mirrored = engine(windows[..., ::-1]) if flip else None
        points[rows], scores[rows] = locate_joints(engine(windows), affines, spec, flipped=mirrored)
        if progress:
            progress(len(now))
    return points, scores


def _cut(places: Sequence[Place], spec: ModelSpec) -> tuple[Floats, Doubles]:
    """All S views of N places: windows [N * S, 3, h, w] and their affines [N * S, 2, 3]."""
    count = len(spec.views)
    windows = np.empty((len(places) * count, 3, *spec.size), np.float32)
    affines = np.empty((len(windows), 2, 3))
    read: Path | None = None
    for index, (file, box) in enumerate(places):
        if file != read:  # people of one picture follow each other
            image, read = read_image(file), file
        window = spec.window if box is not None else replace(spec.window, padding=1.0)
        boxes = frame_box(*image.shape[:2]) if box is None else box[None]
        rows = slice(index * count, (index + 1) * count)
        seen = view_boxes(boxes, spec.views)
        _, affines[rows] = crop_people(image, seen, window, out=windows[rows])
    return windows, affines


def _joint_order(
    known: Skeleton, wanted: Skeleton, dispensable: tuple[str, ...] = ()
) -> npt.NDArray[np.int64]:
    """For each wanted joint, its index among the known ones; -1 for one that may be missing."""
    order = joint_places(known, wanted)
    for name, place in zip(wanted.joints, order, strict=True):
        if place < 0 and name not in dispensable:
            raise ModelError(
                f"the model's joints ({known.name}) lack {name}, which {wanted.name} has"
            )
    return order
