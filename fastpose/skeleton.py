"""Joint sets as data: names in channel order, limbs to draw, flip pairs, OKS constants, tree."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.errors import ModelError


@dataclass(frozen=True)
class Skeleton:
    """An ordered set of joints.

    Attributes:
        name: how the set is called on the command line and in files.
        joints: K names, in channel order. A side is the person's own ("right" is their right).
        limbs: pairs of joint indices to draw.
        flip_pairs: pairs of joint indices that change places when the picture is mirrored.
        sigmas: K falloff constants of object keypoint similarity; COCO's own where it has the
            joint, else the constant of the anatomically nearest COCO joint.
    """

    name: str
    joints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.joints)

    def flip_order(self) -> npt.NDArray[np.int64]:
        """[K] index of each joint's mirror twin; a joint without one is its own twin."""
        order = np.arange(len(self))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return order

    @classmethod
    def from_dict(cls, values: Any) -> Skeleton:
        """A joint set from plain values, such as `dataclasses.asdict` makes of one.

        `limbs` and `flip_pairs` may be left out for none, and name a joint or give its index from
        0; without `sigmas` every joint has that of a shoulder.

        Raises:
            ModelError: the text names the field, what was expected and what came.
        """
        fields = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or values.keys() - fields:
            raise ModelError(f"expected an object with {', '.join(sorted(fields))}, got {values!r}")
        name, joints = values.get("name"), values.get("joints")
        if not isinstance(name, str) or not name:
            raise ModelError(f"name must be a text, got {name!r}")
        names = joints if isinstance(joints, (list, tuple)) else ()
        if not names or not all(isinstance(n, str) and n for n in names):
            raise ModelError(f"joints must be a list of names, got {joints!r}")
        if len(set(names)) < len(names):
            raise ModelError(f"joints must differ from each other, got {joints!r}")
        pairs = {key: _pairs(key, values.get(key, ()), names) for key in ("limbs", "flip_pairs")}
        mirrored = [joint for pair in pairs["flip_pairs"] for joint in pair]
        if len(set(mirrored)) < len(mirrored):
            raise ModelError(f"flip_pairs must have a joint once, got {values['flip_pairs']!r}")
        sigmas = values.get("sigmas", [_SHOULDER] * len(names))
        if not isinstance(sigmas, (list, tuple)) or len(sigmas) != len(names):
            raise ModelError(f"sigmas must be {len(names)} numbers, got {sigmas!r}")
        if not all(type(s) in (int, float) and 0 < s < math.inf for s in sigmas):
            raise ModelError(f"sigmas must be positive and finite, got {sigmas!r}")
        return cls(name, tuple(names), **pairs, sigmas=tuple(map(float, sigmas)))


def _pairs(key: str, values: Any, names: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of names or indices as pairs of indices."""
    known: dict[Any, int] = {name: i for i, name in enumerate(names)}
    known |= {i: i for i in range(len(names))}
    found = []
    for pair in values if isinstance(values, (list, tuple)) else (values,):
        ends = pair if isinstance(pair, (list, tuple)) and len(pair) == 2 else (None, None)
        a, b = (known.get(end) if type(end) in (int, str) else None for end in ends)
        if a is None or b is None or a == b:
            raise ModelError(
                f"{key} must be pairs of joints, by name or index 0 to {len(names) - 1}, "
                f"got {pair!r}"
            )
        found.append((a, b))
    return tuple(found)


# The sigma_i of the COCO evaluation (its k_i are twice these).
_HEAD, _SHOULDER, _ELBOW, _WRIST = 0.026, 0.079, 0.072, 0.062
_HIP, _KNEE, _ANKLE = 0.107, 0.087, 0.089

FLIC9 = Skeleton(
    "flic9",
    (
        "left_shoulder", "left_elbow", "left_wrist",
        "right_shoulder", "right_elbow", "right_wrist",
        "left_hip", "right_hip", "head",
    ),
    ((0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (0, 6), (3, 7), (6, 7), (0, 8), (3, 8)),
    ((0, 3), (1, 4), (2, 5), (6, 7)),
    (_SHOULDER, _ELBOW, _WRIST, _SHOULDER, _ELBOW, _WRIST, _HIP, _HIP, _HEAD),
)  # fmt: skip

FLIC10 = Skeleton(
    "flic10",
    (
        "head", "neck",
        "left_shoulder", "left_elbow", "left_wrist", "left_hip",
        "right_shoulder", "right_elbow", "right_wrist", "right_hip",
    ),
    ((0, 1), (1, 2), (2, 3), (3, 4), (1, 6), (6, 7), (7, 8), (2, 5), (6, 9), (5, 9)),
    ((2, 6), (3, 7), (4, 8), (5, 9)),
    (
        _HEAD, _SHOULDER, _SHOULDER, _ELBOW, _WRIST, _HIP,
        _SHOULDER, _ELBOW, _WRIST, _HIP,
    ),
)  # fmt: skip

LSP14 = Skeleton(
    "lsp14",
    (
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "right_wrist", "right_elbow", "right_shoulder",
        "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
    ),
    (
        (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10),
        (10, 11), (12, 13), (8, 2), (9, 3),
    ),
    ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
    (
        _ANKLE, _KNEE, _HIP, _HIP, _KNEE, _ANKLE, _WRIST, _ELBOW, _SHOULDER,
        _SHOULDER, _ELBOW, _WRIST, _SHOULDER, _SHOULDER,
    ),
)  # fmt: skip

CPM14 = Skeleton(
    "cpm14",
    (
        "head_top", "neck", "right_shoulder", "right_elbow", "right_wrist",
        "left_shoulder", "left_elbow", "left_wrist",
        "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    ),
    (
        (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (2, 8), (8, 9), (9, 10),
        (5, 11), (11, 12), (12, 13), (8, 11),
    ),
    ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13)),
    (
        _SHOULDER, _SHOULDER, _SHOULDER, _ELBOW, _WRIST, _SHOULDER, _ELBOW, _WRIST,
        _HIP, _KNEE, _ANKLE, _HIP, _KNEE, _ANKLE,
    ),
)  # fmt: skip

MPII16 = Skeleton(
    "mpii16",
    (
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "pelvis", "thorax", "upper_neck", "head_top",
        "right_wrist", "right_elbow", "right_shoulder",
        "left_shoulder", "left_elbow", "left_wrist",
    ),
    (
        (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9),
        (10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15),
    ),
    ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    (
        _ANKLE, _KNEE, _HIP, _HIP, _KNEE, _ANKLE, _HIP, _SHOULDER, _SHOULDER, _SHOULDER,
        _WRIST, _ELBOW, _SHOULDER, _SHOULDER, _ELBOW, _WRIST,
    ),
)  # fmt: skip

COCO17 = Skeleton(
    "coco17",
    (
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
        "left_wrist", "right_wrist", "left_hip", "right_hip",
        "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    (
        (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
        (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16),
    ),
    ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    (
        0.026, 0.025, 0.025, 0.035, 0.035, _SHOULDER, _SHOULDER, _ELBOW, _ELBOW,
        _WRIST, _WRIST, _HIP, _HIP, _KNEE, _KNEE, _ANKLE, _ANKLE,
    ),
)  # fmt: skip

_SAME = {"upper_neck": "neck"}

SKELETONS = {s.name: s for s in (FLIC9, FLIC10, LSP14, CPM14, MPII16, COCO17)}


def skeleton(name: str) -> Skeleton:
    """Return the joint set called `name`.

    Raises:
        ModelError: there is none; the text lists those there are.
    """
    try:
        return SKELETONS[name]
    except KeyError:
        known = ", ".join(SKELETONS)
        raise ModelError(f"unknown skeleton {name!r}; known: {known}") from None


def joint_places(known: Skeleton, wanted: Skeleton) -> npt.NDArray[np.int64]:
    """[K] for each wanted joint its index among the known ones, by name; -1 where it has none.

    The upper neck of MPII is the neck of the other sets.
    """
    places = {_SAME.get(name, name): index for index, name in enumerate(known.joints)}
    return np.array([places.get(_SAME.get(name, name), -1) for name in wanted.joints], np.int64)


def read_skeleton(path: Path) -> Skeleton:
    """A joint set of one's own from a JSON file; see `Skeleton.from_dict`.

    Raises:
        ModelError: the file is missing or no joint set, or has the name of a known one.
    """
    try:
        found = Skeleton.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ModelError(f"{path}: no skeleton file: {error.strerror}") from None
    except ValueError as error:  # not JSON, no text, or no joint set
        raise ModelError(f"{path}: not a skeleton: {error}") from None
    if found.name in SKELETONS and found != SKELETONS[found.name]:
        raise ModelError(f"{path}: not a skeleton: the name {found.name} is that of a known one")
    return found
