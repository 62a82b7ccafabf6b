"""The detector on a GPU; needs nothing that a bare CUDA machine lacks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_detector import TINY, make_tiny  # noqa: E402

from fastpose.engines.torch import open_torch_halves  # noqa: E402
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
