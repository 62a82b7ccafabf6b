"""The two-stage detectors' networks: sizes, the order of their anchors, and mirroring."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from seeded import uniform
from tiny_detector import TINY, build, fill
from torch import Tensor, nn

from fastpose.models import DETECTORS, create_detector, detector_spec
from fastpose.models.anchors import anchors
from fastpose.models.fpn import FPNDetector

SIZE = (64, 96)  # small, and not square, so that swapped axes show
NAMES = ["fpn-light", "fpn50"]  # fpn101 differs in depth alone


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(name: str) -> FPNDetector:
    with torch.device("meta"):  # random weights would only be overwritten
        module = create_detector(name)
    module.to_empty(device="cpu")
    fill(module)
    return module


def picture(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    return 2 * uniform("picture", (count, 3, *size)) - 1


def flat(network: FPNDetector, image: Tensor) -> list[Tensor]:
    """All that `propose` answers."""
    with torch.no_grad():
        pyramid, logits, deltas = network.propose(image)
    return [*pyramid, logits, deltas]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Tolerance is relative to the largest absolute value, as everywhere between networks."""
    assert actual.shape == expected.shape
    error = (actual.float() - expected.float()).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("each", list(DETECTORS))
def test_shapes_and_parameters_at_the_size_of_the_spec(each: str) -> None:
    spec = detector_spec(each)
    with torch.device("meta"):  # shapes without arithmetic or memory
        network = create_detector(each)
        pyramid, logits, deltas = network(torch.empty(2, 3, *spec.size))
        windows = torch.empty(spec.batch, spec.width, spec.pool, spec.pool)
        classes, steps = network.classify(windows)
    sides = [(spec.size[0] // s, spec.size[1] // s) for s in spec.strides[: spec.pooled]]
    assert [level.shape for level in pyramid] == [(2, spec.width, *side) for side in sides]
    count = len(anchors(spec, spec.size)[0])
    assert logits.shape == (2, count)
    assert deltas.shape == (2, count, 4)
    assert classes.shape == (spec.batch, len(spec.classes) + 1)
    assert steps.shape == (spec.batch, len(spec.classes), 4)
    assert sum(p.numel() for p in network.parameters()) == spec.parameters
    assert [spec.size[0] % s for s in spec.strides] == [0] * len(spec.strides)


def test_the_published_form_has_as_many_parameters_as_its_best_known_build() -> None:
    """Torchvision's fasterrcnn_resnet50_fpn: 41,755,286.

    It gives boxes to the background too, for 91 classes with it, and counts no norm of its trunk,
    since they are frozen: weight and bias of 26,560 channels.
    """
    features = 1024 + 1  # and the bias
    theirs, ours = features * 91 * 5, features * (81 + 4 * 80)
    assert detector_spec("fpn50").parameters == 41_755_286 - theirs + ours + 2 * 26_560


def test_a_deeper_trunk_is_all_that_sets_fpn101_apart() -> None:
    from fastpose.models.cpn import BLOCKS, ResNet

    with torch.device("meta"):
        fifty, hundred = (
            sum(p.numel() for p in ResNet(BLOCKS[depth]).parameters()) for depth in (50, 101)
        )
    specs = detector_spec("fpn50"), detector_spec("fpn101")
    assert specs[1].parameters - specs[0].parameters == hundred - fifty


def test_the_default_is_light() -> None:
    spec = detector_spec("default")
    assert spec.parameters < 4_000_000
    assert "person" in spec.classes
    assert all(side % max(spec.strides) == 0 for side in spec.size)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batch_sizes(network: FPNDetector, name: str, count: int) -> None:
    spec = detector_spec(name)
    *pyramid, logits, deltas = flat(network, picture(count))
    for level, stride in zip(pyramid, spec.strides, strict=False):
        assert level.shape == (count, spec.width, SIZE[0] // stride, SIZE[1] // stride)
        assert torch.isfinite(level).all()
    assert logits.shape == (count, len(anchors(spec, SIZE)[0]))
    assert deltas.shape == (*logits.shape, 4)
    assert torch.isfinite(deltas).all()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_head_takes_any_number_of_windows(network: FPNDetector, name: str, count: int) -> None:
    spec = detector_spec(name)
    with torch.no_grad():
        logits, deltas = network.classify(torch.rand(count, spec.width, spec.pool, spec.pool))
    assert logits.shape == (count, len(spec.classes) + 1)
    assert deltas.shape == (count, len(spec.classes), 4)
    assert torch.isfinite(logits).all()


def test_neither_half_mixes_its_batch(network: FPNDetector, name: str) -> None:
    batch = picture(3)
    together = flat(network, batch)
    for row in range(3):
        for one, many in zip(flat(network, batch[row : row + 1]), together, strict=True):
            assert_near(one, many[row : row + 1], 1e-5)
    spec = detector_spec(name)
    windows = 2 * uniform("windows", (5, spec.width, spec.pool, spec.pool)) - 1
    with torch.no_grad():
        single, all_ = network.classify(windows[2:3]), network.classify(windows)
        for one, many in zip(single, all_, strict=True):
            assert_near(one, many[2:3], 1e-5)


def test_channels_last_gives_the_same(network: FPNDetector) -> None:
    image = picture(2)
    expected = flat(network, image)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    actual = flat(other, image.contiguous(memory_format=torch.channels_last))
    for a, e in zip(actual, expected, strict=True):
        assert_near(a, e, 1e-5)


def test_bfloat16_is_near(network: FPNDetector, name: str) -> None:
    spec = detector_spec(name)
    low = copy.deepcopy(network).bfloat16()
    image, windows = picture(1), 2 * uniform("windows", (2, spec.width, spec.pool, spec.pool)) - 1
    with torch.no_grad():
        actual = [*flat(low, image.bfloat16()), *low.classify(windows.bfloat16())]
        expected = [*flat(network, image), *network.classify(windows)]
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert_near(a, e, 0.1)


# The order of what comes out is that of the anchors.


class Cells(nn.Module):
    """In place of a level's features: column, row and number of the level of every cell."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        cells = torch.stack((columns, rows, torch.full_like(rows, self.level)))
        return cells.float().expand(n, 3, h, w)


def test_answers_come_in_the_order_of_the_anchors() -> None:
    network = build(classes=1, anchors=2, levels=4).eval()
    network.outputs = nn.ModuleList(Cells(level) for level in range(3))
    network.rpn = nn.Identity()
    network.objectness = nn.Conv2d(3, 2, 1)
    network.rpn_deltas = nn.Conv2d(3, 8, 1)
    with torch.no_grad():
        for layer in (network.objectness, network.rpn_deltas):
            layer.weight.zero_()
            layer.bias.zero_()
        network.objectness.weight[:, 2] = 1.0  # the level
        for shape in range(2):
            network.rpn_deltas.weight[4 * shape : 4 * shape + 2, :2, 0, 0] = torch.eye(2)
            network.rpn_deltas.bias[4 * shape + 2] = shape
    _, logits, deltas = flat(network, picture(2))[2:]
    boxes, levels = anchors(TINY, SIZE)
    strides = np.array(TINY.strides)[levels]
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / strides[:, None] - 0.5).T
    ratio = (boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0])
    step = np.where(levels == 3, 2, 1)  # of the last level, every second cell of the one before
    for picture_row in range(2):
        np.testing.assert_array_equal(logits[picture_row], np.minimum(levels, 2))
        expected = np.stack((column * step, row * step, ratio > 1, 0 * row), 1)
        np.testing.assert_allclose(deltas[picture_row], expected, atol=1e-4)


# The light detector answers a mirrored picture with what it answers the picture, mirrored.


def make_symmetric(network: FPNDetector) -> None:
    """Symmetric kernels; steps in x come from the difference of kernels and their mirror images."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    half = network.rpn[0].out_channels // 2
    with torch.no_grad():
        lopsided = uniform("lopsided", tuple(network.rpn[0].weight[:half].shape)) - 0.5
        network.rpn[0].weight.copy_(torch.cat((lopsided, lopsided.flip(-1))))
        network.rpn[0].bias[half:] = network.rpn[0].bias[:half]
        network.objectness.weight[:, half:] = network.objectness.weight[:, :half]
        steps = network.rpn_deltas.weight.unflatten(0, (-1, 4))
        steps[:, 1:, half:] = steps[:, 1:, :half]
        steps[:, 0, half:] = -steps[:, 0, :half]
        network.rpn_deltas.bias.unflatten(0, (-1, 4))[:, 0] = 0


def test_the_light_detector_mirrors_exactly() -> None:
    spec = detector_spec("fpn-light")
    network = create_detector("fpn-light")
    fill(network)
    make_symmetric(network)
    image = picture(1)
    *pyramid, logits, deltas = flat(network, image)
    *mirrored, logits_m, deltas_m = flat(network, image.flip(-1))
    for level, other in zip(pyramid, mirrored, strict=True):
        assert_near(other.flip(-1), level, 1e-5)
    boxes, _ = anchors(spec, SIZE)
    reflected = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (SIZE[1], 0, SIZE[1], 0)
    distance = np.abs(reflected[:, None] - boxes[None]).max(2)
    twin = distance.argmin(1)
    assert distance.min(1).max() < 1e-3  # anchors mirror onto anchors
    assert_near(logits_m[:, twin], logits, 1e-5)
    signs = torch.tensor([-1.0, 1, 1, 1])
    assert deltas[..., 0].abs().max() > 0.1 * deltas.abs().max()
    assert_near(deltas_m[:, twin] * signs, deltas, 1e-5)


def test_an_odd_stem_does_not_mirror() -> None:
    network = create_detector("fpn50")
    fill(network)
    make_symmetric(network)
    image = picture(1)
    level, other = flat(network, image)[2], flat(network, image.flip(-1))[2]
    assert (other.flip(-1) - level).abs().max() > 0.01 * level.abs().max()
