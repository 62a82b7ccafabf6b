"""Groups of related joints: by anatomy, and as found from where joints lie in annotated people."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpose.errors import ModelError
from fastpose.skeleton import skeleton

FOUND = Path(__file__).with_name("part_groups.json")  # written by fastpose.train.grouping


@dataclass(frozen=True)
class Partition:
    """Each joint in one group.

    Attributes:
        name: how a `ModelSpec` calls it.
        skeleton: name of the K joints.
        groups: indices of joints. A mirrored group is a group too, so that a mirrored picture
            meets the same branches with their sides exchanged.

    Raises:
        ModelError: the groups are not as above.
    """

    name: str
    skeleton: str
    groups: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        joints = skeleton(self.skeleton)
        found = [joint for group in self.groups for joint in group]
        for joint in found:
            if joint not in range(len(joints)):
                raise ModelError(
                    f"{self.name}: {self.skeleton} has joints 0 to {len(joints) - 1}, got {joint!r}"
                )
            if found.count(joint) > 1:
                raise ModelError(f"{self.name}: {joints.joints[joint]} is in two places")
        for joint, name in enumerate(joints.joints):
            if joint not in found:
                raise ModelError(f"{self.name}: {name} is in no group")
        twin = joints.flip_order()
        sets = {frozenset(group) for group in self.groups}
        for group in self.groups:
            if frozenset(twin[list(group)].tolist()) not in sets:
                names = ", ".join(joints.joints[joint] for joint in group)
                raise ModelError(f"{self.name}: ({names}), mirrored, is no group")

    @property
    def owners(self) -> tuple[int, ...]:
        """[K] the group of each joint."""
        owner = {joint: g for g, group in enumerate(self.groups) for joint in group}
        return tuple(owner[joint] for joint in range(len(owner)))


# Tang and Wu, Does Learning Specific Features for Related Parts Help Human Pose Estimation?, CVPR
# 2019: the six groups made by hand; without pelvis and thorax they are those of LSP.
BY_HAND = (
    Partition(
        "mpii16-hand6",
        "mpii16",
        ((9, 8, 7), (15, 14, 13), (10, 11, 12), (4, 5), (1, 0), (3, 2, 6)),
    ),
    Partition(
        "lsp14-hand6",
        "lsp14",
        ((13, 12), (11, 10, 9), (6, 7, 8), (4, 5), (1, 0), (3, 2)),
    ),
)


def found_groups() -> dict[str, Any]:
    """What `fastpose.train.grouping` found, by joint set, as it wrote it."""
    found: dict[str, Any] = json.loads(FOUND.read_text(encoding="utf-8"))
    return found


@functools.cache
def partitions() -> dict[str, Partition]:
    """All known ones by name: by hand, found ("data" and their number), and all joints in one."""
    known = list(BY_HAND)
    for joints, row in found_groups().items():
        for count, groups in row["clusters"].items():
            known.append(Partition(f"{joints}-data{count}", joints, _tuples(groups)))
        whole = tuple(range(len(skeleton(joints))))
        known.append(Partition(f"{joints}-one", joints, (whole,)))
    return {partition.name: partition for partition in known}


def partition(name: str) -> Partition:
    """The one called `name`.

    Raises:
        ModelError: there is none; the text lists those there are.
    """
    try:
        return partitions()[name]
    except KeyError:
        known = ", ".join(partitions())
        raise ModelError(f"unknown part groups {name!r}; known: {known}") from None


def _tuples(groups: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(group) for group in groups)
