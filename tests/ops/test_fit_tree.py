"""Truth (worked by hand, every placement tried) -> reference -> kernel."""

from __future__ import annotations

import functools
import itertools
import threading

import numpy as np
import pytest

from fastpose.errors import BackendError
from fastpose.models.parts import PART_TREES
from fastpose.ops import cpp, fit_tree, set_num_threads
from fastpose.ops.fit_tree import LOWEST, root_first, stretch

NAN, INF = float("nan"), float("inf")

on_both = pytest.mark.parametrize("backend", ["reference", "cpp"])


def maps(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def flat_anchors(parts, types=1):
    return np.zeros((parts, types, 2), np.int64)


def sum_of(scores, parents, anchors, points, types, weight):
    """What a placement of one body scores, [P, 2] (x, y) and [P], by the definition."""
    total = 0.0
    for part, parent in enumerate(parents):
        x, y = points[part].astype(int)
        total += float(scores[part, types[part], y, x])
        if parent >= 0:
            away = points[part] - points[parent] - anchors[part, types[part]]
            total -= weight * float((away.astype(np.float64) ** 2).sum())
    return total


# ---- truth ---------------------------------------------------------------------------------------


@on_both
def test_worked_by_hand(backend):
    scores = np.zeros((1, 2, 1, 3, 5), np.float32)
    scores[0, 0, 0, 1, 0] = 2  # the root's peak, (0, 1)
    scores[0, 1, 0, 0, 4] = 1  # its child's, (4, 0)
    anchors = np.array([[[9, 9]], [[3, 0]]])
    run = functools.partial(fit_tree, scores, [-1, 0], anchors, backend=backend)
    # the spring at (3, 1) is stretched to (4, 0), 1 + 1 square cells, or not at all
    points, types, total = run(weight=0.4)
    assert points.tolist() == [[[0, 1], [4, 0]]]
    assert types.tolist() == [[0, 0]]
    assert total == pytest.approx([2 + 1 - 2 * 0.4])
    assert (points.dtype, types.dtype, total.dtype) == (np.float32, np.int64, np.float64)
    points, _, total = run(weight=0.6)
    assert points.tolist() == [[[0, 1], [3, 1]]]
    assert total == pytest.approx([2])


@on_both
def test_a_strong_child_draws_its_parent(backend):
    scores = np.zeros((1, 2, 1, 1, 6), np.float32)
    scores[0, 0, 0, 0, [1, 4]] = 1.0, 0.9
    scores[0, 1, 0, 0, 5] = 1
    anchors = np.array([[[0, 0]], [[1, 0]]])
    points, _, total = fit_tree(scores, [-1, 0], anchors, weight=0.1, backend=backend)
    assert points.tolist() == [[[4, 0], [5, 0]]]
    assert total == pytest.approx([1.9])


TREES = {"chain": (-1, 0, 1), "fork": (-1, 0, 0), "backwards": (1, 2, -1)}


@on_both
@pytest.mark.parametrize("parents", TREES.values(), ids=TREES)
@pytest.mark.parametrize("seed", range(3))
def test_as_every_placement_tried(backend, parents, seed):
    """3 parts of 2 types on 5x5 cells: 125 000 placements."""
    scores = maps(1, 3, 2, 5, 5, seed=seed)
    anchors = np.random.default_rng(seed).integers(-3, 4, (3, 2, 2))
    states = list(itertools.product(range(2), range(5), range(5)))  # of a part: type, y, x
    kinds, y, x = np.array(states).T
    total = np.zeros((50, 50, 50))
    for part, parent in enumerate(parents):
        axis = [1, 1, 1]
        axis[part] = 50
        total += scores[0, part].reshape(axis)
        if parent >= 0:
            rest = anchors[part, kinds]  # [child's state, 2]
            across = x - x[:, None] - rest[:, 0]  # [parent's state, child's state]
            down = y - y[:, None] - rest[:, 1]
            cost = 0.05 * (across**2 + down**2)
            shape = [1, 1, 1]
            shape[part] = shape[parent] = 50
            total -= (cost if parent < part else cost.T).reshape(shape)
    best = np.unravel_index(total.argmax(), total.shape)
    points, types, found = fit_tree(scores, parents, anchors, weight=0.05, backend=backend)
    assert found == pytest.approx([total.max()], abs=1e-6)
    assert types[0].tolist() == [kinds[state] for state in best]
    assert points[0].tolist() == [[x[state], y[state]] for state in best]


SPRINGS = [(0, 0), (3, -2), (-17, 8), (41, 41), (-60, 3), (500, -700)]


@functools.cache
def by_looking_at_every_pair_of_cells(anchor):
    """A random 42x42 map, the transform's values [h * w] and all sums [x, v]."""
    scores = maps(42, 42, seed=abs(anchor[0]))
    cells = np.stack(np.divmod(np.arange(42 * 42), 42)[::-1], axis=1)  # (x, y)
    away = cells - cells[:, None] - np.array(anchor)
    sums = scores.ravel() - 0.03 * (away.astype(np.float64) ** 2).sum(axis=2)
    return scores, sums.max(axis=1), sums


@pytest.mark.parametrize("anchor", SPRINGS)
def test_the_reference_of_the_transform_is_the_maximum_over_all_cells(anchor):
    scores, expected, sums = by_looking_at_every_pair_of_cells(anchor)
    values, cells = stretch(scores[None].astype(np.float64), np.array([anchor]), 0.03)
    np.testing.assert_allclose(values.ravel(), expected, rtol=1e-9)
    at_cells = np.take_along_axis(sums, cells.reshape(-1, 1), axis=1)[:, 0]
    np.testing.assert_allclose(at_cells, expected, rtol=1e-9)


@pytest.mark.parametrize("anchor", SPRINGS)
def test_the_kernels_transform_is_the_maximum_over_all_cells(anchor):
    """A parent that must lie at one cell tells the transform there: all 1764 in turn."""
    child, expected, sums = by_looking_at_every_pair_of_cells(anchor)
    scores = np.zeros((42 * 42, 2, 1, 42, 42), np.float32)
    sure = np.float32(2**20)
    scores[:, 0, 0] = sure * np.eye(42 * 42, dtype=np.float32).reshape(-1, 42, 42)
    scores[:, 1, 0] = child
    anchors = np.array([[(0, 0)], [anchor]])
    points, _, total = fit_tree(scores, [-1, 0], anchors, weight=0.03, backend="cpp")
    np.testing.assert_allclose(total - sure, expected, rtol=1e-9, atol=1e-6)
    x, y = points[:, 1].astype(int).T
    at_cells = np.take_along_axis(sums, (y * 42 + x)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(at_cells, expected, rtol=1e-9, atol=1e-6)


@on_both
def test_of_equal_sums_the_first_type_and_the_first_cell_in_row_order(backend):
    scores = np.zeros((1, 2, 3, 4, 5), np.float32)
    scores[0, 0, 1:, 2, 1] = scores[0, 0, 1, 1, 3] = scores[0, 0, 2, 0, 0] = 1
    anchors = flat_anchors(2, 3)
    points, types, total = fit_tree(scores, [-1, 0], anchors, backend=backend)
    assert types.tolist() == [[1, 0]]
    assert points.tolist() == [[[3, 1], [3, 1]]]
    assert total.tolist() == [1]

    # 4 cells at the same distance from where the spring rests, and 1 lower by what that takes
    scores = np.zeros((1, 2, 1, 5, 5), np.float32)
    scores[0, 0, 0, 2, 2] = 8
    scores[0, 1, 0, [1, 2, 2, 3], [2, 1, 3, 2]] = 1
    scores[0, 1, 0, 2, 2] = 0.5
    points, _, _ = fit_tree(scores, [-1, 0], flat_anchors(2), weight=0.5, backend=backend)
    assert points.tolist() == [[[2, 2], [2, 1]]]


@on_both
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_score_that_is_not_finite_is_avoided(backend, bad):
    scores = maps(1, 3, 2, 4, 4)
    scores[0, :, :, 1] = bad
    points, types, total = fit_tree(scores, [-1, 0, 1], flat_anchors(3, 2), backend=backend)
    assert (points[..., 1] != 1).all()
    expected = sum_of(scores[0], (-1, 0, 1), flat_anchors(3, 2), points[0], types[0], 0.03)
    assert total == pytest.approx([expected])


@on_both
def test_nothing_but_nan_is_told_by_the_total(backend):
    scores = np.full((2, 2, 2, 3, 3), NAN, np.float32)
    scores[1] = 0.5
    points, types, total = fit_tree(scores, [-1, 0], flat_anchors(2, 2), backend=backend)
    assert total.tolist() == [2 * LOWEST, 1]
    assert not points.any()
    assert not types.any()


@on_both
def test_nobody(backend):
    tree = PART_TREES["lsp26"]
    scores = np.zeros((0, 26, 13, 42, 42), np.float32)
    points, types, total = fit_tree(scores, tree.parents, tree.anchors, backend=backend)
    assert (points.shape, types.shape, total.shape) == ((0, 26, 2), (0, 26), (0,))


# ---- reference -> kernel -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(42, 42), (7, 19), (1, 9), (8, 1), (1, 1)])
@pytest.mark.parametrize("name", PART_TREES)
@pytest.mark.parametrize("kind", ["noise", "peaks", "ties"])
def test_kernel_equals_reference(shape, name, kind):
    tree = PART_TREES[name]
    scores = maps(3, len(tree.parts), tree.types, *shape, seed=shape[1])
    weight = 0.03
    if kind == "peaks":
        scores = np.where(scores > 0.999, scores, scores * 1e-4)
    if kind == "ties":  # whole numbers, and a weight that binary fractions hold
        scores, weight = np.rint(3 * scores), 0.25
    arguments = (scores, tree.parents, tree.anchors)
    expected = fit_tree(*arguments, weight=weight, backend="reference")
    points, types, total = fit_tree(*arguments, weight=weight, backend="cpp")
    np.testing.assert_allclose(total, expected[2], rtol=1e-9)
    if kind == "ties":
        np.testing.assert_array_equal(points, expected[0])
        np.testing.assert_array_equal(types, expected[1])
    for body in range(3):  # the same up to ties
        placed = points[body], types[body], weight
        summed = sum_of(scores[body], tree.parents, tree.anchors, *placed)
        assert summed == pytest.approx(expected[2][body], abs=1e-6)


@pytest.mark.parametrize("weight", [5e-324, 1e-310, 1e-12, 1e3, 1e300])
def test_springs_that_hardly_hold_or_hardly_give(weight):
    tree = PART_TREES["flic18"]
    arguments = (maps(2, 18, 1, 12, 9), tree.parents, tree.anchors)
    expected = fit_tree(*arguments, weight=weight, backend="reference")
    actual = fit_tree(*arguments, weight=weight, backend="cpp")
    np.testing.assert_allclose(actual[2], expected[2], rtol=1e-9)
    np.testing.assert_array_equal(actual[0], expected[0])


@on_both
def test_strided_scores(backend):
    tree = PART_TREES["flic18"]
    room = maps(2, 19, 12, 10)
    view = room[:, None, ::-1].transpose(0, 2, 1, 4, 3)[:, 1:]
    arguments = (tree.parents, tree.anchors)
    expected = fit_tree(np.ascontiguousarray(view), *arguments, backend=backend)
    for ours, theirs in zip(fit_tree(view, *arguments, backend=backend), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_threads_change_nothing():
    tree = PART_TREES["flic18"]
    scores = maps(24, 18, 1, 20, 20)
    one = fit_tree(scores[:1], tree.parents, tree.anchors)
    found = []

    def work():
        found.append(fit_tree(scores, tree.parents, tree.anchors))

    before = cpp.get_num_threads()
    set_num_threads(4)
    try:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        set_num_threads(1)
        work()
    finally:
        set_num_threads(before)
    for results in found:
        for ours, theirs in zip(results, found[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found[0][0][:1], one[0])


# ---- arguments -----------------------------------------------------------------------------------


def test_the_root_comes_first_then_every_part_after_its_parent():
    assert root_first([1, 2, -1, 2]) == [2, 1, 3, 0]
    for tree in PART_TREES.values():
        order = root_first(tree.parents)
        assert sorted(order) == list(range(len(tree.parts)))
        assert all(
            tree.parents[i] == -1 or order.index(tree.parents[i]) < order.index(i) for i in order
        )


def test_bad_arguments_are_named():
    scores, parents, anchors = maps(1, 3, 2, 4, 4), [-1, 0, 1], flat_anchors(3, 2)
    cases = {
        r"scores must be a float32 numpy array \[N, P, T, h, w\], got float64": (
            scores.astype(np.float64),
            parents,
            anchors,
        ),
        r"got list": (scores.tolist(), parents, anchors),
        r"only N may be 0, got \[3, 2, 4, 4\]": (scores[0], parents, anchors),
        r"only N may be 0, got \[1, 3, 2, 0, 4\]": (scores[..., :0, :], parents, anchors),
        r"parents must be \[3\] integers, got \[2\] int64": (scores, [-1, 0], anchors),
        r"parents must be \[3\] integers, got \[3\] float64": (scores, [-1.0, 0, 1], anchors),
        r"parent of part 2 must be -1 to 2, got 3": (scores, [-1, 0, 3], anchors),
        r"part 1 has no way to the root": (scores, [-1, 2, 1], anchors),
        r"one part must be the root, with parent -1; there are: 0, 1": (
            scores,
            [-1, -1, 0],
            anchors,
        ),
        r"anchors must be \[3, 2, 2\] integers, got \[3, 2\] int64": (
            scores,
            parents,
            anchors[..., 0],
        ),
        r"anchors must be \[3, 2, 2\] integers, got \[3, 2, 2\] float64": (
            scores,
            parents,
            anchors / 2,
        ),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            fit_tree(*arguments)
    for weight in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="weight must be positive and finite, got"):
            fit_tree(scores, parents, anchors, weight=weight)
    with pytest.raises(BackendError, match="'cuda' cannot run on cpu"):
        fit_tree(scores, parents, anchors, backend="cuda")
