"""Who is who: people of one frame are matched to those of the frames before."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fastpose.geometry import points_to_boxes
from fastpose.skeleton import Skeleton
from fastpose.types import Boxes, Floats, People

FAR = 1e9  # pixels
MAX_LOST = 256  # tracks kept while nobody matches them; beyond it the longest lost go first


@dataclass(frozen=True)
class Tracks:
    """T people who were seen; rows of all arrays go together.

    Attributes:
        ids: [T] int64.
        seen: [T] float64 time they were last seen, seconds.
        born: [T] float64 time they were first seen.
        velocities: [T, 2] float32 pixels a second, of the whole person.
        boxes: [T, 4] float32 as last seen.
        points: [T, K, 2] float32 as last seen; what it holds where `known` is False is of no use.
        known: [T, K] joints that were confident when last seen.
    """

    ids: npt.NDArray[np.int64]
    seen: npt.NDArray[np.float64]
    born: npt.NDArray[np.float64]
    velocities: Floats
    boxes: Floats
    points: Floats
    known: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, joints: int) -> Tracks:
        """Nobody."""
        return cls(
            np.zeros(0, np.int64),
            np.zeros(0),
            np.zeros(0),
            np.zeros((0, 2), np.float32),
            np.zeros((0, 4), np.float32),
            np.zeros((0, joints, 2), np.float32),
            np.zeros((0, joints), bool),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: npt.NDArray) -> Tracks:
        return Tracks(**{name: array[rows] for name, array in vars(self).items()})

    def __add__(self, other: Tracks) -> Tracks:
        ours, theirs = vars(self), vars(other)
        return Tracks(**{name: np.concatenate((ours[name], theirs[name])) for name in ours})

    def moved(self, gap: Floats) -> Tracks:
        """Where they are `gap` [T] seconds later if they keep their velocity."""
        shift = self.velocities * gap[:, None]
        return replace(
            self, boxes=self.boxes + np.tile(shift, 2), points=self.points + shift[:, None]
        )


class Tracker:
    """Gives each person a number that stays while they are in view.

    People are matched by object keypoint similarity (Lin et al., Microsoft COCO: Common Objects in
    Context, ECCV 2014) to where each track would be now at constant velocity. The similarity's
    tolerance, sigma, is widened by `drift` times the time since the track was seen, since a person
    may turn or stop. Where a pair shares too few confident joints, the overlap of the boxes stands
    in. Pairs are taken greedily, most similar first; tracks seen in the frame before choose before
    those that were lost (the cascade of Wojke et al., Simple Online and Realtime Tracking with a
    Deep Association Metric, ICIP 2017), whose wide tolerance would let them take another's person.

    Every person gets an id at once; ids count from 1 and are never used again. Equal input gives
    equal ids.

    Args:
        skeleton: the joints.
        max_gap: seconds for which a person who is not seen is remembered.
        similarity: least similarity or overlap, 0-1, of one and the same person.
        joint_score: least score of a joint that is used.
        min_joints: least number of joints that both must have.
        drift: how fast a person departs from the prediction, person's sizes (square root of the
            box's area) a second.
        settle: seconds over which the velocity is averaged.

    Raises:
        ValueError: `max_gap` or `settle` is not positive, or `similarity` is not in (0, 1].
    """

    def __init__(
        self,
        skeleton: Skeleton,
        *,
        max_gap: float = 1.0,
        similarity: float = 0.2,
        joint_score: float = 0.2,
        min_joints: int = 4,
        drift: float = 1.0,
        settle: float = 0.1,
    ) -> None:
        if not (max_gap > 0 and settle > 0 and 0 < similarity <= 1):
            raise ValueError(
                "max_gap and settle must be positive and similarity in (0, 1], got "
                f"{max_gap}, {settle}, {similarity}"
            )
        self._skeleton = skeleton
        self._variances = np.square(2 * np.array(skeleton.sigmas, np.float32))
        self._max_gap, self._similarity, self._settle = max_gap, similarity, settle
        self._joint_score, self._min_joints, self._drift = joint_score, min_joints, drift
        self._tracks = Tracks.empty(len(skeleton))
        self._next, self._time = 1, -math.inf

    def update(self, people: People, time: float) -> People:
        """The same people, with ids.

        Args:
            people: of the next frame.
            time: of the frame, seconds; never less than at the call before.

        Raises:
            ValueError: `time` is not a number or goes backwards, or the joints are others.
        """
        if people.skeleton != self._skeleton:
            raise ValueError(
                f"people must have the joints {self._skeleton.name}, got {people.skeleton.name}"
            )
        if not time >= self._time:  # NaN, too
            raise ValueError(f"time must not go backwards, got {time} after {self._time}")
        alive = time - self._tracks.seen <= self._max_gap
        tracks = self._tracks[alive]
        found = self._observe(people, time)
        row, track = self._match(found, tracks, time)
        fresh = np.ones(len(found), bool)
        fresh[row] = False
        found.ids[row] = tracks.ids[track]
        found.ids[fresh] = np.arange(self._next, self._next + fresh.sum())
        found.born[row] = tracks.born[track]
        found.velocities[row] = self._velocities(found[row], tracks[track])
        lost = np.delete(np.arange(len(tracks)), track)
        lost = lost[np.argsort(-tracks.seen[lost], kind="stable")][:MAX_LOST]
        self._tracks = found + tracks[lost]
        self._next += int(fresh.sum())
        self._time = time
        return replace(people, ids=found.ids.copy())

    def _observe(self, people: People, time: float) -> Tracks:
        """The people of this frame as tracks without ids."""
        n = len(people)
        known = (people.scores >= self._joint_score) & np.isfinite(people.keypoints).all(axis=2)
        return Tracks(
            np.zeros(n, np.int64),
            np.full(n, time),
            np.full(n, time),
            np.zeros((n, 2), np.float32),
            people.boxes,
            np.where(known[..., None], people.keypoints, np.float32(0)),
            known,
        )

    def _match(
        self, found: Tracks, tracks: Tracks, time: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows of `found` and of `tracks` that are one person."""
        gap = (time - tracks.seen).astype(np.float32)
        similar = self._similarities(found, tracks.moved(gap), gap)
        recent = tracks.seen == self._time
        pairs: list[tuple[int, int]] = []
        for stage in (recent, ~recent):
            pairs += _greedy(np.where(stage, similar, 0), self._similarity)
            similar[[row for row, _ in pairs]] = 0
        rows = np.array(pairs, np.int64).reshape(-1, 2)
        return rows[:, 0], rows[:, 1]

    def _similarities(self, found: Tracks, tracks: Tracks, gap: Floats) -> Floats:
        """[N, T] similarity of each person to each track's prediction, 0-1."""
        count = found.known.astype(np.float32) @ tracks.known.T.astype(np.float32)
        area = (_area(found.boxes)[:, None] + _area(tracks.boxes)) / 2
        tolerance = self._variances + np.square(self._drift * gap)[:, None]  # [T, K] of the area
        # a joint that is not known is put far off, to either side, and adds nothing
        ours = np.where(found.known[..., None], found.points, np.float32(FAR))
        theirs = np.where(tracks.known[..., None], tracks.points, np.float32(-FAR))
        exponent = np.square(ours[:, None, :, 0] - theirs[..., 0])  # [N, T, K]
        exponent += np.square(ours[:, None, :, 1] - theirs[..., 1])
        exponent *= -0.5 / tolerance
        exponent /= np.maximum(area, 1e-6)[..., None]
        oks = np.exp(exponent, out=exponent).sum(axis=2) / np.maximum(count, 1)
        return np.where(count >= self._min_joints, oks, _overlaps(found.boxes, tracks.boxes))

    def _velocities(self, found: Tracks, tracks: Tracks) -> Floats:
        """[M, 2] velocities of tracks [M] that are now seen as `found`."""
        passed = (found.seen - tracks.seen).astype(np.float32)
        common = (found.known & tracks.known)[..., None]
        joints = common.sum(axis=1)
        shift = ((found.points - tracks.points) * common).sum(axis=1) / np.maximum(joints, 1)
        centres = (found.boxes - tracks.boxes).reshape(-1, 2, 2).mean(axis=1)
        shift = np.where(joints >= self._min_joints, shift, centres)
        measured = shift / np.maximum(passed, 1e-6)[:, None]
        age = np.maximum(found.seen - tracks.born, 1e-6)
        # an exponential mean that starts as the plain mean of what there is
        gain = np.maximum(1 - np.exp(-passed / self._settle), np.minimum(passed / age, 1))
        gain = np.where(passed > 0, gain, 0).astype(np.float32)[:, None]
        return tracks.velocities + gain * (measured - tracks.velocities)


def predict_boxes(
    people: People,
    *,
    enlarge: float = 1.25,
    joint_score: float = 0.2,
    person_score: float = 0.2,
    min_joints: int = 3,
) -> Boxes:
    """Boxes in which to look for these people in the next frame, without a detector.

    The box follows the joints of those whose joints are sure, and stays where it was for the
    others: a person who is hidden or far off is not lost until the detector looks again.

    Args:
        people: of the last frame.
        enlarge: the box round the joints grows by this about its centre; joints lie inside the
            outline of a person.
        joint_score: least score of a joint that counts.
        person_score: least mean score of all joints of a person whose joints are followed.
        min_joints: least number of joints that count.

    Returns:
        One box for each person, in their order, with their box's score.
    """
    known = (people.scores >= joint_score) & np.isfinite(people.keypoints).all(axis=2)
    sure = (people.scores.mean(axis=1) >= person_score) & (known.sum(axis=1) >= min_joints)
    tight = points_to_boxes(people.keypoints[sure], known[sure])
    centres = (tight[:, :2] + tight[:, 2:]) / 2
    extents = tight[:, 2:] - tight[:, :2]
    # joints on one line have no area; a person is never thinner than a third of their length
    extents = np.maximum(extents, extents.max(axis=1, keepdims=True) / 3) * enlarge
    wide = np.concatenate((centres - extents / 2, centres + extents / 2), axis=1)
    boxes = people.boxes.copy()
    boxes[sure] = np.where((extents > 0).all(axis=1)[:, None], wide, boxes[sure])
    return Boxes(boxes, people.box_scores)


def _area(boxes: Floats) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _overlaps(a: Floats, b: Floats) -> Floats:
    """[N, T] intersection over union of boxes [N, 4] and [T, 4]."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    union = _area(a)[:, None] + _area(b) - shared
    return shared / np.maximum(union, 1e-6)


def _greedy(similar: Floats, least: float) -> list[tuple[int, int]]:
    """Pairs (row, column), most similar first, each row and column once; ties in row order."""
    rows, columns = np.nonzero(similar >= least)
    order = np.argsort(-similar[rows, columns], kind="stable")
    taken: dict[int, int] = {}
    used: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken and column not in used:
            taken[row] = column
            used.add(column)
    return list(taken.items())
