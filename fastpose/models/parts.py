"""Trees of body parts as data: what they are made of, how they hang together, where they lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastpose.errors import ModelError
from fastpose.ops.fit_tree import root_first
from fastpose.skeleton import Skeleton, skeleton

Doubles = npt.NDArray[np.float64]

METHODS = ("tree", "argmax")
"""How parts are found: together, by `ops.fit_tree`, or each by itself at its likeliest cell."""

Recipe = Mapping[str, Mapping[str, float]]
"""Names of parts; for each the names of the joints whose weighted mean it is."""


@dataclass(frozen=True, eq=False)
class PartTree:
    """Joints and points between them, each with the offsets from its parent that occur.

    Yang and Ramanan, Articulated Pose Estimation with Flexible Mixtures-of-Parts, CVPR 2011, in
    the form of Chu, Ouyang, Li, Wang, Structured Feature Learning for Pose Estimation, CVPR 2016.

    Attributes:
        name: how a `ModelSpec` calls it.
        skeleton: name of the K joints.
        parts: P names. A part named like a joint is that joint.
        parents: [P] index of each part's parent, -1 for the one root.
        weights: [P, K], each row of sum 1: part = weights @ joints.
        centres: [P, T, 2] mean offset (x, y), in cells, of the T types of each part from its
            parent; of the root, the offset of its first child from it.

    Raises:
        ModelError: the parents are no tree, a joint is no part, or the sizes do not fit.
    """

    name: str
    skeleton: str
    parts: tuple[str, ...]
    parents: tuple[int, ...]
    weights: Doubles
    centres: Doubles

    def __post_init__(self) -> None:
        count, joints = len(self.parts), skeleton(self.skeleton).joints
        if len(self.parents) != count:
            raise ModelError(f"{self.name}: {count} parts have {len(self.parents)} parents")
        try:
            root_first(self.parents, self.parts)
        except ValueError as error:
            raise ModelError(f"{self.name}: {error}") from None
        for joint in joints:
            if joint not in self.parts:
                raise ModelError(f"{self.name}: joint {joint} of {self.skeleton} is no part")
        if self.weights.shape != (count, len(joints)):
            raise ModelError(
                f"{self.name}: weights must be {[count, len(joints)]}, "
                f"got {list(self.weights.shape)}"
            )
        if self.centres.ndim != 3 or self.centres.shape[::2] != (count, 2):
            raise ModelError(
                f"{self.name}: centres must be [{count}, types, 2], got {list(self.centres.shape)}"
            )

    @property
    def types(self) -> int:
        """T, the kinds of offset that each part has."""
        return self.centres.shape[1]

    @property
    def root(self) -> int:
        """The part without a parent."""
        return self.parents.index(-1)

    @property
    def joints(self) -> tuple[int, ...]:
        """[K] the part that is each joint of the skeleton."""
        return tuple(self.parts.index(joint) for joint in skeleton(self.skeleton).joints)

    @property
    def anchors(self) -> npt.NDArray[np.int64]:
        """[P, T, 2] the types' offsets in whole cells, of the root 0."""
        anchors = np.floor(self.centres + 0.5).astype(np.int64)
        anchors[self.root] = 0
        return anchors

    def flip_order(self) -> npt.NDArray[np.int64]:
        """[P] index of each part's mirror twin; a part without a side is its own."""
        swap = {"left": "right", "right": "left"}
        twins = [
            f"{swap[side]}_{of}" if side in swap else part
            for part, (side, _, of) in zip(
                self.parts, (part.partition("_") for part in self.parts), strict=True
            )
        ]
        return np.array([self.parts.index(twin) for twin in twins])

    def joints_to_parts(
        self, joints: npt.NDArray[np.floating], labelled: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
        """The parts of N people.

        Args:
            joints: [N, K, 2] (x, y) in any unit.
            labelled: [N, K] which of them are known; None for all.

        Returns:
            [N, P, 2] of the same type, NaN where a joint of a part is not known; and [N, P], which
            parts are known.
        """
        used = (self.weights != 0).astype(np.int64)
        known = np.ones(joints.shape[:2], bool) if labelled is None else labelled
        complete = np.asarray((~known).astype(np.int64) @ used.T == 0)
        parts = self.weights @ np.where(known[..., None], joints, 0.0)
        return np.where(complete[..., None], parts, np.nan).astype(joints.dtype), complete

    def parts_to_joints(self, parts: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The joints [N, K, ...] among the parts [N, P, ...]."""
        return parts[:, list(self.joints)]

    def offsets(self, parts: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """[N, P, 2] by which types are told: part less parent; of the root, first child less root.

        Args:
            parts: [N, P, 2] (x, y).
        """
        parents = np.array(self.parents)
        first, second = parents.copy(), np.arange(len(parents))
        first[self.root], second[self.root] = self.root, self.parents.index(self.root)
        return parts[:, second] - parts[:, first]

    def nearest_types(self, parts: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """[N, P] the type whose centre is nearest to each part's offset, the first of equals.

        Args:
            parts: [N, P, 2] (x, y) in cells; NaN where one is not known, whose type, and that of
                its children, is then 0.
        """
        away = self.offsets(parts)[:, :, None] - self.centres
        return np.nan_to_num((away**2).sum(axis=-1)).argmin(axis=-1)


def _upright(sides: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Left and right of parts that are named without a side."""
    return {
        f"{side}_{part}": {f"{side}_{joint}": weight for joint, weight in of.items()}
        for side in ("left", "right")
        for part, of in sides.items()
    }


# Points between joints break limbs into pieces that turn and stretch less.
_ARM_AND_TRUNK = {
    "shoulder": {"shoulder": 1.0},
    "upper_arm": {"shoulder": 1 / 2, "elbow": 1 / 2},
    "elbow": {"elbow": 1.0},
    "forearm": {"elbow": 1 / 2, "wrist": 1 / 2},
    "wrist": {"wrist": 1.0},
    "chest": {"shoulder": 2 / 3, "hip": 1 / 3},
    "waist": {"shoulder": 1 / 3, "hip": 2 / 3},
    "hip": {"hip": 1.0},
}
_LEG = {
    "thigh": {"hip": 1 / 2, "knee": 1 / 2},
    "knee": {"knee": 1.0},
    "shin": {"knee": 1 / 2, "ankle": 1 / 2},
    "ankle": {"ankle": 1.0},
}
_LSP26 = {"head_top": {"head_top": 1.0}, "neck": {"neck": 1.0}} | _upright(_ARM_AND_TRUNK | _LEG)
_FLIC18 = {
    "head": {"head": 1.0},
    "neck": {"left_shoulder": 1 / 2, "right_shoulder": 1 / 2},
} | _upright(_ARM_AND_TRUNK)

# a part's parent, where that is not the one before it
_PARENTS = {
    f"{side}_{part}": parent
    for side in ("left", "right")
    for part, parent in (("shoulder", "neck"), ("chest", f"{side}_shoulder"))
}


def _tree(name: str, joints: Skeleton, recipe: Recipe) -> PartTree:
    """A tree whose types' centres are in `name`.json; see `fastpose.train.part_types`."""
    parts = tuple(recipe)
    before = dict(zip(parts[1:], parts, strict=False))
    parents = [parts.index(_PARENTS.get(part, before[part])) for part in parts[1:]]
    weights = np.array([[of.get(joint, 0.0) for joint in joints.joints] for of in recipe.values()])
    types = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return PartTree(
        name, joints.name, parts, (-1, *parents), weights, np.array(types["centres"], np.float64)
    )


PART_TREES = {
    name: _tree(name, skeleton(joints), recipe)
    for name, joints, recipe in (("lsp26", "lsp14", _LSP26), ("flic18", "flic10", _FLIC18))
}


def part_tree(name: str) -> PartTree:
    """Return the tree called `name`.

    Raises:
        ModelError: there is none; the text lists those there are.
    """
    try:
        return PART_TREES[name]
    except KeyError:
        known = ", ".join(PART_TREES)
        raise ModelError(f"unknown part tree {name!r}; known: {known}") from None
