"""Readers of annotated pictures: every set becomes a list of Sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastpose.errors import DataError
from fastpose.skeleton import LSP14, Skeleton


@dataclass(frozen=True)
class Sample:
    """One annotated person.

    Attributes:
        image: the picture's file.
        size: (h, w) of the picture in pixels.
        joints: [K, 2] float32 (x, y) in pixels, pixel centres at whole numbers.
        labelled: [K] whether the joint's place is known.
        visible: [K] whether it is labelled and can be seen.
    """

    image: Path
    size: tuple[int, int]
    joints: npt.NDArray[np.float32]
    labelled: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PoseData:
    """A set of samples of one skeleton; `name` is its kind, such as lsp."""

    name: str
    skeleton: Skeleton
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)


def read_lsp(folder: Path, split: str) -> PoseData:
    """Leeds Sports Pose: `folder`/annotations.json and `folder`/images.

    Johnson and Everingham, Clustered Pose and Nonlinear Appearance Models for Human Pose
    Estimation, BMVC 2010. Joints in the file count pixels from 1. All 14 are labelled.

    Raises:
        DataError: the file is missing or is not what it should be, or the split is empty.
    """
    images = _annotations(folder)
    samples = []
    for row in images:
        if row["split"] != split:
            continue
        joints = np.array(row["joints"], np.float32)
        seen = joints[:, 2] > 0
        samples.append(
            Sample(
                folder / "images" / row["file"],
                (row["height"], row["width"]),
                joints[:, :2] - 1,
                np.ones(len(joints), bool),
                seen,
            )
        )
    if not samples:
        raise DataError(f"{folder}: no picture of split {split!r}")
    return PoseData("lsp", LSP14, tuple(samples))


def read_lspet(folder: Path) -> PoseData:
    """Leeds Sports Pose Extended, the training pictures, as crops that may be scaled down.

    Johnson and Everingham, Learning Effective Human Pose Estimation from Inaccurate Annotation,
    CVPR 2011. A joint is labelled or not; whether it can be seen is not known.

    Raises:
        DataError: the file is missing or is not what it should be.
    """
    samples = []
    for row in _annotations(folder):
        joints = np.array(row["joints"], np.float32)
        labelled = joints[:, 2] > 0
        left, _, right, _ = row["crop"]
        one = row["width"] / (right - left)  # joints count source pixels from 1
        samples.append(
            Sample(
                folder / "images" / row["file"],
                (row["height"], row["width"]),
                joints[:, :2] - one,
                labelled,
                labelled,
            )
        )
    return PoseData("lspet", LSP14, tuple(samples))


def _annotations(folder: Path) -> list[dict]:
    path = Path(folder) / "annotations.json"
    try:
        return json.loads(path.read_text())["images"]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: expected a JSON object with a list 'images'") from None
