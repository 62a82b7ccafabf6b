"""The CUDA kernels of warp against the reference: run by the host, and on a device.

On the host each thread of a grid is a call of the kernel's own source, under the address and
undefined-behaviour sanitizers; that proves arithmetic and bounds, not compilation, speed or races.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastpose.ops import FrameTable, frame_rows, warp  # noqa: E402
from fastpose.ops.scatter import scatter_reference  # noqa: E402
from fastpose.ops.warp import MATRICES, WarpOptions, nv12_to_bgr  # noqa: E402

ROOT = Path(__file__).parents[2]
HOST = Path(__file__).with_name("cuda_host")
FLAGS = ["-std=c++17", "-w", "-fno-sanitize-recover=all"]
SANITIZERS = "-fsanitize=address,undefined,float-cast-overflow"
KINDS = {"hwc": 0, "nv12": 1, "chw": 2, "gradient": 3}
TYPES = ("float32", "float16", "bfloat16")
ULP = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7}
GREY = 255e-4  # a ten-thousandth of the range of bytes: what the contract allows
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Host:
    """The kernels' source, compiled for the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "warp_host"
        command = ["g++", *FLAGS, SANITIZERS, f"-I{HOST}", "-Icsrc", "-Icsrc/cuda"]
        command += [str(HOST / "warp_host.cpp"), "-o", str(self.program)]
        subprocess.run(command, check=True, cwd=ROOT)

    def run(self, numbers: dict, arrays: dict) -> np.ndarray:
        """The array "out" of a job, as it was given but for what the kernel wrote."""
        jobs, results = self.folder / "jobs", self.folder / "results"
        with jobs.open("wb") as file:
            file.write(b"!")
            file.write(struct.pack("q", len(numbers)))
            for name, number in numbers.items():
                file.write(struct.pack("q", len(name)) + name.encode())
                file.write(struct.pack("d", number))
            file.write(struct.pack("q", len(arrays)))
            for name, array in arrays.items():
                file.write(struct.pack("q", len(name)) + name.encode())
                file.write(struct.pack("q", array.nbytes) + array.tobytes())
        command = [self.program, jobs, results]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return np.frombuffer(results.read_bytes(), arrays["out"].dtype)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("warp_host")
    (folder / "empty.cpp").write_text("int main() {}\n")
    command = ["g++", SANITIZERS, str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs g++ with libasan and libubsan")
    return Host(folder)


# --- cases ----------------------------------------------------------------------------------------


def make_affines(shape, size, *, count=7, seed=0):
    """Windows inside, across and outside a source; every other turned, every third mirrored."""
    rng = np.random.default_rng(seed)
    affines = np.zeros((count, 2, 3), np.float32)
    for n in range(count):
        scale = rng.uniform(0.2, 2.5) * min(shape) / max(size) / 2
        angle = rng.uniform(-3, 3) if n % 2 else 0.0
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear[:, 0] *= -1 if n % 3 == 2 else 1
        centre = rng.uniform(-0.1, 1.1, 2) * shape[::-1]
        if n < 3:  # well inside, so that the path without borders is taken
            centre = rng.uniform(0.4, 0.6, 2) * shape[::-1]
        affines[n] = np.c_[linear, centre - linear @ (np.array(size[::-1]) / 2)]
    return affines


def options_of(size, channels, **changes):
    values = {
        "mean": None,
        "std": None,
        "swap_rb": False,
        "border": 0.0,
        "layout": "hwc",
        "out_layout": "nchw",
        "area": 1,
        "matrix": "bt709",
    }
    return WarpOptions(size=size, channels=channels, **{**values, **changes})


def window_job(kind, affines, source, areas, options, dtype, sources):
    numbers = {
        "kind": KINDS[kind],
        "type": TYPES.index(dtype),
        "count": len(affines),
        "sources": sources,
        "h": options.size[0],
        "w": options.size[1],
        "area": options.area,
        "border": options.border,
        "channels_last": options.out_layout == "nhwc",
        "swap_rb": options.swap_rb,
    }
    arrays = {"affines": np.ascontiguousarray(affines, np.float32)}
    if source is not None:
        arrays["source"] = np.asarray(source, np.int32)
    if areas is not None:
        arrays["areas"] = np.asarray(areas, np.int32)
    return numbers, arrays


def poisoned(shape, dtype):
    """Bytes that are NaN in every type."""
    return np.full(int(np.prod(shape)) * (4 if dtype == "float32" else 2), 0xFF, np.uint8)


def as_tensor(raw, shape, dtype):
    return torch.frombuffer(bytearray(raw.tobytes()), dtype=getattr(torch, dtype)).reshape(shape)


def cut_frames(
    host, frames, affines, options, *, source=None, areas=None, dtype="float32", rows=0, view=None
):
    """`warp` of uint8 frames [T, H, W, 3] or nv12 [T, H * 3 // 2, W] by the CUDA kernel.

    `view` are the numbers (first byte, bytes between frames, bytes between rows) of frames that
    are not dense; then `frames` are the flat bytes, and (T, H, W).
    """
    numbers, arrays = window_job(options.layout, affines, source, areas, options, dtype, 0)
    if view is None:
        count, height, width = frames.shape[:3]
        height = height * 2 // 3 if options.layout == "nv12" else height
        strides, offset, data = frames.strides[:2], 0, frames
    else:
        data, (count, height, width) = frames
        offset, strides = view[0], view[1:]
    numbers |= {"sources": count, "offset": offset, "H": height, "W": width, "rows": rows}
    numbers |= {"frame_stride": strides[0], "row_stride": strides[1]}
    return run_frames(host, numbers, {**arrays, "frames": data}, options, dtype)


def cut_table(host, frames, affines, options, *, source, areas=None, dtype="float32"):
    """The same from frames of different sizes; None stands for no frame."""
    numbers, arrays = window_job(options.layout, affines, source, areas, options, dtype, 0)
    table = np.zeros((len(frames), 4), np.int64)
    for i, frame in enumerate(frames):
        arrays[f"frame{i}"] = np.zeros(1, np.uint8) if frame is None else frame
        if frame is not None:
            height = frame.shape[0] * 2 // 3 if options.layout == "nv12" else frame.shape[0]
            table[i] = 0, frame.strides[0], height, frame.shape[1]
    numbers |= {"sources": len(frames), "rows": 0, "offset": 0, "H": 0, "W": 0}
    numbers |= {"frame_stride": 0, "row_stride": 0}
    return run_frames(host, numbers, {**arrays, "table": table}, options, dtype)


def run_frames(host, numbers, arrays, options, dtype):
    scale, shift = options.scale_shift()
    arrays |= {"scale": scale, "shift": shift}
    if options.layout == "nv12":
        arrays["matrix"] = np.array(MATRICES[options.matrix], np.float32)
    shape = options.out_shape(numbers["count"])
    raw = host.run(numbers, {**arrays, "out": poisoned(shape, dtype)})
    return as_tensor(raw, shape, dtype)


def reference(frames, affines, options, *, source=None, areas=None):
    """`warp` in float32."""
    given = frames if isinstance(frames, torch.Tensor) else torch.from_numpy(frames)
    return warp(
        given,
        torch.from_numpy(affines),
        options.size,
        source=None if source is None else torch.as_tensor(source),
        mean=options.mean,
        std=options.std,
        swap_rb=options.swap_rb,
        border=options.border,
        layout="chw" if options.layout == "nv12" else options.layout,
        out_layout=options.out_layout,
        area=options.area if areas is None else torch.as_tensor(areas),
        backend="reference",
    )


def assert_close(actual, expected, tolerance):
    dtype = str(actual.dtype).removeprefix("torch.")
    torch.testing.assert_close(actual.float(), expected, rtol=ULP[dtype], atol=tolerance)


def random_frames(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("area", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(64, 101), (53, 37), (5, 6), (2, 3), (1, 1)])
def test_frames(host, out_layout, area, shape):
    rng = np.random.default_rng(area)
    frames, size = random_frames(rng, 2, *shape, 3), (19, 37)
    affines, source = make_affines(shape, size), rng.integers(0, 2, 7)
    options = options_of(size, 3, border=99.0, out_layout=out_layout, area=area)
    expected = reference(frames, affines, options, source=source)
    for rows in (0, 8):  # of a tile; 0: the kernel's own choice, for so few windows one
        actual = cut_frames(host, frames, affines, options, source=source, rows=rows)
        assert_close(actual, expected, GREY)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("layout", ["hwc", "nv12"])
def test_types_and_normalisation(host, dtype, out_layout, layout):
    rng = np.random.default_rng(2)
    frames = random_frames(rng, 1, 66, 80, 3) if layout == "hwc" else random_frames(rng, 1, 66, 80)
    chosen = {"mean": MEAN, "std": STD, "border": 110.0, "layout": layout, "matrix": "bt601"}
    for area, width, swap_rb in ((1, 40, True), (1, 41, False), (2, 38, False)):
        size = (21, width)  # where it is even, 16-bit pixels are stored in pairs
        affines = make_affines((44, 80), size)
        options = options_of(size, 3, swap_rb=swap_rb, out_layout=out_layout, **chosen)
        areas = np.full(len(affines), area)
        actual = cut_frames(host, frames, affines, options, areas=areas, dtype=dtype, rows=4)
        assert actual.dtype == getattr(torch, dtype)
        pixels = frames if layout == "hwc" else nv12_to_bgr(torch.from_numpy(frames), "bt601")
        expected = reference(pixels, affines, options, source=np.zeros(7, int), areas=areas)
        assert_close(actual, expected, GREY / min(STD))


def test_areas_and_sources_of_each_window(host):
    """An area beyond 1 to 16 is taken as the nearest of them."""
    frames = random_frames(np.random.default_rng(3), 2, 70, 90, 3)
    affines = make_affines((70, 90), (13, 17), count=9)
    affines[4, 1, 2], affines[5, 0, 0] = np.nan, np.inf
    source = np.array([0, 1, -1, 2, 0, 0, 1, 0, 1])
    areas = np.array([1, 3, 1, 2, 1, 4, 16, 2, 1])
    options = options_of((13, 17), 3, border=7.0)
    wild = np.where(areas == 16, 99, areas)
    wild[0] = -5
    actual = cut_frames(host, frames, affines, options, source=source, areas=wild)
    expected = reference(frames, affines, options, source=source.clip(0, 1), areas=areas)
    for n in np.flatnonzero((source < 0) | (source > 1) | ~np.isfinite(affines).all((1, 2))):
        expected[n] = 7.0
    assert_close(actual, expected, GREY)


@pytest.mark.parametrize("layout", ["hwc", "nv12"])
def test_a_table_of_frames(host, layout):
    rng = np.random.default_rng(4)
    sizes = [(40, 64), (12, 10), (90, 38)]
    tail = (3,) if layout == "hwc" else ()
    frames = [random_frames(rng, h if layout == "hwc" else h * 3 // 2, w, *tail) for h, w in sizes]
    size, options = (15, 34), options_of((15, 34), 3, border=31.0, layout=layout)
    source = np.array([0, 1, 2, 3, -1, 4, 2, 0, 1])
    affines = np.concatenate(
        [make_affines(sizes[i % 3], size, count=1, seed=i % 7) for i in source]
    )
    actual = cut_table(host, [*frames, None], affines, options, source=source)
    for n, index in enumerate(source):
        expected = torch.full((1, 3, *size), 31.0)
        if 0 <= index < 3:
            pixels = frames[index][None]
            if layout == "nv12":
                pixels = nv12_to_bgr(torch.from_numpy(pixels), "bt709")
            expected = reference(pixels, affines[n : n + 1], options)
        assert_close(actual[n : n + 1], expected, GREY)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [0, 1, 2, 5])
def test_rows_at_any_address_up_to_the_last_byte(host, first, more):
    """Whole words are read, but none with a byte beyond the last row, which ends the memory."""
    rng = np.random.default_rng(5)
    height, width, row = 14, 43, 43 * 3 + more
    data = random_frames(rng, first + (height - 1) * row + width * 3)
    frames = np.lib.stride_tricks.as_strided(
        data[first:], (1, height, width, 3), (0, row, 3, 1), writeable=False
    )
    steps = np.array([-1.75, -1, -0.5, 0, 1.25])
    affines = np.array([[[1, 0, x], [0, 1, y]] for x in steps for y in steps], np.float32)
    options = options_of((height, width), 3, border=9.0)
    for rows in (1, 8):
        actual = cut_frames(
            host,
            (data, (1, height, width)),
            affines,
            options,
            rows=rows,
            view=(first, 0, row),
        )
        expected = reference(frames.copy(), affines, options, source=np.zeros(25, int))
        assert_close(actual, expected, GREY)


def test_tiles_wider_than_positions_in_them_can_be(host):
    frames = random_frames(np.random.default_rng(9), 1, 6, 900, 3)
    affines = np.array([[[s, 0, 5.3], [0, 0.5, 0.7]] for s in (7.7, 8.2, 12.0)], np.float32)
    options = options_of((8, 64), 3)
    actual = cut_frames(host, frames, affines, options, rows=8)
    assert_close(actual, reference(frames, affines, options, source=np.zeros(3, int)), GREY)


def test_positions_far_from_the_origin(host):
    """At x = 9000 a float32 is 1e-3 px wide, which a sharp edge would show."""
    frames = np.zeros((1, 3, 9000, 3), np.uint8)
    frames[:, :, ::2] = 255
    affines = np.array(
        [[[1 / 3, 0, x], [0, 0.01, 0.3]] for x in (8000.123, 8960.77, -3.3)], np.float32
    )
    options = options_of((2, 100), 3)
    actual = cut_frames(host, frames, affines, options)
    expected = reference(frames, affines, options, source=np.zeros(3, int))
    assert_close(actual, expected, GREY)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e12, -1e7, 1e5])
@pytest.mark.parametrize("place", list(np.ndindex(2, 3)))
def test_huge_affines(host, value, place):
    frames = random_frames(np.random.default_rng(6), 1, 20, 30, 3)
    affines = np.array([[[1, 0, 0.5], [0, 1, 0.5]]] * 2, np.float32)
    affines[1][place] = value
    options = options_of((6, 40), 3, border=50.0)
    for area in (1, 2):
        actual = cut_frames(host, frames, affines, options, areas=[area, area])
        expected = reference(
            frames, affines, options, source=np.zeros(2, int), areas=np.array([area, area])
        )
        assert_close(actual, expected, GREY)


def test_a_window_between_two_pixels_of_a_huge_scale(host):
    frames = random_frames(np.random.default_rng(7), 1, 9, 9, 3)
    affines = np.array([[[1e7, 0, -2e7 + 4], [0, 0, 4]]], np.float32)
    options = options_of((1, 5), 3, border=1.0)
    actual = cut_frames(host, frames, affines, options)
    assert_close(actual, reference(frames, affines, options), GREY)


def test_weights_are_rounded_to_the_nearest(host):
    """On a chess board, tap by tap of one colour, errors would add up."""
    board = np.indices((40, 210)).sum(0) % 2 * 255
    frames = np.repeat(board[None, ..., None], 3, axis=3).astype(np.uint8)
    affines = np.array([[[2.003, 0, 4.1], [0, 2.011, 4.1]]], np.float32)
    options = options_of((16, 90), 3)
    error = cut_frames(host, frames, affines, options) - reference(frames, affines, options)
    assert abs(error.mean()) < 2e-3


def test_a_border_that_no_tap_touches(host):
    frames = random_frames(np.random.default_rng(8), 1, 9, 9, 3)
    affines = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)  # to the very edges
    options = options_of((9, 9), 3, border=np.nan)
    actual = cut_frames(host, frames, affines, options)
    expected = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def test_whole_positions_give_the_very_bytes(host):
    frames = random_frames(np.random.default_rng(8), 1, 40, 70, 3)
    affines = np.array([[[1, 0, 2], [0, 1, 3]]], np.float32)
    actual = cut_frames(host, frames, affines, options_of((30, 60), 3))
    expected = torch.from_numpy(frames[:, 3:33, 2:62]).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


# --- maps -----------------------------------------------------------------------------------------


def lay_out(maps, order):
    """`maps` [T, C, H, W] in another order of memory, or with gaps."""
    match order:
        case "channels last":
            return maps.contiguous(memory_format=torch.channels_last)
        case "gaps":
            wide = torch.full((*maps.shape[:3], 2 * maps.shape[3]), torch.nan, dtype=maps.dtype)
            wide[..., ::2] = maps
            return wide[..., ::2]
        case _:
            return maps.contiguous()


def memory(tensor):
    """All bytes that the tensor's elements lie in, from the first to the last."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((last + 1,), (1,))
    return flat.view(torch.uint8).numpy().copy()


def placed(name, tensor):
    numbers = {f"{name}.offset": 0, f"{name}.h": tensor.shape[2], f"{name}.w": tensor.shape[3]}
    return numbers | {f"{name}.stride{i}": s for i, s in enumerate(tensor.stride())}


def normalisation(options):
    if options.mean is None and options.std is None:
        return {}
    return dict(zip(("scale", "shift"), options.scale_shift(), strict=True))


def cut_maps(host, maps, affines, options, *, source, areas=None, dtype="float32", vector=False):
    numbers, arrays = window_job("chw", affines, source, areas, options, dtype, len(maps))
    numbers |= placed("maps", maps) | {"channels": maps.shape[1], "vector": vector}
    numbers["maps.type"] = TYPES.index(str(maps.dtype).removeprefix("torch."))
    shape = options.out_shape(len(affines))
    arrays |= {"maps": memory(maps), "out": poisoned(shape, dtype), **normalisation(options)}
    return as_tensor(host.run(numbers, arrays), shape, dtype)


@pytest.mark.parametrize("order", ["contiguous", "channels last", "gaps"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [3, 8])
def test_maps(host, order, kind, out_layout, channels):
    rng = np.random.default_rng(9)
    shape, size = (2, channels, 17, 23), (7, 5)
    maps = lay_out(torch.from_numpy(rng.normal(size=shape)).to(getattr(torch, kind)), order)
    affines, source = make_affines(shape[2:], size, count=9), np.arange(9) % 2
    source[7:] = -1, 2
    areas = np.array([1, 2, 2, 3, 1, 2, 4, 1, 2])
    chosen = {"border": 0.5, "layout": "chw", "out_layout": out_layout, "swap_rb": channels == 3}
    for dtype, norm in (
        ("float32", {}),
        (kind, {"mean": tuple(range(channels)), "std": (2.0,) * channels}),
    ):
        options = options_of(size, channels, **chosen, **norm)
        vector = order == "channels last" and channels == 8
        actual = cut_maps(
            host, maps, affines, options, source=source, areas=areas, dtype=dtype, vector=vector
        )
        expected = reference(maps.float(), affines[:7], options, source=source[:7], areas=areas[:7])
        assert_close(actual[:7], expected, 1e-5)
        outside = reference(
            maps.float(), affines[:2] + 1e6, options, source=source[:2], areas=areas[:2]
        )
        assert_close(actual[7:], outside, 1e-5)


@pytest.mark.parametrize("order", ["contiguous", "channels last"])
def test_a_tap_of_weight_zero_counts_for_nothing(host, order):
    maps = torch.ones(1, 4, 5, 5)
    maps[0, 0, 2, 2], maps[0, 1, 4, 4] = torch.nan, torch.inf
    affines = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
    options = options_of((5, 5), 4, layout="chw", border=np.nan)
    maps, vector = lay_out(maps, order), order == "channels last"
    actual = cut_maps(host, maps, affines, options, source=None, vector=vector)
    torch.testing.assert_close(actual, maps, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [3, 6])
def test_gradient(host, order, dtype, out_layout, channels):
    rng = np.random.default_rng(10)
    shape, size = (2, channels, 9, 11), (4, 5)
    affines = make_affines(shape[2:], size, count=6)
    affines[5] = np.nan
    source, areas = np.array([0, 1, 1, 0, 2, 0]), np.array([1, 2, 3, 2, 1, 2])
    norm = {"std": (2.0, 3.0, 4.0), "swap_rb": True} if channels == 3 else {}
    options = options_of(size, channels, layout="chw", out_layout=out_layout, **norm)
    grad = torch.from_numpy(rng.normal(size=options.out_shape(6))).to(getattr(torch, dtype))
    numbers, arrays = window_job("gradient", affines, source, areas, options, dtype, 2)
    nchw = grad if out_layout == "nchw" else grad.permute(0, 3, 1, 2)
    total = lay_out(torch.zeros(shape), order)
    numbers |= placed("grad", nchw) | placed("out", total) | {"channels": channels}
    arrays |= {"grad": memory(nchw), "out": memory(total), **normalisation(options)}
    raw = torch.frombuffer(bytearray(host.run(numbers, arrays)), dtype=torch.float32)
    actual = raw.as_strided(total.shape, total.stride())
    expected = scatter_reference(
        grad,
        torch.from_numpy(affines),
        torch.from_numpy(source),
        torch.from_numpy(areas),
        torch.Size(shape),
        options,
    )
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# --- on a device ----------------------------------------------------------------------------------


def test_the_compiled_part_imports_without_a_driver():
    cuda = pytest.importorskip("fastpose._C_cuda", reason="built without nvcc")
    if torch.cuda.is_available():
        assert cuda.device_count() == torch.cuda.device_count()
        return
    assert cuda.device_count() == 0
    with pytest.raises(RuntimeError, match="cuda launch of warp"):
        cuda.warp_maps(
            data=0, maps_type="float32", strides=(1, 1, 1, 1), shape=(1, 1, 1), affines=0, source=0,
            areas=0, sources=1, count=1, size=(1, 1), area=1, border=0.0, out=0,
            out_type="float32", scale=0, shift=0, swap_rb=False, channels_last=False, stream=0,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["warp_maps", "scatter_maps"])
def test_maps_too_large_to_count_their_threads_are_refused(name):
    cuda = pytest.importorskip("fastpose._C_cuda", reason="built without nvcc")
    common = {
        "strides": (1, 1, 1, 1), "affines": 0, "source": 0, "areas": 0, "sources": 1, "count": 0,
        "area": 1, "scale": 0, "swap_rb": False, "stream": 0,
    }  # fmt: skip
    match name:
        case "warp_maps":
            common |= {"data": 0, "maps_type": "float32", "border": 0.0, "out": 0, "shift": 0}
            common |= {"out_type": "float16", "channels_last": False}
        case _:
            grad = {"grad": 0, "grad_type": "float32", "grad_strides": (1, 1, 1, 1)}
            common |= {**grad, "total": 0}
    for channels, size in ((8, (1 << 15, 1 << 15)), (4, (1 << 15, 1 << 16))):
        with pytest.raises(ValueError, match=r"size times channels must be below 2\^31"):
            getattr(cuda, name)(shape=(channels, 9, 9), size=size, **common)


def on_device(array):
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.asarray(array))
    return tensor.cuda()


def check_on_device(frames, affines, size, *, tolerance, **arguments):
    """`warp` into poisoned memory against the reference, all on the device."""
    kind = arguments.pop("dtype", "float32")
    expected = warp(frames, affines, size, backend="reference", **arguments)
    out = torch.full(expected.shape, torch.nan, dtype=getattr(torch, kind), device="cuda")
    assert warp(frames, affines, size, backend="cuda", out=out, **arguments) is out
    assert_close(out, expected, tolerance)
    return out


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["hwc", "nv12"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(720, 1280), (54, 70), (2, 4)])
def test_frames_on_a_device(layout, dtype, out_layout, shape):
    rng = np.random.default_rng(11)
    tail = (*shape, 3) if layout == "hwc" else (shape[0] * 3 // 2, shape[1])
    frames = on_device(random_frames(rng, 2, *tail))
    areas = on_device(rng.integers(1, 6, 24).astype(np.int32))
    arguments = {
        "source": on_device(rng.integers(-1, 3, 24).astype(np.int32)),
        "mean": MEAN,
        "std": STD,
        "border": 110.0,
        "layout": layout,
        "out_layout": out_layout,
        "dtype": dtype,
        "tolerance": GREY / min(STD),
    }
    # where the width is even, 16-bit pixels are stored in pairs
    for width, area, swap_rb in (
        (75, 1, True),
        (75, areas, True),
        (76, 1, True),
        (76, areas, False),
    ):
        affines = make_affines(shape, (61, width), count=24)
        affines[3, 0, 0] = np.nan
        check_on_device(
            frames, on_device(affines), (61, width), area=area, swap_rb=swap_rb, **arguments
        )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("order", ["contiguous", "channels last", "gaps"])
def test_maps_on_a_device(kind, dtype, out_layout, order):
    rng = np.random.default_rng(12)
    for channels in (5, 32):
        maps = torch.from_numpy(rng.normal(size=(2, channels, 38, 50)))
        maps = on_device(maps).to(getattr(torch, kind))
        if order == "channels last":
            maps = maps.contiguous(memory_format=torch.channels_last)
        elif order == "gaps":
            maps = maps.repeat_interleave(2, dim=3)[..., ::2]
        check_on_device(
            maps,
            on_device(make_affines((38, 50), (7, 7), count=20)),
            (7, 7),
            source=on_device(rng.integers(-1, 3, 20)),
            mean=np.arange(channels) / 10,
            std=np.arange(channels) + 1.0,
            border=0.3,
            layout="chw",
            out_layout=out_layout,
            dtype=dtype,
            area=2,
            tolerance=1e-4,
        )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["hwc", "nv12"])
def test_frames_of_different_sizes_on_a_device(layout):
    rng = np.random.default_rng(13)
    sizes = [(90, 120), (34, 50), (210, 64)]
    frames = [
        on_device(random_frames(rng, *((h, w, 3) if layout == "hwc" else (h * 3 // 2, w))))
        for h, w in sizes
    ]
    affines = on_device(make_affines((90, 100), (40, 33), count=12))
    source = on_device(np.arange(12, dtype=np.int32) % 3)
    arguments = {"source": source, "border": 5.0, "layout": layout}
    out = check_on_device(frames, affines, (40, 33), tolerance=GREY, **arguments)
    table = FrameTable(on_device(frame_rows(frames, layout)))
    again = torch.full_like(out, torch.nan)
    assert warp(table, affines, (40, 33), out=again, **arguments) is again
    assert torch.equal(again, out)
    table.rows[1, 2] = 0  # no frame any more
    warp(table, affines, (40, 33), out=again, **arguments)
    assert (again[1::3] == 5.0).all()
    assert torch.equal(again[::3], out[::3])


@pytest.mark.gpu
def test_rows_at_any_address_on_a_device():
    whole = on_device(random_frames(np.random.default_rng(14), 3, 60, 83, 3))
    affines = on_device(make_affines((50, 70), (33, 41), count=10))
    source = on_device(np.arange(10) % 2)
    for left in range(4):
        frames = whole[1:, 3:55, left : left + 76]
        check_on_device(frames, affines, (33, 41), source=source, tolerance=GREY)


@pytest.mark.gpu
@pytest.mark.parametrize("row", [3 * 64, 5_000_000])
def test_strides_beyond_32_bits_on_a_device(row):
    """The second frame, or the last row, lies more than 2 GiB after the first."""
    height, step = (500, 3_000_000_000) if row > 1000 else (40, 2_500_000_001)
    data = torch.empty(step + height * row, dtype=torch.uint8, device="cuda")
    frames = data.as_strided((2, height, 64, 3), (step, row, 3, 1))
    frames.copy_(on_device(random_frames(np.random.default_rng(15), 2, height, 64, 3)))
    affines = on_device(make_affines((height, 64), (24, 36), count=8))
    source = on_device(np.arange(8) % 2)
    check_on_device(frames, affines, (24, 36), source=source, border=1.0, tolerance=GREY)


@pytest.mark.gpu
def test_more_windows_than_a_grid_is_deep():
    rng, count = np.random.default_rng(16), 66_000
    affines = np.tile(np.eye(2, 3, dtype=np.float32), (count, 1, 1))
    affines[:, :, 2] = rng.uniform(0, 20, (count, 2))
    affines = on_device(affines)
    frame = on_device(random_frames(rng, 1, 25, 25, 3))
    check_on_device(frame, affines, (3, 2), tolerance=GREY)
    maps = on_device(rng.normal(size=(1, 4, 25, 25)).astype(np.float32)).requires_grad_()
    check_on_device(maps.detach(), affines, (3, 2), layout="chw", tolerance=1e-5)
    warp(maps, affines, (3, 2), layout="chw").sum().backward()
    assert maps.grad.sum().item() == pytest.approx(4 * 6 * count, rel=1e-4)


@pytest.mark.gpu
def test_the_given_stream_and_place():
    rng = np.random.default_rng(17)
    frame = on_device(random_frames(rng, 1, 40, 50, 3))
    affines = make_affines((40, 50), (9, 9), count=3)
    stream = torch.cuda.Stream()
    batch = torch.full((5, 3, 9, 9), -1.0, device="cuda")
    torch.cuda.synchronize()
    arguments = {"source": np.zeros(3, np.int64)}
    out = warp(frame, affines, (9, 9), out=batch[1:4], stream=stream.cuda_stream, **arguments)
    stream.synchronize()
    assert out.data_ptr() == batch[1].data_ptr()
    assert (batch[[0, 4]] == -1).all()
    expected = warp(frame.cpu(), torch.from_numpy(affines), (9, 9), **arguments)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=GREY)


@pytest.mark.gpu
def test_a_captured_graph_replays_the_same_bits():
    rng = np.random.default_rng(18)
    frames = [on_device(random_frames(rng, *size, 3)) for size in ((90, 120), (70, 64))]
    table = FrameTable(on_device(frame_rows(frames)))
    maps = on_device(rng.normal(size=(2, 8, 40, 40)).astype(np.float32))
    affines = on_device(make_affines((40, 40), (24, 16), count=6))
    source = on_device(np.arange(6, dtype=np.int32) % 2)
    areas = on_device(np.array([1, 2, 1, 3, 1, 2], np.int32))
    out = torch.empty(6, 3, 24, 16, device="cuda", dtype=torch.float16)

    def step():
        warp(table, affines, (24, 16), source=source, area=areas, mean=MEAN, std=STD, out=out)
        norm = {"mean": [0.5] * 8, "std": [2.0] * 8}
        return warp(maps, affines, (24, 16), source=source, layout="chw", area=2, **norm)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        cut = step()
    for _ in range(2):  # the second time with other frames and windows
        out.fill_(torch.nan)
        cut.fill_(torch.nan)
        graph.replay()
        replayed = out.clone(), cut.clone()
        eager = step()
        assert torch.equal(replayed[0], out)
        assert torch.equal(replayed[1], eager)
        table.rows.copy_(table.rows.flip(0))
        affines.add_(0.25)


@pytest.mark.gpu
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("out_layout", ["nchw", "nhwc"])
def test_gradient_on_a_device(order, kind, out_layout):
    rng = np.random.default_rng(19)
    maps = on_device(rng.normal(size=(2, 6, 21, 30))).to(getattr(torch, kind))
    maps = maps.contiguous(memory_format=order)
    affines = on_device(make_affines((21, 30), (7, 5), count=14))
    arguments = {
        "source": on_device(np.arange(14) % 2),
        "area": on_device(rng.integers(1, 4, 14)),
        "std": np.arange(6) + 1.0,
        "layout": "chw",
        "out_layout": out_layout,
    }
    grads = []
    for backend in ("cuda", "reference"):
        leaf = maps.detach().float() if backend == "reference" else maps.detach().clone()
        leaf.requires_grad_()
        out = warp(leaf, affines, (7, 5), backend=backend, **arguments)
        weights = torch.linspace(-1, 2, out.numel(), device="cuda").reshape(out.shape)
        (out * weights).sum().backward()
        grads.append(leaf.grad)
    assert grads[0].dtype == maps.dtype
    assert grads[0].stride() == maps.stride()
    torch.testing.assert_close(
        grads[0].float(), grads[1].float(), rtol=max(ULP[kind], 1e-5), atol=1e-4
    )


@pytest.mark.gpu
def test_gradient_of_a_sum_and_in_a_fixed_order():
    """What arrives is one number, expanded; twice the same bits if torch is told so."""
    maps = torch.randn(1, 4, 30, 30, device="cuda", requires_grad=True)
    affines = on_device(make_affines((30, 30), (9, 9), count=50))
    source = torch.zeros(50, dtype=torch.int32, device="cuda")
    grads = []
    for fixed in (False, True, True):
        torch.use_deterministic_algorithms(fixed)
        try:
            out = warp(maps, affines, (9, 9), source=source, layout="chw", area=2)
            grads += torch.autograd.grad(out.sum(), maps)
        finally:
            torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-4)
    assert torch.equal(grads[1], grads[2])
