"""A model over annotated pictures: windows, network, joints in the pictures' pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastpose.crop import Place, cut_places
from fastpose.datasets import CocoData, PoseData
from fastpose.errors import ModelError
from fastpose.evaluate.joints import UNSCORED, evaluate_predictions, head_sizes
from fastpose.evaluate.report import Report
from fastpose.models.joints import locate_joints
from fastpose.skeleton import Skeleton, joint_places
from fastpose.types import Boxes, Floats, People

if TYPE_CHECKING:
    from fastpose.engines import Engine


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
    order = joint_order(engine.manifest.spec.joints, data.skeleton, UNSCORED)
    places = sample_places(data)
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
    order = joint_order(engine.manifest.spec.joints, data.skeleton)
    places = box_places(data, found)
    points, scores = _locate(engine, places, flip=flip, batch=batch, progress=progress)
    return group_people(data, found, points[:, order], scores[:, order])


def sample_places(data: PoseData) -> list[Place]:
    """Where the people of a set are."""
    return [Place(s.image, s.box) for s in data.samples]


def box_places(data: CocoData, found: Sequence[Boxes]) -> list[Place]:
    """Where the boxes of each of a set's pictures are, picture by picture."""
    files = data.pictures.values()
    return [Place(file, box) for file, b in zip(files, found, strict=True) for box in b.boxes]


def group_people(
    data: CocoData, found: Sequence[Boxes], points: Floats, scores: Floats
) -> list[People]:
    """The joints in all `box_places`, [N, K, 2] and [N, K] in the data's order, by picture."""
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
        windows, affines = cut_places(now, spec.window, spec.views)
        mirrored = engine(windows[..., ::-1]) if flip else None
        points[rows], scores[rows] = locate_joints(engine(windows), affines, spec, flipped=mirrored)
        if progress:
            progress(len(now))
    return points, scores


def joint_order(
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
