"""MPII Human Pose, whose annotations count pixels from 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.datasets.files import LARGEST, read_arrays, read_json
from fastpose.datasets.samples import PoseData, Sample
from fastpose.errors import DataError
from fastpose.skeleton import MPII16

TRUTH = "mpii_val_reference.npz"
FILES = (
    "mpii_16joints.npz",
    "mpii_annotations.json.gz",
    "mpii_annotations.json",
    "annotations.json",
    TRUTH,
)
HEAD = 0.6  # of the diagonal of the annotated head: the unit of PCKh


def read_mpii(path: Path, split: str, images: Path | None = None) -> PoseData:
    """MPII Human Pose: one sample a person.

    Andriluka et al., 2D Human Pose Estimation: New Benchmark and State of the Art Analysis, CVPR
    2014. A person's box is the square of 200 `scale` pixels that Newell et al. (Stacked Hourglass
    Networks, ECCV 2016) cut, without its margin of a quarter: 15 `scale` below the centre.

    Args:
        path: a folder that holds one of `FILES`, or one of these: mpii_16joints.npz (`joints`,
            `center`, `scale`, `is_val`, `image`, `image_wh`, `head_size`);
            mpii_val_reference.npz (`gt`, `missing`, `headboxes`, `image`), the evaluation's truth;
            or a JSON list of people, as the hourglass code (`joint_self`, `objpos`,
            `scale_provided`, `isValidation`) or HRNet's (`joints`, `joints_vis`, `center`, `scale`)
            have it, .gz or not. Where mpii_val_reference.npz lies beside, the truth of the
            validation split is taken from there.
        split: "train"; "val" or "test" are both the validation people (the annotations of the
            test pictures are not public). A list that does not say has one split.
        images: folder of the pictures; people whose picture is not there are left out and counted.
            Without it, images/ beside the file, where they need not be to score predictions.

    Raises:
        DataError: a file is missing or is not what it should be, or nobody is left.
    """
    path = _file(Path(path))
    table = _read(path)
    wanted = "train" if split == "train" else "val"
    if table.validation is not None:
        table = table.rows(table.validation == (wanted == "val"))
    beside = path.with_name(TRUTH)
    if wanted == "val" and path.name != TRUTH and beside.is_file() and table.validation is not None:
        table = _with_truth(table, beside, path)
    folder = images or path.parent / "images"
    every = len(table.image)
    if images is not None:
        table = table.rows(np.array([(folder / name).is_file() for name in table.image], bool))
    if not len(table.image):
        where = f" with a picture in {images}" if every else f" of split {wanted!r}"
        raise DataError(f"{path}: no person{where}")
    samples = tuple(table.sample(row, folder) for row in range(len(table.image)))
    left_out = every - len(samples)
    return PoseData("mpii", MPII16, samples, wanted, origin=1.0, left_out=left_out)


@dataclass(frozen=True)
class _Table:
    """N people; pixels count from 1.

    Attributes:
        image: [N] names of files.
        joints: [N, 16, 2].
        labelled, visible: [N, 16].
        boxes: [N, 4], NaN where they are not known.
        head: [N] unit of PCKh, NaN where it is not known.
        size: [N, 2] (h, w) of the pictures, whole numbers, or None.
        validation: [N], or None where that is not known.
    """

    image: npt.NDArray[np.str_]
    joints: npt.NDArray[np.float64]
    labelled: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]
    boxes: npt.NDArray[np.float64]
    head: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64] | None
    validation: npt.NDArray[np.bool_] | None

    def __post_init__(self) -> None:
        n, k = len(self.image), len(MPII16)
        shapes = {
            "image": (n,),
            "joints": (n, k, 2),
            "labelled": (n, k),
            "visible": (n, k),
            "boxes": (n, 4),
            "head": (n,),
            "size": (n, 2),
            "validation": (n,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")

    def rows(self, keep: npt.NDArray[np.bool_]) -> _Table:
        """The people that `keep` [N] marks."""
        return _Table(
            self.image[keep],
            self.joints[keep],
            self.labelled[keep],
            self.visible[keep],
            self.boxes[keep],
            self.head[keep],
            None if self.size is None else self.size[keep],
            None if self.validation is None else self.validation[keep],
        )

    def sample(self, row: int, folder: Path) -> Sample:
        box = (self.boxes[row] - 1).astype(np.float32)
        size = None if self.size is None else (int(self.size[row, 0]), int(self.size[row, 1]))
        return Sample(
            folder / str(self.image[row]),
            size,
            (self.joints[row] - 1).astype(np.float32),
            self.labelled[row],
            self.visible[row],
            box if np.isfinite(box).all() else None,
            float(self.head[row]),
        )


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise DataError(f"{path}: expected one of {', '.join(FILES)} in it, found none")


def _read(path: Path) -> _Table:
    """The people of a file in any of its forms."""
    content = read_arrays(path) if path.suffix == ".npz" else read_json(path)
    try:
        if path.suffix != ".npz":
            return _from_list(content)
        return _from_truth(content) if "gt" in content else _from_arrays(content)
    except KeyError as error:
        raise DataError(f"{path}: expected MPII annotations; there is no {error}") from None
    except ValueError as error:
        raise DataError(f"{path}: expected MPII annotations: {error}") from None


def _numbers(name: str, values: Any, *shape: int) -> npt.NDArray[np.float64]:
    """The field `name` of N people, [N, *shape]; NaN where it is not known.

    Raises:
        ValueError: it is something else, or beyond what a picture can have.
    """
    wanted = f"{name} must be numbers [{', '.join(map(str, ('N', *shape)))}]"
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{wanted}, got rows of several lengths") from None
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        raise ValueError(f"{wanted}, got {list(array.shape)}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{wanted}, got {array.dtype}")
    numbers = array.astype(np.float64)
    vast = numbers[np.abs(numbers) >= LARGEST]
    if len(vast):
        raise ValueError(f"{name} must be below {LARGEST:g}, got {vast[0]:g}")
    return numbers


def _from_arrays(arrays: dict[str, npt.NDArray[Any]]) -> _Table:
    joints = _numbers("joints", arrays["joints"], len(MPII16), 3)
    labelled = (joints[..., :2] != 0).any(axis=-1)
    sides = _numbers("image_wh", arrays["image_wh"], 2)
    if not (sides >= 1).all():
        raise ValueError(f"image_wh must be from 1, got {sides[~(sides >= 1)][0]}")
    return _Table(
        arrays["image"],
        joints[..., :2],
        labelled,
        labelled & (joints[..., 2] > 0),
        _squares(_numbers("center", arrays["center"], 2), _numbers("scale", arrays["scale"])),
        _numbers("head_size", arrays["head_size"]),
        sides[:, ::-1],
        _numbers("is_val", arrays["is_val"]) > 0,
    )


def _from_truth(arrays: dict[str, npt.NDArray[Any]]) -> _Table:
    labelled = _numbers("missing", arrays["missing"], len(MPII16)) == 0
    corners = _numbers("headboxes", arrays["headboxes"], 2, 2)
    count = len(labelled)
    return _Table(
        arrays["image"],
        _numbers("gt", arrays["gt"], len(MPII16), 2),
        labelled,
        labelled,
        np.full((count, 4), np.nan),
        HEAD * np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1),
        None,
        np.ones(count, bool),
    )


def _from_list(people: Any) -> _Table:
    if not isinstance(people, list) or not people or not all(isinstance(p, dict) for p in people):
        raise ValueError("expected a JSON list of people")
    hourglass = "joint_self" in people[0]
    image, centre, scale = (
        ("img_paths", "objpos", "scale_provided") if hourglass else ("image", "center", "scale")
    )
    if hourglass:
        triples = _numbers("joint_self", [row["joint_self"] for row in people], len(MPII16), 3)
        joints = triples[..., :2]
        labelled = (joints != 0).any(axis=-1)
        visible = labelled & (triples[..., 2] > 0)
        validation = np.array([bool(row["isValidation"]) for row in people])
    else:
        joints = _numbers("joints", [row["joints"] for row in people], len(MPII16), 2)
        seen = _numbers("joints_vis", [row["joints_vis"] for row in people], len(MPII16))
        labelled = visible = seen > 0
        validation = None
    return _Table(
        np.array([str(row[image]) for row in people]),
        joints,
        labelled,
        visible,
        _squares(
            _numbers(centre, [row[centre] for row in people], 2),
            _numbers(scale, [row[scale] for row in people]),
        ),
        np.full(len(people), np.nan),
        None,
        validation,
    )


def _with_truth(table: _Table, path: Path, annotations: Path) -> _Table:
    """The same people with the joints and heads by which they are evaluated."""
    truth = _read(path)
    if not np.array_equal(truth.image, table.image):
        raise DataError(f"{path}: its people are not the validation people of {annotations.name}")
    return replace(
        table,
        joints=truth.joints,
        labelled=truth.labelled,
        visible=table.visible & truth.labelled,
        head=truth.head,
    )


def _squares(
    centre: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """[N, 4] boxes of 200 `scale` [N] pixels, 15 `scale` below `centre` [N, 2]."""
    if len(scale) != len(centre):
        raise ValueError(f"scale must be [{len(centre)}] for as many centers, got [{len(scale)}]")
    side = scale[:, None]
    middle = centre + side * (0, 15)
    return np.concatenate((middle - 100 * side, middle + 100 * side), axis=1)
