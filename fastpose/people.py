"""Heat maps -> People in frame pixels."""

from __future__ import annotations

import numpy as np

from fastpose import ops
from fastpose.geometry import CONVENTIONS, Doubles, cells_to_frame
from fastpose.models.spec import ModelSpec
from fastpose.types import Boxes, Floats, People

DUPLICATE = 0.9  # object keypoint similarity above which two poses are one person


def locate_joints(
    maps: Floats, affines: Doubles, spec: ModelSpec, *, flipped: Floats | None = None
) -> tuple[Floats, Floats]:
    """Find the joints of N windows.

    Args:
        maps: [N, K, h, w].
        affines: [N, 2, 3] window -> frame pixel, as `crop_people` returns them.
        spec: the network that made the maps.
        flipped: its maps of the mirrored windows, to be averaged in.

    Returns:
        points [N, K, 2] in frame pixels, NaN where there is no peak, and scores [N, K].
    """
    return ops.decode(
        maps,
        method=spec.method,
        sigma=spec.sigma,
        peak_value=spec.peak_value,
        flipped=flipped,
        flip_pairs=None if flipped is None else spec.joints.flip_pairs,
        flip_shift=CONVENTIONS[spec.convention].flip_shift,
        affines=cells_to_frame(affines, spec.convention, spec.size, maps.shape[2:]),
    )


def drop_duplicates(people: People) -> People:
    """Keep one of several poses that lie on one another, the surest; the rest keep their order.

    A pose is as sure as its box times the mean of its joints (Chen et al., Cascaded Pyramid
    Network, CVPR 2018).
    """
    if len(people) < 2:
        return people
    extent = people.boxes[:, 2:] - people.boxes[:, :2]
    kept, _ = ops.suppress_poses(
        people.keypoints,
        people.box_scores * people.scores.mean(axis=1),
        extent.prod(axis=1),
        sigmas=np.array(people.skeleton.sigmas, np.float32),
        oks=DUPLICATE,
    )
    return people[np.sort(kept)]


def as_people(boxes: Boxes, points: Floats, scores: Floats, spec: ModelSpec) -> People:
    """Put boxes and their joints together."""
    return People(boxes.boxes, boxes.scores, points, scores, spec.joints)
