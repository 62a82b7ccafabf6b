"""Poses as trees of parts: the best placement of all parts together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastpose.ops.choose import choose

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# What a score that is not finite counts as: less than the rest of a body can make up for.
LOWEST = -1e6


def fit_tree(
    scores: npt.NDArray,
    parents: Sequence[int] | npt.NDArray,
    anchors: npt.NDArray,
    *,
    weight: float = 0.03,
    backend: str | None = None,
) -> tuple[Floats, Indices, Doubles]:
    """Place all parts of N bodies so that scores less the stretch of the tree are highest.

    With s[i, k](v) the score of part i as type k at cell v, and r[i, k] the offset from its parent
    at which the spring of that type rests, part i at best adds to its parent at x

        m[i](x) = max over k and v of S[i, k](v) - weight |v - x - r[i, k]|^2,

    where S[i, k] is s[i, k] plus the m of all children of i. The root takes the highest S, and each
    part the v and k that gave its m there. (Yang and Ramanan, Articulated Pose Estimation with
    Flexible Mixtures-of-Parts, CVPR 2011, without biases between types; weight as released with Chu
    et al., Structured Feature Learning for Pose Estimation, CVPR 2016.) The inner maximum is a
    generalised distance transform, first along rows, then along columns, in time linear in the
    cells (Felzenszwalb and Huttenlocher, Distance Transforms of Sampled Functions, Theory of
    Computing 2012); a part is never placed outside of the map.

    Of equal sums the first type counts, and of its cells the first in row order. A score that is
    not finite counts as `LOWEST`.

    Args:
        scores: [N, P, T, h, w] float32.
        parents: [P] index of each part's parent, -1 for the root.
        anchors: [P, T, 2] (x, y) whole cells, of any sign; the root's do not count.
        weight: of a spring, per square cell.
        backend: "cpp" or "reference"; None means the fastest there is.

    Returns:
        points: [N, P, 2] float32 (x, y) in cells.
        types: [N, P] int64.
        total: [N] float64, the highest S of the root.

    Raises:
        ValueError: an argument is not as above, or the parents are no tree.
        BackendError: `backend` was named and cannot run here.
    """
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float32:
        came = getattr(scores, "dtype", type(scores).__name__)
        raise ValueError(f"scores must be a float32 numpy array [N, P, T, h, w], got {came}")
    if scores.ndim != 5 or 0 in scores.shape[1:]:
        raise ValueError(
            f"scores must be [N, P, T, h, w], only N may be 0, got {list(scores.shape)}"
        )
    count, types = scores.shape[1:3]
    parents = np.asarray(parents)
    if parents.shape != (count,) or parents.dtype.kind not in "iu":
        raise ValueError(
            f"parents must be [{count}] integers, got {list(parents.shape)} {parents.dtype}"
        )
    anchors = np.asarray(anchors)
    if anchors.shape != (count, types, 2) or anchors.dtype.kind not in "iu":
        raise ValueError(
            f"anchors must be {[count, types, 2]} integers, "
            f"got {list(anchors.shape)} {anchors.dtype}"
        )
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"weight must be positive and finite, got {weight!r}")
    order = root_first(parents.tolist())
    run = fit_tree_reference
    if choose(backend, scores, kernels=("cpp",), reference="numpy") == "cpp":
        from fastpose._C import fit_tree as run
    return run(
        np.ascontiguousarray(scores),
        np.ascontiguousarray(parents, np.int64),
        np.array(order, np.int64),
        np.ascontiguousarray(anchors, np.int64),
        weight,
    )


def fit_tree_reference(
    scores: Floats, parents: Indices, order: Indices, anchors: Indices, weight: float
) -> tuple[Floats, Indices, Doubles]:
    """`fit_tree` in plain numpy: the definition the kernel is tested against.

    `order` is that of `root_first`.
    """
    n, p, _, height, width = scores.shape
    points, types = np.empty((n, p, 2), np.float32), np.empty((n, p), np.int64)
    total = np.empty(n)
    for body in range(n):
        sums = np.where(np.isfinite(scores[body]), scores[body], LOWEST).astype(np.float64)
        kinds: dict[int, Indices] = {}
        places: dict[int, Indices] = {}
        for part in order[:0:-1]:
            best, place = stretch(sums[part], anchors[part], weight)
            kinds[part], places[part] = best.argmax(axis=0), place
            sums[parents[part]] += best.max(axis=0)
        root = order[0]
        cell = int(sums[root].argmax())
        total[body] = sums[root].flat[cell]
        for part in order:
            if part == root:
                kind, cell = divmod(cell, height * width)
            else:
                x, y = points[body, parents[part]].astype(int)
                kind = kinds[part][y, x]
                cell = places[part][kind, y, x]
            types[body, part], points[body, part] = kind, (cell % width, cell // width)
    return points, types, total


def stretch(scores: Doubles, anchors: Indices, weight: float) -> tuple[Doubles, Indices]:
    """The best score around the place where each spring rests, by looking at every cell.

    Args:
        scores: [T, h, w].
        anchors: [T, 2] (x, y) cells.
        weight: per square cell.

    Returns:
        For every cell x, [T, h, w], the maximum over the cells v of score(v) - weight
        |v - x - anchor|^2, and the first such v in row order, as y * w + x.
    """
    height, width = scores.shape[1:]
    across = scores[:, :, None] - _spring(width, anchors[:, 0], weight)[:, None]  # [T, vy, x, vx]
    column = across.argmax(axis=3)
    rows = across.max(axis=3).transpose(0, 2, 1)[:, None]  # [T, 1, x, vy]
    down = rows - _spring(height, anchors[:, 1], weight)[:, :, None]  # [T, y, x, vy]
    row = down.argmax(axis=3)
    kinds, x = np.arange(len(scores))[:, None, None], np.arange(width)
    return down.max(axis=3), row * width + column[kinds, row, x]


def _spring(size: int, rest: Indices, weight: float) -> Doubles:
    """[T, size, size] what it takes for each place of the parent (first) and of the child."""
    place = np.arange(size)
    return weight * (place - place[:, None] - rest[:, None, None]).astype(np.float64) ** 2


def root_first(parents: Sequence[int], names: Sequence[str] | None = None) -> list[int]:
    """The nodes of a tree in an order in which each comes after its parent.

    Args:
        parents: [P] index of each node's parent, -1 for the root.
        names: what messages call the nodes; None for their indices.

    Raises:
        ValueError: there is no root or more than one, a parent is no node, or nodes form a ring;
            the text names a node at fault.
    """
    names = [str(i) for i in range(len(parents))] if names is None else names
    roots = [i for i, parent in enumerate(parents) if parent == -1]
    if len(roots) != 1:
        listed = ", ".join(names[i] for i in roots) or "none"
        raise ValueError(f"one part must be the root, with parent -1; there are: {listed}")
    for name, parent in zip(names, parents, strict=True):
        if not -1 <= parent < len(parents):
            raise ValueError(
                f"the parent of part {name} must be -1 to {len(parents) - 1}, got {parent}"
            )
    order = roots
    for node in order:
        order.extend(i for i, parent in enumerate(parents) if parent == node)
    if len(order) < len(parents):
        lost = next(i for i in range(len(parents)) if i not in order)
        raise ValueError(f"part {names[lost]} has no way to the root: its parents form a ring")
    return order
