"""From what a pose network gives to joints: the one place that knows the kinds of its output."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.geometry import CONVENTIONS, Doubles, apply, cells_to_frame, compose
from fastpose.models.cascade import locate_cascade
from fastpose.models.parts import PartTree, part_tree
from fastpose.models.spec import ModelSpec
from fastpose.models.views import merge_views
from fastpose.ops.choose import Array
from fastpose.types import Floats

Indices = npt.NDArray[np.int64]

LEAST_PEAK = 0.2  # of the peak that was taught; in a map of several joints a lower one is none


def locate_joints(
    results: Floats, affines: Doubles, spec: ModelSpec, *, flipped: Floats | None = None
) -> tuple[Floats, Floats]:
    """Find the joints of N windows.

    Args:
        results: what an engine gives for their S views each, [N * S, ...] with the views of a
            window side by side: see `ModelSpec.output`; SimCC's vectors are joined, x before y.
        affines: [N * S, 2, 3] window -> frame pixel, as `crop_people` returns them.
        spec: the network that made the results.
        flipped: its results for the mirrored windows, to be averaged in.

    Returns:
        points [N, K, 2] in frame pixels, NaN where there is no peak, and scores [N, K].

    Raises:
        ModelError: `flipped` was given for a network whose mirrored results have no meaning, or
            whose graph has averaged them in, or has found the joints, already.
    """
    if flipped is not None and spec.flip_inside:
        raise ModelError(f"{spec.name}: the graph itself averages the mirrored windows in")
    match spec.output:
        case "joints":
            return _read_joints(results, affines, spec, flipped)
        case "simcc":
            points, scores = _read_vectors(results, affines, spec, flipped)
        case "cascade":
            points, scores = locate_cascade(results, affines, spec, flipped)
        case "parts":
            points, scores = _read_parts(results, affines, spec, flipped)
        case _ if has_single_maps(spec):
            cells = cells_to_frame(affines, spec.convention, spec.size, results.shape[2:])
            return as_joints(*find_peaks(results, cells, spec, flipped), spec)
        case _:
            points, scores = _read_views(results, affines, spec, flipped)
    return points, _known(points, scores)


def has_single_maps(spec: ModelSpec) -> bool:
    """Whether every joint is a peak in one map of one view, so that `find_peaks` finds it."""
    return spec.output == "heatmap" and len(spec.views) == 1 and spec.enlarge == 1


def find_peaks(
    results: Array, cells: Array, spec: ModelSpec, flipped: Array | None = None
) -> tuple[Array, Array]:
    """The peaks in heat maps, in one pass where the maps lie: `as_joints` makes joints of them.

    Args:
        results: heat maps [N, C, h, w], numpy or torch, of a network that `has_single_maps`.
        cells: [N, 2, 3] cell -> frame pixel, on the same device.
        spec: the network that made them.
        flipped: its results for the mirrored windows, to be averaged in.

    Returns:
        points [N, K, 2] in frame pixels and scores [N, K]; with several peaks in a map
        [N, C, P, 2] and [N, C, P], highest first.
    """
    if spec.background:
        results = results[:, :-1]
        flipped = None if flipped is None else flipped[:, :-1]
    # joints of one map change places by being put in order again
    pairs = [(a // spec.peaks, b // spec.peaks) for a, b in spec.joints.flip_pairs]
    return ops.decode(
        results,
        **_peak_choices(spec),
        flipped=flipped,
        flip_pairs=None if flipped is None else [(a, b) for a, b in pairs if a != b],
        flip_shift=CONVENTIONS[spec.convention].flip_shift,
        affines=cells,
    )


def compile_peaks(spec: ModelSpec, dtype: str, capability: tuple[int, int]) -> ops.DecodeBinary:
    """`find_peaks` for a network that `has_single_maps`, compiled for a GPU.

    Args:
        spec: the network.
        dtype: of its heat maps, "float32", "float16" or "bfloat16".
        capability: compute capability of the device.

    Raises:
        BackendError: triton is not there.
    """
    (channels, h, w), choices = spec.results[0], _peak_choices(spec)
    maps = (channels - spec.background, h, w)
    return ops.compile_decode(maps, dtype, capability, channels=channels, **choices)


def _peak_choices(spec: ModelSpec) -> dict[str, Any]:
    """What `ops.decode` is told of a network's heat maps."""
    return {
        "method": spec.method,
        "sigma": spec.sigma,
        "peak_value": spec.peak_value,
        "peaks": spec.peaks,
    }


def as_joints(points: Floats, scores: Floats, spec: ModelSpec) -> tuple[Floats, Floats]:
    """What `find_peaks` found, on the host, as `locate_joints` returns it."""
    if spec.peaks > 1:
        points, scores = _order_peaks(points, scores)
    return points, _known(points, scores)


def _read_joints(
    results: Floats, affines: Doubles, spec: ModelSpec, flipped: Floats | None
) -> tuple[Floats, Floats]:
    """Joints that the graph has found, brought into the frame."""
    if flipped is not None:
        raise ModelError(
            f"{spec.name}: the graph finds the joints itself; "
            "for a flip test it must be built with one inside"
        )
    cells = cells_to_frame(affines, spec.convention, spec.size, spec.cells)
    points = apply(cells, results[..., :2].astype(np.float64)).astype(np.float32)
    scores = results[..., 2].copy()
    if spec.peaks > 1:
        maps = (len(results), -1, spec.peaks)
        points, scores = points.reshape(*maps, 2), scores.reshape(maps)
    return as_joints(points, scores, spec)


def _known(points: Floats, scores: Floats) -> Floats:
    """Scores [N, K], 0 where a peak lies nowhere, since no affine describes its window."""
    return np.where(np.isfinite(points).all(axis=2), scores, np.float32(0))


def _order_peaks(points: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Peaks [N, C, P, 2] of maps with P joints -> joints [N, C * P, 2], from left to right.

    A joint that has no peak comes last, as NaN with score 0: of a peak alone nobody can tell which
    of the joints it is.
    """
    found = scores >= LEAST_PEAK
    points = np.where(found[..., None], points, np.float32(np.nan))
    order = points[..., 0].argsort(axis=2, kind="stable")  # NaN is last
    points = np.take_along_axis(points, order[..., None], axis=2)
    scores = np.take_along_axis(np.where(found, scores, np.float32(0)), order, axis=2)
    n = len(points)
    return points.reshape(n, -1, 2), scores.reshape(n, -1)


def _read_views(
    results: Floats, affines: Doubles, spec: ModelSpec, flipped: Floats | None
) -> tuple[Floats, Floats]:
    """A peak for every joint in the joined maps of a person's views.

    One person at a time: joined, a person's maps take 15 MB.
    """
    if spec.background:
        results = results[:, :-1]
        flipped = None if flipped is None else flipped[:, :-1]
    count, k = len(spec.views), len(spec.joints)
    total = len(results) // count
    points, scores = np.empty((total, k, 2), np.float32), np.empty((total, k), np.float32)
    if flipped is not None:
        back = _mirrored_back(flipped, spec.joints.flip_order(), spec)
        results = (results + back) / np.float32(2)
    for person in range(total):
        rows = slice(person * count, (person + 1) * count)
        maps, window = merge_views(
            results[rows],
            spec.views,
            spec.convention,
            spec.size,
            enlarge=spec.enlarge,
            reduce=spec.scale_reduce,
        )
        points[person : person + 1], scores[person : person + 1] = ops.decode(
            maps[None],
            method=spec.method,
            sigma=spec.sigma * spec.enlarge,
            peak_value=spec.peak_value,
            affines=compose(affines[rows][:1], window),
        )
    return points, scores


def _mirrored_back(flipped: Floats, order: Indices, spec: ModelSpec) -> Floats:
    """Maps of mirrored windows as maps of the windows, whose map c is there map `order`[c]."""
    maps = flipped[:, order][..., ::-1]
    shift = CONVENTIONS[spec.convention].flip_shift
    return np.concatenate((maps[..., :shift], maps[..., : maps.shape[-1] - shift]), axis=-1)


def _read_parts(
    results: Floats, affines: Doubles, spec: ModelSpec, flipped: Floats | None
) -> tuple[Floats, Floats]:
    """The view of each person in which the pose of all parts is best.

    A joint's score is the probability that its part, of whatever type, is where it was placed.
    """
    tree = part_tree(spec.tree)
    types = _type_scores(results, tree)
    parts = types.sum(axis=2)
    if flipped is not None:
        if spec.method == "tree" and tree.types > 1:
            raise ModelError(
                f"{spec.name} has no flip test: its types of parts have no mirror twins"
            )
        mirrored = _type_scores(flipped, tree).sum(axis=2)
        parts = (parts + _mirrored_back(mirrored, tree.flip_order(), spec)) / np.float32(2)
        types = parts[:, :, None]
    if spec.method == "tree":
        cells, _, total = ops.fit_tree(types, tree.parents, tree.anchors)
        windows, kinds = np.ogrid[: len(parts), : len(tree.parts)]
        x, y = cells.astype(np.int64).transpose(2, 0, 1)
        scores = parts[windows, kinds, y, x]
    else:
        cells, scores = ops.decode(parts, method="argmax")
        total = scores.sum(axis=1, dtype=np.float64)
    best = np.arange(0, len(parts), len(spec.views))
    best = best + total.reshape(-1, len(spec.views)).argmax(axis=1)
    scores = tree.parts_to_joints(scores[best]) / np.float32(spec.peak_value)
    found = np.asarray(np.isfinite(scores) & (scores > 0))
    frame = cells_to_frame(affines[best], spec.convention, spec.size, results.shape[2:])
    points = apply(frame, tree.parts_to_joints(cells[best])).astype(np.float32)
    return np.where(found[..., None], points, np.float32(np.nan)), np.where(found, scores, 0)


def _type_scores(results: Floats, tree: PartTree) -> Floats:
    """[N, P * T + 1, h, w] -> [N, P, T, h, w], without the background."""
    n, _, h, w = results.shape
    return results[:, :-1].reshape(n, len(tree.parts), tree.types, h, w)


def _read_vectors(
    results: Floats, affines: Doubles, spec: ModelSpec, flipped: Floats | None
) -> tuple[Floats, Floats]:
    """A peak in each of the two vectors of every joint."""
    return ops.decode_simcc(
        *_vectors(results, spec),
        split=spec.split,
        flipped=None if flipped is None else _vectors(flipped, spec),
        flip_pairs=None if flipped is None else spec.joints.flip_pairs,
        peak_value=spec.peak_value,
        affines=affines,
    )


def _vectors(results: Floats, spec: ModelSpec) -> tuple[Floats, Floats]:
    """Views of x and y."""
    width = spec.results[0][-1]
    return results[..., :width], results[..., width:]
