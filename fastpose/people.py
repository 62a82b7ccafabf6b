"""Boxes and joints -> People."""

from __future__ import annotations

import numpy as np

from fastpose import ops
from fastpose.models.spec import ModelSpec
from fastpose.types import Boxes, Floats, People

DUPLICATE = 0.9  # object keypoint similarity above which two poses are one person


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
