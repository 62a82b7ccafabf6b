"""Frames on a device by addresses: on memory of the host, with the CPU's kernels at its addresses.

That proves what is told to the kernels and in which order, not that a device does it.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_fakes import (
    STREAM,
    Bindings,
    Driver,
    HostMemory,
    PyCUDA,
    at,
    decode_binary,
    warp_frames,
)

pytest.importorskip("fastpose._C", reason="the kernels for the CPU are not built")
cuda = pytest.importorskip("fastpose.ops.cuda", reason="built without nvcc")

from fastpose import ops  # noqa: E402
from fastpose.direct import DeviceFrames, DirectFrames, goes_direct  # noqa: E402
from fastpose.engines import memory as memories  # noqa: E402
from fastpose.engines.memory import DeviceArray, host_type, open_memory  # noqa: E402
from fastpose.errors import BackendError, EngineError  # noqa: E402
from fastpose.geometry import boxes_to_affines  # noqa: E402
from fastpose.graph import in_graphs  # noqa: E402
from fastpose.models import model_spec  # noqa: E402
from fastpose.models.joints import locate_joints  # noqa: E402
from fastpose.ops import cubin  # noqa: E402
from fastpose.pipeline import estimate  # noqa: E402
from fastpose.pose import Pose  # noqa: E402
from fastpose.types import Boxes  # noqa: E402

SPEC = replace(
    model_spec("cpn-light"), size=(96, 64), mean=(1.0, 2.0, 3.0), std=(2.0, 3.0, 4.0), rgb=False
)
K = len(SPEC.joints)


class Dots:
    """A pointer engine: heat maps that tell how near to full their cells' red is."""

    def __init__(
        self, memory, spec=SPEC, *, decoder=False, layout="nchw", kind="float32", maps="float32"
    ):
        self.manifest = SimpleNamespace(name="dots", spec=spec, buckets=(1, 2, 4))
        self.memory, self.layout, self.window_type, self.maps = memory, layout, kind, maps
        (channels, *cells), *_ = spec.results
        shape = (channels - spec.background, *cells)
        binary = {"channels": channels, "dtype": maps, "peaks": spec.peaks}
        self.decoder = decode_binary(shape, **binary) if decoder else None
        self.results = {
            size: [memory.empty((size, *one), maps) for one in spec.results]
            for size in self.manifest.buckets
        }
        self.runs, self.closed = [], False

    def enqueue_at(self, count, windows, stream):
        assert stream == self.memory.stream
        self.runs.append(count)
        h, w = self.manifest.spec.size
        nhwc = self.layout == "nhwc"
        given = at(windows, (count, h, w, 3) if nhwc else (count, 3, h, w), self.window_type)
        red = given[..., 2] if nhwc else given[:, 2]
        for result in self.results[count]:
            out = at(result.address, result.shape, host_type(self.maps))
            out[:] = as_bits(red_maps(red, result.shape[1:], self.manifest.spec), self.maps)
        return self.results[count]

    def close(self):
        self.closed = True
        self.results = {}
        self.memory.close()


def red_maps(red, shape, spec):
    """[N, *shape] of a window's red [N, h, w]."""
    stride = spec.size[0] // spec.cells[0]
    cells = red.astype(np.float32).reshape(len(red), spec.cells[0], stride, spec.cells[1], stride)
    maps = (cells.mean(axis=(2, 4)) * spec.std[2] + spec.mean[2]) / 255
    if spec.output == "joints":
        plain = np.ascontiguousarray(np.broadcast_to(maps[:, None], (len(red), K, *spec.cells)))
        points, scores = ops.decode(plain, method=spec.method, sigma=spec.sigma)
        return np.concatenate((points, scores[..., None]), axis=2)
    if len(shape) == 2:  # vectors
        return np.broadcast_to(maps.mean(axis=(1, 2))[:, None, None], (len(red), *shape))
    return np.broadcast_to(maps[:, None], (len(red), *shape))


def as_bits(array, kind):
    if kind != "bfloat16":
        return array
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.int16)


class HostDots:
    """`Dots` as an engine on the host."""

    def __init__(self, spec=SPEC):
        self.manifest = SimpleNamespace(name="dots", spec=spec, buckets=(1, 2, 4))
        self.images = np.zeros((4, 3, *spec.size), np.float32)

    def buffer(self, count):
        return self.images[:count]

    def run(self, count):
        spec = self.manifest.spec
        return np.ascontiguousarray(red_maps(self.images[:count, 2], spec.results[0], spec))


def without_kernels(monkeypatch, reason):
    """As if the kernel of `warp` could not run for that reason."""
    for module in ("fastpose.ops.warp", "fastpose.direct"):
        monkeypatch.setattr(sys.modules[module], "gpu_kernels", lambda: {"warp": reason})


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """A device of the host's, its driver as `fastpose.ops.cubin` sees it."""
    monkeypatch.setattr(cuda, "_C_cuda", SimpleNamespace(warp_frames=warp_frames))
    without_kernels(monkeypatch, "")
    driver = Driver(method=SPEC.method, sigma=SPEC.sigma)
    monkeypatch.setattr(cubin, "_driver", lambda: driver)
    return driver


def dotted(*dots, size=(240, 320)):
    """A dark frame with a soft red dot at each (x, y)."""
    y, x = np.mgrid[: size[0], : size[1]]
    red = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 50.0) for a, b in dots)
    frame = np.zeros((*size, 3), np.uint8)
    frame[..., 2] = np.clip(255 * red, 0, 255)
    return frame


FRAMES = [dotted((60.3, 80.7), (200.1, 120.4)), dotted((300.9, 60.2), size=(131, 401))]
DOTS = np.array([(60.3, 80.7), (300.9, 60.2), (200.1, 120.4)])
SOURCE = np.array([0, 1, 0])


def boxes_round(*dots, half=40):
    return np.array([[x - half + 7, y - half - 4, x + half + 7, y + half - 4] for x, y in dots])


def windows_round(*dots):
    return boxes_to_affines(boxes_round(*dots), SPEC.size)


def people_at(boxes):
    return Boxes(boxes.astype(np.float32), np.ones(len(boxes), np.float32))


def crowd():
    """Frames and boxes: more people than a batch, nobody, and people seen from very near."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 100, (6, 2))
    boxes = np.concatenate((corners, corners + random.uniform(20, 500, (6, 2))), axis=1)
    found = [people_at(boxes[:5]), Boxes.empty(), people_at(boxes[5:])]
    return [FRAMES[0], FRAMES[1], FRAMES[1]], found


def same_people(actual, expected, pixels=1e-2, score=1e-3):
    for here, there in zip(actual, expected, strict=True):
        assert len(here) == len(there)
        np.testing.assert_allclose(here.keypoints, there.keypoints, atol=pixels)
        np.testing.assert_allclose(here.scores, there.scores, atol=score)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize(
    ("layout", "kind", "maps"),
    [
        ("nchw", "float32", "float32"),
        ("nhwc", "float16", "float16"),
        ("nchw", "float16", "float32"),
    ],
)
def test_the_path_is_the_same_as_on_the_host(device, decoder, layout, kind, maps):
    frames, found = crowd()
    engine = Dots(HostMemory(), decoder=decoder, layout=layout, kind=kind, maps=maps)
    device.binary = engine.decoder
    direct = DirectFrames(engine)
    assert direct.finds_joints == decoder
    expected = estimate(frames, found, HostDots())
    half = "float16" in (kind, maps)
    actual = estimate(direct.upload(frames), found, direct)
    same_people(actual, expected, *((0.2, 5e-3) if half else ()))
    assert device.calls.count("cuLaunchKernel") == (2 if decoder else 0)  # for 4 people and 2


def test_bfloat16_maps_come_down_as_float32():
    direct = DirectFrames(Dots(HostMemory(), maps="bfloat16"))
    plain = DirectFrames(Dots(HostMemory()))
    pair = [d.results(d.upload(FRAMES), SOURCE, windows_round(*DOTS)) for d in (direct, plain)]
    assert pair[0].dtype == np.float32
    np.testing.assert_allclose(pair[0], pair[1], rtol=2**-7)
    assert (pair[0] != pair[1]).any()


def test_it_is_what_graphs_do(device):
    torch = pytest.importorskip("torch")
    from fastpose.graph import FrameGraphs

    class Tensors(Dots):
        device, type = torch.device("cpu"), torch.float32

        def enqueue(self, windows):
            given = windows.contiguous()
            (result,) = self.enqueue_at(len(given), given.data_ptr(), STREAM)
            return torch.from_numpy(at(result.address, result.shape, np.float32))

    engine = Dots(HostMemory(), decoder=True)
    device.binary = engine.decoder
    both = DirectFrames(engine), FrameGraphs(Tensors(HostMemory()))
    frames, affines = [frame.copy() for frame in FRAMES], windows_round(*DOTS)
    found = [one.joints(one.upload(frames), SOURCE, affines) for one in both]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-3)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)
    assert all(isinstance(one, DeviceFrames) for one in both)


@pytest.mark.parametrize("kind", ["pycuda", "cuda"])
def test_with_the_memory_of_a_library(kind, monkeypatch, device):
    memories._pycuda_context.cache_clear()
    fake = (PyCUDA if kind == "pycuda" else Bindings)().install(monkeypatch)
    engine = Dots(open_memory(kind), decoder=True)
    device.binary = engine.decoder
    opened = in_graphs(engine)
    assert isinstance(opened, DirectFrames)
    frames, found = crowd()
    same_people(estimate(opened.upload(frames), found, opened), estimate(frames, found, HostDots()))
    assert not fake.stack
    opened.close()
    del opened, engine
    assert fake.rooms.rooms == {}
    assert device.calls[-1] == "cuModuleUnload"
    memories._pycuda_context.cache_clear()


@pytest.mark.parametrize("change", [{"background": True}, {"peaks": 2}])
@pytest.mark.parametrize("decoder", [True, False])
def test_maps_of_a_background_and_of_several_joints(change, decoder, device):
    spec = replace(SPEC, **change)
    engine = Dots(HostMemory(), spec, decoder=decoder)
    device.binary = engine.decoder
    direct = DirectFrames(engine)
    found = [people_at(boxes_round(*DOTS[[0, 2]]))]
    actual = estimate(direct.upload(FRAMES[:1]), found, direct)
    same_people(actual, estimate(FRAMES[:1], found, HostDots(spec)))


def test_several_views_come_down_as_results(device):
    spec = replace(SPEC, views=(0.8, 1.25))
    engine = Dots(HostMemory(), spec, decoder=True)
    direct = DirectFrames(engine)
    assert not direct.finds_joints
    assert device.calls == []
    found = [people_at(boxes_round(*DOTS[[0, 2]]))]
    actual = estimate(direct.upload(FRAMES[:1]), found, direct)
    same_people(actual, estimate(FRAMES[:1], found, HostDots(spec)))


def test_joints_that_the_graph_found_need_no_kernel(device):
    spec = replace(SPEC, output="joints")
    direct = DirectFrames(Dots(HostMemory(), spec))
    assert not direct.finds_joints
    frames, found = crowd()
    actual = estimate(direct.upload(frames), found, direct)
    same_people(actual, estimate(frames, found, HostDots()))
    assert device.calls == []


def test_two_outputs_are_joined():
    spec = replace(SPEC, output="simcc", split=2.0)
    direct = DirectFrames(Dots(HostMemory(), spec))
    found = direct.results(direct.upload(FRAMES), SOURCE, windows_round(*DOTS))
    assert found.shape == (3, K, 2 * (64 + 96))
    points, _ = locate_joints(found, windows_round(*DOTS), spec)
    assert points.shape == (3, K, 2)


def test_what_is_behind_the_windows_is_border():
    """Windows of nobody are as the border, whatever lay there before."""
    engine = Dots(HostMemory())
    direct = DirectFrames(engine)
    frames = direct.upload(FRAMES)
    full = np.array([0, 0, 1, 1])
    direct.results(frames, full, windows_round(*DOTS, DOTS[0]))
    direct.results(frames, SOURCE, windows_round(*DOTS))
    maps = at(engine.results[4][0].address, engine.results[4][0].shape, np.float32)
    np.testing.assert_allclose(maps[3], SPEC.window.border / 255, atol=1e-3)
    assert maps[0].max() > 0.5


def test_the_least_batch_that_holds_them_runs():
    engine = Dots(HostMemory())
    direct = DirectFrames(engine)
    assert engine.runs == [1, 2, 4]
    for count, size in ((1, 1), (2, 2), (3, 4), (4, 4)):
        windows = windows_round(*DOTS[[0] * count])
        direct.results(direct.upload(FRAMES), np.zeros(count, int), windows)
        assert engine.runs[-1] == size


def test_frames_of_any_strides_are_placed_and_rooms_are_kept():
    engine = Dots(HostMemory())
    direct = DirectFrames(engine)
    whole = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    frames = [whole, whole[::-1], whole[:, ::2], whole[3:20, 5:30], whole[..., ::-1]]
    for given in (frames, frames[::-1]):  # the second time in other slots
        for frame, placed in zip(given, direct.upload(given), strict=True):
            np.testing.assert_array_equal(at(placed.address, placed.shape, np.uint8), frame)
    rooms = len(engine.memory.rooms.rooms)
    direct.upload(frames[:3])
    assert len(engine.memory.rooms.rooms) == rooms
    direct.close()  # the host's memory was never written while a copy might still read it


def test_a_frame_on_the_device_is_read_in_place():
    direct = DirectFrames(Dots(HostMemory()))
    there = DeviceArray(FRAMES[0].ctypes.data, FRAMES[0].shape, "uint8", FRAMES[0])
    other = SimpleNamespace(__cuda_array_interface__=there.__cuda_array_interface__)
    placed = direct.upload([there, other])
    assert [one.address for one in placed] == [FRAMES[0].ctypes.data] * 2
    affines = windows_round(DOTS[0], DOTS[0])
    found = direct.results(placed, np.array([0, 1]), affines)
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0].max() > 0.5
    for change in (
        {"shape": (3, 240, 320)},
        {"strides": (1920, 6, 1)},
        {"typestr": "<f4"},
        {"shape": (240, 320)},
    ):
        place = {**there.__cuda_array_interface__, **change}
        with pytest.raises(ValueError, match=r"must be dense uint8 \[H, W, 3\], got"):
            direct.upload([SimpleNamespace(__cuda_array_interface__=place)])


def test_a_kernel_of_another_device_or_network_is_refused(device):
    engine = Dots(HostMemory(), decoder=True)
    engine.decoder = replace(engine.decoder, capability=80)
    with pytest.raises(EngineError, match=r"compiled for 8\.0, this device has 9\.0; build it"):
        DirectFrames(engine)
    for change in ({"maps": (K, 24, 17)}, {"maps": (K - 1, 24, 16)}, {"dtype": "float16"}):
        engine = Dots(HostMemory(), decoder=True)
        engine.decoder = replace(engine.decoder, **change)
        with pytest.raises(EngineError, match=r"maps of the decoding kernel: it was compiled for"):
            DirectFrames(engine)


def test_closed(device):
    engine = Dots(HostMemory(), decoder=True)
    device.binary = engine.decoder
    direct = DirectFrames(engine)
    frames = direct.upload(FRAMES)
    direct.close()
    direct.close()
    assert engine.closed
    for use in (
        lambda: direct.upload(FRAMES),
        lambda: direct.joints(frames, SOURCE, windows_round(*DOTS)),
    ):
        with pytest.raises(EngineError, match="dots: the engine is closed"):
            use()


def test_only_what_is_not_torchs_goes_direct(monkeypatch):
    engine = Dots(HostMemory())
    assert goes_direct(engine)
    engine.memory.kind = "torch"
    assert not goes_direct(engine)
    assert not goes_direct(HostDots())
    engine.memory.kind = "pycuda"
    without_kernels(monkeypatch, "nobody built it")
    with pytest.warns(UserWarning, match="only the network runs on CUDA: nobody built it"):
        assert in_graphs(engine) is engine


def test_pose_places_frames_for_it():
    pose = object.__new__(Pose)
    pose._engine = DirectFrames(Dots(HostMemory()))
    people = pose(FRAMES[0], boxes=boxes_round(*DOTS[[0, 2]]))
    np.testing.assert_allclose(people.keypoints[:, 0], DOTS[[0, 2]], atol=0.5)


def test_a_detector_that_reads_tensors_is_given_frames_of_the_host():
    given = []

    class Finds:
        reads_device = True

        def __call__(self, frames):
            given.extend(frames)
            return [Boxes.empty() for _ in frames]

    pose = object.__new__(Pose)
    pose._engine, pose._detector = DirectFrames(Dots(HostMemory())), Finds()
    assert len(pose(FRAMES[0])) == 0
    np.testing.assert_array_equal(given[0], FRAMES[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "uint8"}, "dtype must be one of"),
        ({"size": (0, 4)}, "size must be"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"out_layout": "chwn"}, "out_layout must be"),
    ],
)
def test_warp_at_checks_what_it_can(change, message):
    from fastpose.ops import WindowAddresses, warp_at

    given = {"size": (4, 4), "stream": 0, **change}
    with pytest.raises(ValueError, match=message):
        warp_at(WindowAddresses(0, 0, 0, 0, 0, 0), **given)


def test_warp_at_needs_the_kernels(monkeypatch):
    from fastpose.ops import WindowAddresses, warp_at

    without_kernels(monkeypatch, "nobody built it")
    with pytest.raises(BackendError, match="nobody built it"):
        warp_at(WindowAddresses(0, 0, 0, 0, 0, 0), (4, 4), stream=0)


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "triton", "openvino", "onnxruntime")))
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "--noconftest",
    "tests/test_direct.py", "-k",
    "same_as_on_the_host or memory_of_a_library or several_joints or pose_places"]))
"""


def test_without_torch_and_triton():
    """The tests above, in a Python that can import neither."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.split()[0] == 13 * "."


def test_predict_needs_numpy_pycuda_and_tensorrt_alone(tmp_path):
    program = Path(__file__).with_name("without_torch.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert "predicted 14 joints twice" in done.stdout


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["pycuda", "cuda"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_on_a_device_it_finds_the_joints_that_graphs_find(kind, precision, monkeypatch):
    """A torch module in place of TensorRT, on the memory of another library."""
    monkeypatch.undo()  # the true kernels and driver
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from fastpose.graph import FrameGraphs
    from fastpose.models.joints import compile_peaks

    try:
        memory = open_memory(kind)
    except BackendError as error:
        pytest.skip(str(error))
    dtype = getattr(torch, precision)

    class Red:
        manifest = SimpleNamespace(name="red", spec=SPEC, buckets=(1, 4))
        layout, window_type, type = "nchw", precision, dtype
        device = torch.device("cuda", 0)
        decoder = None

        def __init__(self, memory=None):
            self.memory = memory
            if memory is not None:
                self.decoder = compile_peaks(SPEC, precision, memory.capability)
                self.kept = {n: memory.empty((n, *SPEC.results[0]), precision) for n in (1, 4)}

        def enqueue(self, windows):
            maps = torch.nn.functional.avg_pool2d(windows[:, 2:], SPEC.stride)
            return ((maps * SPEC.std[2] + SPEC.mean[2]) / 255).expand(-1, K, -1, -1).contiguous()

        def enqueue_at(self, count, windows, stream):
            given = DeviceArray(windows, (count, 3, *SPEC.size), precision, None)
            outer = torch.cuda.ExternalStream(stream)
            with torch.cuda.stream(outer):
                found = self.enqueue(torch.as_tensor(given, device="cuda"))
                torch.as_tensor(self.kept[count], device="cuda").copy_(found)
            return [self.kept[count]]

        def close(self):
            pass

    frames, found = crowd()
    both = DirectFrames(Red(memory)), FrameGraphs(Red())
    assert both[0].finds_joints
    people = [estimate(one.upload(frames), found, one) for one in both]
    for here, there in zip(*people, strict=True):
        np.testing.assert_array_equal(here.keypoints, there.keypoints)
        np.testing.assert_array_equal(here.scores, there.scores)
    for one in both:
        one.close()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["torch", "pycuda", "cuda"])
@pytest.mark.parametrize(
    ("method", "peaks", "dtype"),
    [
        ("dark", 1, "float32"),
        ("dark", 1, "bfloat16"),
        ("cpn", 1, "float16"),
        ("dark", 3, "float32"),
    ],
)
def test_a_kernel_of_the_driver_equals_decode_bit_for_bit(kind, method, peaks, dtype, monkeypatch):
    monkeypatch.undo()
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from fastpose.ops import DecodeKernel, compile_decode, decode

    try:
        memory = open_memory(kind)
    except BackendError as error:
        pytest.skip(str(error))
    maps = torch.rand((5, 9, 46, 46), device="cuda").to(getattr(torch, dtype))
    cells = torch.randn((5, 2, 3), device="cuda", dtype=torch.float64)
    binary = compile_decode(
        (8, 46, 46), dtype, memory.capability, channels=9, method=method, peaks=peaks
    )
    taps = torch.from_numpy(binary.taps.copy()).cuda()
    out = [torch.full((5, 8, peaks, *axis), 7.0, device="cuda") for axis in ((2,), ())]
    room = torch.empty((5, 8, 46, 46), device="cuda")
    torch.cuda.synchronize()
    with memory.current():
        kernel = DecodeKernel(binary, memory.capability)
        tensors = {"maps": maps, "affines": cells, "taps": taps, "candidates": room}
        tensors |= {"points": out[0], "scores": out[1]}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        kernel.launch(5, addresses, memory.stream)
        memory.synchronize()
        kernel.close()
    expected = decode(maps[:, :8], method=method, peaks=peaks, affines=cells)
    for here, there in zip(out, expected, strict=True):
        assert torch.equal(here.reshape(there.shape).view(torch.int32), there.view(torch.int32))
    memory.close()
