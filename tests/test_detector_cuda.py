"""The detector on a GPU; needs nothing that a bare CUDA machine lacks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_detector import TINY, make_tiny  # noqa: E402

from fastpose import Pose  # noqa: E402
from fastpose.detect import open_detector, reads_device, runtime_of  # noqa: E402
from fastpose.detect.fpn import TwoStageDetector  # noqa: E402
from fastpose.detect.fpn_graphs import GraphHalves  # noqa: E402
from fastpose.engines.build import detector_halves  # noqa: E402
from fastpose.engines.torch import TYPES, TorchGraph, open_torch_halves  # noqa: E402
from fastpose.models import create_detector, detector_spec  # noqa: E402
from fastpose.train.detection import detection_loss  # noqa: E402
from fastpose.train.scenes import SceneBatch  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.mark.filterwarnings("ignore:fpn-light has no trained weights")
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-3), ("bf16", 0.1), ("f16", 0.02)])
def test_both_halves_answer_as_on_the_cpu(precision, tolerance):
    spec = detector_spec("fpn-light")
    places = [
        open_torch_halves(spec, None, device, chosen, None)
        for device, chosen in (("cpu", "f32"), ("cuda", precision))
    ]
    rng = np.random.default_rng(0)
    for truth, graph in zip(*places, strict=True):
        feeds = {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, (shape, _) in truth.inputs.items()
        }
        actual = graph(feeds)
        for name, expected in truth(feeds).items():
            error = np.abs(actual[name] - expected).max() / np.abs(expected).max()
            assert error <= tolerance, f"{name}: relative error {error:.2e}"


def test_a_step_of_training_has_the_loss_and_gradient_of_the_cpu():
    images = torch.randn(2, 3, *TINY.size, generator=torch.Generator().manual_seed(0))
    boxes = [np.array([[10, 8, 40, 50]], np.float32), np.array([[50, 20, 80, 60]], np.float32)]
    none = [np.zeros(1, bool)] * 2
    batch = SceneBatch(images.numpy(), boxes, [np.zeros(1, np.int64)] * 2, none)
    found = []
    for device in ("cpu", "cuda"):
        network = make_tiny().to(device).eval()  # running statistics: the same on both
        rng = np.random.default_rng(0)
        output = network(images.to(device))
        loss = detection_loss(network, output, batch, TINY, regions=16, rng=rng)
        loss.backward()
        found.append((loss.item(), network.trunk.stem[0][0].weight.grad.cpu()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-2)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0.05, atol=1e-3)


def test_the_light_network_fits_the_device():
    network = create_detector("fpn-light").cuda().half()
    pyramid, logits, _ = network(torch.zeros(1, 3, 416, 416, device="cuda").half())
    assert logits.isfinite().all()
    assert pyramid[0].shape == (1, 96, 52, 52)


# The whole detector


def tiny_detector(device, precision="f32"):
    """The tiny detector with seeded weights, which keeps every box."""
    modules = detector_halves(make_tiny(), TINY)
    shapes = {
        "image": (1, 3, *TINY.size),
        "windows": (TINY.batch, TINY.width, TINY.pool, TINY.pool),
    }
    outputs = (("p0", "p1", "p2", "objectness", "deltas"), ("logits", "deltas"))
    place = torch.device(device), TYPES[precision]
    halves = [
        TorchGraph("tiny", module, {name: (shape, np.dtype(np.float32))}, names, *place)
        for module, (name, shape), names in zip(modules, shapes.items(), outputs, strict=True)
    ]
    return TwoStageDetector(TINY, *halves, score=0.0)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def share_found(found, expected, near, score):
    """The share of the expected boxes that were found, with their score."""
    apart = np.abs(found.boxes[:, None] - expected.boxes[None]).max(-1)
    other = np.abs(found.scores[:, None] - expected.scores[None])
    return ((apart <= near) & (other <= score)).any(0).mean()


@pytest.mark.parametrize(
    ("precision", "near", "score", "share"),
    [("f32", 0.1, 1e-3, 0.9), ("f16", 2, 0.02, 0.8), ("bf16", 8, 0.1, 0.7)],
)
def test_it_finds_what_it_finds_on_the_cpu(precision, near, score, share):
    """Of near duplicates either may fade, where sums are taken in another order."""
    frames = [noise(90, 150), noise(720, 1280, 1), noise(40, 30, 2)]
    expected = tiny_detector("cpu")(frames)
    detector = tiny_detector("cuda", precision)
    assert isinstance(detector._halves, GraphHalves)
    assert reads_device(detector)
    for there, here in zip(expected, detector(frames), strict=True):
        assert len(there) > 3
        assert share_found(here, there, near, score) >= share


def test_frames_are_read_in_place_and_give_the_same():
    detector = tiny_detector("cuda")
    frame = noise(300, 400)
    expected, mirrored = detector([frame, frame[:, ::-1]])
    placed = torch.from_numpy(frame).cuda()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        (found,) = detector([placed])
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)
    assert torch.cuda.memory_allocated() == before
    placed.copy_(placed.flip(1))
    np.testing.assert_array_equal(detector([placed])[0].boxes, mirrored.boxes)


def test_detectors_side_by_side_and_a_closed_one_do_not_touch_each_other():
    frames = [noise(200, 300, 3), noise(300, 200, 4)]
    expected = [tiny_detector("cuda")([frame])[0] for frame in frames]
    first, second = tiny_detector("cuda"), tiny_detector("cuda")
    for _ in range(3):
        for detector, frame, alone in zip((first, second), frames, expected, strict=True):
            np.testing.assert_array_equal(detector([frame])[0].boxes, alone.boxes)
    second.close()
    torch.cuda.empty_cache()
    torch.full((1 << 24,), float("nan"), device="cuda")  # over what was freed
    np.testing.assert_array_equal(first(frames[:1])[0].boxes, expected[0].boxes)


@pytest.mark.filterwarnings("ignore:fpn-light has no trained weights")
def test_the_light_detector_opens_in_graphs_and_gives_its_memory_back():
    frame = noise(480, 640)
    detector = open_detector("fpn-light", kind="torch", device="cuda", precision="f32", score=0.0)
    assert reads_device(detector)
    assert runtime_of(detector) == {"engine": "torch", "precision": "f32"}
    (found,) = detector([frame])
    truth = open_detector("fpn-light", kind="torch", device="cpu", precision="f32", score=0.0)
    (expected,) = truth([frame])
    if len(expected):
        assert share_found(found, expected, 0.5, 1e-3) >= 0.9
    before = torch.cuda.memory_allocated()
    detector.close()
    assert before - torch.cuda.memory_allocated() >= 4 * detector_spec("fpn-light").parameters


@pytest.mark.filterwarnings("ignore:.* has no trained weights")
def test_pose_takes_a_frame_on_the_device_through_detector_and_network():
    frame = noise(360, 480, 5)
    options = {"engine": "torch", "precision": "f32", "batch": (1, 2, 4)}
    with Pose("cpn-light", detector=tiny_detector("cuda"), device="cuda", **options) as pose:
        found = pose(frame)
        in_place = pose(torch.from_numpy(frame).cuda())
    with Pose("cpn-light", detector=tiny_detector("cpu"), device="cpu", **options) as pose:
        expected = pose(frame)
        again = pose(frame, boxes=found.boxes)
    assert len(found) > 0
    assert abs(len(found) - len(expected)) <= 0.2 * len(expected) + 1
    for name in ("boxes", "keypoints", "scores"):
        np.testing.assert_array_equal(getattr(in_place, name), getattr(found, name))
    np.testing.assert_array_equal(np.isnan(found.keypoints), np.isnan(again.keypoints))
    near = np.linalg.norm(np.nan_to_num(found.keypoints - again.keypoints), axis=-1) < 2
    assert near.mean() > 0.95


@pytest.mark.filterwarnings("ignore:.* has no trained weights")
def test_pose_opens_network_and_detector_in_graphs():
    with Pose("cpn-light", detector="fpn-light", engine="torch", device="cuda") as pose:
        assert reads_device(pose._detector)
        for frame in (noise(360, 480), torch.from_numpy(noise(720, 1280)).cuda()):
            people = pose(frame)
            assert np.isfinite(people.boxes).all()
