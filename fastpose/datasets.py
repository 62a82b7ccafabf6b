"""Readers of annotated pictures: every set becomes a list of Sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.errors import BackendError, DataError
from fastpose.skeleton import LSP14, Skeleton

LSP_TRAIN = 1000  # of the 2000 pictures, the first half

TERMS = {
    "lsp": "Leeds Sports Pose (Johnson and Everingham, BMVC 2010): photographs from Flickr, for "
    "research; asks for citation, names no licence.",
    "lspet": "Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011): photographs from "
    "Flickr, for research; asks for citation, names no licence.",
}


@dataclass(frozen=True)
class Sample:
    """One annotated person.

    Attributes:
        image: the picture's file.
        size: (h, w) of the picture in pixels; None where the annotations do not say.
        joints: [K, 2] float32 (x, y) in pixels, pixel centres at whole numbers.
        labelled: [K] whether the joint's place is known.
        visible: [K] whether it is labelled and can be seen.
    """

    image: Path
    size: tuple[int, int] | None
    joints: npt.NDArray[np.float32]
    labelled: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]


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
    """

    name: str
    skeleton: Skeleton
    samples: tuple[Sample, ...]
    split: str = "train"
    origin: float = 0.0

    def __len__(self) -> int:
        return len(self.samples)

    def head(self, count: int | None) -> PoseData:
        """The first `count` samples; all of them for None."""
        return replace(self, samples=self.samples[:count])


def open_data(text: str, split: str = "test") -> PoseData:
    """Read the data set that KIND:PATH names.

    Args:
        text: such as "lsp:DIR"; the kinds are those of `KINDS`.
        split: "train" or "test". A set that has one split alone gives that one, and says so.

    Raises:
        DataError: the text is not KIND:PATH of a known kind, or the set cannot be read.
    """
    kind, colon, path = text.partition(":")
    if not colon or not path or kind not in KINDS:
        known = ", ".join(f"{name}:DIR" for name in KINDS)
        raise DataError(f"data must be one of {known}; got {text!r}")
    return KINDS[kind](Path(path), split)


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


KINDS: dict[str, Callable[[Path, str], PoseData]] = {
    "lsp": read_lsp,
    "lspet": lambda folder, split: read_lspet(folder),
}


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """The picture of a file, [H, W, 3] uint8, BGR.

    Raises:
        DataError: the file is missing or holds no picture.
    """
    import cv2

    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    image: npt.NDArray[np.uint8] | None = (
        cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    )
    if image is None:
        raise DataError(f"{path}: not a readable picture")
    return image


def read_predictions(path: Path, data: PoseData) -> npt.NDArray[np.float32]:
    """Joints that somebody predicted for a whole data set.

    Args:
        path: a .npy file, [N, K, 2] (x, y) in the set's own pixel count (LSP's starts at 1), rows
            and joints in the order of the set.
        data: the set.

    Returns:
        [N, K, 2] float32, pixel centres at whole numbers; NaN for a joint that was not found.

    Raises:
        DataError: the file is missing, is no array of numbers, or has another shape.
    """
    try:
        with Path(path).open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"{path}: expected a .npy array of numbers") from None
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected a .npy array of numbers")
    expected = [len(data), len(data.skeleton), 2]
    if list(array.shape) != expected:
        raise DataError(
            f"{path}: expected {expected} for the {data.split} split of {data.name}, "
            f"got {list(array.shape)}"
        )
    return array.astype(np.float32) - np.float32(data.origin)


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
    try:
        rows = json.loads(path.read_text())["images"]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a JSON object with a list 'images'")
    for number, row in enumerate(rows):
        try:
            joints = np.array(row["joints"], np.float32)
            image, split = folder / "images" / row["file"], row["split"]
            size = (int(row["height"]), int(row["width"]))
            crop = row.get("crop")
            zoom = None if crop is None else size[1] / (crop[2] - crop[0])
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError):
            raise DataError(
                f"{path}: images[{number}]: expected file, split, width, height and joints "
                "[14, 3] of the Leeds format"
            ) from None
        if joints.shape != (len(LSP14), 3):
            raise DataError(
                f"{path}: images[{number}]: joints must be [14, 3], got {list(joints.shape)}"
            )
        yield _Row(image, size, split, joints[:, :2], joints[:, 2] > 0, zoom)


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
