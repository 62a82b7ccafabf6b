"""What the readers give: annotated people, one each or by picture."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.errors import DataError
from fastpose.skeleton import Skeleton, joint_places


@dataclass(frozen=True)
class Sample:
    """One annotated person.

    Attributes:
        image: the picture's file.
        size: (h, w) of the picture in pixels; None where the annotations do not say.
        joints: [K, 2] float32 (x, y) in pixels, pixel centres at whole numbers.
        labelled: [K] whether the joint's place is known.
        visible: [K] whether it is labelled and can be seen.
        box: [4] float32 (x0, y0, x1, y1) round the person; None where the annotations have none,
            and the whole picture is taken for it.
        head_size: the length in pixels that PCKh divides by; NaN where it is not known.
    """

    image: Path
    size: tuple[int, int] | None
    joints: npt.NDArray[np.float32]
    labelled: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]
    box: npt.NDArray[np.float32] | None = None
    head_size: float = float("nan")


@dataclass(frozen=True)
class PoseData:
    """A set of samples of one skeleton.

    Attributes:
        name: its kind, such as lsp.
        skeleton: the K joints of every sample.
        samples: in the order of the annotations.
        split: which part of the set this is.
        origin: what the set's own files, and predictions published for it, call the centre of the
            first pixel; `Sample.joints` have it subtracted.
        left_out: how many annotated people are not among the samples; the reader says which.
    """

    name: str
    skeleton: Skeleton
    samples: tuple[Sample, ...]
    split: str = "train"
    origin: float = 0.0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def head(self, count: int | None) -> PoseData:
        """The first `count` samples, all of them for None; `left_out` stays the whole set's."""
        return replace(self, samples=self.samples[:count])


def with_joints(data: PoseData, wanted: Skeleton) -> PoseData:
    """The same people with other joints; those that the set has not are unlabelled, at (0, 0).

    Raises:
        DataError: the set has none of them.
    """
    if data.skeleton == wanted:
        return data
    places = joint_places(data.skeleton, wanted)
    known = places >= 0
    if not known.any():
        raise DataError(f"{data.name}: has no joint of {wanted.name}")

    def reordered(sample: Sample) -> Sample:
        return replace(
            sample,
            joints=np.where(known[:, None], sample.joints[places], np.float32(0)),
            labelled=sample.labelled[places] & known,
            visible=sample.visible[places] & known,
        )

    return replace(data, skeleton=wanted, samples=tuple(map(reordered, data.samples)))


@dataclass(frozen=True)
class CocoData(PoseData):
    """A set whose figure is COCO's average precision: over pictures, with all people in them.

    Attributes:
        pictures: files by `image_id`, those without people included; `samples` are the people in
            them who have joints.
        people: all annotated people as COCO's evaluation reads them, crowds included.
        category: COCO's number for a person in these annotations.
    """

    pictures: dict[int, Path] = field(default_factory=dict)
    people: tuple[dict[str, Any], ...] = ()
    category: int = 1

    def head(self, count: int | None) -> CocoData:
        """The first `count` pictures and the people in them; all for None."""
        pictures = dict(list(self.pictures.items())[:count])
        files = set(pictures.values())
        samples = tuple(s for s in self.samples if s.image in files)
        people = tuple(row for row in self.people if row["image_id"] in pictures)
        return replace(
            self,
            samples=samples,
            left_out=len(people) - len(samples),
            pictures=pictures,
            people=people,
        )


@dataclass(frozen=True)
class BoxSample:
    """One picture and the boxes in it; none is an ordinary answer.

    Attributes:
        image: the picture's file.
        size: (h, w) of the picture in pixels; None where the annotations do not say.
        boxes: [M, 4] float32 (x0, y0, x1, y1), counted from the outer edge of the first pixel, as
            detectors give them and COCO writes them; inside the picture.
        classes: [M] int64, places in `BoxData.classes`.
        ignored: [M] whether a box is neither a target nor, when it is found, a fault: a crowd, or
            an object marked as difficult.
    """

    image: Path
    size: tuple[int, int] | None
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BoxData:
    """A set of pictures with boxes.

    Attributes:
        name: its kind, such as boxes.
        classes: what the boxes hold.
        samples: in the order of the annotations' pictures.
        split: which part of the set this is.
        left_out: how many annotated boxes are not among the samples; the reader says which.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[BoxSample, ...]
    split: str = "train"
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def head(self, count: int | None) -> BoxData:
        """The first `count` pictures, all of them for None; `left_out` stays the whole set's."""
        return replace(self, samples=self.samples[:count])
