"""The path: frames -> people found -> windows -> heat maps -> joints in frame pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastpose.crop import crop_people, person_affines, view_boxes
from fastpose.direct import DeviceFrames
from fastpose.engines import Engine
from fastpose.geometry import Doubles
from fastpose.measure import stage
from fastpose.models.joints import locate_joints
from fastpose.ops.choose import Array
from fastpose.people import as_people
from fastpose.types import Boxes, Floats, People


def estimate(
    frames: Sequence[Array], found: Sequence[Boxes], engine: Engine | DeviceFrames
) -> list[People]:
    """Find the joints of the people in each frame; all windows share the network's batches.

    Args:
        frames: [H, W, 3] uint8 BGR each; sizes may differ. As `DeviceFrames.upload`
            gives them, if the network is in such.
        found: the boxes of each frame; none is an ordinary answer.
        engine: the network.

    Returns:
        One People per frame, its rows in the order of the frame's boxes.
    """
    spec = engine.manifest.spec
    counts = [len(boxes.boxes) for boxes in found]
    owner = np.repeat(np.arange(len(frames)), counts)
    total, k = len(owner), len(spec.joints)
    points, scores = np.empty((total, k, 2), np.float32), np.empty((total, k), np.float32)
    boxes = np.concatenate([f.boxes for f in found]) if total else np.empty((0, 4), np.float32)
    step = max(1, engine.manifest.buckets[-1] // len(spec.views))
    for start in range(0, total, step):
        rows = slice(start, min(start + step, total))
        points[rows], scores[rows] = _people(frames, owner[rows], boxes[rows], engine)
    ends = np.cumsum(counts)
    return [
        as_people(f, points[end - n : end], scores[end - n : end], spec)
        for f, n, end in zip(found, counts, ends, strict=True)
    ]


def _people(
    frames: Sequence[Array],
    owner: npt.NDArray[np.int64],
    boxes: Floats,
    engine: Engine | DeviceFrames,
) -> tuple[Floats, Floats]:
    """Some people: all views of each through the network, its results straight to points."""
    spec = engine.manifest.spec
    if isinstance(engine, DeviceFrames) and engine.finds_joints:
        with stage("network"):  # one graph also cuts the windows and decodes: no time of their own
            return engine.joints(frames, owner, person_affines(boxes, spec.window))
    owner, boxes = np.repeat(owner, len(spec.views)), view_boxes(boxes, spec.views)
    largest = engine.manifest.buckets[-1]
    if len(boxes) <= largest:
        results, affines = _windows(frames, owner, boxes, engine)
    else:  # one person, in more views than the engine takes at once
        parts = []
        for start in range(0, len(boxes), largest):
            rows = slice(start, start + largest)
            results, affines = _windows(frames, owner[rows], boxes[rows], engine)
            parts.append((results.copy(), affines))  # the engine writes its results anew
        results, affines = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    with stage("decode"):
        return locate_joints(results, affines, spec)


def _windows(
    frames: Sequence[Array],
    owner: npt.NDArray[np.int64],
    boxes: Floats,
    engine: Engine | DeviceFrames,
) -> tuple[Floats, Doubles]:
    """One batch: windows straight into the engine's own input; its results and the affines."""
    if isinstance(engine, DeviceFrames):
        affines = person_affines(boxes, engine.manifest.spec.window)
        with stage("network"):  # one graph also cuts the windows
            return engine.results(frames, owner, affines), affines
    window = engine.manifest.spec.window
    with stage("crop"):
        batch = engine.buffer(len(boxes))
        _, affines = crop_people(frames, boxes, window, source=owner.astype(np.int32), out=batch)
    with stage("network"):
        return engine.run(len(boxes)), affines
