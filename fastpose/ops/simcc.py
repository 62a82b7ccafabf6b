"""Joints from SimCC vectors: the peak of one row of bins for each axis, in frame pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastpose.ops.choose import Array, check_array, choose, device_kind, type_name
from fastpose.ops.decode import TYPES, check_affines, mirror_partners, to_host, to_kind

Pair = tuple[Array, Array]


@dataclass(frozen=True)
class SimccOptions:
    """What every implementation of `decode_simcc` is given besides the arrays, checked.

    Attributes:
        split, peak_value: as in `decode_simcc`.
        flip_shift: bins by which mirrored-back x vectors are shifted left.
        partner: [K] int32, the joint that the mirrored input has in this joint's place.
    """

    split: float
    flip_shift: int
    peak_value: float
    partner: npt.NDArray[np.int32]


def decode_simcc(
    x: Array,
    y: Array,
    *,
    split: float = 2.0,
    flipped: Pair | None = None,
    flip_pairs: Sequence[tuple[int, int]] | None = None,
    peak_value: float = 1.0,
    affines: Array | None = None,
    backend: str | None = None,
) -> tuple[Array, Array]:
    """Find each joint at the highest bin of its two vectors, and map it into the frame.

    The first maximum of each vector, divided by `split`, is the joint's place in pixels of the
    network's input; the lower of the two maxima is its score (Li et al., SimCC: a Simple Coordinate
    Classification Perspective for Human Pose Estimation, ECCV 2022; so too Jiang et al., RTMPose:
    Real-Time Multi-Person Pose Estimation based on MMPose, 2023). NaN counts as 0. Where one of the
    maxima is not finite or not above 0, the score is 0 and the point NaN.

    A pixel u of the input lies at W - 1 - u in its mirror image, so bin b there belongs to
    bin split (W - 1) - b here. Reversing the bins alone would leave the joint split - 1 bins too
    far right: the reversed vectors are shifted back, to whole bins, and keep their last one.

    Args:
        x: [N, K, W * split], float32 or float16, as torch also bfloat16. No gradient.
        y: [N, K, H * split], same kind, type, and device.
        split: bins for each pixel of the network's input.
        flipped: x and y of the mirrored input, same shapes and type: the bins of x are reversed,
            joints swapped by `flip_pairs`, both averaged in.
        flip_pairs: joints that change places in `flipped`; () for none.
        peak_value: value of a perfect peak; scores are divided by it.
        affines: [N, 2, 3] float32 or float64, input pixel (x, y, 1) -> frame pixel.
        backend: "cpp" or "reference"; None means the fastest for the device.

    Returns:
        points: [N, K, 2] float32, (x, y) in input pixels or, with `affines`, in frame pixels.
            Missing joints are NaN.
        scores: [N, K] float32; 0 for a missing joint.
        Both are of the kind of `x` and on its device.

    Raises:
        ValueError: an argument is not as above.
        BackendError: `backend` was named and cannot run here.
    """
    _check_vectors("x", x, "y", y)
    pairs = tuple(map(tuple, flip_pairs)) if flip_pairs else ()
    options = _options(split, peak_value, pairs, x.shape[1])
    if flipped is not None:
        _check_flipped((x, y), flipped, flip_pairs)
    check_affines("x", x, x.shape[0], affines)
    match choose(backend, x, kernels=("cpp",), reference="numpy"):
        case "cpp":
            from fastpose.ops import cpp

            return cpp.decode_simcc((x, y), flipped, affines, options)
        case _:
            return decode_simcc_reference((x, y), flipped, affines, options)


@functools.lru_cache(maxsize=64)  # to check and to make them takes as long as to decode a person
def _options(
    split: float, peak_value: float, flip_pairs: tuple[tuple[int, ...], ...], joints: int
) -> SimccOptions:
    """Check the choices that `decode_simcc` was given."""
    for name, value in (("split", split), ("peak_value", peak_value)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return SimccOptions(
        split=split,
        flip_shift=max(0, round(split - 1)),
        peak_value=peak_value,
        partner=mirror_partners(flip_pairs, joints),
    )


def decode_simcc_reference(
    vectors: Pair, flipped: Pair | None, affines: Array | None, options: SimccOptions
) -> tuple[Array, Array]:
    """`decode_simcc` in plain numpy: the definition the kernel is tested against."""
    x, y = (to_host(v).astype(np.float32) for v in vectors)
    with np.errstate(all="ignore"):
        if flipped is not None:
            back_x, back_y = (to_host(v).astype(np.float32)[:, options.partner] for v in flipped)
            last = x.shape[2] - 1
            source = np.maximum(last - np.arange(last + 1) - options.flip_shift, 0)
            x = (x + back_x[..., source]) * np.float32(0.5)
            y = (y + back_y) * np.float32(0.5)
        x, y = (np.where(np.isnan(v), np.float32(0), v) for v in (x, y))
        peaks = np.stack((x.max(axis=2), y.max(axis=2)))
        value = peaks.min(axis=0).astype(np.float64)
        found = np.isfinite(peaks).all(axis=0) & (value > 0)
        points = np.stack((x.argmax(axis=2), y.argmax(axis=2)), axis=-1) / options.split
        points[~found] = np.nan
        if affines is not None:
            matrix = to_host(affines).astype(np.float64)[:, None]
            points = (matrix[..., :2] @ points[..., None])[..., 0] + matrix[..., 2]
        scores = np.where(found, value / options.peak_value, 0.0)
        return to_kind(points, vectors[0]), to_kind(scores, vectors[0])


def _check_vectors(name_x: str, x: Array, name_y: str, y: Array) -> None:
    for name, vectors in ((name_x, x), (name_y, y)):
        check_array(name, vectors)
        if vectors.ndim != 3 or vectors.shape[2] < 1:
            raise ValueError(
                f"{name} must be [N, K, bins] with at least one bin, got {list(vectors.shape)}"
            )
        if type_name(vectors) not in TYPES:
            raise ValueError(f"{name} must be {', '.join(TYPES)}, got {vectors.dtype}")
    if not isinstance(y, type(x)) or device_kind(y) != device_kind(x):
        raise ValueError(f"{name_y} must be a {type(x).__name__} on {device_kind(x)} like {name_x}")
    if x.shape[:2] != y.shape[:2] or x.dtype != y.dtype:
        raise ValueError(
            f"{name_y} must be {[*x.shape[:2]]} x bins of {x.dtype} like {name_x}, "
            f"got {list(y.shape)} {y.dtype}"
        )


def _check_flipped(
    vectors: Pair, flipped: Pair, flip_pairs: Sequence[tuple[int, int]] | None
) -> None:
    if not isinstance(flipped, tuple) or len(flipped) != 2:
        raise ValueError(f"flipped must be a pair (x, y), got {type(flipped).__name__}")
    _check_vectors("flipped x", flipped[0], "flipped y", flipped[1])
    _check_vectors("x", vectors[0], "flipped x", flipped[0])
    for name, straight, back in zip("xy", vectors, flipped, strict=True):
        if straight.shape != back.shape:
            raise ValueError(
                f"flipped {name} must be {list(straight.shape)} like {name}, got {list(back.shape)}"
            )
    if flip_pairs is None:
        raise ValueError("flip_pairs must be given with flipped, () for none, got None")
