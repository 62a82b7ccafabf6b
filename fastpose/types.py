"""What travels through the pipeline: frames in, people out. Shapes are checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.skeleton import Skeleton

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: [H, W, 3] uint8, BGR.
        index: place in its source, from 0.
        time: seconds from the start of the source; 0 for a photograph.
        name: the source's name without folder and ending.
    """

    image: npt.NDArray[np.uint8]
    index: int = 0
    time: float = 0.0
    name: str = "frame"

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"image must be [H, W, 3] uint8, got {list(self.image.shape)} {self.image.dtype}"
            )


@dataclass(frozen=True)
class Boxes:
    """Where people are in one frame; N = 0 is an ordinary value.

    Attributes:
        boxes: [N, 4] float32 (x0, y0, x1, y1) in frame pixels.
        scores: [N] float32.
    """

    boxes: Floats
    scores: Floats

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be [N, 4], got {list(self.boxes.shape)}")
        if self.scores.shape != (len(self.boxes),):
            came = list(self.scores.shape)
            raise ValueError(f"scores must be {[len(self.boxes)]}, got {came}")

    @classmethod
    def empty(cls) -> Boxes:
        """Nobody."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class People:
    """The people of one frame; N = 0 is an ordinary value.

    Attributes:
        boxes: [N, 4] float32 (x0, y0, x1, y1) in frame pixels.
        box_scores: [N] float32.
        keypoints: [N, K, 2] float32 (x, y) in frame pixels, pixel centres at whole numbers; NaN
            where a joint was not found.
        scores: [N, K] float32, 0 where a joint was not found.
        skeleton: the K joints.
        ids: [N] int64 track numbers, or None where nobody tracks.
    """

    boxes: Floats
    box_scores: Floats
    keypoints: Floats
    scores: Floats
    skeleton: Skeleton
    ids: npt.NDArray[np.int64] | None = field(default=None)

    def __post_init__(self) -> None:
        n, k = len(self.boxes), len(self.skeleton)
        expected: dict[str, tuple[int, ...]] = {
            "boxes": (n, 4),
            "box_scores": (n,),
            "keypoints": (n, k, 2),
            "scores": (n, k),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                came = list(getattr(self, name).shape)
                raise ValueError(f"{name} must be {list(shape)}, got {came}")
        if self.ids is not None and self.ids.shape != (n,):
            raise ValueError(f"ids must be {[n]}, got {list(self.ids.shape)}")

    @classmethod
    def empty(cls, skeleton: Skeleton) -> People:
        """Nobody."""
        k = len(skeleton)
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, k, 2), np.float32),
            np.zeros((0, k), np.float32),
            skeleton,
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | slice | npt.NDArray[Any] | list[int]) -> People:
        """The chosen people, as People: an integer gives one person, N = 1.

        Raises:
            IndexError: there is no such person.
        """
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"person {index} of {len(self)}")
            index = [int(index)]
        return People(
            self.boxes[index],
            self.box_scores[index],
            self.keypoints[index],
            self.scores[index],
            self.skeleton,
            None if self.ids is None else self.ids[index],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, as in the JSON lines: a joint that was not found has null coordinates."""
        points = self.keypoints.astype(object)
        points[~np.isfinite(self.keypoints)] = None
        return {
            "skeleton": self.skeleton.name,
            "people": [
                {
                    "box": self.boxes[i].tolist(),
                    "box_score": float(self.box_scores[i]),
                    "keypoints": points[i].tolist(),
                    "scores": self.scores[i].tolist(),
                    "id": None if self.ids is None else int(self.ids[i]),
                }
                for i in range(len(self))
            ],
        }
