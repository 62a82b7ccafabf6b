"""Leeds Sports Pose and its extension: one person a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.datasets.files import finite_numbers, read_json
from fastpose.datasets.samples import PoseData, Sample
from fastpose.errors import BackendError, DataError
from fastpose.skeleton import LSP14

LSP_TRAIN = 1000  # of the 2000 pictures, the first half


def read_lsp(folder: Path, split: str) -> PoseData:
    """Leeds Sports Pose: `folder`/images with annotations.json or the original joints.mat.

    Johnson and Everingham, Clustered Pose and Nonlinear Appearance Models for Human Pose
    Estimation, BMVC 2010. Joints in the files count pixels from 1. All 14 are labelled. The
    original file, [3, 14, 2000], flags a joint that cannot be seen; annotations.json one that can.

    Raises:
        DataError: the file is missing or is not what it should be, or the split is empty.
        BackendError: joints.mat needs scipy, which is not installed.
    """
    samples = []
    for row in _rows(folder, _lsp_original):
        if row.zoom is not None:
            raise DataError(f"{folder}: {row.image.name} has a 'crop': this is the lspet set")
        if row.split == split:
            labelled = np.ones(len(LSP14), bool)
            samples.append(Sample(row.image, row.size, row.joints - 1, labelled, row.flags))
    if not samples:
        raise DataError(f"{folder}: no picture of split {split!r}")
    return PoseData("lsp", LSP14, tuple(samples), split, origin=1.0)


def read_lspet(folder: Path) -> PoseData:
    """Leeds Sports Pose Extended, the training pictures, which may be crops that were scaled down.

    Johnson and Everingham, Learning Effective Human Pose Estimation from Inaccurate Annotation,
    CVPR 2011. `folder`/images with annotations.json, whose rows name the `crop` of the source
    picture, or with the original joints.mat, [14, 3, 10000]. A joint is labelled or not; whether
    it can be seen is not known.

    Raises:
        DataError: the file is missing or is not what it should be.
        BackendError: joints.mat needs scipy, which is not installed.
    """
    samples = []
    for row in _rows(folder, _lspet_original):
        if row.zoom is None:
            raise DataError(f"{folder}: {row.image.name} has no 'crop': this is not the lspet set")
        joints = row.joints - np.float32(row.zoom)  # they count pixels of the source from 1
        samples.append(Sample(row.image, row.size, joints, row.flags, row.flags))
    return PoseData("lspet", LSP14, tuple(samples), "train", origin=1.0)


@dataclass(frozen=True)
class _Row:
    """A picture as its annotations describe it.

    Attributes:
        image, size: as in `Sample`.
        split: "train" or "test".
        joints: [14, 2] float32, counting source pixels from 1.
        flags: [14] the third value of each joint, true where it is set.
        zoom: picture pixels per pixel of the source; None where the row does not say.
    """

    image: Path
    size: tuple[int, int] | None
    split: str
    joints: npt.NDArray[np.float32]
    flags: npt.NDArray[np.bool_]
    zoom: float | None


_Original = Callable[[Path, npt.NDArray[Any]], Iterator[_Row]]


def _rows(folder: Path, original: _Original) -> Iterator[_Row]:
    """The rows of a Leeds set in either layout; `original` reads the content of joints.mat."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / "annotations.json").is_file():
        return _json_rows(folder)
    if (folder / "joints.mat").is_file():
        return original(folder, _mat_joints(folder / "joints.mat"))
    raise DataError(f"{folder}: expected annotations.json or joints.mat in it, found neither")


def _json_rows(folder: Path) -> Iterator[_Row]:
    path = folder / "annotations.json"
    content = read_json(path)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a JSON object with a list 'images'")
    for number, row in enumerate(rows):
        try:
            joints = finite_numbers(row["joints"], (len(LSP14), 3))
            image, split = folder / "images" / row["file"], row["split"]
            size = (int(row["height"]), int(row["width"]))
            crop = row.get("crop")
            zoom = None if crop is None else size[1] / (crop[2] - crop[0])
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
            raise DataError(
                f"{path}: images[{number}]: expected file, split, width, height and joints "
                "[14, 3] of the Leeds format"
            ) from None
        if joints is None:
            raise DataError(
                f"{path}: images[{number}]: joints must be [14, 3] finite numbers, "
                f"got {shortened(row['joints'])}"
            )
        places = joints[:, :2].astype(np.float32)
        yield _Row(image, size, split, places, joints[:, 2] > 0, zoom)


def _mat_joints(path: Path) -> npt.NDArray[Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise BackendError(
            f"{path}: needs scipy; install the extra: fastpose-inference[eval]"
        ) from None
    try:
        return np.asarray(loadmat(path)["joints"])
    except Exception:  # a damaged file fails in many ways inside the reader
        raise DataError(f"{path}: expected a MATLAB file with an array 'joints'") from None


def _lsp_original(folder: Path, joints: npt.NDArray[Any]) -> Iterator[_Row]:
    """joints.mat of LSP: x, y and "cannot be seen"; the first 1000 pictures are for training."""
    if joints.ndim != 3 or joints.shape[:2] != (3, len(LSP14)):
        raise DataError(
            f"{folder / 'joints.mat'}: joints must be [3, 14, N], got {list(joints.shape)}"
        )
    for index, picture in enumerate(joints.astype(np.float32).transpose(2, 1, 0), 1):
        image = folder / "images" / f"im{index:04d}.jpg"
        split = "train" if index <= LSP_TRAIN else "test"
        yield _Row(image, None, split, picture[:, :2], picture[:, 2] == 0, None)


def _lspet_original(folder: Path, joints: npt.NDArray[Any]) -> Iterator[_Row]:
    """joints.mat of LSPET: x, y and "labelled"; whole pictures, all for training."""
    if joints.ndim != 3 or joints.shape[:2] != (len(LSP14), 3):
        raise DataError(
            f"{folder / 'joints.mat'}: joints must be [14, 3, N], got {list(joints.shape)}"
        )
    for index, picture in enumerate(joints.astype(np.float32).transpose(2, 0, 1), 1):
        image = folder / "images" / f"im{index:05d}.jpg"
        yield _Row(image, None, "train", picture[:, :2], picture[:, 2] > 0, 1.0)
