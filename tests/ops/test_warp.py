"""Truth (float64 numpy) -> reference (torch) -> kernels, for every instruction set."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from kernels import instruction_sets

from fastpose import _C
from fastpose.errors import BackendError
from fastpose.ops import FrameTable, cpp, frame_rows, warp
from fastpose.ops.warp import WarpOptions, nv12_to_bgr, warp_reference

torch = pytest.importorskip("torch")

GREY = 255e-4  # a ten-thousandth of the range of bytes: what the contract allows
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ISAS = [*instruction_sets(), "auto"]  # where the processor has VBMI, only "auto" uses it
SIZES = [(720, 1280), (37, 53), (2, 3), (1, 1)]


def truth(frames, affines, size, *, source=None, border=0.0, area=1):
    """[N, C, h, w] float64 from frames [T, H, W, C], one tap at a time."""
    height, width = frames.shape[1:3]
    padded = np.pad(frames.astype(np.float64), ((0, 0), (4, 4), (4, 4), (0, 0)))
    inside = np.pad(np.ones((height, width), bool), 4)
    padded[:, ~inside] = border
    v, u = np.mgrid[: size[0], : size[1]].astype(np.float64)
    windows = []
    for n, affine in enumerate(np.asarray(affines, np.float64)):
        frame = padded[0 if source is None else source[n]]
        total = 0.0
        for dv, du in np.ndindex(area, area):
            inner = np.stack((u + (du + 0.5) / area - 0.5, v + (dv + 0.5) / area - 0.5))
            x, y = np.einsum("ij,jhw->ihw", affine[:, :2], inner) + affine[:, 2, None, None]
            x, y = np.clip(x, -3, width + 1), np.clip(y, -3, height + 1)
            for dx, dy in np.ndindex(2, 2):
                column, row = np.floor(x).astype(int) + dx, np.floor(y).astype(int) + dy
                weight = (1 - abs(x - column)) * (1 - abs(y - row))
                total += weight[..., None] * frame[row + 4, column + 4]
        windows.append(total / area**2)
    return np.stack(windows).transpose(0, 3, 1, 2)


def make_frames(height, width, count=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def make_affines(kind, shape, size, count=6, seed=0):
    """Windows of all scales, partly or wholly outside, mirrored; "upright" or "turned"."""
    rng = np.random.default_rng(seed)
    affines = np.zeros((count, 2, 3), np.float32)
    for n in range(count):
        scale = rng.uniform(0.3, 3) * max(shape) / max(size) / 2
        angle = rng.uniform(-3, 3) if kind == "turned" else 0.0
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear[:, 0] *= -1 if n % 2 else 1
        centre = rng.uniform(-0.2, 1.2, 2) * shape[::-1]
        affines[n] = np.c_[linear, centre - linear @ (np.array(size[::-1]) / 2)]
    return affines


def identity(x=0.0, y=0.0):
    return np.array([[[1, 0, x], [0, 1, y]]], np.float32)


def options(size, **changes):
    values = {
        "channels": 3,
        "mean": None,
        "std": None,
        "swap_rb": False,
        "border": 0.0,
        "layout": "hwc",
        "out_layout": "nchw",
        "area": 1,
        "matrix": "bt709",
    }
    return WarpOptions(size=size, **{**values, **changes})


# --- truth, worked out by hand --------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_values_worked_out_by_hand(backend):
    frame = np.zeros((2, 2, 3), np.uint8)
    frame[..., 0] = [[10, 20], [30, 40]]

    def blue(affine, size, **arguments):
        return warp(frame, affine, size, backend=backend, **arguments)[0, 0]

    near = {"rtol": 0, "atol": 255 * 2**-16}  # the rounding of 15-bit weights
    np.testing.assert_allclose(blue(identity(), (2, 2)), [[10, 20], [30, 40]], **near)
    np.testing.assert_allclose(blue(identity(0.5, 0.5), (1, 1)), [[25]], **near)
    np.testing.assert_allclose(blue(identity(-0.5, 0), (1, 2), border=90), [[50, 15]], **near)
    np.testing.assert_allclose(blue(identity(-1, -5), (1, 2), border=90), [[90, 90]], **near)
    half = np.array([[[2, 0, 0.5], [0, 2, 0.5]]], np.float32)  # one pixel over all four
    np.testing.assert_allclose(blue(half, (1, 1), area=2), [[25]], **near)


def test_order_of_border_swap_and_normalisation():
    frame = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    out = warp(
        frame, identity(-1, 0), (1, 2), mean=(1, 2, 3), std=(2, 4, 5), swap_rb=True, border=7
    )
    expected = [
        [(7 - 1) / 2, (30 - 1) / 2],
        [(7 - 2) / 4, (20 - 2) / 4],
        [(7 - 3) / 5, (10 - 3) / 5],
    ]
    np.testing.assert_allclose(out[0, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["upright", "turned"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("area", [1, 3])
def test_reference_is_the_truth(kind, shape, area):
    frames, size, source = make_frames(*shape), (17, 13), np.array([0, 1, 1, 0, 1, 0])
    affines = make_affines(kind, shape, size)
    actual = warp_reference(
        torch.from_numpy(frames).permute(0, 3, 1, 2).double(),
        torch.from_numpy(affines),
        torch.from_numpy(source),
        options(size, border=100.0, area=area),
    )
    expected = truth(frames, affines, size, source=source, border=100.0, area=area)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-8)


# --- kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["upright", "turned"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("area", [1, 2])
@pytest.mark.parametrize("size", [(64, 48), (33, 29), (1, 1)])
def test_every_instruction_set_is_the_truth(isa, kind, shape, area, size):
    frames, source = make_frames(*shape), np.array([0, 1, 1, 0, 1, 0], np.int32)
    affines = make_affines(kind, shape, size)
    out = np.full((6, 3, *size), np.nan, np.float32)
    cpp.warp(frames, affines, source, None, out, options(size, border=100.0, area=area), isa)
    expected = truth(frames, affines, size, source=source, border=100.0, area=area)
    np.testing.assert_allclose(out, expected, rtol=0, atol=GREY)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("area", [1, 2, 4])
@pytest.mark.parametrize("width", [600, 2, 1])
def test_upright_windows_of_every_scale(isa, mirrored, area, width):
    """Taps of sixteen neighbours 3 to 800 bytes apart, of windows that are cut on either side."""
    frames, size = make_frames(9, width, count=1), (3, 37)
    scales = np.r_[np.linspace(0.05, 1.3, 11), 2.4, 2.6, 3.1, 4.9, 5.2, 9.0, 10.4, 16.0]
    affines = np.array([
        [[-scale if mirrored else scale, 0, x], [0, 1.3, 0.4]]
        for scale in scales
        for x in (width / 2, width - 30.25, -20.75)
    ], np.float32)  # fmt: skip
    out = np.full((len(affines), 3, *size), np.nan, np.float32)
    cpp.warp(frames, affines, None, None, out, options(size, border=60.0, area=area), isa)
    expected = truth(frames, affines, size, border=60.0, area=area)
    rounding = 255 * 2**-16  # of 15-bit weights
    np.testing.assert_allclose(out, expected, rtol=0, atol=rounding + 1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["upright", "turned"])
def test_windows_that_touch_every_corner(isa, kind):
    """The last pixels of the last row, where eight bytes may not be read."""
    frames, size = make_frames(31, 45, count=1), (31, 45)
    turn = 1e-3 if kind == "turned" else 0.0
    steps = np.arange(-3, 4) / 2
    affines = np.array([[[1, turn, x], [-turn, 1, y]] for x in steps for y in steps], np.float32)
    out = np.empty((len(affines), 3, *size), np.float32)
    cpp.warp(frames, affines, None, None, out, options(size, border=9.0), isa)
    expected = truth(frames, affines, size, source=np.zeros(len(affines), int), border=9.0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=GREY)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("turn", [0.0, 0.3])
@pytest.mark.parametrize("width", [24, 1])
def test_no_byte_beyond_the_frame_is_read(isa, turn, width):
    """The frame ends where a page ends that may not be read."""
    import mmap

    page, height = mmap.PAGESIZE, 16
    memory = mmap.mmap(-1, 2 * page)
    _protect(memory, page)
    frame = np.frombuffer(memory, np.uint8, height * width * 3, page - height * width * 3)
    frame = frame.reshape(1, height, width, 3)
    affines = np.array([[[1, turn, 0.25], [-turn, 1, 0.25]]], np.float32)
    out = np.empty((1, 3, height, width), np.float32)
    cpp.warp(frame, affines, None, None, out, options((height, width)), isa)
    assert np.all(out == 0)


def _protect(memory, page):
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page), page, 0) == 0


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="isa must be auto, scalar, avx2 or avx512, got mmx"):
        cpp.warp(make_frames(4, 4), identity(), None, None, np.empty((1, 3, 1, 1), np.float32),
                 options((1, 1)), "mmx")  # fmt: skip


def test_within_a_grey_level_of_opencv():
    frame, size = make_frames(120, 160)[0], (64, 48)
    smooth = cv2.GaussianBlur(frame, (0, 0), 2)
    for affine in make_affines("turned", (120, 160), size):
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        theirs = cv2.warpAffine(smooth, affine.astype(np.float64), size[::-1], flags=flags)
        ours = warp(smooth, affine[None], size, out_layout="nhwc")[0]
        assert np.abs(ours - theirs).max() <= 1.0


@pytest.mark.parametrize("view", ["columns", "rows", "region", "channels", "every other"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_strided_frames(view, backend):
    whole = make_frames(40, 50, count=1)[0]
    frame = {
        "columns": whole[:, ::-1],
        "rows": whole[::-1],
        "region": whole[5:35, 7:41],
        "channels": whole[:, :, ::-1],
        "every other": whole[::2, ::2],
    }[view]
    affines = make_affines("turned", frame.shape[:2], (20, 16))
    affines[::2, [0, 1], [1, 0]] = 0  # every other window upright
    source = np.zeros(len(affines), np.int64)
    actual = warp(frame, affines, (20, 16), source=source, backend=backend)
    expected = warp(frame.copy(), affines, (20, 16), source=source, backend=backend)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_types_and_layouts_of_the_result(out_layout, isa, dtype):
    frames, size = make_frames(60, 80, count=1), (19, 21)
    affines = make_affines("upright", (60, 80), size)
    chosen = options(size, mean=MEAN, std=STD, swap_rb=True, out_layout=out_layout)
    out = torch.empty(chosen.out_shape(len(affines)), dtype=getattr(torch, dtype))
    cpp.warp(frames, affines, None, None, out, chosen, isa)
    exact = torch.empty(chosen.out_shape(len(affines)))
    cpp.warp(frames, affines, None, None, exact, chosen, isa)
    assert torch.equal(out, exact.to(out.dtype))  # rounded to nearest even, as torch does
    swapped = truth(frames, affines, size)[:, ::-1]
    expected = (swapped - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    expected = expected if out_layout == "nchw" else expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(exact.numpy(), expected, rtol=0, atol=GREY / min(STD))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "part"), [("float16", 1 / 16), ("bfloat16", 1 / 2)])
def test_results_between_two_numbers_of_their_type(isa, dtype, part):
    frame = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 256, 3)
    out = torch.empty((1, 3, 1, 256), dtype=getattr(torch, dtype))
    cpp.warp(frame, identity(), None, None, out, options((1, 256), mean=(-part,) * 3), isa)
    expected = (torch.arange(256) + part).to(out.dtype)
    assert torch.equal(out, expected.expand(1, 3, 1, 256))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_nan_whose_bits_are_all_set(isa, dtype):
    nan = float(np.array([2**63 - 1], np.uint64).view(np.float64)[0])
    out = torch.empty((1, 3, 4, 20), dtype=getattr(torch, dtype))
    cpp.warp(make_frames(5, 5), identity(99), None, None, out, options((4, 20), border=nan), isa)
    assert out.isnan().all()


@pytest.mark.parametrize("isa", ISAS)
def test_float16_of_every_size(isa):
    """Subnormal, overflowing, infinite and NaN results round as torch rounds them."""
    values = np.r_[np.logspace(-9, 6, 300), np.inf, np.nan, 0.0, 65519.9, 65520.0, 6.1e-5]
    maps = np.r_[values, -values].astype(np.float32)[None, None, None]
    out = torch.empty((1, 1, 1, maps.size), dtype=torch.float16)
    chosen = options((1, maps.size), channels=1, layout="chw")
    cpp.warp(maps, identity(), None, None, out, chosen, isa)
    expected = torch.from_numpy(maps).to(torch.float16)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e12])
@pytest.mark.parametrize("place", list(np.ndindex(2, 3)))
def test_affines_that_are_huge_or_not_finite_give_border(backend, layout, value, place):
    frames = make_frames(20, 30, count=1)
    if layout == "chw":
        frames = frames.transpose(0, 3, 1, 2).astype(np.float32)
    affines = np.repeat(identity(0.5, 0.5), 2, axis=0)
    affines[1][place] = value
    out = warp(frames, affines, (6, 40), border=50.0, layout=layout, backend=backend)
    np.testing.assert_array_equal(out[0], warp(frames, affines[:1], (6, 40), border=50.0,
                                               layout=layout, backend=backend)[0])  # fmt: skip
    far = out[1] if place[1] == 2 or not np.isfinite(value) else out[1, :, 1:, 1:]
    np.testing.assert_allclose(far, 50.0, rtol=1e-5)


def test_a_window_between_two_pixels_of_a_huge_scale():
    """One column of the output is inside, its neighbours are millions of pixels away."""
    frame = make_frames(9, 9)[0]
    affine = np.array([[[1e7, 0, -2e7 + 4], [0, 0, 4]]], np.float32)
    out = warp(frame, affine, (1, 5), border=1.0)
    np.testing.assert_allclose(out[0, :, 0, 2], frame[4, 4], atol=GREY)
    np.testing.assert_allclose(np.delete(out[0, :, 0], 2, axis=1), 1.0)


def test_no_windows():
    assert warp(make_frames(5, 5), np.zeros((0, 2, 3), np.float32), (4, 3)).shape == (0, 3, 4, 3)
    maps = torch.zeros(0, 8, 5, 5)
    out = warp(maps, torch.zeros(0, 2, 3), (7, 7), layout="chw", dtype="bfloat16")
    assert out.shape == (0, 8, 7, 7)
    assert out.dtype == torch.bfloat16


def test_returns_the_kind_it_was_given_and_writes_in_place():
    frames, affines = make_frames(30, 40, count=1), identity(3, 4)
    ours = warp(frames, affines, (8, 6))
    assert isinstance(ours, np.ndarray)
    theirs = warp(torch.from_numpy(frames), torch.from_numpy(affines), (8, 6))
    assert isinstance(theirs, torch.Tensor)
    np.testing.assert_array_equal(ours, theirs.numpy())
    for backend in ("cpp", "reference"):
        batch = np.full((3, 3, 8, 6), -1, np.float16)
        out = batch[1:2]
        assert warp(frames, affines, (8, 6), out=out, backend=backend) is out
        np.testing.assert_allclose(out, ours, rtol=1e-3)
        assert (batch[[0, 2]] == -1).all()


def test_float64_affines_are_taken_as_float32():
    frames = make_frames(30, 40)
    affines = make_affines("turned", (30, 40), (8, 6))
    source = [1, 0, 0, 1, 1, 0]
    wide = warp(frames, affines.astype(np.float64), (8, 6), source=np.array(source))
    np.testing.assert_array_equal(wide, warp(frames, affines, (8, 6), source=np.array(source)))


# --- windows and frames of different kinds -----------------------------------------------------

AREAS = np.array([1, 3, 2, 16, 1, 4])
SHAPES = [(40, 30), (9, 61), (1, 1), (33, 70)]


def mixed_frames():
    """Of different sizes; one upside down, one a region of a larger picture."""
    frames = [make_frames(*shape, count=1, seed=i)[0] for i, shape in enumerate(SHAPES)]
    frames[1] = frames[1][::-1]
    frames[3] = make_frames(50, 90, count=1)[0][7:40, 11:81]
    return frames


@pytest.mark.parametrize("isa", [*ISAS, "reference"])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("kind", ["upright", "turned"])
def test_windows_with_areas_of_their_own(isa, layout, kind):
    frames, size, source = make_frames(60, 80), (19, 21), np.array([0, 1, 1, 0, 1, 0])
    affines = make_affines(kind, (60, 80), size)
    chosen = options(size, border=100.0, layout=layout, mean=MEAN, std=STD)
    expected = np.concatenate([
        truth(frames, affines[n : n + 1], size, source=source[n:], border=100.0, area=AREAS[n])
        for n in range(6)
    ])  # fmt: skip
    expected = (expected - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    if layout == "chw":
        frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).astype(np.float32)
    if isa == "reference":
        actual = warp(
            frames, affines, size, source=source, border=100.0, layout=layout, mean=MEAN, std=STD,
            area=AREAS, backend=isa,
        )  # fmt: skip
    else:
        actual = np.full((6, 3, *size), np.nan, np.float32)
        cpp.warp(frames, affines, source, AREAS, actual, chosen, isa)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=GREY / min(STD))


@pytest.mark.parametrize("kind", ["upright", "turned"])
def test_a_window_with_its_area_is_what_it_is_alone(kind):
    frames, affines = make_frames(60, 80, count=1), make_affines(kind, (60, 80), (33, 20))
    together = warp(frames, affines, (33, 20), area=AREAS.astype(np.int8))
    for n, area in enumerate(AREAS):
        alone = warp(frames, affines[n : n + 1], (33, 20), area=area)
        np.testing.assert_array_equal(together[n], alone[0])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("kind", ["upright", "turned"])
def test_frames_of_different_sizes(backend, as_tensors, kind):
    frames, size = mixed_frames(), (19, 21)
    source = np.array([3, 0, 1, 2, 1, 3])
    affines = make_affines(kind, (40, 60), size)
    arguments = {"mean": MEAN, "std": STD, "swap_rb": True, "border": 9.0}
    expected = [
        warp(frames[index], affine[None], size, area=int(area), **arguments)[0]
        for index, affine, area in zip(source, affines, AREAS, strict=True)
    ]
    given, places, areas = frames, affines, AREAS
    if as_tensors:  # which cannot be upside down: that frame is copied
        given = [
            torch.from_numpy(frame.copy() if i == 1 else frame) for i, frame in enumerate(frames)
        ]
        places, areas = torch.from_numpy(affines), torch.from_numpy(AREAS)
    actual = warp(given, places, size, source=source, area=areas, backend=backend, **arguments)
    assert isinstance(actual, torch.Tensor if as_tensors else np.ndarray)
    exact = backend == "cpp"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0 if exact else GREY / min(STD))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_frames_of_a_sequence_that_are_not_dense_are_copied(backend):
    frames = [make_frames(20, 30, count=1)[0][:, ::-1], make_frames(10, 24, count=1)[0][::2, ::2]]
    affines, source = make_affines("upright", (20, 30), (8, 6)), np.array([0, 1, 0, 1, 0, 1])
    actual = warp(frames, affines, (8, 6), source=source, backend=backend)
    copies = [frame.copy() for frame in frames]
    np.testing.assert_array_equal(actual, warp(copies, affines, (8, 6), source=source,
                                               backend=backend))  # fmt: skip


@pytest.mark.parametrize("isa", [*ISAS, "reference"])
@pytest.mark.parametrize("kind", ["upright", "turned"])
def test_a_window_of_no_frame_is_border(isa, kind):
    """An index out of range, and rows of no height or no width whose address leads nowhere."""
    frames = mixed_frames()
    rows = np.r_[frame_rows(frames), [[8, 1, 0, 5], [8, 1, 5, 0], [8, 1, -3, -3]]]
    source = np.array([4, 5, 6, -1, 7, 2**31 - 1, -(2**31), 0])
    affines = make_affines(kind, (5, 5), (9, 8), count=8)
    affines[7] = identity(2, 2)
    out = np.full((8, 3, 9, 8), np.nan, np.float32)
    if isa == "reference":
        arguments = {"source": source, "border": 50.0, "mean": MEAN, "std": STD}
        assert warp(FrameTable(rows), affines, (9, 8), out=out, backend=isa, **arguments) is out
    else:
        chosen = options((9, 8), border=50.0, mean=MEAN, std=STD)
        cpp.warp(FrameTable(rows), affines, source, None, out, chosen, isa)
    border = (50.0 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(out[:7], np.broadcast_to(border, (7, 3, 9, 8)), rtol=1e-5)
    expected = warp(frames[0], identity(2, 2), (9, 8), border=50.0, mean=MEAN, std=STD)
    np.testing.assert_allclose(out[7:], expected, rtol=0, atol=GREY / min(STD))


def test_a_table_of_torch_memory_and_one_frame_needs_no_source():
    frame = torch.from_numpy(make_frames(20, 30, count=1)[0])
    table = FrameTable(torch.from_numpy(frame_rows([frame])))
    out = torch.empty(1, 3, 5, 4, dtype=torch.bfloat16)
    assert warp(table, torch.from_numpy(identity(2, 3)), (5, 4), out=out) is out
    expected = warp(frame, torch.from_numpy(identity(2, 3)), (5, 4), dtype="bfloat16")
    assert torch.equal(out, expected)


def test_rows_of_frames():
    picture = make_frames(50, 90, count=1)[0]
    (row, turned), pixels = frame_rows([picture[7:40, 11:81], picture[::-1]]), picture.ctypes.data
    assert row.tolist() == [pixels + 7 * 270 + 33, 270, 33, 70]
    assert turned.tolist() == [pixels + 49 * 270, -270, 50, 90]
    planes = torch.zeros(75, 40, dtype=torch.uint8)
    assert frame_rows([planes], "nv12").tolist() == [[planes.data_ptr(), 40, 50, 40]]


@pytest.mark.parametrize(
    ("message", "frames", "layout"),
    [
        (r"frames\[1\] must be dense along a row", [make_frames(4, 4)[0]] * 2, "hwc"),
        (r"frames\[0\] of layout 'nv12' must be .*, got \[4, 4, 3\]", make_frames(4, 4), "nv12"),
        (r"frames\[0\] of layout 'hwc' must be .*, got \[6, 4\]", [np.zeros((6, 4), "u1")], "hwc"),
        ('layout "chw" must be one array', [np.zeros((3, 4, 4), "f4")], "chw"),
        ("frames must hold at least one frame", [], "hwc"),
    ],
)
def test_frames_that_have_no_rows(message, frames, layout):
    if "dense" in message:
        frames = [frames[0], frames[1][:, ::-1]]
    with pytest.raises(ValueError, match=message):
        frame_rows(list(frames), layout)


# --- feature maps ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("area", [1, 2])
@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
def test_maps(backend, dtype, area, out_layout):
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(2, 5, 23, 31)).astype(dtype)
    affines, source = make_affines("turned", (23, 31), (7, 9)), np.array([1, 0, 0, 1, 1, 0])
    arguments = {"source": source, "border": 0.5, "area": area, "out_layout": out_layout}
    mean, std = np.arange(5.0), np.arange(1.0, 6.0)
    actual = warp(
        maps, affines, (7, 9), layout="chw", mean=mean, std=std, backend=backend, **arguments
    )
    pixels = maps.astype(np.float64).transpose(0, 2, 3, 1)
    expected = truth(pixels, affines, (7, 9), source=source, border=0.5, area=area)
    expected = (expected - mean[:, None, None]) / std[:, None, None]
    expected = expected if out_layout == "nchw" else expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_tap_of_weight_zero_counts_for_nothing(backend):
    maps = np.ones((1, 1, 5, 5), np.float32)
    maps[0, 0, 2, 2] = np.nan
    out = warp(maps, identity(), (5, 5), layout="chw", backend=backend)
    np.testing.assert_array_equal(out, maps)


def test_maps_of_bfloat16():
    maps = torch.randn(1, 4, 9, 11).bfloat16()
    affines = torch.from_numpy(identity(0.5, 0.25))
    actual = warp(maps, affines, (5, 6), layout="chw", dtype="bfloat16")
    expected = warp(maps.float(), affines, (5, 6), layout="chw", backend="reference")
    torch.testing.assert_close(actual, expected.bfloat16(), rtol=2**-7, atol=0)


def test_strided_maps():
    maps = np.random.default_rng(2).normal(size=(2, 6, 20, 22)).astype(np.float32)
    affines, source = make_affines("turned", (10, 11), (5, 4)), np.ones(6, np.int64)
    for view in (maps[:, ::2], maps[:, :, ::-1, 3:14], maps[..., ::2], maps.transpose(0, 1, 3, 2)):
        actual = warp(view, affines, (5, 4), source=source, layout="chw")
        expected = warp(view.copy(), affines, (5, 4), source=source, layout="chw")
        np.testing.assert_array_equal(actual, expected)


def test_gradient_of_the_reference():
    maps = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    affines = torch.from_numpy(make_affines("turned", (4, 5), (3, 3), count=3))
    source, chosen = torch.tensor([0, 1, 1]), options((3, 3), channels=2, area=2, border=0.3)
    assert torch.autograd.gradcheck(lambda m: warp_reference(m, affines, source, chosen), maps)


@pytest.mark.parametrize("case", ["plain", "nhwc", "normalised", "outside", "one", "areas"])
def test_gradient_of_the_kernel_is_the_references(case):
    """Truth: the reference's, which `gradcheck` holds to differences."""
    count = 1 if case == "one" else 3
    maps = torch.randn(2, 3, 9, 11)
    affines = torch.from_numpy(make_affines("turned", (9, 11), (4, 5), count=count)).float()
    if case == "outside":
        affines[0, :, 2] += 100
        affines[1] = torch.nan
    choices = {
        "nhwc": {"out_layout": "nhwc"},
        "areas": {"area": torch.tensor([1, 3, 2])},
        "normalised": {"std": (2.0, 3.0, 4.0), "mean": (1.0, 2.0, 3.0), "swap_rb": True},
    }.get(case, {})
    source = torch.arange(count) % 2
    grads = []
    for backend in (None, "reference"):
        leaf = maps.clone().requires_grad_()
        choices = {"area": 2, **choices}
        out = warp(leaf, affines, (4, 5), source=source, layout="chw", backend=backend, **choices)
        weights = torch.linspace(-1, 2, out.numel()).reshape(out.shape)
        (out * weights).sum().backward()
        grads.append(leaf.grad)
    assert grads[1].abs().max() > 0.1
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-5)


def test_gradient_keeps_the_type_and_takes_numpy_affines():
    maps = torch.rand(1, 4, 9, 9).half().requires_grad_()
    out = warp(maps, identity(0.5, 0.5), (3, 3), layout="chw", backend="cpp")
    out.sum().backward()
    assert maps.grad.dtype == torch.float16
    assert maps.grad.sum() == pytest.approx(4 * 9)  # every output pixel spreads a weight of one
    with pytest.raises(ValueError, match="out cannot be used"):
        warp(maps, identity(), (3, 3), layout="chw", out=torch.empty(1, 4, 3, 3))
    with torch.no_grad():
        assert not warp(maps, identity(), (3, 3), layout="chw").requires_grad


# --- bad input ------------------------------------------------------------------------------

BAD = {
    "frames of layout 'hwc' must be uint8, got float32": {"frames": np.zeros((4, 4, 3), "f4")},
    "frames of layout 'hwc' must be .*, got .4, 4, 4.": {"frames": np.zeros((4, 4, 4), np.uint8)},
    "frames of layout 'hwc' must be .*, got .0, 4, 3.": {"frames": np.zeros((0, 4, 3), np.uint8)},
    "frames of layout 'chw' must be float32 or float16 or bfloat16, got uint8": {"layout": "chw"},
    "layout must be one of hwc, nv12, chw, got 'nhwc'": {"layout": "nhwc"},
    "matrix must be one of bt709, bt601, got 'bt2020'": {"matrix": "bt2020"},
    "affines must be .N, 2, 3., got .1, 3, 3.": {"affines": np.zeros((1, 3, 3), np.float32)},
    "affines must be float32 or float64, got int64": {"affines": np.zeros((1, 2, 3), np.int64)},
    "size must be .h, w., whole numbers from 1, got .0, 4.": {"size": (0, 4)},
    r"frames\[0\] must be a numpy array or a torch tensor, got list": {"frames": [[[0, 0, 0]]]},
    "affines must be a numpy array or a torch tensor, got list": {"affines": [[1, 0, 0]]},
    "affines must be on cpu, got meta": {"affines": torch.empty(1, 2, 3, device="meta")},
    "size must be .h, w., whole numbers from 1, got .4.5, 4.": {"size": (4.5, 4)},
    "size must be .h, w., whole numbers from 1, got 4": {"size": 4},
    "source must be a numpy array or a torch tensor, got list": {"source": [0]},
    "source must be on cpu, got meta": {"source": torch.empty(1, dtype=int, device="meta")},
    "stream must be None for frames on cpu, got 0": {"stream": 0},
    "source must be given for 2 frames, got None": {"frames": make_frames(4, 4)},
    "source must be .1. integers, got .2. int32": {"source": np.zeros(2, np.int32)},
    "source must be .1. integers, got .1. float32": {"source": np.zeros(1, np.float32)},
    "source must be from 0 to 0, got 1 to 1": {"source": np.ones(1, np.int32)},
    "source must be from 0 to 0, got -1 to -1": {"source": -np.ones(1, np.int64)},
    "mean must have 3 numbers, got 1": {"mean": (1.0,)},
    "std must be positive, got": {"std": (1.0, 0.0, 1.0)},
    "swap_rb needs 3 channels, got 2": {
        "frames": np.zeros((1, 2, 4, 4), np.float32),
        "layout": "chw",
        "swap_rb": True,
    },
    "out_layout must be nchw or nhwc, got 'chw'": {"out_layout": "chw"},
    "area must be a whole number from 1 to 16, got 0": {"area": 0},
    "area must be a whole number from 1 to 16, got 1.5": {"area": 1.5},
    "area must be a numpy array or a torch tensor, got list": {"area": [1]},
    "area must be a whole number or .1. integers, got .2. int64": {"area": np.ones(2, int)},
    "area must be a whole number or .1. integers, got .1. float64": {"area": np.ones(1)},
    "area must be a numpy array as affines is, got a tensor": {"area": torch.ones(1, dtype=int)},
    "area must be from 1 to 16, got 0 to 0": {"area": np.zeros(1, int)},
    "area must be from 1 to 16, got 17 to 17": {"area": np.full(1, 17)},
    "frames must hold at least one frame, got none": {"frames": []},
    r"frames\[1\] of layout 'hwc' must be .*, got \[4, 4\]": {
        "frames": [make_frames(4, 4)[0], np.zeros((4, 4), np.uint8)]
    },
    r"frames\[1\] must be a numpy array as the first is, got a tensor": {
        "frames": [make_frames(4, 4)[0], torch.zeros(4, 4, 3, dtype=torch.uint8)]
    },
    r"frames\[0\] of layout 'hwc' must be uint8, got float32": {
        "frames": [np.zeros((4, 4, 3), np.float32)]
    },
    "the rows of frames must be .T, 4. int64, got .1, 4. int32": {
        "frames": FrameTable(np.zeros((1, 4), np.int32))
    },
    "out must be given with a FrameTable": {"frames": FrameTable(np.zeros((1, 4), np.int64))},
    "out must be on meta as frames, got cpu": {
        "frames": FrameTable(torch.zeros((1, 4), dtype=torch.int64, device="meta")),
        "out": np.empty((1, 3, 2, 2), np.float32),
    },
    'frames of layout "chw" must be one array .*, got a FrameTable': {
        "frames": FrameTable(np.zeros((1, 4), np.int64)),
        "layout": "chw",
    },
    "dtype must be one of float32, float16, bfloat16, got 'int8'": {"dtype": "int8"},
    'dtype "bfloat16" needs frames that are a torch tensor, got numpy': {"dtype": "bfloat16"},
    "out must be a numpy array as frames is, got a tensor": {"out": torch.empty(1, 3, 2, 2)},
    "out must be a numpy array or a torch tensor, got list": {"out": []},
    "out must be .1, 3, 2, 2. .*, got .1, 3, 2, 3. float32": {"out": np.empty((1, 3, 2, 3), "f4")},
    "out must be .1, 3, 2, 2. .*, got .1, 3, 2, 2. float64": {"out": np.empty((1, 3, 2, 2))},
    "out must be dense": {"out": np.empty((1, 3, 2, 4), np.float32)[..., ::2]},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    good = {"frames": make_frames(4, 4)[0], "affines": identity(), "size": (2, 2)}
    with pytest.raises(ValueError, match=message):
        warp(**{**good, **BAD[message]})


def test_backends_that_cannot_run():
    frame = make_frames(4, 4)[0]
    with pytest.raises(BackendError, match="'cuda' cannot run on cpu; usable: cpp, reference"):
        warp(frame, identity(), (2, 2), backend="cuda")
    with pytest.raises(BackendError, match='layout "nv12" needs frames on cuda, got cpu'):
        warp(np.zeros((1, 6, 4), np.uint8), identity(), (2, 2), layout="nv12")


def test_every_backend_uses_affines_as_float32():
    maps = np.arange(60, dtype=np.float32).reshape(1, 1, 2, 30) * 1e4
    affine = identity(0.1).astype(np.float64) + 1e-9
    runs = [
        warp(maps, a, (1, 20), layout="chw", backend="reference")
        for a in (affine, affine.astype(np.float32))
    ]
    np.testing.assert_array_equal(*runs)


def test_nv12_colours():
    """Black, white and the primaries of a limited-range picture (ITU-R BT.709)."""
    colours = {  # Y, U, V: B, G, R
        (16, 128, 128): (0, 0, 0),
        (235, 128, 128): (255, 255, 255),
        (63, 102, 240): (0, 0, 255),
        (173, 42, 26): (0, 255, 0),
        (32, 240, 118): (255, 0, 0),
    }
    for (y, u, v), bgr in colours.items():
        frame = torch.tensor([[[y, y], [y, y], [u, v]]], dtype=torch.uint8)
        actual = nv12_to_bgr(frame, "bt709")
        assert actual.shape == (1, 3, 2, 2)
        assert (actual - torch.tensor(bgr)[:, None, None]).abs().max() <= 2.0


def test_best_instruction_set_is_known():
    assert _C.best_isa() in ("scalar", "avx2", "avx512")
