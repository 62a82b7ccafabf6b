"""Truth: the formula of each style cell by cell, and OpenCV for megvii; kernel: the reference."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from kernels import kernels

from fastpose.errors import BackendError
from fastpose.ops import render
from fastpose.ops.render import render_reference

KERNELS = kernels("triton")

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


def test_exact_draws_from_its_first_place_to_the_last_below_its_end():
    first, end = np.float32(-7), np.float32(SIZE[1] + 6)
    places = (first, np.nextafter(first, -np.inf), np.nextafter(end, first), end)
    drawn = [m.any() for m in draw([(float(x), 5.0) for x in places])]
    assert drawn == [True, False, True, False]


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


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_out_of_any_strides_and_with_a_gradient(style, background):
    points, visible = scene(4, (2, 3), SIZE)
    arguments = {"sigma": 2.0, "style": style, "background": background}
    expected = render(points, visible, SIZE, **arguments)
    out = torch.full((2, *SIZE, 3 + background), math.nan).permute(0, 3, 1, 2)
    assert render(points, visible, SIZE, out=out, **arguments) is out
    assert torch.equal(out, expected)
    visible.requires_grad_()
    out = torch.full_like(expected, math.nan)
    assert render(points, visible, SIZE, out=out, **arguments) is out
    assert torch.equal(out, expected)
    assert out.requires_grad


def test_constants_serve_calls_in_any_mode():
    points, visible = scene(6, (1, 3), SIZE)

    def draw(points, visible):
        return render(points, visible, SIZE, sigma=1.37)  # which no other test draws

    class Layer(torch.nn.Module):
        def forward(self, points, visible):
            return draw(points, visible)

    traced = torch.export.export(Layer(), (points, visible), strict=False).module()
    with torch.inference_mode():
        first = draw(points, visible)
    points.requires_grad_()
    maps = draw(points, visible)
    maps.square().sum().backward()
    assert torch.isfinite(points.grad).all()
    assert (points.grad != 0).any()
    assert torch.equal(maps, first)
    assert torch.equal(traced(points.detach(), visible), first)


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
        ("peak_value must be positive", {"peak_value": 0.0}),
        ("peak_value must be positive", {"peak_value": math.inf}),
        ("style must be one of", {"style": "gauss"}),
        ("people must be one of", {"people": "sum"}),
        ("out must be .2, 3, 23, 19.", {"out": torch.zeros(2, 3, 19, 23)}),
        ("out must be a torch tensor, got ndarray", {"out": np.zeros((2, 3, *SIZE), np.float32)}),
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


# Half a unit in the last place may round either way; the rest is float32's.
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 2e-6}


@pytest.fixture
def poisoned(monkeypatch):
    """New tensors hold NaN until they are written."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))


def scene(seed, shape, size, device="cpu"):
    """Joints in and round a map of that size, some missing, and their weights."""
    random = torch.Generator().manual_seed(seed)
    h, w = size
    points = torch.rand((*shape, 2), generator=random) * torch.tensor([w + 14.0, h + 14.0]) - 7.0
    weights = torch.rand(shape, generator=random) * 2.5 - 0.5
    some = points.view(-1, 2)
    some[::7, 0], some[3::11, 1] = math.nan, -math.inf
    some[1::5] = some[1::5].round()  # on a cell
    some[2::5] = some[2::5].floor() + 0.5  # as near to one cell as to the next
    weights.view(-1)[4::9] = math.nan
    weights.view(-1)[5::9] = math.inf
    return points.to(device), weights.to(device)


def check_kernel(backend, points, weights, size, dtype=torch.float32, **arguments):
    """The maps in the middle of a buffer of NaN, against the reference; nothing beside them."""
    arguments = {"sigma": 2.0, "style": "exact", "people": "max", "background": False} | arguments
    arguments.setdefault("peak_value", 1.0)
    n, k = len(points), points.shape[-2] + arguments["background"]
    buffer = torch.full((n + 2, k, *size), math.nan, dtype=dtype, device=points.device)
    out = buffer[1:-1]
    assert render(points, weights, size, backend=backend, out=out, **arguments) is out
    expected = render_reference(points, weights, size, out=None, **arguments).to(dtype)
    tolerance = ROUNDING[dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=2e-6 * arguments["peak_value"])
    assert torch.isnan(buffer[[0, -1]]).all()


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("style", STYLES)
def test_kernel_equals_reference(backend, device, style):
    own = torch.tensor([1.0, 1.7, 2.9], device=None if style == "megvii" else device)
    for seed, (people, size, arguments) in enumerate(
        [
            ((), (33, 24), {}),  # 24 and 16 columns: 16-byte stores
            ((), (17, 23), {"sigma": own, "peak_value": 255.0}),
            ((3,), (20, 46), {"people": "sum-clamped", "background": True, "sigma": 1.4}),
            ((2,), (40, 32), {"background": True, "peak_value": 2.0, "sigma": own}),
            ((5,), (21, 16), {"people": "sum-clamped", "peak_value": 0.5}),
            ((12,), (9, 8), {"people": "sum-clamped"}),  # the sum is cut
        ]
    ):
        points, weights = scene(seed, (2, *people, 3), size, device)
        check_kernel(backend, points, weights, size, style=style, **arguments)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (140, 5), (70, 130)])
@pytest.mark.parametrize("background", [False, True])
def test_kernel_on_maps_of_any_size(backend, device, size, background):
    points, weights = scene(7, (1, 2), size, device)
    check_kernel(backend, points, weights, size, sigma=30.0, background=background)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_kernel_writes_the_type_of_out(backend, device, dtype):
    points, weights = scene(1, (2, 2, 3), (12, 16), device)
    for people in ("max", "sum-clamped"):
        check_kernel(
            backend, points, weights, (12, 16), dtype, style="udp", people=people, background=True
        )


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_what_the_kernel_does_not_write_is_copied(backend, device, poisoned):
    points, weights = scene(1, (2, 3), (12, 16), device)
    out = torch.zeros((2, 3, 12, 16), device=device).to(torch.float8_e4m3fnuz)
    assert render(points, weights, (12, 16), sigma=2.0, backend=backend, out=out) is out
    expected = render(points, weights, (12, 16), sigma=2.0, backend="reference").to(out.dtype)
    torch.testing.assert_close(out.float(), expected.float(), rtol=0.13, atol=1e-3)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("weight", [torch.bool, torch.uint8, torch.int64, torch.float64], ids=str)
@pytest.mark.parametrize("point", [torch.float16, torch.float64], ids=str)
def test_kernel_reads_any_type(backend, device, weight, point, poisoned):
    points, flags = scene(3, (2, 3), SIZE, device)[0].to(point), torch.arange(6, device=device) % 3
    arguments = {"sigma": 2.0, "style": "udp"}
    maps = render(points, flags.view(2, 3).to(weight), SIZE, backend=backend, **arguments)
    expected = render(points, flags.view(2, 3).to(weight), SIZE, backend="reference", **arguments)
    assert maps.dtype is torch.float32
    torch.testing.assert_close(maps, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_kernel_takes_what_is_not_dense(backend, device, poisoned):
    points, weights = scene(5, (3, 2, 4, 3), (12, 16), device)
    points, weights = points[:, 1, :, 1:], weights[:, 1, :, 1:]  # [3, 4, 2]: people in the middle
    columns = torch.zeros((3, 12, 16, 2), device=device)
    out = columns.permute(0, 3, 1, 2)
    assert render(points, weights, (12, 16), sigma=2.0, backend=backend, out=out) is out
    expected = render(points, weights, (12, 16), sigma=2.0, backend="reference")
    torch.testing.assert_close(columns, expected.permute(0, 2, 3, 1), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3), (2, 0, 3)])
def test_kernel_draws_nobody(backend, device, shape, poisoned):
    points, weights = torch.zeros((*shape, 2), device=device), torch.ones(shape, device=device)
    for background in (False, True):
        maps = render(points, weights, SIZE, sigma=2.0, background=background, backend=backend)
        assert maps.shape == (shape[0], 3 + background, *SIZE)
        assert not maps[:, :3].any()
        assert (maps[:, 3:] == 1).all()


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_values_of_sigma_on_the_device_are_not_read_back(backend, device):
    from fastpose.ops.triton.render import render as launch

    sigma = torch.tensor([1.5, 0.0, math.nan, -1.0, math.inf], device=device)
    points, weights = torch.full((1, 5, 2), 9.0, device=device), torch.ones(1, 5, device=device)
    for style in ("exact", "msra", "udp", "caffe", "hourglass"):
        arguments = {"style": style, "people": "max", "background": False, "peak_value": 1.0}
        maps = launch(points, weights, SIZE, sigma=sigma, out=None, **arguments)
        expected = render_reference(points, weights, SIZE, sigma=sigma, out=None, **arguments)
        torch.testing.assert_close(maps, expected, rtol=2e-6, atol=2e-6)
        assert maps.flatten(2).any(-1).tolist() == [[True, False, False, False, False]]


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("name", ["points", "visible", "sigma"])
def test_a_gradient_is_for_the_reference(backend, device, name):
    tensors = {
        "points": torch.full((1, 2, 2), 9.25, device=device),
        "visible": torch.full((1, 2), 0.5, device=device),
        "sigma": torch.full((2,), 2.0, device=device),
    }
    tensors[name].requires_grad_()
    render(**tensors, size=SIZE)[0, :, 9, 7].sum().backward()
    assert (tensors[name].grad != 0).any()
    with pytest.raises(ValueError, match=r"backend must not be 'triton' for .* gradient"):
        render(**tensors, size=SIZE, backend=backend)
    with torch.no_grad():
        assert not render(**tensors, size=SIZE, backend=backend).requires_grad


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_what_is_traced_is_the_reference(backend, device, monkeypatch):
    points, weights = scene(2, (1, 3), (12, 16), device)
    expected = render(points, weights, (12, 16), sigma=2.0, backend="reference")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(render(points, weights, (12, 16), sigma=2.0), expected)
    with pytest.raises(ValueError, match="backend must not be 'triton' in what torch traces"):
        render(points, weights, (12, 16), sigma=2.0, backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_kernel_on_random_shapes(style, dtype):
    random = np.random.default_rng(STYLES.index(style))
    for seed in range(8):
        n, people, joints = (int(v) for v in random.integers(1, (40, 9, 20)))
        size = tuple(int(v) for v in random.integers(12, 150, 2))
        points, weights = scene(seed, (n, people, joints), size, "cuda")
        check_kernel(
            "triton",
            points,
            weights,
            size,
            dtype,
            style=style,
            sigma=float(random.uniform(0.8, 3.0)),
            people=("max", "sum-clamped")[seed % 2],
            background=bool(seed % 3),
            peak_value=float(random.uniform(0.5, 3.0)),
        )


@pytest.mark.gpu
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("own", [False, True], ids=["one sigma", "sigma of each joint"])
def test_a_launch_is_captured_in_a_graph(style, own):
    size, sigma = (64, 48), 2.0
    if own:
        sigma = torch.linspace(1.0, 3.0, 17)
        sigma = sigma if style == "megvii" else sigma.cuda()
    points, weights = scene(0, (5, 17), size, "cuda")
    out = torch.full((5, 18, *size), math.nan, device="cuda")

    def draw():
        return render(points, weights, size, sigma=sigma, style=style, background=True, out=out)

    draw()  # what is read besides the joints is copied now
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        draw()
    for seed in (1, 2):
        for old, new in zip((points, weights), scene(seed, (5, 17), size, "cuda"), strict=True):
            old.copy_(new)
        out.fill_(math.nan)
        graph.replay()
        replayed = out.clone()
        assert torch.equal(replayed, draw())
        assert torch.isfinite(replayed).all()


@pytest.mark.gpu
def test_triton_is_what_runs_on_a_gpu():
    points, weights = scene(0, (2, 17), (64, 48), "cuda")
    default, kernel = (
        render(points, weights, (64, 48), sigma=2.0, backend=backend)
        for backend in (None, "triton")
    )
    assert torch.equal(default, kernel)


@pytest.mark.gpu
def test_tables_of_megvii_need_sigma_on_the_host():
    points, weights = scene(0, (2, 3), (64, 48), "cuda")
    sigma = torch.tensor([1.4, 2.0, 3.5])
    arguments = {"size": (64, 48), "style": "megvii"}
    expected = render(points, weights, sigma=sigma, backend="triton", **arguments)
    torch.testing.assert_close(render(points, weights, sigma=sigma.cuda(), **arguments), expected)
    with pytest.raises(ValueError, match="megvii with sigma on a CUDA device"):
        render(points, weights, sigma=sigma.cuda(), backend="triton", **arguments)
