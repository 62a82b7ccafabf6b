"""Frames Labeled In Cinema: upper bodies in film frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fastpose.datasets.files import LARGEST, read_arrays
from fastpose.datasets.samples import PoseData, Sample
from fastpose.errors import DataError
from fastpose.skeleton import FLIC9

FILE = "flic_11joints.npz"
SIZE = (480, 720)  # h, w of every frame
KEPT = [*range(8), 10]  # of the file's 11 points; 8 and 9 are the eyes, 10 is the nose


def read_flic(path: Path, split: str, images: Path | None = None) -> PoseData:
    """FLIC: one sample a person, person-centric; see `observer_centric`.

    Sapp and Taskar, MODEC: Multimodal Decomposable Models for Human Pose Estimation, CVPR 2013.
    The joints come from MATLAB and count pixels from 1. A person's box is the square of 200 `scale`
    pixels round the centre, as in Newell et al., Stacked Hourglass Networks, ECCV 2016.

    Args:
        path: flic_11joints.npz, or its folder: `train_` and `valid_` `part` [N, 11, 2], `visible`,
            `center`, `scale`, `image`.
        split: "train"; "val" or "test" are both the 1016 people of the test.
        images: folder of the pictures; images/ beside the file without it.

    Raises:
        DataError: the file is missing or is not what it should be.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    arrays = read_arrays(path)
    wanted = "train" if split == "train" else "valid"
    fields = ("part", "visible", "center", "scale", "image")
    missing = [f"{wanted}_{name}" for name in fields if f"{wanted}_{name}" not in arrays]
    if missing:
        raise DataError(f"{path}: expected FLIC's annotations; there is no {missing[0]!r}")
    part, visible, centre, scale, image = (arrays[f"{wanted}_{name}"] for name in fields)
    shapes = [list(a.shape) for a in (part, visible, centre, scale, image)]
    count = shapes[0][0] if part.ndim else 0
    if shapes != [[count, 11, 2], [count, 11], [count, 2], [count], [count]]:
        raise DataError(
            f"{path}: part, visible, center, scale and image must be [N, 11, 2], [N, 11], [N, 2], "
            f"[N] and [N], got {', '.join(map(str, shapes))}"
        )
    if any(a.dtype.kind not in "biuf" for a in (part, visible, centre, scale)):
        raise DataError(f"{path}: part, visible, center and scale must be numbers")
    if any((np.abs(a.astype(np.float64)) >= LARGEST).any() for a in (part, centre, scale)):
        raise DataError(f"{path}: part, center and scale must be pixels, below {LARGEST:g}")
    joints = part[:, KEPT].astype(np.float32) - 1
    labelled = (visible[:, KEPT] > 0) & np.isfinite(joints).all(axis=-1)
    half = 100 * scale[:, None]
    boxes = np.concatenate((centre - half, centre + half), axis=1).astype(np.float32) - 1
    folder = images or path.parent / "images"
    samples = tuple(
        Sample(folder / str(name), SIZE, *rows)
        for name, *rows in zip(image, joints, labelled, labelled, boxes, strict=True)
    )
    return PoseData("flic", FLIC9, samples, "train" if wanted == "train" else "val", origin=1.0)


def observer_centric(data: PoseData) -> PoseData:
    """The same people with left and right as who looks at the picture has them.

    All pairs change places where the right shoulder lies to the right of the left one, the rule of
    Wei et al., Convolutional Pose Machines, CVPR 2016.
    """
    order = data.skeleton.flip_order()
    left, right = (data.skeleton.joints.index(f"{side}_shoulder") for side in ("left", "right"))
    return replace(
        data,
        samples=tuple(
            replace(s, joints=s.joints[order], labelled=s.labelled[order], visible=s.visible[order])
            if s.joints[right, 0] > s.joints[left, 0]
            else s
            for s in data.samples
        ),
    )
