"""From predicted and annotated joints to the figures that papers print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastpose.datasets import PoseData
from fastpose.errors import DataError
from fastpose.evaluate.report import Report
from fastpose.geometry import Doubles

TORSO = ("left_shoulder", "right_hip")
HEAD = ("neck", "head_top")  # the joints that are no limb's
UNSCORED = ("pelvis", "thorax")  # MPII's evaluation leaves them out
PARTS = {
    "head": ("head_top",),
    **{
        part: (f"left_{part}", f"right_{part}")
        for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    },
}

Stick: TypeAlias = "tuple[tuple[str, ...], tuple[str, ...]]"
"""The two ends of a part of the body, each the mean of some joints."""

ARM_STICKS: dict[str, Stick] = {
    f"{side}_{part}": ((f"{side}_{above}",), (f"{side}_{below}",))
    for side in ("left", "right")
    for part, above, below in (("upper_arm", "shoulder", "elbow"), ("lower_arm", "elbow", "wrist"))
}
LEEDS_STICKS: dict[str, Stick] = {
    "torso": (PARTS["shoulder"], PARTS["hip"]),
    "head": (("neck",), ("head_top",)),
    **ARM_STICKS,
    **{
        f"{side}_{part}": ((f"{side}_{above}",), (f"{side}_{below}",))
        for side in ("left", "right")
        for part, above, below in (("upper_leg", "hip", "knee"), ("lower_leg", "knee", "ankle"))
    },
}


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


def pcp(
    predicted: npt.NDArray[np.floating],
    truth: npt.NDArray[np.floating],
    sticks: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    threshold: float = 0.5,
    valid: npt.NDArray[np.bool_] | None = None,
) -> Doubles:
    """Percentage of correct parts, as a share, for each stick, in its strict form.

    A stick is right when each of its ends, not their mean alone, lies within `threshold` times its
    true length of its true place (Ferrari, Marin-Jimenez, Zisserman, Progressive Search Space
    Reduction for Human Pose Estimation, CVPR 2008). A prediction of NaN is wrong.

    Args:
        predicted: [N, K, 2] (x, y) in pixels.
        truth: [N, K, 2], same order of joints.
        sticks: for each the joints whose mean is its one end, and those of its other end.
        threshold: share of the stick's length.
        valid: [N, K] which joints count; None counts all. A stick needs all of its own.

    Returns:
        [sticks] from 0 to 1; NaN for one that is nowhere valid.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    valid = np.ones(truth.shape[:2], bool) if valid is None else valid
    rates = np.empty(len(sticks))
    for index, ends in enumerate(sticks):
        found, true = (
            np.stack([joints[:, list(end)].astype(np.float64).mean(axis=1) for end in ends], axis=1)
            for joints in (predicted, truth)
        )
        length = np.linalg.norm(true[:, 0] - true[:, 1], axis=1)
        right = correct(found, true, reference=length, threshold=threshold).all(axis=1)
        counted = valid[:, [*ends[0], *ends[1]]].all(axis=1)
        rates[index] = _mean(np.asarray(right)[counted])
    return rates


def evaluate_predictions(data: PoseData, predicted: npt.NDArray[np.floating]) -> Report:
    """The figures by which a data set is compared: PCKh for MPII, PCK for the others.

    Joints that are not labelled, and people whose reference length is not known, do not count.

    Args:
        data: the truth.
        predicted: [N, K, 2] (x, y) in its pictures' pixels, centres at whole numbers; NaN where a
            joint was not found.

    Returns:
        See `leeds_report`, `mpii_report`, `flic_report`.

    Raises:
        ValueError: `predicted` has another shape.
        DataError: an MPII set without the sizes of heads.
    """
    match data.name:
        case "mpii":
            return mpii_report(data, predicted)
        case "flic":
            return flic_report(data, predicted)
        case _:
            return leeds_report(data, predicted)


def leeds_report(data: PoseData, predicted: npt.NDArray[np.floating]) -> Report:
    """The figures of Leeds Sports Pose, person-centric.

    The reference length is the torso, from left shoulder to right hip of the truth, and the mean
    is that of the rates of the joints: the figures of Wei et al., Convolutional Pose Machines,
    CVPR 2016. Arguments and errors as in `evaluate_predictions`.

    Returns:
        pck@0.2; pck@0.2_limbs, without neck and head top; pck@0.2_occluded, over all joints that
        are labelled and cannot be seen, taken together; pck@0.1; pcp@0.5, strict, the mean of the
        ten sticks, and pcp@0.5_torso ... pcp@0.5_lower_leg, the means of both sides.
    """
    scored = _score(data, predicted, _torsos(data))
    hidden = scored.valid & ~np.stack([s.visible for s in data.samples])
    limbs = [k for k, name in enumerate(data.skeleton.joints) if name not in HEAD]
    rates = scored.rates(0.2)
    metrics = {
        "pck@0.2": _mean(rates),
        "pck@0.2_limbs": _mean(rates[limbs]),
        "pck@0.2_occluded": 100 * _mean(scored.right(0.2)[hidden]),
        "pck@0.1": _mean(scored.rates(0.1)),
        **_pcp_metrics(data, predicted, LEEDS_STICKS),
    }
    return scored.report(data, metrics, rates, "PCK by the torso of the truth, mean of the joints")


def mpii_report(data: PoseData, predicted: npt.NDArray[np.floating]) -> Report:
    """PCKh of MPII Human Pose.

    The reference length is 0.6 of the diagonal of the annotated head; pelvis and thorax do not
    count (Andriluka et al., 2D Human Pose Estimation: New Benchmark and State of the Art Analysis,
    CVPR 2014). "Head" is the top of the head alone. Arguments and errors as in
    `evaluate_predictions`.

    Returns:
        pckh@0.5 and pckh@0.1, over all joints of all people taken together, as the set's own
        evaluation has it; pckh@0.5_mean, the mean of the rates of the 14 joints, which others
        print; pckh@0.5_head ... pckh@0.5_ankle, the means of both sides.
    """
    heads = head_sizes(data)
    names = data.skeleton.joints
    counted = [k for k, name in enumerate(names) if name not in UNSCORED]
    scored = _score(data, predicted, heads)
    rates = scored.rates(0.5)
    pooled = {
        f"pckh@{t:.1f}": 100 * _mean(scored.right(t)[:, counted][scored.valid[:, counted]])
        for t in (0.5, 0.1)
    }
    metrics = {"pckh@0.5": pooled["pckh@0.5"], "pckh@0.5_mean": _mean(rates[counted])}
    metrics |= {f"pckh@0.5_{part}": _part(rates, names, part) for part in PARTS}
    metrics["pckh@0.1"] = pooled["pckh@0.1"]
    rule = "PCKh by 0.6 of the head's diagonal, all joints together without pelvis and thorax"
    return scored.report(data, metrics, rates, rule, UNSCORED)


def head_sizes(data: PoseData) -> Doubles:
    """[N] lengths that PCKh divides by; NaN where one is not known.

    Raises:
        DataError: none is known.
    """
    heads = np.array([s.head_size for s in data.samples])
    if np.isnan(heads).all():
        raise DataError(
            "this MPII set has no sizes of heads, which PCKh divides by: they are in "
            "mpii_16joints.npz and mpii_val_reference.npz, for the validation split"
        )
    return heads


def flic_report(data: PoseData, predicted: npt.NDArray[np.floating]) -> Report:
    """PCK of FLIC.

    The reference length is the torso of the truth, from left shoulder to right hip, as in the
    figures of Wei et al., Convolutional Pose Machines, CVPR 2016; they are observer-centric
    (`datasets.observer_centric`). Arguments and errors as in `evaluate_predictions`.

    Returns:
        pck@0.2, the mean of the rates of the joints; pck@0.2_elbow and _wrist, the means of both
        sides; the same at 0.1 and 0.05 of the torso; pcp@0.5, strict, the mean of upper and lower
        arms, and pcp@0.5_upper_arm and _lower_arm.
    """
    scored = _score(data, predicted, _torsos(data))
    metrics = {}
    for threshold in (0.2, 0.1, 0.05):
        rates = scored.rates(threshold)
        metrics[f"pck@{threshold}"] = _mean(rates)
        for part in ("elbow", "wrist"):
            metrics[f"pck@{threshold}_{part}"] = _part(rates, data.skeleton.joints, part)
    metrics |= _pcp_metrics(data, predicted, ARM_STICKS)
    rule = "PCK by the torso of the truth, mean of the joints"
    return scored.report(data, metrics, scored.rates(0.2), rule)


@dataclass(frozen=True)
class _Score:
    """N predicted people beside the truth."""

    predicted: npt.NDArray[np.floating]  # [N, K, 2]
    truth: Doubles  # [N, K, 2]
    reference: Doubles  # [N] lengths; NaN where not known
    valid: npt.NDArray[np.bool_]  # [N, K]

    def right(self, threshold: float) -> npt.NDArray[np.bool_]:
        return correct(self.predicted, self.truth, reference=self.reference, threshold=threshold)

    def rates(self, threshold: float) -> Doubles:
        """[K] percent."""
        return 100 * pck(
            self.predicted,
            self.truth,
            reference=self.reference,
            threshold=threshold,
            valid=self.valid,
        )

    def report(
        self,
        data: PoseData,
        metrics: dict[str, float],
        rates: Doubles,
        rule: str,
        uncounted: Sequence[str] = (),
    ) -> Report:
        return Report(
            metrics,
            {
                name: rate
                for name, rate in zip(data.skeleton.joints, rates.tolist(), strict=True)
                if name not in uncounted
            },
            images=len({s.image for s in data.samples}),
            people=int(self.valid.any(axis=1).sum()),
            rule=rule,
        )


def _score(data: PoseData, predicted: npt.NDArray[np.floating], reference: Doubles) -> _Score:
    truth = np.stack([s.joints for s in data.samples]).astype(np.float64)
    labelled = np.stack([s.labelled for s in data.samples])
    return _Score(predicted, truth, reference, labelled & ~np.isnan(reference)[:, None])


def _torsos(data: PoseData) -> Doubles:
    """[N] from left shoulder to right hip; NaN where one of them is not labelled."""
    ends = [data.skeleton.joints.index(name) for name in TORSO]
    joints = np.stack([s.joints[ends] for s in data.samples]).astype(np.float64)
    known = np.stack([s.labelled[ends] for s in data.samples]).all(axis=1)
    return np.where(known, np.linalg.norm(joints[:, 0] - joints[:, 1], axis=1), np.nan)


def _pcp_metrics(
    data: PoseData, predicted: npt.NDArray[np.floating], sticks: dict[str, Stick]
) -> dict[str, float]:
    """pcp@0.5 of all sticks whose joints the set has, then of each kind of stick."""
    names = data.skeleton.joints
    known = {name: (a, b) for name, (a, b) in sticks.items() if {*a, *b} <= set(names)}
    rates = 100 * pcp(
        predicted,
        np.stack([s.joints for s in data.samples]),
        [([*map(names.index, a)], [*map(names.index, b)]) for a, b in known.values()],
        valid=np.stack([s.labelled for s in data.samples]),
    )
    kinds = [name.removeprefix("left_").removeprefix("right_") for name in known]
    of_kind = {kind: rates[[k == kind for k in kinds]] for kind in kinds}
    parts = {f"pcp@0.5_{kind}": _mean(both) for kind, both in of_kind.items()}
    return {"pcp@0.5": _mean(rates), **parts}


def _part(rates: Doubles, names: Sequence[str], part: str) -> float:
    """The mean rate of a part of the body, of both sides where it has two."""
    return _mean(rates[[names.index(name) for name in PARTS[part]]])


def _mean(values: npt.NDArray[Any]) -> float:
    """The mean of what is not NaN; NaN where there is nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
