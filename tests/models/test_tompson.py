"""The Tompson cascade: its layers, its windows, and that network and reader agree on them."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.crop import crop_features
from fastpose.engines import open_graph
from fastpose.engines.build import export_onnx
from fastpose.errors import ModelError
from fastpose.models import model_spec, tompson
from fastpose.models.cascade import FINE, FINE_STRIDE, SNAP, locate_cascade, place_windows
from fastpose.models.joints import locate_joints
from fastpose.models.spec import ModelSpec
from fastpose.models.tompson import (
    LAYOUTS,
    TAP_STRIDES,
    Cascade,
    Fine,
    Widths,
    local_contrast,
    peak_pixels,
)

NARROW = Widths(6, 10, 8, 4)
SPEC = model_spec("tompson-mpii-8x")
SIZE = (64, 96)


def narrow(joints: int = 3, layout: str = "flic", pools: int = 3, **options) -> Cascade:
    network = Cascade(joints, layout, pools, widths=NARROW, **options).eval()
    seed_weights(network)
    return network


def small_spec(network: Cascade) -> ModelSpec:
    """A spec for as many joints as the skeleton has."""
    return replace(SPEC, size=SIZE, stride=network.coarse.stride)


def picture(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return 2 * uniform("picture", (count, 3, *size)) - 1


# Layers


@pytest.mark.parametrize(
    ("layout", "pools", "parameters"),
    [
        ("flic", 2, 17_385_870),
        ("flic", 3, 18_615_054),
        ("flic", 4, 19_844_238),
        ("mpii", 2, 17_927_694),
        ("mpii", 3, 18_813_198),
        ("mpii", 4, 19_698_702),
    ],
)
def test_coarse_maps_and_parameters(layout: str, pools: int, parameters: int) -> None:
    size = (240, 320) if layout == "flic" else (256, 256)
    with torch.device("meta"):
        network = Cascade(14, layout, pools, fine=None).eval()
        maps = network.predict(torch.empty(1, 3, *size))
    assert maps.shape == (1, 14, size[0] // 2**pools, size[1] // 2**pools)
    assert sum(p.numel() for p in network.parameters()) == parameters


def parameters(**options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Cascade(14, **options).parameters())


def test_parameters_of_the_other_forms() -> None:
    assert parameters(layout="flic", pools=3, banks=2, fine=None) == 12_476_942
    assert parameters(fine="shared") - parameters(fine=None) == 1_230_222
    # four layers of its own in place of shared features: 3 -> 128, 5x5
    assert parameters(fine="crops") - parameters(fine="shared") == 4 * (3 * 128 * 25 + 128)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fewer_poolings_may_keep_the_convolutions(layout: str) -> None:
    common = {"layout": layout, "fine": None}
    kept = parameters(pools=2, drop_stage=False, **common)
    assert kept == parameters(pools=3, **common)
    with torch.device("meta"):
        network = Cascade(14, pools=2, drop_stage=False, **common)
        assert network(torch.empty(1, 3, 64, 64)).coarse.shape == (1, 14, 16, 16)


@pytest.mark.parametrize(("layout", "layers"), [("flic", 7), ("mpii", 11)])
def test_layers_on_a_path(layout: str, layers: int) -> None:
    coarse = narrow(layout=layout).coarse
    found = [m for part in (coarse.banks[0], coarse.head) for m in part.modules()]
    assert sum(isinstance(m, nn.Conv2d) for m in found) == layers


def contrast_by_hand(image: np.ndarray) -> np.ndarray:
    """Local contrast of [C, h, w] float64, pixel by pixel."""
    bell = np.exp(-0.5 * (np.arange(-4, 5) / 2.25) ** 2)
    window = np.outer(bell, bell)

    def blurred(plane: np.ndarray) -> np.ndarray:
        h, w = plane.shape
        result = np.empty((h, w))
        for y in range(h):
            for x in range(w):
                rows = np.arange(max(0, y - 4), min(h, y + 5))
                columns = np.arange(max(0, x - 4), min(w, x + 5))
                weights = window[np.ix_(rows - y + 4, columns - x + 4)]
                result[y, x] = (weights * plane[np.ix_(rows, columns)]).sum() / weights.sum()
        return result

    centred = image - blurred(image.mean(axis=0))
    return centred / np.maximum(np.sqrt(blurred((centred**2).mean(axis=0))), 1e-4)


def test_local_contrast_equals_its_definition() -> None:
    image = uniform("contrast", (1, 3, 14, 19))
    expected = contrast_by_hand(image[0].double().numpy())
    np.testing.assert_allclose(local_contrast(image)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, -1.7, 255.0])
def test_a_level_picture_has_no_contrast(value: float) -> None:
    assert local_contrast(torch.full((1, 3, 23, 17), value)).abs().max() < 1e-6


@pytest.mark.parametrize("gain", [0.01, 0.7, 300.0])
@pytest.mark.parametrize("offset", [-100.0, 0.0, 2.0])
def test_contrast_does_not_depend_on_gain_and_offset(gain: float, offset: float) -> None:
    image = uniform("texture", (1, 3, 30, 40))
    changed = local_contrast(gain * (image + offset))
    torch.testing.assert_close(changed, local_contrast(image), rtol=0, atol=1e-4)


def test_contrast_is_reckoned_in_float32_at_least() -> None:
    image = uniform("texture", (1, 3, 30, 40)).bfloat16()
    expected = local_contrast(image.float())
    assert torch.equal(local_contrast(image), expected.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(local_contrast(image.float()), expected)
    assert local_contrast(image.double()).dtype == torch.float64


def test_banks_lie_over_each_other_where_the_picture_is_padded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """240 rows are no whole number of the third bank's cells of 32: they become 256."""
    monkeypatch.setattr(tompson, "local_contrast", lambda image: image)
    network = narrow(fine=None)
    image = picture(1, (240, 64))
    padded = network(F.pad(image, (0, 0, 0, 16))).coarse
    torch.testing.assert_close(network(image).coarse, padded[:, :, :30])


def halved(image: Tensor) -> Tensor:
    """Means of 2 x 2 pixels."""
    return image.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5))


def test_banks_see_each_level_by_itself_and_are_repeated_and_summed() -> None:
    """Local contrast is taken of each level of the pyramid, not once before it."""
    coarse, level, total = narrow(fine=None).coarse, picture(), 0.0
    for factor, bank in zip((1, 2, 4), coarse.banks, strict=True):
        features = bank(local_contrast(level))[1]
        total = total + features.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        level = halved(level)
    with torch.no_grad():
        torch.testing.assert_close(coarse(picture())[0], coarse.head(total))


def test_windows_of_the_picture_are_of_its_levels_contrast() -> None:
    network, seen = narrow(fine="crops"), []
    assert network.picture is not None
    network.picture.register_forward_pre_hook(lambda _, given: seen.extend(given[0]))
    centres = torch.tensor([[[20.0, 30.0], [90.0, 5.0], [50.0, 60.0]]]).expand(2, -1, -1)
    with torch.no_grad():
        corners = network(picture(), centres).corners
    half = halved(picture())
    levels = {2: half, 4: halved(half), 8: halved(halved(half))}
    for window, stride in zip(seen, TAP_STRIDES, strict=True):
        contrast = local_contrast(levels[stride])
        expected = cut_by_hand(contrast, corners * (SNAP // stride), 72 // stride)
        torch.testing.assert_close(window, expected)


def test_spatial_dropout_takes_whole_maps() -> None:
    dropout = Cascade(1, "flic", 2, fine=None, dropout=0.3, widths=NARROW).coarse.head[0].train()
    maps = 1 + uniform("maps", (100, 100, 4, 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = dropout(maps)
    gone = (dropped == 0).flatten(2).all(dim=2)
    torch.testing.assert_close(dropped[~gone], maps[~gone] / 0.7)
    assert abs(gone.float().mean() - 0.3) < 0.01
    assert dropout.eval()(maps) is maps


def test_spatial_dropout_stands_before_the_first_1x1() -> None:
    head = narrow(dropout=0.25).coarse.head
    assert isinstance(head[0], nn.Dropout2d)
    assert head[0].p == 0.25
    assert [m.kernel_size for m in head if isinstance(m, nn.Conv2d)] == [(1, 1)] * 3
    assert Cascade(widths=NARROW).coarse.head[0].p == 0.5


# Windows


def cut_by_hand(features: Tensor, corners: Tensor, size: int) -> Tensor:
    """Pad and slice."""
    reach = 64
    padded = F.pad(features, (reach,) * 4)
    return torch.stack(
        [
            padded[n, :, y + reach : y + reach + size, x + reach : x + reach + size]
            for n, row in enumerate(corners.tolist())
            for x, y in row
        ]
    )


class Windows(nn.Module):
    """`crop_features` as a graph."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor, corners: Tensor) -> Tensor:
        return crop_features(features, corners, self.size)


@functools.cache
def traced(size: int, dtype: torch.dtype) -> nn.Module:
    example = torch.zeros(2, 5, 12, 10, dtype=dtype), torch.zeros(2, 6, 2, dtype=torch.int64)
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(Windows(size), example, dynamic_shapes=(batch, batch)).module()


CORNERS = torch.tensor(
    [
        [[0, 0], [3, 2], [-4, -2], [7, 9], [3, 3], [40, -40]],
        [[-30, 1], [5, 5], [5, 6], [-1, 11], [9, -6], [2, 4]],
    ]
)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_windows_are_slices_bit_for_bit(dtype: torch.dtype, layout: torch.memory_format) -> None:
    features = (
        (uniform("features", (2, 5, 12, 10)) - 0.5).to(dtype).contiguous(memory_format=layout)
    )
    expected = cut_by_hand(features, CORNERS, 7)
    for cut in (functools.partial(crop_features, size=7), traced(7, dtype)):
        windows = cut(features, CORNERS)
        assert windows.dtype == dtype
        assert torch.equal(windows, expected)


def test_nothing_beside_a_window_gets_into_it() -> None:
    features = torch.full((1, 1, 6, 6), torch.nan)
    features[..., 2:4, 2:4] = 1.0
    corners = torch.tensor([[[2, 2]]])
    for cut in (functools.partial(crop_features, size=2), Windows(2)):
        assert torch.equal(cut(features, corners), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("count", [0, 1])
def test_no_pictures_and_no_joints(count: int) -> None:
    features, corners = torch.zeros(count, 5, 12, 10), torch.zeros(count, 0, 2, dtype=torch.int64)
    assert crop_features(features, corners, 3).shape == (0, 5, 3, 3)
    assert traced(7, torch.float32)(torch.zeros(3, 5, 12, 10), CORNERS[[0, 1, 0]]).shape[0] == 18


def test_gradient_is_that_of_pad_and_slice() -> None:
    given = uniform("given", (12, 5, 7, 7))
    expected = uniform("features", (2, 5, 12, 10)).requires_grad_()
    (cut_by_hand(expected, CORNERS, 7) * given).sum().backward()
    for cut in (functools.partial(crop_features, size=7), traced(7, torch.float32)):
        actual = uniform("features", (2, 5, 12, 10)).requires_grad_()
        (cut(actual, CORNERS) * given).sum().backward()
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-6, atol=1e-6)
    assert (expected.grad == 0).any(), "somewhere no window lies"


def test_gradcheck() -> None:
    features = uniform("features", (2, 2, 6, 5)).double().requires_grad_()
    torch.autograd.gradcheck(lambda x: crop_features(x, CORNERS // 2, 4), features)


@pytest.mark.parametrize(
    ("features", "corners", "text"),
    [
        (torch.zeros(5, 12, 10), CORNERS, r"features must be \[N, C, H, W\] floating"),
        (torch.zeros(2, 5, 12, 10).int(), CORNERS, "features must be .* floating"),
        (torch.zeros(3, 5, 12, 10), CORNERS, r"corners must be \[3, J, 2\] whole numbers"),
        (torch.zeros(2, 5, 12, 10), CORNERS.float(), "whole numbers, got .* torch.float32"),
    ],
)
def test_windows_of_wrong_arguments(features: Tensor, corners: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        crop_features(features, corners, 7)


def test_a_pixel_lies_at_one_place_in_all_four_windows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.integers(0, 128, 2).tolist()
        centre = torch.tensor([[[x, y]]]) + torch.from_numpy(rng.uniform(-30, 30, (1, 1, 2)))
        corners = place_windows(centre).long()
        places = []
        for stride in TAP_STRIDES:
            features = torch.zeros(1, 1, 128 // stride, 128 // stride)
            features[0, 0, y // stride, x // stride] = 1
            side = FINE * FINE_STRIDE // stride
            window = crop_features(features, corners * (SNAP // stride), side)
            assert window.sum() == 1
            row, column = divmod(int(window.argmax()), side)
            places.append(((column + 0.5) * stride, (row + 0.5) * stride))
        exact = np.array([x, y]) + 0.5 - SNAP * corners[0, 0].numpy()
        for place, stride in zip(places, TAP_STRIDES, strict=True):
            assert np.abs(place - exact).max() <= stride / 2


def test_windows_are_centred_as_well_as_eight_pixels_allow() -> None:
    centres = np.arange(-20, 300, 0.25)
    corners = place_windows(centres)
    assert np.array_equal(corners, place_windows(torch.from_numpy(centres)).numpy())
    assert np.array_equal(corners, place_windows(torch.from_numpy(centres).float()).numpy())
    middles = SNAP * corners + (FINE * FINE_STRIDE - 1) / 2
    assert np.abs(middles - centres).max() == SNAP / 2
    assert np.array_equal(corners % 1, np.zeros_like(corners))
    # cell c of a map at 1/8 lies in the middle of its window of 9 such cells
    assert np.array_equal(place_windows((np.arange(9) + 0.5) * 8 - 0.5), np.arange(9) - 4.0)


def test_peaks_are_the_first_highest_cells() -> None:
    maps = torch.zeros(1, 2, 4, 6)
    maps[0, 0, 2, 1] = maps[0, 0, 2, 4] = maps[0, 0, 3, 0] = 1
    expected = torch.tensor([[[1.5 * 8 - 0.5, 2.5 * 8 - 0.5], [3.5, 3.5]]])
    assert torch.equal(peak_pixels(maps, 8), expected)


# The fine network


@pytest.fixture
def fine() -> Fine:
    network = Fine(5, Widths())
    seed_weights(network)
    return network


@pytest.fixture
def windows() -> list[Tensor]:
    return [uniform(f"window {i}", (5, 128, 72 // s, 72 // s)) for i, s in enumerate(TAP_STRIDES)]


def test_permuted_joints_give_permuted_maps(fine: Fine, windows: list[Tensor]) -> None:
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        before = fine(windows)
        for name in ("weight", "bias"):
            tensor = getattr(fine.head, name)
            tensor.copy_(tensor[order])
        after = fine([window[order] for window in windows])
    torch.testing.assert_close(after, before[:, order], rtol=0, atol=1e-6 * before.abs().max())


def test_only_the_last_layer_knows_the_joint() -> None:
    with torch.device("meta"):
        few, many = (dict(Fine(joints, Widths()).named_parameters()) for joints in (2, 9))
    assert {n for n in few if few[n].shape != many[n].shape} == {"head.weight", "head.bias"}
    assert few["head.weight"].shape == (2, 64, 1, 1)


def test_joints_as_a_batch_equal_joints_one_by_one(fine: Fine, windows: list[Tensor]) -> None:
    with torch.no_grad():
        together = fine([window.repeat(2, 1, 1, 1) for window in windows])
        weights, bias = fine.head.weight[:, :, 0, 0], fine.head.bias
        for joint in range(5):
            features = torch.zeros(64, FINE, FINE)
            for path, window, stride in zip(fine.paths, windows, TAP_STRIDES, strict=True):
                last = path(window[joint : joint + 1])[0]
                factor = stride // FINE_STRIDE
                features += last.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            expected = torch.einsum("c,chw->hw", weights[joint], features) + bias[joint]
            error = (together[:, joint] - expected).abs().max()
            assert error <= 1e-6 * together.abs().max()


def test_fine_maps_come_from_the_coarse_networks_features() -> None:
    """With the windows held, the shared cascade changes with the trunk and the standard one not."""
    for kind, same in (("shared", False), ("crops", True)):
        network = narrow(fine=kind)
        centres = torch.full((2, 3, 2), 40.0)
        with torch.no_grad():
            before = network(picture(), centres).fine
            network.coarse.banks[1].stages[1][0].weight.mul_(-1)
            after = network(picture(), centres).fine
        assert torch.equal(before, after) == same


@pytest.mark.parametrize("kind", ["shared", "crops"])
def test_windows_of_the_picture_show_what_they_cut(kind: str) -> None:
    """A change of the picture far from a window leaves its fine map as it was."""
    network = narrow(joints=2, pools=2, fine=kind)
    image = picture(1, (96, 352))
    centres = torch.tensor([[[40.0, 40.0], [300.0, 40.0]]])
    other = image.clone()
    other[0, :, 30:50, 290:310] = 2 * uniform("noise", (3, 20, 20)) - 1
    with torch.no_grad():
        before, after = network(image, centres).fine, network(other, centres).fine
    change = (before - after).abs().amax(dim=(0, 2, 3))
    # the contrast's mean over the picture is taken out in float32
    assert change[0] < 1e-4 * before.abs().max()
    assert change[1] > 1e-2 * before.abs().max()


@pytest.mark.parametrize("kind", ["shared", "crops"])
def test_no_gradient_to_the_places_of_windows(kind: str) -> None:
    centres = torch.full((2, 3, 2), 40.0, requires_grad=True)
    maps = narrow(fine=kind)(picture(), centres)
    maps.fine.sum().backward()
    assert centres.grad is None
    assert not maps.corners.is_floating_point()


# Network and reader


def by_the_paper(network: Cascade, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Joints and scores by the paper's words: coarse place plus (dx, dy)."""
    with torch.inference_mode():
        coarse, fine, corners = network(image)
    places = peak_pixels(coarse, network.coarse.stride).double().numpy()
    points, scores = np.empty_like(places), np.empty(places.shape[:2])
    for n, j in np.ndindex(scores.shape):
        score, cell = fine[n, j].flatten().max(dim=0)
        row, column = divmod(int(cell), FINE)
        middle = SNAP * corners[n, j].numpy() + (FINE * FINE_STRIDE - 1) / 2
        window = middle - places[n, j]  # the window's middle, seen from the coarse place
        offset = window + FINE_STRIDE * (np.array([column, row]) - (FINE - 1) / 2)
        points[n, j], scores[n, j] = places[n, j] + offset, score
        if not (score > 0 and coarse[n, j].max() > 0):
            points[n, j], scores[n, j] = np.nan, 0
    return points, scores


IDENTITY = np.tile(np.eye(2, 3), (2, 1, 1))


@pytest.mark.parametrize("pools", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_joint_is_coarse_place_plus_offset(pools: int, dtype: torch.dtype) -> None:
    network = narrow(14, pools=pools).to(dtype)
    image = picture().to(dtype)
    expected, heights = by_the_paper(network, image)
    with torch.inference_mode():
        results = network.predict(image).float().numpy()
    points, scores = locate_joints(results, IDENTITY, small_spec(network))
    assert points.shape == (2, 14, 2)
    assert points.dtype == scores.dtype == np.float32
    assert np.isfinite(points).any()
    np.testing.assert_array_equal(points, expected.astype(np.float32))
    np.testing.assert_array_equal(scores, heights.astype(np.float32))


def test_joints_are_brought_into_the_frame() -> None:
    network = narrow(14)
    with torch.inference_mode():
        results = network.predict(picture()).numpy()
    affines = np.array([[[2.0, 0.5, 30.0], [-0.5, 2.0, -7.0]], [[0.5, 0, 1], [0, 0.5, 2]]])
    spec = small_spec(network)
    points, _ = locate_joints(results, IDENTITY, spec)
    moved, _ = locate_joints(results, affines, spec)
    expected = np.einsum("nij,nkj->nki", affines[..., :2], points) + affines[:, None, :, 2]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def drawn(coarse: dict[tuple[int, int], float], fine: dict[tuple[int, int], float]) -> np.ndarray:
    """[1, 14, 96 + 36 * 36]: cells (x, y) of the first joint's maps; all else is 0."""
    maps = np.zeros((1, 14, 8, 12), np.float32), np.zeros((1, 14, FINE, FINE), np.float32)
    for array, values in zip(maps, (coarse, fine), strict=True):
        for (x, y), value in values.items():
            array[0, 0, y, x] = value
    return np.concatenate([array.reshape(1, 14, -1) for array in maps], axis=2)


def first_joint(results: np.ndarray, **changes) -> tuple[list[float], float]:
    spec = replace(SPEC, size=SIZE, **changes)
    points, scores = locate_joints(results, IDENTITY[:1], spec)
    assert np.isnan(points[0, 1:]).all()
    assert not scores[0, 1:].any()
    return points[0, 0].tolist(), float(scores[0, 0])


def test_score_is_the_fine_peak() -> None:
    # cell (5, 3) at 1/8: window from (8, -8); fine cell (20, 7) has its centre at 2 c + 0.5
    results = drawn({(5, 3): 0.5}, {(20, 7): 0.75})
    assert first_joint(results) == ([8 + 40.5, -8 + 14.5], 0.75)
    assert first_joint(results, peak_value=3.0)[1] == 0.25


def test_parabola_refines_the_fine_peak() -> None:
    results = drawn({(5, 3): 0.5}, {(20, 7): 1.0, (21, 7): 0.5})
    x, y = first_joint(results, method="parabola")[0]
    assert x == pytest.approx(8 + 40.5 + 2 / 6)
    assert y == -8 + 14.5


@pytest.mark.parametrize(
    "results",
    [
        drawn({}, {(20, 7): 0.5}),
        drawn({(5, 3): 0.5}, {}),
        drawn({(5, 3): -1.0}, {(20, 7): 0.5}) - np.float32(0.1),
        drawn({(5, 3): 0.5}, {(20, 7): np.inf}),
        drawn({(5, 3): np.inf}, {(20, 7): 0.5}),
        drawn({(5, 3): 0.5, (1, 1): np.nan}, {(20, 7): 0.5}),
        drawn({(5, 3): 0.5}, {(20, 7): 0.5, (1, 1): np.nan}),
    ],
)
def test_joints_without_a_peak_are_missing(results: np.ndarray) -> None:
    point, score = first_joint(results)
    assert np.isnan(point).all()
    assert score == 0


def test_no_people() -> None:
    results = np.zeros((0, 14, 96 + FINE**2), np.float32)
    points, scores = locate_joints(results, IDENTITY[:0], replace(SPEC, size=SIZE))
    assert points.shape == (0, 14, 2)
    assert scores.shape == (0, 14)


def test_there_is_no_flip_test() -> None:
    results = drawn({(5, 3): 0.5}, {(20, 7): 0.75})
    with pytest.raises(ModelError, match="tompson-mpii-8x has no flip test"):
        locate_cascade(results, IDENTITY[:1], SPEC, results)


# Export


def test_one_graph_holds_peaks_windows_and_the_fine_network() -> None:
    network = narrow()
    batch = ({0: torch.export.Dim("batch")},)

    class Predict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            return self.network.predict(image)

    # not strictly is how the test below exports it
    program = torch.export.export(Predict(), (picture(),), dynamic_shapes=batch, strict=True)
    exported = program.module()
    with torch.no_grad():
        for count in (1, 5):
            image = picture(count)
            expected = network.predict(image)
            error = (exported(image) - expected).abs().max()
            assert error <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("fine", "level"), [("shared", True), ("crops", False)])
def test_runtimes_cut_the_networks_windows(fine: str, level: bool, tmp_path: Path) -> None:
    """Where all of a coarse map is level, the window lies at the first cell everywhere."""
    network = narrow(14, pools=4, fine=fine)
    if level:
        nn.init.zeros_(network.coarse.head[-1].weight)
    path = tmp_path / "network.onnx"
    export_onnx(network, small_spec(network), path, half=False)
    with torch.inference_mode():
        expected = network.predict(picture(3))
    for kind in ("openvino", "onnxruntime"):
        pytest.importorskip(kind)
        run = open_graph(path, kind=kind, threads=1)
        for count in (1, 3):
            actual = run({"image": picture(3)[:count].numpy()})["heatmaps"]
            error = np.abs(actual - expected[:count].numpy()).max()
            assert error <= 1e-4 * float(expected.abs().max())
        run.close()


def test_low_precision_places_windows_by_the_maps_it_returns() -> None:
    network = narrow(14).to(torch.bfloat16)
    image = picture(4).bfloat16()
    with torch.inference_mode():
        maps = network(image)
        results = network.predict(image).float()
    cells = results[..., :96].argmax(dim=2)
    places = torch.stack((cells % 12, cells // 12), dim=2)
    corners = place_windows((places + 0.5) * 8 - 0.5)
    assert torch.equal(corners.long(), maps.corners)


# Bad input


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "coco"},
        {"pools": 5},
        {"banks": 1},
        {"fine": "none"},
        {"jitter": -1.0},
        {"jitter": float("nan")},
        {"dropout": 1.0},
    ],
)
def test_unknown_options(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"Cascade needs .*, got "):
        Cascade(3, widths=NARROW, **options)


@pytest.mark.parametrize(("fine", "multiple"), [("shared", 8), ("crops", 8), (None, 4)])
def test_sizes_are_whole_cells_of_every_tap(fine: str | None, multiple: int) -> None:
    network = narrow(pools=2, fine=fine)
    network.predict(picture(1, (64, 64 + multiple)))
    with pytest.raises(ValueError, match=f"multiples of {multiple}, got"):
        network.predict(picture(1, (64, 64 + multiple // 2)))


def test_untrained_maps_start_near_zero() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Cascade(3, "flic", 3, widths=Widths(16, 32, 32, 8)).eval()
    with torch.inference_mode():
        coarse, fine, _ = network(picture())
    assert 0 < coarse.abs().max() < 0.5
    assert 0 < fine.abs().max() < 0.5
