"""Truth: the formula of each style cell by cell, and OpenCV for megvii."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from fastpose.errors import BackendError
from fastpose.ops import render

STYLES = ("exact", "msra", "udp", "caffe", "megvii", "hourglass")
SIZE = (23, 19)
PLACES = [(9.3, 11.8), (0.2, 0.4), (18.4, 22.2), (-2.6, 5.0), (21.4, 10.0), (6.5, 3.5)]


def draw(places, size=SIZE, sigma=2.0, **arguments):
    """One joint a place -> numpy [len(places), h, w]."""
    points = torch.tensor([places], dtype=torch.float32)
    return render(points, torch.ones(points.shape[:2]), size, sigma=sigma, **arguments)[0].numpy()


def by_formula(style, place, sigma, size=SIZE):
    """One map, cell by cell, in double."""
    (mx, my), radius = place, math.floor(3 * sigma)
    cx, cy = math.floor(mx + 0.5), math.floor(my + 0.5)
    out = np.zeros(size)
    for y, x in np.ndindex(size):
        dx, dy = (x - mx, y - my) if style in ("exact", "udp", "caffe") else (x - cx, y - cy)
        width = (2 * radius + 1) / 4 if style == "hourglass" else sigma
        exponent = (dx**2 + dy**2) / (2 * width**2)
        match style:
            case "exact":
                drawn = all(
                    -3 * sigma - 1 <= m < cells + 3 * sigma
                    for m, cells in zip(place, size[::-1], strict=True)
                )
            case "caffe":
                drawn = exponent <= 4.6052
            case _:
                drawn = abs(x - cx) <= radius and abs(y - cy) <= radius
        out[y, x] = math.exp(-exponent) if drawn else 0.0
    return out


@pytest.mark.parametrize("style", ["exact", "msra", "udp", "caffe", "hourglass"])
@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_styles_follow_their_formulas(style, sigma):
    expected = [by_formula(style, place, sigma) for place in PLACES]
    np.testing.assert_allclose(draw(PLACES, sigma=sigma, style=style), expected, atol=1e-6)


def test_exact_draws_nothing_for_a_joint_far_outside():
    reach = 3 * 2 + 1
    far = [(-reach - 0.1, 5), (5, SIZE[0] + 6.1), (-reach + 0.1, 5), (5, SIZE[0] + 5.9)]
    assert [m.any() for m in draw(far)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("kernel", "sigma"), [(7, 1.4), (9, 1.7), (11, 2.0), (13, 2.3), (15, 2.6), (17, 2.9), (23, 3.8)]
)
def test_megvii_is_opencv_s_blur_of_one_cell(kernel, sigma):
    smallest = kernel // 2 + 1  # the kernel reaches from border to border
    for h, w in ((24, 25), (smallest, smallest)):
        places = [(w // 2, h // 2), (0, 0), (w - 1, 3), (1, h - 2), (w - 2, h - 1)]
        maps = draw(places, size=(h, w), sigma=sigma, style="megvii", peak_value=255.0)
        for (x, y), actual in zip(places, maps, strict=True):
            cell = np.zeros((h, w), np.float32)
            cell[y, x] = 1
            expected = cv2.GaussianBlur(cell, (kernel, kernel), 0)
            np.testing.assert_allclose(actual, expected * (255 / expected.max()), atol=1e-3)
            assert actual.max() == 255


def test_megvii_draws_nothing_outside_the_map():
    maps = draw([(-0.6, 5), (18.5, 5), (18.4, 22.4)], style="megvii")
    assert [m.any() for m in maps] == [False, False, True]


@pytest.mark.parametrize("style", STYLES)
def test_weight_is_the_height(style):
    points = torch.full((1, 6, 2), 9.0)
    points[0, 5] = torch.tensor([float("nan"), 3.0])
    visible = torch.tensor([[0.0, 0.25, 1.0, 2.0, float("nan"), 1.0]])
    maps = render(points, visible, SIZE, sigma=2.0, style=style, peak_value=8.0)
    assert maps.amax(dim=(2, 3))[0].tolist() == [0, 2, 8, 8, 0, 0]
    flags = render(points[:, :4], torch.tensor([[0, 0, 1, 2]]), SIZE, sigma=2.0, style=style)
    assert flags.amax(dim=(2, 3))[0].tolist() == [0, 0, 1, 1]
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("style", STYLES)
def test_people_share_a_map(style):
    points = torch.tensor([[[[5.0, 8.0]], [[8.0, 8.0]], [[5.0, 8.0]]]])  # [1, 3, 1, 2]
    weights = torch.tensor([[[1.0], [0.5], [1.0]]])
    each = torch.cat(
        [
            render(points[:, i], weights[:, i], SIZE, sigma=2.0, style=style, peak_value=3.0)
            for i in range(3)
        ]
    )
    for people, expected in (("max", each.amax(0)), ("sum-clamped", each.sum(0).clamp(max=3))):
        maps = render(points, weights, SIZE, sigma=2.0, style=style, people=people, peak_value=3.0)
        assert maps.shape == (1, 1, *SIZE)
        torch.testing.assert_close(maps[0], expected)


def test_background_is_what_the_joints_leave():
    points = torch.tensor([[[5.0, 8.0], [12.0, 8.0]]])
    maps = render(
        points, torch.ones(1, 2), SIZE, sigma=2.0, style="caffe", background=True, peak_value=2.0
    )
    assert maps.shape == (1, 3, *SIZE)
    torch.testing.assert_close(maps[:, 2], (2 - maps[:, :2].amax(1)).clamp(min=0))
    assert maps[0, 2, 8, 5] == 0


def test_every_joint_may_have_its_own_sigma():
    sigmas = torch.tensor([1.0, 2.0, 3.0])
    points = torch.full((2, 3, 2), 9.25)
    for style in STYLES:
        maps = render(points, torch.ones(2, 3), SIZE, sigma=sigmas, style=style)
        for joint, sigma in enumerate(sigmas.tolist()):
            np.testing.assert_allclose(
                maps[1, joint], draw([(9.25, 9.25)], sigma=sigma, style=style)[0], atol=1e-7
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_out_is_written_in_place(dtype):
    points, visible = torch.full((2, 3, 2), 9.25), torch.ones(2, 3)
    out = torch.full((2, 4, *SIZE), -1.0, dtype=dtype)
    result = render(points, visible, SIZE, sigma=2.0, background=True, out=out)
    assert result is out
    assert torch.equal(out, render(points, visible, SIZE, sigma=2.0, background=True).to(dtype))


@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3), (2, 0, 3)])
def test_nobody(shape):
    for style in STYLES:
        maps = render(torch.zeros(*shape, 2), torch.ones(shape), SIZE, sigma=2.0, style=style)
        assert maps.shape == (shape[0], 3, *SIZE)
        assert not maps.any()


POINTS = torch.zeros(2, 3, 2)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("points must be .N, K, 2.", {"points": torch.zeros(3, 2)}),
        ("points must be .N, K, 2.", {"points": torch.zeros(2, 0, 2)}),
        ("points must be .* floating", {"points": POINTS.long()}),
        ("points must be a torch tensor, got ndarray", {"points": POINTS.numpy()}),
        ("visible must be a torch tensor, got list", {"visible": [[1] * 3] * 2}),
        ("visible must be .2, 3. on cpu", {"visible": torch.ones(3, 2)}),
        ("visible must be .2, 3. on cpu", {"visible": torch.ones(2, 3, device="meta")}),
        ("size must be", {"size": (0, 4)}),
        ("sigma must be positive", {"sigma": 0.0}),
        ("sigma must be a number or .3.", {"sigma": torch.ones(2)}),
        ("style must be one of", {"style": "gauss"}),
        ("people must be one of", {"people": "sum"}),
        ("out must be .2, 3, 23, 19.", {"out": torch.zeros(2, 3, 19, 23)}),
        ("out must be .* floating", {"out": torch.zeros(2, 3, *SIZE, dtype=torch.int32)}),
        ("size must be above 5 cells", {"style": "megvii", "size": (5, 9)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(words, arguments):
    good = {"points": POINTS, "visible": torch.ones(2, 3), "size": SIZE, "sigma": 2.0}
    with pytest.raises(ValueError, match=words):
        render(**{**good, **arguments})


def test_a_named_backend_never_falls_back():
    with pytest.raises(BackendError, match="cpp"):
        render(POINTS, torch.ones(2, 3), SIZE, sigma=2.0, backend="cpp")
