"""Frames to joints in graphs: without a GPU the same steps run one by one, not captured."""

import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastpose.engines import open_engine  # noqa: E402
from fastpose.engines.torch import _device as place_of  # noqa: E402
from fastpose.errors import BackendError, EngineError  # noqa: E402
from fastpose.geometry import boxes_to_affines  # noqa: E402
from fastpose.graph import Block, FrameGraphs, FrameMemory, in_graphs  # noqa: E402
from fastpose.models import model_spec  # noqa: E402
from fastpose.models.joints import locate_joints  # noqa: E402
from fastpose.pipeline import estimate  # noqa: E402
from fastpose.pose import Pose  # noqa: E402
from fastpose.types import Boxes  # noqa: E402

SPEC = replace(
    model_spec("cpn-light"), size=(96, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rgb=False
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Dots:
    """Heat maps of a window: how near to full its cells' red is, in all maps the same."""

    def __init__(
        self, device="cpu", *, spec=SPEC, buckets=(1, 2, 4), layout="nhwc", real="float32"
    ):
        self.manifest = SimpleNamespace(name="dots", spec=spec, buckets=buckets)
        self.device, self.type = torch.device(device), getattr(torch, real)
        self.layout, self.runs, self.closed = layout, [], False

    def enqueue(self, windows):
        self.runs.append(len(windows))
        maps = torch.nn.functional.avg_pool2d(windows[:, 2:], self.manifest.spec.stride) / 255
        return maps.expand(-1, self.manifest.spec.results[0][0], -1, -1)

    def close(self):
        self.closed = True


def dotted(*dots, size=(240, 320)):
    """A dark frame with a soft red dot at each (x, y)."""
    y, x = np.mgrid[: size[0], : size[1]]
    red = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 50.0) for a, b in dots)
    frame = np.zeros((*size, 3), np.uint8)
    frame[..., 2] = np.clip(255 * red, 0, 255)
    return frame


def boxes_round(*dots, half=40):
    return np.array([[x - half + 7, y - half - 4, x + half + 7, y + half - 4] for x, y in dots])


def windows_round(*dots):
    return boxes_to_affines(boxes_round(*dots), SPEC.size)


FRAMES = [dotted((60.3, 80.7), (200.1, 120.4)), dotted((300.9, 60.2), size=(131, 401))]
SOURCE = np.array([0, 1, 0])
DOTS = np.array([(60.3, 80.7), (300.9, 60.2), (200.1, 120.4)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("real", ["float32", "float16"])
def test_joints_of_frames_of_several_sizes(device, layout, real):
    graphs = FrameGraphs(Dots(device, layout=layout, real=real))
    points, scores = graphs.joints(graphs.upload(FRAMES), SOURCE, windows_round(*DOTS))
    assert points.shape == (3, 14, 2)
    np.testing.assert_allclose(points, np.repeat(DOTS[:, None], 14, axis=1), atol=0.5)
    assert (scores > 0.5).all()


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_behind_the_windows_changes_nothing(device):
    graphs = FrameGraphs(Dots(device))
    frames = graphs.upload(FRAMES)
    first = graphs.joints(frames, SOURCE, windows_round(*DOTS))
    full = graphs.joints(frames, np.array([0, 0, 1, 1]), windows_round(*DOTS, DOTS[0]))
    again = graphs.joints(frames, SOURCE, windows_round(*DOTS))
    assert len(full[0]) == 4
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_each_batch_size_runs_at_the_start_and_the_least_that_holds_them_later():
    engine = Dots()
    graphs = FrameGraphs(engine)
    assert engine.runs == [4, 2, 1]
    for count, size in ((1, 1), (2, 2), (3, 4), (4, 4)):
        graphs.joints(
            graphs.upload(FRAMES), np.zeros(count, int), windows_round(*DOTS[[0] * count])
        )
        assert engine.runs[-1] == size


@pytest.mark.parametrize("device", DEVICES)
def test_the_path_is_the_same_as_on_the_host(device):
    """A frame with more people than a batch, one with nobody, and people seen from very near."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 100, (6, 2))
    boxes = np.concatenate((corners, corners + random.uniform(20, 500, (6, 2))), axis=1)
    found = [
        Boxes(b.astype(np.float32), np.ones(len(b), np.float32)) for b in (boxes[:5], boxes[5:])
    ]
    found.insert(1, Boxes.empty())
    frames = [FRAMES[0], FRAMES[1], FRAMES[1]]
    engine = HostDots()
    graphs = FrameGraphs(Dots(device))
    expected = estimate(frames, found, engine)
    actual = estimate(graphs.upload(frames), found, graphs)
    assert [len(p) for p in actual] == [5, 0, 1]
    for there, here in zip(expected, actual, strict=True):
        np.testing.assert_allclose(here.keypoints, there.keypoints, atol=1e-2)
        np.testing.assert_allclose(here.scores, there.scores, atol=1e-3)


def people_at(boxes):
    return Boxes(boxes.astype(np.float32), np.ones(len(boxes), np.float32))


class HostDots:
    """`Dots` as an engine on the host."""

    def __init__(self, spec=SPEC):
        self.inner = Dots(spec=spec)
        self.manifest = self.inner.manifest
        self.images = np.zeros((4, 3, *SPEC.size), np.float32)

    def buffer(self, count):
        return self.images[:count]

    def run(self, count):
        return self.inner.enqueue(torch.from_numpy(self.images[:count])).contiguous().numpy()


@pytest.mark.parametrize("device", DEVICES)
def test_several_views_come_down_as_results(device, monkeypatch):
    spec = replace(SPEC, views=(0.8, 1.25))
    graphs = FrameGraphs(Dots(device, spec=spec))
    assert not graphs.finds_joints
    assert graphs.results(graphs.upload(FRAMES), SOURCE, windows_round(*DOTS)).shape == (
        3,
        14,
        24,
        16,
    )
    found = [Boxes(boxes_round(*DOTS[[0, 2]]).astype(np.float32), np.ones(2, np.float32))]
    expected = estimate(FRAMES[:1], found, HostDots(spec))[0]
    actual = estimate(graphs.upload(FRAMES[:1]), found, graphs)[0]
    np.testing.assert_allclose(actual.keypoints, expected.keypoints, atol=1e-2)


@pytest.mark.parametrize("change", [{"background": True}, {"peaks": 2}])
def test_joints_are_those_that_the_results_tell(change, monkeypatch):
    spec, affines = replace(SPEC, **change), windows_round(*DOTS)
    graphs = FrameGraphs(Dots(spec=spec))
    points, scores = graphs.joints(graphs.upload(FRAMES), SOURCE, affines)
    monkeypatch.setattr("fastpose.graph.has_single_maps", lambda spec: False)
    graphs = FrameGraphs(Dots(spec=spec))
    maps = graphs.results(graphs.upload(FRAMES), SOURCE, affines)
    expected = locate_joints(maps, affines, spec)
    np.testing.assert_allclose(points, expected[0], atol=1e-3)
    np.testing.assert_allclose(scores, expected[1], atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_joints_stay_when_others_are_found(device):
    graphs = FrameGraphs(Dots(device))
    points, scores = graphs.joints(graphs.upload(FRAMES), SOURCE, windows_round(*DOTS))
    kept = points.copy(), scores.copy()
    graphs.joints(graphs.upload([FRAMES[1]] * 2), SOURCE, windows_round(*DOTS[::-1]))
    np.testing.assert_array_equal(points, kept[0])
    np.testing.assert_array_equal(scores, kept[1])


@pytest.mark.parametrize("device", DEVICES)
def test_the_modes_of_a_caller_change_nothing(device):
    """Opened and used in inference mode and autocast, then outside, and the other way round."""
    expected = FrameGraphs(Dots(device)).joints(*on_device(device), windows_round(*DOTS))
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        inside = FrameGraphs(Dots(device))
        found = [inside.joints(inside.upload(FRAMES), SOURCE, windows_round(*DOTS))]
    found.append(inside.joints(inside.upload(FRAMES[::-1]), 1 - SOURCE, windows_round(*DOTS)))
    for points, scores in found:
        np.testing.assert_array_equal(points, expected[0])
        np.testing.assert_array_equal(scores, expected[1])


def on_device(device):
    return [torch.from_numpy(frame).to(device) for frame in FRAMES], SOURCE


def test_an_engine_computes_as_it_says_under_autocast(monkeypatch):
    engine = open_engine("cpn-light", kind="torch", precision="f32", buckets=(1,))
    window = np.random.default_rng(0).standard_normal((1, 3, *engine.manifest.spec.size))
    expected = engine(window.astype(np.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(engine(window.astype(np.float32)), expected)


@pytest.mark.parametrize("device", ["cuda:7", "cuda"])
def test_a_device_is_one_that_there_is(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    if device == "cuda":
        assert place_of(device) == torch.device("cuda", 1)
    else:
        with pytest.raises(
            BackendError, match=r"no device 'cuda:7'; it has: cpu, cuda:0 to cuda:1"
        ):
            place_of(device)


def test_closed():
    engine = Dots()
    graphs = FrameGraphs(engine)
    graphs.close()
    graphs.close()
    assert engine.closed
    with pytest.raises(EngineError, match="dots: the engine is closed"):
        graphs.joints([], np.zeros(1, int), windows_round(DOTS[0]))


def test_only_what_runs_on_cuda_is_put_in_graphs():
    engine, host = Dots(), HostDots()
    assert in_graphs(engine) is engine
    assert in_graphs(host) is host


@pytest.mark.parametrize("missing", ["warp", "decode, render, propagate", "capability"])
def test_without_kernels_only_the_network_runs_on_cuda(monkeypatch, missing):
    found = {"warp": "", "decode, render, propagate": "", missing: "nobody built them"}
    if missing == "capability":
        del found[missing]
    capability = (7, 5) if missing == "capability" else (9, 0)
    monkeypatch.setattr("fastpose.graph.gpu_kernels", lambda: found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    engine = SimpleNamespace(device=torch.device("cuda"))
    reason = "nobody built them" if missing in found else r"capability 7\.5, the kernels need 8\.0"
    with pytest.warns(UserWarning, match=f"only the network runs on CUDA: .*{reason}"):
        assert in_graphs(engine) is engine


# Memory


@pytest.mark.parametrize("device", DEVICES)
def test_a_block_moves_all_arrays_at_once(device):
    layout = {"odd": ((3,), np.uint8), "wide": ((2, 2), np.float64), "none": ((0, 4), np.int32)}
    block = Block(layout, torch.device(device))
    block.host["odd"][:] = 1, 2, 3
    block.host["wide"][:] = [[0.5, -1], [2, 3]]
    block.upload()
    for name, (shape, dtype) in layout.items():
        assert block.host[name].ctypes.data % 16 == 0
        there = block.device[name]
        assert there.data_ptr() % 16 == 0
        assert there.cpu().numpy().dtype == dtype
        assert there.shape == shape
        np.testing.assert_array_equal(there.cpu().numpy(), block.host[name])


@pytest.mark.parametrize("device", DEVICES)
def test_frames_of_any_strides_are_placed(device):
    memory = FrameMemory(torch.device(device))
    whole = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    frames = [whole, whole[::-1], whole[:, ::2], whole[3:20, 5:30], whole[..., ::-1]]
    for given in (frames, frames[::-1]):  # the second time in other slots
        for frame, placed in zip(given, memory.upload(given), strict=True):
            assert placed.device.type == device
            np.testing.assert_array_equal(placed.cpu().numpy(), frame)


@pytest.mark.parametrize("device", DEVICES)
def test_a_tensor_that_is_there_is_read_in_place(device):
    memory = FrameMemory(torch.device(device))
    whole = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, device=device)
    placed = memory.upload([whole, whole[4:, 3:], whole[:, ::2]])
    assert placed[0].data_ptr() == whole.data_ptr()
    assert placed[1].data_ptr() == whole[4:, 3:].data_ptr()
    assert torch.equal(placed[2], whole[:, ::2])


# Pose


def test_pose_takes_tensors(monkeypatch):
    pose = object.__new__(Pose)
    pose._engine = FrameGraphs(Dots())
    people = pose(torch.from_numpy(FRAMES[0]), boxes=boxes_round(*DOTS[[0, 2]]))
    np.testing.assert_allclose(people.keypoints[:, 0], DOTS[[0, 2]], atol=0.5)


@pytest.mark.parametrize(
    "frame", [torch.zeros(4, 5, 3), torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(0, 5, 3)]
)
def test_pose_refuses_tensors_that_are_no_frames(frame):
    pose = object.__new__(Pose)
    pose._engine = FrameGraphs(Dots())
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\], got torch"):
        pose(frame, boxes=boxes_round(DOTS[0]))


class Finds:
    """A detector that keeps what it was given."""

    def __init__(self, reads_device):
        self.reads_device, self.given = reads_device, []

    def __call__(self, frames):
        self.given += frames
        return [Boxes.empty() for _ in frames]


@pytest.mark.parametrize("reads_device", [True, False])
def test_detectors_are_given_frames_where_they_read_them(reads_device):
    pose = object.__new__(Pose)
    pose._engine, pose._detector = FrameGraphs(Dots()), Finds(reads_device)
    frame = torch.from_numpy(FRAMES[0])
    assert len(pose(frame)) == 0
    assert isinstance(pose._detector.given[0], torch.Tensor if reads_device else np.ndarray)
    np.testing.assert_array_equal(np.asarray(pose._detector.given[0]), FRAMES[0])


# On a GPU alone


@pytest.mark.gpu
def test_a_replay_is_bit_equal_to_the_same_steps_one_by_one():
    graphs = FrameGraphs(Dots("cuda", real="float16"))
    frames = graphs.upload(FRAMES)
    replayed = graphs.joints(frames, SOURCE, windows_round(*DOTS))
    step = graphs._steps[4]
    for found in step._found:
        found.fill_(float("nan"))
    step._run()
    torch.cuda.synchronize()
    for before, after in zip(replayed, step._found, strict=True):
        np.testing.assert_array_equal(before, after[:3].numpy())


WAITS = """
import torch
from fastpose.errors import EngineError
from fastpose.graph import capture

value = torch.ones(1, device="cuda")
before = torch.cuda.current_stream()
try:
    capture(lambda: value.item(), torch.device("cuda", 0))
except EngineError as error:
    assert "cannot be captured as a CUDA graph" in str(error), error
else:
    raise SystemExit("what waits was captured")
assert torch.cuda.current_stream() == before
torch.cuda.synchronize()
assert value.item() == 1  # the device goes on
"""


@pytest.mark.gpu
def test_what_waits_cannot_be_captured():
    """In a process of its own: torch's random numbers on CUDA do not recover from it."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_threads_that_capture_at_once_take_turns():
    found, failed = [], []

    def work():
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(3):
                    graphs = FrameGraphs(Dots("cuda"))
                    found.append(graphs.joints(graphs.upload(FRAMES), SOURCE, windows_round(*DOTS)))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(found) == 12
    for points, scores in found:
        np.testing.assert_array_equal(points, found[0][0])
        np.testing.assert_array_equal(scores, found[0][1])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*no trained weights here")
@pytest.mark.parametrize(
    "name",
    ["cpm-lsp", "structured-lsp", "adversarial-lsp", "pbn-lsp-norm", "tompson-mpii", "cpn50"],
)
def test_a_network_of_each_system_is_captured(name, monkeypatch):
    monkeypatch.setattr("fastpose.graph.has_single_maps", lambda spec: False)
    engine = open_engine(name, kind="torch", device="cuda", precision="f32", buckets=(2,))
    spec, seen = engine.manifest.spec, []
    enqueue = engine.enqueue
    monkeypatch.setattr(engine, "enqueue", lambda windows: seen.append(windows) or enqueue(windows))
    graphs = FrameGraphs(engine)
    frame = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    affines = boxes_to_affines(np.array([[20, 30, 250, 390], [100, 0, 400, 400]]), spec.size)
    results = graphs.results(graphs.upload([frame]), np.zeros(2, int), affines).copy()
    expected = enqueue(seen[-1]).float().cpu().numpy()  # the same windows, one by one
    assert np.isfinite(results).all()
    np.testing.assert_allclose(results, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.gpu
def test_another_thread_may_use_the_device_during_a_capture():
    stop, failed = threading.Event(), []

    def work():
        try:
            while not stop.is_set():
                torch.ones(1 << 20, device="cuda").sum().item()
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            FrameGraphs(Dots("cuda")).close()
    finally:
        stop.set()
        thread.join()
    assert not failed


@pytest.mark.gpu
def test_only_joints_come_down():
    graphs = FrameGraphs(Dots("cuda"))
    frames = graphs.upload(FRAMES)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        graphs.joints(frames, SOURCE, windows_round(*DOTS))
        torch.cuda.synchronize()
    copies = [event.name for event in profile.events() if "Memcpy" in event.name]
    if not copies:
        pytest.skip("the profiler sees no copies on this machine")
    assert sum("DtoH" in name for name in copies) == 2  # points and scores
    assert sum("HtoD" in name for name in copies) == 1  # the block
    assert {tuple(f.shape) for f in graphs._steps[4]._found} == {(4, 14, 2), (4, 14)}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:cpn-light has no trained weights")
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_pose_on_cuda_finds_what_it_finds_on_the_cpu(precision):
    random = np.random.default_rng(1)
    frame = random.integers(0, 256, (360, 480, 3), dtype=np.uint8)
    boxes = np.array([[20, 30, 200, 340], [150, 10, 420, 350], [300, 100, 470, 300]], float)
    options = {"engine": "torch", "detector": "none", "batch": (1, 2, 4)}
    with Pose("cpn-light", **options, device="cpu", precision="f32") as pose:
        expected = pose(frame, boxes=boxes)
    with Pose("cpn-light", **options, device="cuda", precision=precision) as pose:
        actual = pose(frame, boxes=boxes)
        in_place = pose(torch.from_numpy(frame).cuda(), boxes=boxes)
    np.testing.assert_array_equal(in_place.keypoints, actual.keypoints)
    near = np.linalg.norm(actual.keypoints - expected.keypoints, axis=-1) < 2
    assert near.mean() >= (1 if precision == "f32" else 0.8)  # noise has flat maps
