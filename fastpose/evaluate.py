"""Accuracy: from predicted and annotated joints to the figures that papers print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastpose.crop import Window, crop_people
from fastpose.datasets import PoseData, Sample, read_image
from fastpose.errors import ModelError
from fastpose.geometry import Doubles, frame_box
from fastpose.people import locate_joints
from fastpose.skeleton import Skeleton

if TYPE_CHECKING:
    from fastpose.engines import Engine

TORSO = ("left_shoulder", "right_hip")
HEAD = ("neck", "head_top")  # the joints that are no limb's


@dataclass(frozen=True)
class Report:
    """The accuracy on one data set.

    Attributes:
        metrics: percent, by the metric's own name; NaN where the set has no joint of that sort.
        per_joint: percent of the first metric, by joint.
        images: how many pictures were counted.
    """

    metrics: dict[str, float]
    per_joint: dict[str, float]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to 0.001 percent; None for NaN, which JSON does not know."""

        def plain(figures: dict[str, float]) -> dict[str, float | None]:
            return {k: None if np.isnan(v) else round(float(v), 3) for k, v in figures.items()}

        return {**plain(self.metrics), "per_joint": plain(self.per_joint)}


def pck(
    predicted: npt.NDArray[np.floating],
    truth: npt.NDArray[np.floating],
    *,
    reference: npt.NDArray[np.floating],
    threshold: float = 0.2,
    valid: npt.NDArray[np.bool_] | None = None,
) -> Doubles:
    """Percentage of correct keypoints, as a share, for each joint.

    A joint is right when it lies within `threshold` times its person's reference length of the
    truth (Yang and Ramanan, Articulated Human Detection with Flexible Mixtures of Parts, PAMI
    2013). A prediction of NaN is wrong.

    Args:
        predicted: [N, K, 2] (x, y) in pixels.
        truth: [N, K, 2], same order of joints.
        reference: [N] lengths in the same pixels.
        threshold: share of the reference length.
        valid: [N, K] which joints count; None counts all.

    Returns:
        [K] from 0 to 1; NaN for a joint that is nowhere valid.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    valid = np.ones(truth.shape[:2], bool) if valid is None else valid
    if valid.shape != truth.shape[:2]:
        raise ValueError(f"valid must be {list(truth.shape[:2])}, got {list(valid.shape)}")
    right = correct(predicted, truth, reference=reference, threshold=threshold) & valid
    counted = valid.sum(axis=0)
    return np.where(counted > 0, right.sum(axis=0) / np.maximum(counted, 1), np.nan)


def correct(
    predicted: npt.NDArray[np.floating],
    truth: npt.NDArray[np.floating],
    *,
    reference: npt.NDArray[np.floating],
    threshold: float,
) -> npt.NDArray[np.bool_]:
    """[N, K] which joints are right; arguments and errors as in `pck`."""
    if truth.ndim != 3 or truth.shape[2] != 2:
        raise ValueError(f"truth must be [N, K, 2], got {list(truth.shape)}")
    if predicted.shape != truth.shape:
        raise ValueError(
            f"predicted must be {list(truth.shape)} like truth, got {list(predicted.shape)}"
        )
    if reference.shape != truth.shape[:1]:
        raise ValueError(f"reference must be {[len(truth)]}, got {list(reference.shape)}")
    difference = predicted.astype(np.float64) - truth.astype(np.float64)
    return np.hypot(difference[..., 0], difference[..., 1]) <= threshold * reference[:, None]


def evaluate_predictions(data: PoseData, predicted: npt.NDArray[np.floating]) -> Report:
    """The figures of Leeds Sports Pose, person-centric.

    The reference length is the torso, from left shoulder to right hip of the truth, and the mean
    is that of the rates of the joints: the figures of Wei et al., Convolutional Pose Machines,
    CVPR 2016. Joints that are not labelled, and people whose torso is not, do not count.

    Args:
        data: the truth.
        predicted: [N, K, 2] (x, y) in its pictures' pixels, centres at whole numbers; NaN where a
            joint was not found.

    Returns:
        pck@0.2; pck@0.2_limbs, without neck and head top; pck@0.2_occluded, over all joints that
        are labelled and cannot be seen, taken together; pck@0.1.

    Raises:
        ValueError: `predicted` has another shape.
    """
    names = data.skeleton.joints
    truth = np.stack([s.joints for s in data.samples]).astype(np.float64)
    labelled = np.stack([s.labelled for s in data.samples])
    visible = np.stack([s.visible for s in data.samples])
    torso = [names.index(name) for name in TORSO]
    reference = np.linalg.norm(truth[:, torso[0]] - truth[:, torso[1]], axis=1)
    valid = labelled & labelled[:, torso].all(axis=1, keepdims=True)
    rates = 100 * pck(predicted, truth, reference=reference, valid=valid)
    fine = 100 * pck(predicted, truth, reference=reference, threshold=0.1, valid=valid)
    hidden = valid & ~visible
    right = correct(predicted, truth, reference=reference, threshold=0.2)[hidden]
    limbs = [k for k, name in enumerate(names) if name not in HEAD]
    metrics = {
        "pck@0.2": _mean(rates),
        "pck@0.2_limbs": _mean(rates[limbs]),
        "pck@0.2_occluded": 100 * _mean(right),
        "pck@0.1": _mean(fine),
    }
    return Report(metrics, dict(zip(names, rates.tolist(), strict=True)), len(data))


def _mean(values: npt.NDArray[Any]) -> float:
    """The mean of what is not NaN; NaN where there is nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def evaluate_model(
    engine: Engine,
    data: PoseData,
    *,
    flip: bool = False,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Run a model over a data set and score it; arguments and errors as in `predict_joints`."""
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
    """The joints that a model finds in each picture of a data set.

    The box is the whole picture, unpadded, grown to the aspect of the network's input; windows and
    decoding are those of prediction.

    Args:
        engine: the model.
        data: the pictures.
        flip: average the maps with those of the mirrored window.
        batch: windows that go through the engine at once, at most its largest bucket.
        progress: called after each batch with the number of its pictures.

    Returns:
        [N, K, 2] float32 (x, y) in the pictures' pixels, in the order of the data's joints; NaN
        for a joint that was not found.

    Raises:
        ModelError: the model does not know a joint of the set.
        DataError: a picture is missing or cannot be read.
    """
    spec = engine.manifest.spec
    order = _joint_order(spec.joints, data.skeleton)
    window = replace(spec.window, padding=1.0)
    found = np.empty((len(data), len(order), 2), np.float32)
    batch = min(batch, engine.manifest.buckets[-1])
    for start in range(0, len(data), batch):
        samples = data.samples[start : start + batch]
        buffer = engine.buffer(len(samples))
        affines = _cut(samples, window, buffer)
        maps = engine.run(len(samples))
        mirrored = None
        if flip:
            maps = maps.copy()  # the engine owns what it returns and writes it anew
            buffer[...] = buffer[..., ::-1]
            mirrored = engine.run(len(samples))
        points, _ = locate_joints(maps, affines, spec, flipped=mirrored)
        found[start : start + len(samples)] = points[:, order]
        if progress:
            progress(len(samples))
    return found


def _cut(samples: tuple[Sample, ...], window: Window, out: npt.NDArray[np.floating]) -> Doubles:
    """Cut each sample's whole picture into `out` [N, 3, h, w]; returns the affines [N, 2, 3]."""
    affines = np.empty((len(samples), 2, 3))
    for row, sample in enumerate(samples):
        image = read_image(sample.image)
        box = frame_box(*image.shape[:2])
        _, affines[row : row + 1] = crop_people(image, box, window, out=out[row : row + 1])
    return affines


def _joint_order(known: Skeleton, wanted: Skeleton) -> list[int]:
    """For each wanted joint, its index among the known ones."""
    missing = [name for name in wanted.joints if name not in known.joints]
    if missing:
        raise ModelError(
            f"the model's joints ({known.name}) lack {missing[0]}, which {wanted.name} has"
        )
    return [known.joints.index(name) for name in wanted.joints]
