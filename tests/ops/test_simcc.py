"""Truth (worked by hand, Gaussians with known centres) -> reference -> kernel."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from kernels import instruction_sets

from fastpose.errors import BackendError
from fastpose.ops import cpp, decode_simcc

NAN, INF = np.float32("nan"), np.float32("inf")

reference = functools.partial(decode_simcc, backend="reference")


@pytest.fixture(params=instruction_sets())
def kernel(request, monkeypatch):
    """`decode_simcc` on one instruction set."""
    fixed = functools.partial(cpp.decode_simcc, isa=request.param)
    monkeypatch.setattr(cpp, "decode_simcc", fixed)
    return functools.partial(decode_simcc, backend="cpp")


def rows(*vectors):
    """One window of one joint: each list of numbers as [1, 1, bins]."""
    return [np.asarray(v, np.float32)[None, None] for v in vectors]


def pair(points, size, split, sigma=6.0):
    """Points [N, K, 2] in pixels of an input of `size` (h, w) -> the vectors that SimCC learns."""
    centres = np.rint(np.asarray(points, np.float64) * split)
    made = []
    for axis, pixels in enumerate((size[1], size[0])):
        bins = np.arange(round(pixels * split))
        square = (bins - centres[..., axis, None]) ** 2
        made.append(np.exp(-square / (2 * sigma**2)).astype(np.float32))
    return made


# Truth -> reference


def test_vectors_worked_by_hand():
    points, scores = reference(*rows([0, 1, 5, 2], [3, 0, 0, 0, 1, 9]), peak_value=10.0)
    assert points.tolist() == [[[1.0, 2.5]]]  # bins 2 and 5, two a pixel
    assert scores.tolist() == [[0.5]]  # the lower of 5 and 9


@pytest.mark.parametrize("split", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("run", [reference, decode_simcc], ids=["reference", "kernel"])
def test_half_a_bin_is_the_largest_error(run, split):
    random = np.random.default_rng(0)
    truth = random.uniform((0, 0), (46, 62), (5, 17, 2))
    points, scores = run(*pair(truth, (64, 48), split), split=split)
    assert np.abs(points - truth).max() <= 0.5 / split + 1e-5
    assert (scores == 1).all()


def test_the_first_of_equal_maxima(kernel):
    for run in (reference, kernel):
        assert run(*rows([0, 2, 2, 0], [1, 1]))[0].tolist() == [[[0.5, 0]]]


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, INF, -INF])
def test_a_peak_that_is_none_makes_its_own_joint_invalid(kernel, bad):
    x, y = pair(np.full((1, 3, 2), 20.0), (64, 48), 2.0)
    x[0, 0], y[0, 2] = bad, bad
    for run in (reference, kernel):
        points, scores = run(x, y)
        assert np.isnan(points[0, [0, 2]]).all()
        assert scores.tolist() == [[0, 1, 0]]
        assert points[0, 1].tolist() == [20, 20]


def test_nan_counts_as_zero(kernel):
    x, y = rows([NAN, 0.5, NAN], [0, NAN, 0.25, NAN, NAN])
    for run in (reference, kernel):
        points, scores = run(x, y)
        assert points.tolist() == [[[0.5, 1.0]]]
        assert scores.tolist() == [[0.25]]


@pytest.mark.parametrize("split", [1.0, 2.0, 3.0])
def test_flip_of_a_true_network_changes_nothing(kernel, split):
    """Pixel u is W - 1 - u in the mirror image, and the two joints change places there."""
    random = np.random.default_rng(1)
    truth = random.integers((6, 6), (42, 58), (4, 2, 2)).astype(np.float64)
    mirrored = truth[:, ::-1] * (-1, 1) + (47, 0)
    flipped = tuple(pair(mirrored, (64, 48), split))
    for run in (reference, kernel):
        points, scores = run(
            *pair(truth, (64, 48), split), split=split, flipped=flipped, flip_pairs=[(0, 1)]
        )
        np.testing.assert_allclose(points, truth, atol=1e-5)
        np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_affines_take_pixels_into_the_frame(kernel):
    vectors = pair([[(20.0, 30.5)], [(11.0, 9.0)]], (64, 48), 2.0)
    affines = np.array([[[4, 0, 1.5], [0, 4, -7]], [[0, -3, 100], [3, 0, 5]]])
    for run in (reference, kernel):
        for dtype in (np.float32, np.float64):
            points, _ = run(*vectors, affines=affines.astype(dtype))
            np.testing.assert_allclose(points[:, 0], [(81.5, 115), (73, 38)], atol=1e-4)


# Reference -> kernel


@pytest.mark.parametrize("shape", [(2, 17, 384, 512), (3, 2, 1, 7), (1, 1, 33, 70), (0, 4, 5, 5)])
@pytest.mark.parametrize("kind", ["noise", "ties", "halves", "strided"])
@pytest.mark.parametrize("split", [1.0, 2.0, 2.5, 9.0])
def test_kernel_equals_reference(kernel, shape, kind, split):
    n, k, across, down = shape
    random = np.random.default_rng(across)
    both = random.normal(0.5, 1, (4, n, k, across + down)).astype(np.float32)
    if kind == "ties":
        both = np.rint(both)
    both.ravel()[:: max(1, both.size // 50)] = NAN
    x, y = both[0, ..., :across], both[0, ..., across:]  # views: as an engine hands them over
    back = both[1, ..., :across], both[1, ..., across:]
    if kind == "strided":
        x, y = x[:, ::-1, ::-1], y[:, ::-1, ::-1]
    if kind == "halves":
        x, y, back = x.astype(np.float16), y.astype(np.float16), tuple(map(np.float16, back))
    affines = random.normal(0, 1, (n, 2, 3))
    for companions in ({}, {"flipped": back, "flip_pairs": [(0, k - 1)]}):
        arguments = {"split": split, "affines": affines, "peak_value": 3.0, **companions}
        expected, actual = reference(x, y, **arguments), kernel(x, y, **arguments)
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(actual[1], expected[1])
        assert actual[0].shape == (n, k, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_give_tensors(kernel, dtype):
    x, y = (torch.from_numpy(v).to(dtype) for v in pair([[(20.0, 30.5)]], (64, 48), 2.0))
    x.requires_grad_()
    for run in (reference, kernel):
        points, scores = run(x, y, flipped=(x, y), flip_pairs=())
        assert isinstance(points, torch.Tensor)
        assert (points.dtype, scores.dtype) == (torch.float32, torch.float32)
        assert not points.requires_grad
    points, scores = kernel(x, y)
    assert points.tolist() == [[[20, 30.5]]]


def test_bad_arguments_are_named():
    x, y = pair([[(20.0, 30.0)]], (64, 48), 2.0)
    cases = {
        r"x must be a numpy array or a torch tensor, got list": ((x.tolist(), y), {}),
        r"x must be \[N, K, bins\] .* got \[1, 96\]": ((x[0], y), {}),
        r"y must be \[N, K, bins\] .* got \[1, 1, 0\]": ((x, y[..., :0]), {}),
        r"x must be float32, .* got float64": ((x.astype(np.float64), y), {}),
        r"y must be a ndarray on cpu like x": ((x, torch.from_numpy(y)), {}),
        r"y must be \[1, 1\] x bins of float32 like x, got \[1, 2, 128\]": (
            (x, np.repeat(y, 2, axis=1)),
            {},
        ),
        r"split must be positive and finite, got 0": ((x, y), {"split": 0}),
        r"peak_value must be positive and finite, got nan": ((x, y), {"peak_value": float("nan")}),
        r"affines must be \[1, 2, 3\] float32": ((x, y), {"affines": np.zeros((1, 3, 3))}),
        r"flipped must be a pair": ((x, y), {"flipped": x, "flip_pairs": ()}),
        r"flipped y must be \[1, 1, 128\] like y, got \[1, 1, 127\]": (
            (x, y),
            {"flipped": (x, y[..., 1:]), "flip_pairs": ()},
        ),
        r"flip_pairs must be given": ((x, y), {"flipped": (x, y)}),
        r"flip_pairs must name channels 0 to 0": ((x, y), {"flip_pairs": [(0, 1)]}),
    }
    for message, (arrays, options) in cases.items():
        with pytest.raises(ValueError, match=message):
            decode_simcc(*arrays, **options)
    with pytest.raises(BackendError, match="'cuda' cannot run on cpu"):
        decode_simcc(x, y, backend="cuda")
