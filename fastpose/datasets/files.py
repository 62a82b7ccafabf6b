"""Files beside the annotations: JSON, pictures, and joints that somebody predicted."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.datasets.samples import PoseData
from fastpose.errors import DataError

LARGEST = 1e30  # a coordinate beyond it is damage; below it, single precision holds sums


def read_json(path: Path) -> Any:
    """The content of a JSON file, which may be packed by gzip (.gz).

    Raises:
        DataError: the file is missing or holds no JSON.
    """
    try:
        content = path.read_bytes()
        return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, zlib.error) as error:  # EOFError: a packed file that was cut off
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:  # a UnicodeDecodeError is one
        raise DataError(f"{path}: no JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{path}: JSON that is nested too deeply") from None


def finite_numbers(values: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
    """What a JSON file has for an array of this shape; None if it is anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        return None
    if array.shape != shape or array.dtype.kind not in "iuf":
        return None
    return array.astype(np.float64) if bool((np.abs(array) < LARGEST).all()) else None


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


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .npz file, by name; nothing in it is unpickled.

    Raises:
        DataError: the file is missing, is no .npz, or holds something else than plain arrays.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"{path}: expected a .npz file of arrays") from None


def read_predictions(path: str | Path, data: PoseData) -> npt.NDArray[np.float32]:
    """Joints that somebody predicted for a whole data set.

    Args:
        path: a .npy file, or the array KEY of a .npz as FILE.npz:KEY (KEY may be left away where
            there is one alone): [N, K, 2] (x, y) in the set's own pixel count (LSP's and MPII's
            starts at 1), rows and joints in the order of the set.
        data: the set.

    Returns:
        [N, K, 2] float32, pixel centres at whole numbers; NaN for a joint that was not found.

    Raises:
        DataError: the file is missing, is no array of numbers, or has another shape.
    """
    archive, colon, key = str(path).rpartition(".npz:")
    if colon:
        array = _picked(Path(f"{archive}.npz"), key)
    elif Path(path).suffix == ".npz":
        array = _picked(Path(path), None)
    else:
        array = _read_array(Path(path))
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected an array of numbers")
    expected = [len(data), len(data.skeleton), 2]
    if list(array.shape) != expected:
        raise DataError(
            f"{path}: expected {expected} for the {data.split} split of {data.name}, "
            f"got {list(array.shape)}"
        )
    return array.astype(np.float32) - np.float32(data.origin)


def _read_array(path: Path) -> npt.NDArray[Any]:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, MemoryError):  # a damaged header may ask for any size
        raise DataError(f"{path}: expected a .npy array of numbers") from None


def _picked(path: Path, key: str | None) -> npt.NDArray[Any]:
    """The array of a .npz that is called `key`; the only one for None."""
    arrays = read_arrays(path)
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key not in arrays:
        asked = f"no array {key!r}" if key else f"several arrays; name one as {path.name}:KEY"
        raise DataError(f"{path}: {asked}; there are: {', '.join(arrays)}")
    return arrays[key]
