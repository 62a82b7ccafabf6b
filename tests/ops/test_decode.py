"""Truth (worked by hand, Gaussians with known centres, OpenCV) -> reference -> kernel."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from kernels import instruction_sets, kernels

from fastpose import _C
from fastpose.errors import BackendError
from fastpose.ops import cpp, decode, render

METHODS = importlib.import_module("fastpose.ops.decode").METHODS
TOLERANCE = 1e-4  # cells
NAN, INF = np.float32("nan"), np.float32("inf")

reference = functools.partial(decode, backend="reference")


CPP = [pytest.param((isa, "cpu"), id=isa) for isa in instruction_sets()]
TRITON = [pytest.param(p.values, id=p.id, marks=p.marks) for p in kernels("triton")]
ON_CUDA = ("triton", "cuda") in [param.values[0] for param in TRITON]


def on_backend(name, device, monkeypatch):
    """`decode` in Triton, arguments on the device, or in C++ on the instruction set `name`."""
    if name != "triton":
        monkeypatch.setattr(cpp, "decode", functools.partial(cpp.decode, isa=name))
        return functools.partial(decode, backend="cpp")
    # What the kernel leaves unwritten is NaN.
    monkeypatch.setattr(torch, "empty", functools.partial(torch.full, fill_value=np.nan))
    if device == "cpu":
        return functools.partial(decode, backend="triton")

    def moved(value):
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    def run(maps, **arguments):
        arguments = {key: moved(value) for key, value in arguments.items()}
        points, scores = (r.cpu() for r in decode(moved(maps), backend="triton", **arguments))
        return (
            (points.numpy(), scores.numpy()) if isinstance(maps, np.ndarray) else (points, scores)
        )

    return run


@pytest.fixture(params=[*CPP, *TRITON])
def kernel(request, monkeypatch):
    """`decode` by every kernel, Triton's interpreted where there is no GPU."""
    return on_backend(*request.param, monkeypatch)


@pytest.fixture(params=CPP)
def cpp_kernel(request, monkeypatch):
    return on_backend(*request.param, monkeypatch)


@pytest.fixture(params=[*CPP, *(TRITON if ON_CUDA else [])])
def fast_kernel(request, monkeypatch):
    """As `kernel`, but for so many maps that the interpreter would take minutes."""
    return on_backend(*request.param, monkeypatch)


@pytest.fixture(params=TRITON)
def triton_kernel(request, monkeypatch):
    return on_backend(*request.param, monkeypatch)


def gaussians(centres, size=(64, 48), sigma=2.0):
    """Centres [N, 2] -> maps [N, 1, h, w]."""
    y, x = np.mgrid[: size[0], : size[1]]
    centres = np.asarray(centres, np.float64)[:, :, None, None]
    square = (x - centres[:, 0]) ** 2 + (y - centres[:, 1]) ** 2
    return np.exp(-square / (2 * sigma**2)).astype(np.float32)[:, None]


def one(rows):
    """One map from its rows, [1, 1, h, w]."""
    return np.asarray(rows, np.float32)[None, None]


# Truth -> reference


HAND = one([[0, 1, 0], [2, 8, 4], [0, 5, 0]])


@pytest.mark.parametrize(
    ("method", "point"),
    [
        ("argmax", (1, 1)),
        ("quarter", (1.25, 1.25)),
        ("parabola", (1 + 0.5 * 2 / 10, 1 + 0.5 * 4 / 10)),
        ("taylor", (1, 1)),  # no second neighbours
        ("dark", (1, 1)),
    ],
)
def test_map_worked_by_hand(method, point):
    points, scores = reference(HAND, method=method, peak_value=16.0)
    np.testing.assert_allclose(points[0, 0], point, atol=1e-6)
    assert scores[0, 0] == 0.5


def test_taylor_worked_by_hand():
    # log H = 1 - (x - 2)^2 - 2 (y - 2)^2 + (x - 2) (y - 2) + 0.2 (x - 2): a parabola, so one
    # step is exact. Hessian [[-2, 1], [1, -4]], gradient (0.2, 0): the step is (0.8, 0.2) / 7.
    y, x = np.mgrid[-2:3, -2:3].astype(np.float64)
    heights = np.exp(1 - x**2 - 2 * y**2 + x * y + 0.2 * x)
    points, _ = reference(one(heights), method="taylor")
    np.testing.assert_allclose(points[0, 0], (2 + 0.8 / 7, 2 + 0.2 / 7), atol=1e-5)


@pytest.mark.parametrize("x", [20.0, 20.4, 20.5, 19.9])
@pytest.mark.parametrize("y", [31.0, 30.6, 31.5])
@pytest.mark.parametrize(
    ("method", "bound"),
    [
        ("argmax", 0.5),
        ("quarter", 0.25),
        ("parabola", 0.02),
        ("taylor", 1e-4),
        ("dark", 1e-3),
        ("udp", 1e-4),
        ("soft", 0.01),
        ("cpn", 0.5),
    ],
)
def test_error_on_a_clean_gaussian(method, bound, x, y):
    points, _ = reference(gaussians([(x, y)]), method=method)
    assert np.abs(points[0, 0] - (x, y)).max() <= bound + 1e-5


def test_methods_keep_their_order():
    random = np.random.default_rng(0)
    centres = random.uniform((8, 8), (40, 56), (300, 2))
    clean = gaussians(centres)
    noisy = (clean + random.normal(0, 0.005, clean.shape)).astype(np.float32)

    def error(maps, method):
        points, _ = reference(maps, method=method)
        return np.linalg.norm(points[:, 0] - centres, axis=-1).mean()

    methods = ("argmax", "quarter", "parabola", "taylor", "dark", "udp")
    on_clean = {method: error(clean, method) for method in methods}
    for method, expected in zip(methods, (0.38, 0.19, 0.012, 0, 0, 0), strict=True):
        assert on_clean[method] == pytest.approx(expected, abs=0.015), method
    on_noisy = {method: error(noisy, method) for method in methods}
    assert on_noisy["dark"] <= on_noisy["parabola"] < on_noisy["quarter"] < on_noisy["argmax"]
    assert on_noisy["parabola"] <= 0.036
    assert max(on_noisy["dark"], on_noisy["udp"]) <= 0.032


def blurred_by_opencv(heights, radius, border):
    size = 2 * radius + 1
    padded = np.pad(heights.astype(np.float64), radius)
    if border == "zero":
        return cv2.GaussianBlur(padded, (size, size), 0)[radius:-radius, radius:-radius]
    return cv2.GaussianBlur(heights.astype(np.float64), (size, size), 0)


@pytest.mark.parametrize(("sigma", "radius"), [(2.0, 5), (3.0, 8)])
@pytest.mark.parametrize("place", [(20.3, 30.8), (2.2, 61.4), (0.6, 0.2), (47.0, 30.3)])
def test_dark_and_udp_follow_their_papers(sigma, radius, place):
    random = np.random.default_rng(1)
    maps = gaussians([place], sigma=sigma) + 0.02 * random.random((1, 1, 64, 48), np.float32)
    heights = maps[0, 0].astype(np.float64)
    y, x = np.unravel_index(heights.argmax(), heights.shape)

    dark = blurred_by_opencv(heights, radius, "zero")
    dark = np.log(np.maximum(dark * heights.max() / dark.max(), 1e-10))
    step = np.zeros(2)
    if 1 < x < 46 and 1 < y < 62:
        gradient = [dark[y, x + 1] - dark[y, x - 1], dark[y + 1, x] - dark[y - 1, x]]
        xx = dark[y, x + 2] - 2 * dark[y, x] + dark[y, x - 2]
        yy = dark[y + 2, x] - 2 * dark[y, x] + dark[y - 2, x]
        xy = np.sum(dark[y - 1 : y + 2 : 2, x - 1 : x + 2 : 2] * [[1, -1], [-1, 1]])
        step = np.linalg.solve(np.array([[xx, xy], [xy, yy]]) / 4, np.array(gradient) / 2)
    points, _ = reference(maps, method="dark", sigma=sigma)
    np.testing.assert_allclose(points[0, 0], (x, y) - step, atol=TOLERANCE)

    udp = np.log(blurred_by_opencv(heights, radius, "mirror").clip(1e-3, 50))
    udp = np.pad(udp, 1, mode="edge")[y : y + 3, x : x + 3]
    gradient = np.array([udp[1, 2] - udp[1, 0], udp[2, 1] - udp[0, 1]]) / 2
    xx, yy = udp[1] @ (1, -2, 1), udp[:, 1] @ (1, -2, 1)
    xy = np.sum(udp * [[1, -1, 0], [-1, 2, -1], [0, -1, 1]]) / 2
    hessian = np.array([[xx, xy], [xy, yy]]) + np.finfo(np.float32).eps * np.eye(2)
    points, _ = reference(maps, method="udp", sigma=sigma)
    np.testing.assert_allclose(
        points[0, 0], (x, y) - np.linalg.solve(hessian, gradient), atol=TOLERANCE
    )


def test_cpn_moves_towards_the_second_peak_of_the_blurred_map():
    random = np.random.default_rng(2)
    maps = (gaussians([(20.4, 30.1), (0.2, 40.0)]) * 255 + random.random((2, 1, 64, 48))).astype(
        np.float32
    )
    points, scores = reference(maps, method="cpn", peak_value=255.0)
    for i in range(2):
        blurred = blurred_by_opencv(maps[i, 0], 10, "zero")
        first = np.array(np.unravel_index(blurred.argmax(), blurred.shape))
        blurred[tuple(first)] = 0
        towards = np.array(np.unravel_index(blurred.argmax(), blurred.shape)) - first
        expected = first + 0.25 * towards / np.linalg.norm(towards)
        np.testing.assert_allclose(points[i, 0], expected.clip(0)[::-1], atol=1e-5)
        assert scores[i, 0] == maps[i, 0][tuple(first)] / np.float32(255)


def test_published_spot_values():
    """Input 192 x 256, map 48 x 64, joint at (50.3, 70.2) of the input."""
    joint, seen = torch.tensor([[[50.3, 70.2]]]), torch.ones(1, 1)

    def decoded(offset, style, method, peak_value=1.0):
        grid = torch.tensor([[[4.0, 0, offset], [0, 4, offset]]])
        maps = render(
            (joint - offset) / 4, seen, (64, 48), sigma=2.0, style=style, peak_value=peak_value
        )
        points, scores = decode(maps, method=method, affines=grid, peak_value=peak_value)
        return points[0, 0].tolist(), scores.item()

    assert decoded(0, "msra", "quarter") == ([52, 72], 1)
    point, score = decoded(0, "exact", "dark")
    assert point == pytest.approx([50.301, 70.201], abs=1e-3)
    assert score == pytest.approx(0.953, abs=5e-4)
    point, score = decoded(2, "megvii", "quarter", 255.0)
    assert point == [50, 70]
    assert score + 0.5 == 1.5  # the released code adds a half


@pytest.mark.parametrize(
    ("style", "method", "bound"),
    [
        ("exact", "dark", 0.01),
        ("exact", "taylor", 0.01),
        ("udp", "udp", 0.01),
        ("caffe", "parabola", 0.03),
        ("msra", "quarter", 0.5),
        ("megvii", "cpn", 0.75),
        ("hourglass", "quarter", 0.5),
    ],
)
def test_what_was_rendered_is_found(style, method, bound):
    points = torch.from_numpy(np.random.default_rng(3).uniform(6, 40, (4, 3, 2))).float()
    maps = render(points, torch.ones(4, 3), (47, 49), sigma=2.0, style=style)
    found, _ = decode(maps, method=method)
    assert (found - points).abs().max() <= bound + 1e-5


# Merging


def test_flip_and_stages_are_merged_before_the_peak():
    random = np.random.default_rng(4)
    maps, flipped = random.random((2, 3, 2, 4, 9, 7), np.float32)
    for stages, join in (("last", lambda m: m[-1]), ("sum", np.sum), ("mean", np.mean)):
        join = join if stages == "last" else functools.partial(join, axis=0)
        for shift in (0, 1):
            back = join(flipped)[:, [0, 2, 1, 3], :, ::-1].copy()
            if shift:
                back[..., 1:] = back[..., :-1].copy()
            expected = reference((join(maps) + back) / 2, method="dark")
            for backend in ("reference", "cpp"):
                actual = decode(
                    maps,
                    method="dark",
                    stages=stages,
                    flipped=flipped,
                    flip_pairs=[(1, 2)],
                    flip_shift=shift,
                    backend=backend,
                )
                np.testing.assert_allclose(actual[0], expected[0], atol=1e-3)
                np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)


def test_mirrored_maps_give_a_mirrored_pose():
    maps = np.random.default_rng(5).random((1, 2, 12, 9), np.float32)
    points, _ = decode(maps, method="argmax", flipped=maps, flip_pairs=[(0, 1)])
    assert points[0, 0, 0] + points[0, 1, 0] == 8
    assert points[0, 0, 1] == points[0, 1, 1]


def test_affines_take_cells_into_the_frame(kernel):
    maps = gaussians([(20.25, 30.5), (11.0, 9.75)])
    affines = np.array([[[4, 0, 1.5], [0, 4, -7]], [[0, -3, 100], [3, 0, 5]]], np.float32)
    points, scores = kernel(maps, method="dark", affines=affines)
    np.testing.assert_allclose(points[:, 0], [(82.5, 115), (70.75, 38)], atol=0.02)
    in_double = kernel(maps, method="dark", affines=affines.astype(np.float64))
    np.testing.assert_array_equal(points, in_double[0])
    np.testing.assert_array_equal(scores, kernel(maps, method="dark")[1])


# What is no ordinary peak


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, -1.0, INF, -INF, NAN])
def test_a_peak_that_is_none(kernel, method, value):
    maps = np.full((1, 1, 6, 7), value, np.float32)
    for run in (reference, kernel):
        points, scores = run(maps, method=method)
        assert np.isnan(points).all()
        assert (scores == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_nan_counts_as_zero(kernel, method):
    maps = gaussians([(20.3, 30.8)]) + np.float32(0.01)
    without = maps.copy()
    for x, y in ((0, 0), (22, 30), (20, 32), (47, 63), (24, 35)):
        maps[0, 0, y, x], without[0, 0, y, x] = NAN, 0
    expected = reference(without, method=method)
    assert np.isfinite(expected[0]).all()
    for run in (reference, kernel):
        actual = run(maps, method=method)
        np.testing.assert_allclose(actual[0], expected[0], atol=TOLERANCE)
        np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize("method", METHODS)
def test_infinity_makes_its_own_map_invalid_and_no_other(kernel, method):
    maps = np.concatenate((gaussians([(20.3, 30.8)], (40, 32)),) * 3)
    maps[0, 0, 5, 5] = INF
    maps[1, 0, 31, 21] = -INF
    expected, actual = (run(maps, method=method) for run in (reference, kernel))
    for points, scores in (expected, actual):
        assert np.isnan(points[0]).all()
        assert scores[0] == 0
        assert np.isfinite(points[1:]).all()
    np.testing.assert_allclose(actual[0][1:], expected[0][1:], atol=TOLERANCE)


def test_the_first_maximum_in_row_order(kernel):
    maps = one([[0, 1, 1], [1, 0, 0]])
    for run in (reference, kernel):
        assert run(maps, method="argmax")[0].tolist() == [[[1, 0]]]


# Several peaks


def test_peaks_are_far_apart_and_highest_first(kernel):
    maps = np.zeros((1, 2, 20, 20), np.float32)
    maps[0, 0, 4, 4], maps[0, 0, 4, 6], maps[0, 0, 10, 10], maps[0, 0, 16, 3] = 0.9, 0.8, 0.7, 1.0
    maps[0, 0, 12, 12] = 0.6
    for run in (reference, kernel):
        points, scores = run(maps, method="argmax", peaks=4)
        assert points.shape == (1, 2, 4, 2)
        assert points[0, 0, :3].tolist() == [[3, 16], [4, 4], [10, 10]]  # others are too near
        assert scores[0, 0].tolist() == pytest.approx([1, 0.9, 0.7, 0])
        assert np.isnan(points[0, 0, 3]).all()
        assert np.isnan(points[0, 1]).all()
        assert (scores[0, 1] == 0).all()


def test_two_clean_peaks_are_refined_each():
    centres = [(10.3, 20.6), (30.2, 41.9)]
    maps = np.maximum(*gaussians(centres)[:, None])
    points, _ = decode(maps, method="taylor", peaks=2)
    found = points[0, 0][np.argsort(points[0, 0, :, 0])]
    np.testing.assert_allclose(found, centres, atol=0.1)


# Reference -> kernel


def make(kind, shape):
    random = np.random.default_rng(shape[-1])
    match kind:
        case "noise":
            return random.random(shape, np.float32)
        case "signed":
            return random.normal(0, 1, shape).astype(np.float32)
        case "flat":
            return np.full(shape, 0.3, np.float32)
        case "ties":
            return random.integers(0, 4, shape).astype(np.float32)
        case _:
            centres = random.uniform((0, 0), (shape[3], shape[2]), (shape[0] * shape[1], 2))
            return gaussians(centres, shape[2:]).reshape(shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["noise", "signed", "flat", "ties", "gaussians"])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 64, 48), (1, 2, 33, 70), (1, 2, 3, 3), (2, 2, 1, 7), (1, 3, 1, 1), (0, 4, 5, 5)],
    ids=str,
)
def test_kernel_equals_reference(cpp_kernel, method, kind, shape):
    check_merged_and_several_peaks(cpp_kernel, method, make(kind, shape))


def check_merged_and_several_peaks(kernel, method, maps):
    flipped = maps[:, :, ::-1].copy()
    for peaks in (1,) if method == "cpn" else (1, 3):
        for companion in (None, flipped):
            arguments = {
                "method": method,
                "peaks": peaks,
                "flipped": companion,
                "flip_pairs": [(0, 1)],
                "flip_shift": 1,
            }
            expected, actual = reference(maps, **arguments), kernel(maps, **arguments)
            # A step on a map without a clear peak may be long: its last digits are relative.
            np.testing.assert_allclose(actual[0], expected[0], atol=TOLERANCE, rtol=1e-5)
            np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(11, 14), (1, 7)], ids=str)
def test_triton_equals_reference(triton_kernel, method, shape):
    kinds = ("noise", "signed", "flat", "ties", "gaussians")
    maps = np.concatenate([make(kind, (1, 1, *shape)) for kind in kinds], axis=1)
    maps[0, 0, 0, 0] = NAN
    arguments = {"method": method, "flip_pairs": [(0, 1), (2, 4)], "sigma": 1.5}
    for peaks, shift, flipped in ((1, 0, None), (1, 1, maps), (3, 0, maps)):
        if peaks > 1 and method == "cpn":
            continue
        arguments |= {"peaks": peaks, "flip_shift": shift, "flipped": flipped}
        expected, actual = reference(maps, **arguments), triton_kernel(maps, **arguments)
        np.testing.assert_allclose(actual[0], expected[0], atol=TOLERANCE, rtol=1e-5)
        np.testing.assert_array_equal(actual[1], expected[1])


def test_nobody_in_triton(triton_kernel):
    points, scores = triton_kernel(np.zeros((0, 4, 5, 5), np.float32))
    assert points.shape == (0, 4, 2)
    assert scores.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["channels-last", "columns", "joints", "expanded"])
def test_triton_reads_what_is_strided(triton_kernel, monkeypatch, layout, dtype):
    kernels_of_triton = importlib.import_module("fastpose.ops.triton.decode")
    monkeypatch.setattr(kernels_of_triton, "_PROGRAMS", 3)  # two channels a program
    maps = torch.from_numpy(make("noise", (2, 5, 12, 9))).to(dtype)
    match layout:
        case "channels-last":
            maps = maps.to(memory_format=torch.channels_last)
        case "columns":
            maps = maps[..., 1:-1]
        case "joints":
            maps = maps[:, 1:4]
        case _:
            maps = maps[:1].expand(3, 5, 12, 9)
    for companion in (None, maps):
        arguments = {"method": "udp", "flipped": companion, "flip_pairs": [(0, 2)]}
        expected, actual = reference(maps, **arguments), triton_kernel(maps, **arguments)
        torch.testing.assert_close(actual[0], expected[0], atol=TOLERANCE, rtol=1e-5)
        assert torch.equal(actual[1], expected[1])


def test_dark_is_scaled_back_by_the_highest_of_the_whole_map(kernel):
    # What is negative two cells from the peak is at the floor of the logarithm after the blur, so
    # the scale counts; the blurred map is highest far from the peak.
    maps = make("noise", (1, 2, 20, 30)) / 10
    maps[0, :, 10, 8], maps[0, :, 9:12, 10] = 1, -1
    maps[0, 1, 9, 8] = 0.7
    maps[0, :, 4, 20], maps[0, :, 3:6, 22] = 0.8, -1
    for peaks in (1, 2):
        arguments = {"method": "dark", "sigma": 1.0, "peaks": peaks}
        expected, actual = reference(maps, **arguments), kernel(maps, **arguments)
        np.testing.assert_allclose(actual[0], expected[0], atol=TOLERANCE)
        assert (expected[0] != expected[0].round()).all()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.5, 3.0, 4.5])
@pytest.mark.parametrize("method", ["dark", "udp", "soft"])
def test_kernel_equals_reference_for_every_width(kernel, method, sigma):
    maps = make("gaussians", (3, 2, 24, 19)) + make("noise", (3, 2, 24, 19)) / 20
    expected, actual = (run(maps, method=method, sigma=sigma) for run in (reference, kernel))
    np.testing.assert_allclose(actual[0], expected[0], atol=TOLERANCE)


@pytest.mark.parametrize("stages", ["last", "sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_types_and_stages(kernel, dtype, stages):
    values = np.random.default_rng(6).normal(0, 1, (3, 2, 3, 21, 17))
    values[:, 0, 0] *= 1e-6  # subnormal in float16
    values[:, 0, 1, 3, 4] = np.inf
    values[:, 0, 2, 3, 4] = np.nan
    maps = torch.from_numpy(values).to(dtype)
    flipped = maps.flip(-2)
    for companion in (None, flipped):
        arguments = {"method": "quarter", "stages": stages, "flipped": companion, "flip_pairs": ()}
        expected, actual = reference(maps, **arguments), kernel(maps, **arguments)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if dtype == torch.float16:
        points, scores = kernel(maps.numpy(), method="quarter", stages=stages)
        assert isinstance(points, np.ndarray)
        torch.testing.assert_close(
            (torch.from_numpy(points), torch.from_numpy(scores)),
            kernel(maps, method="quarter", stages=stages),
            equal_nan=True,
        )


def test_every_float16_is_read_right(fast_kernel):
    bits = np.arange(2**16, dtype=np.uint16)
    maps = bits.view(np.float16).reshape(-1, 1, 1, 1)
    _, scores = fast_kernel(maps, method="argmax")
    values = maps.ravel().astype(np.float32)
    expected = np.where(np.isfinite(values) & (values > 0), values, 0)
    np.testing.assert_array_equal(scores.ravel(), expected)


def test_strided_input(kernel):
    whole = np.random.default_rng(7).random((24, 3, 19, 2), np.float32)
    maps = whole[::2, :, ::-1].transpose(3, 1, 2, 0)
    expected, actual = reference(maps.copy(), method="dark"), kernel(maps, method="dark")
    np.testing.assert_allclose(actual[0], expected[0], atol=TOLERANCE)
    tensor = torch.from_numpy(whole).permute(3, 1, 2, 0).requires_grad_()
    points, scores = kernel(tensor, method="argmax")
    assert not points.requires_grad
    assert torch.equal(points, reference(tensor.detach().clone(), method="argmax")[0])
    assert scores.dtype == points.dtype == torch.float32


def test_threads_change_nothing():
    maps = np.random.default_rng(8).random((20, 17, 64, 48), np.float32)
    before = _C.get_num_threads()
    results = []
    try:
        for threads in (1, 4):
            _C.set_num_threads(threads)
            results.append(decode(maps, method="cpn"))
    finally:
        _C.set_num_threads(before)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


# The border


def test_numpy_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from fastpose.ops import decode\n"
        "maps = np.eye(5, dtype=np.float32)[None, None]\n"
        "for backend in (None, 'cpp', 'reference'): decode(maps, backend=backend)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MAPS = np.zeros((2, 3, 5, 4), np.float32)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("heatmaps must be a numpy array or a torch tensor", {"heatmaps": MAPS.tolist()}),
        ("heatmaps must be .N, K, h, w.", {"heatmaps": MAPS[0]}),
        ("heatmaps must be .N, K, h, w.", {"heatmaps": MAPS[:, :, :0]}),
        ("heatmaps must be float32", {"heatmaps": MAPS.astype(np.float64)}),
        ("method must be one of", {"method": "best"}),
        ("stages must be one of", {"stages": "first"}),
        ("flipped must be", {"flipped": MAPS[:1], "flip_pairs": ()}),
        ("flipped must be a ndarray", {"flipped": torch.zeros(2, 3, 5, 4), "flip_pairs": ()}),
        ("flip_pairs must be given", {"flipped": MAPS}),
        ("flip_pairs must name channels 0 to 2", {"flipped": MAPS, "flip_pairs": [(1, 3)]}),
        ("give a channel one partner", {"flipped": MAPS, "flip_pairs": [(0, 1), (1, 2)]}),
        ("flip_shift must be 0 or 1", {"flip_shift": 2}),
        ("peaks must be whole, at least 1", {"peaks": 0}),
        ("peaks must be whole, at least 1", {"peaks": 1.5}),
        ("peaks must be .* 1 for method 'cpn'", {"peaks": 2, "method": "cpn"}),
        ("peak_value must be positive", {"peak_value": 0.0}),
        ("sigma must be positive", {"sigma": float("nan")}),
        ("affines must be .2, 2, 3.", {"affines": np.zeros((3, 2, 3), np.float32)}),
        ("affines must be a ndarray", {"affines": torch.zeros(2, 2, 3)}),
        ("stream must be None", {"stream": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(words, arguments):
    with pytest.raises(ValueError, match=words):
        decode(**{"heatmaps": MAPS, **arguments})


def test_a_named_backend_never_falls_back():
    with pytest.raises(BackendError, match="cuda"):
        decode(MAPS, backend="cuda")


@pytest.mark.gpu
def test_the_copy_to_the_host_waits_for_the_given_stream():
    source = torch.from_numpy(gaussians([(20.3, 30.8)])).cuda()
    maps, stream = torch.zeros_like(source), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # clock cycles: until then the maps are empty
        maps.copy_(source)
    points, _ = decode(maps, method="argmax", stream=stream.cuda_stream, backend="reference")
    assert points.device == maps.device
    assert points.tolist() == [[[20, 31]]]


# On a GPU: of what a kernel is compiled for, few combinations, since each takes half a second


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["noise", "signed", "flat", "ties", "gaussians"])
def test_maps_of_the_usual_size_on_a_gpu(monkeypatch, method, kind):
    run = on_backend("triton", "cuda", monkeypatch)
    check_merged_and_several_peaks(run, method, make(kind, (2, 3, 64, 48)))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.bfloat16, torch.contiguous_format),
        (torch.float16, torch.channels_last),
    ],
    ids=str,
)
def test_random_shapes_on_a_gpu(monkeypatch, method, dtype, layout):
    run = on_backend("triton", "cuda", monkeypatch)
    random = np.random.default_rng(METHODS.index(method))
    people = 128 if method in ("argmax", "dark") else 16
    for n, k, h, w in [(people, 17, 64, 48), random.integers(1, (20, 30, 99, 99)).tolist()]:
        centres = random.uniform((-1, -1), (w, h), (n * k, 2))
        maps = gaussians(centres, (h, w)).reshape(n, k, h, w)
        maps += 0.05 * random.random(maps.shape, np.float32)
        maps = torch.from_numpy(maps).to(dtype).to(memory_format=layout)
        affines = torch.from_numpy(random.uniform(-1, 1, (n, 2, 3)))
        expected = reference(maps, method=method, affines=affines)
        actual = run(maps, method=method, affines=affines)
        torch.testing.assert_close(actual[0], expected[0], atol=2 * TOLERANCE, rtol=1e-5)
        # Of "cpn" too, though its peak is that of a blur: sums in another order change it where two
        # cells are equal to 1e-16 and not level, and there is no such pair in these maps.
        assert torch.equal(actual[1], expected[1])


@pytest.mark.gpu
def test_triton_is_the_default_on_a_gpu_and_follows_the_stream():
    sources = torch.from_numpy(gaussians([(20.3, 30.8), (11.2, 40.4), (35.0, 9.0)])).cuda()
    expected = [decode(source[None], backend="triton")[0] for source in sources]
    maps = torch.zeros_like(sources)
    streams = [torch.cuda.Stream() for _ in sources]
    torch.cuda.synchronize()
    points = []
    for i, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # clock cycles: until then the maps are empty
            maps[i].copy_(sources[i])
        points.append(decode(maps[i : i + 1], stream=stream.cuda_stream)[0])
    torch.cuda.synchronize()
    assert torch.equal(torch.cat(points), torch.cat(expected))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_replay_of_a_graph_is_equal_to_the_bit(method):
    maps = torch.rand(9, 17, 64, 48, device="cuda")
    flipped, affines = torch.rand_like(maps), torch.rand(9, 2, 3, device="cuda")

    def run():
        pairs = [(1, 2), (3, 4)]
        return decode(maps, method=method, flipped=flipped, flip_pairs=pairs, affines=affines)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            points, scores = run()
    maps.copy_(torch.rand_like(maps))
    points.fill_(NAN), scores.fill_(NAN)
    torch.cuda.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    expected = run()
    assert torch.equal(points, expected[0])
    assert torch.equal(scores, expected[1])
