"""Structured feature learning against its released graph, and how its messages travel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models import create, model_spec
from fastpose.models.parts import PART_TREES
from fastpose.models.structured import Structured

GOLDEN = Path(__file__).parent.parent / "golden" / "structured_lsp.npz"
PARENTS = PART_TREES["lsp26"].parents
PARTS = len(PARENTS)


def narrow(**options: object) -> Structured:
    """A network that costs little behind its trunk."""
    settings = {"fcn6_channels": 8, "part_channels": 3, "transform_mid_channels": 2} | options
    network = Structured(14, **settings).eval()
    seed_weights(network)
    return network


def released_blobs(network: Structured) -> dict[str, tuple[Tensor, ...]]:
    """Our weights by the names of the released Caffe net's layers, which counts parts from 1.

    Weight and bias; of the norm also its mean and variance.
    """
    weights = network.state_dict()

    def pieces(name: str, count: int = 1) -> list[tuple[Tensor, ...]]:
        both = (weights[f"{name}.weight"], weights[f"{name}.bias"])
        return list(zip(*(tensor.chunk(count) for tensor in both), strict=True))

    parents, parts = network.parents, range(1, len(network.parents) + 1)
    children = [k for k in parts if parents[k - 1] >= 0]
    blobs = {}
    convs = [i for i, layer in enumerate(network.trunk) if isinstance(layer, nn.Conv2d)]
    names = [f"conv{i}_{j + 1}" for i, n in enumerate((2, 2, 3, 3, 3), 1) for j in range(n)]
    for name, i in zip(names, convs, strict=True):
        blobs[name] = pieces(f"trunk.{i}")[0]
    blobs["fcn6_new"] = pieces("fcn6.0")[0]
    blobs["fconv6_bn"] = tuple(
        weights[f"fcn6.1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    upward = [f"fconv7_{k}" for k in parts]
    downward = [f"fconvb27_{k}" for k in parts]
    blobs |= zip(upward + downward, pieces("fcn7", 2 * len(parts)), strict=True)
    for step in (1, 2):
        upward = [f"fconv7_{k}to{parents[k - 1] + 1}_step{step}" for k in children]
        downward = [f"fconvb27_{parents[k - 1] + 1}to{k}_step{step}" for k in children]
        kernels = pieces(f"transforms.{step - 1}", 2 * len(children))
        blobs |= zip(upward + downward, kernels, strict=True)
    blobs |= zip([f"fconv9_{k}" for k in parts], pieces("classify", len(parts)), strict=True)
    blobs[f"fconvb27_{len(parts) + 1}"] = pieces("background.0")[0]
    blobs[f"fconv9_{len(parts) + 1}"] = pieces("background.3")[0]
    return blobs


def test_equals_the_released_graph() -> None:
    with torch.device("meta"):
        network = create("structured-lsp")
    network.to_empty(device="cpu")
    seed_weights(network)
    image = 2 * uniform("image", (1, 3, 64, 80)) - 1
    with torch.no_grad():
        logits, probabilities = network(image), network.predict(image)
    with np.load(GOLDEN) as golden:
        expected = torch.from_numpy(golden["logits"])
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (probabilities - expected.softmax(1)).abs().max() <= 1e-5
    assert (probabilities.sum(1) - 1).abs().max() <= 1e-5


def test_every_layer_of_the_released_net_has_its_weights() -> None:
    with torch.device("meta"):
        blobs = released_blobs(create("structured-lsp"))
    with np.load(GOLDEN) as golden:
        assert sorted(blobs) == sorted(golden["layers"])
    shapes = {name: tuple(blobs[name][0].shape) for name in blobs}
    assert shapes["fcn6_new"] == (1024, 512, 7, 7)
    assert shapes["fconv7_7"] == shapes["fconvb27_26"] == (128, 1024, 1, 1)
    assert shapes["fconv7_7to6_step1"] == shapes["fconvb27_15to20_step1"] == (64, 128, 7, 7)
    assert shapes["fconv7_7to6_step2"] == (128, 64, 7, 7)
    assert shapes["fconv9_1"] == (13, 256, 1, 1)
    assert (shapes["fconvb27_27"], shapes["fconv9_27"]) == ((512, 1024, 1, 1), (1, 512, 1, 1))


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [("structured-lsp", 336, 339), ("structured-lsp", 448, 339), ("structured-flic", 448, 19)],
)
def test_eight_pixels_a_cell_at_any_size(name: str, side: int, channels: int) -> None:
    with torch.device("meta"):
        result = create(name).predict(torch.empty(2, 3, side, side))
    assert result.shape == (2, channels, side // 8, side // 8)


def test_trunk_has_the_names_of_an_imagenet_vgg() -> None:
    with torch.device("meta"):
        trunk = create("structured-lsp").trunk
    convs = {
        name: tuple(layer.weight.shape[:2])
        for name, layer in trunk.named_children()
        if isinstance(layer, nn.Conv2d)
    }
    # torchvision's vgg16().features
    assert convs == {
        "0": (64, 3), "2": (64, 64), "5": (128, 64), "7": (128, 128), "10": (256, 128),
        "12": (256, 256), "14": (256, 256), "17": (512, 256), "19": (512, 512), "21": (512, 512),
        "24": (512, 512), "26": (512, 512), "28": (512, 512),
    }  # fmt: skip
    assert sum(isinstance(m, nn.MaxPool2d) for m in trunk) == 3


def test_norm_is_the_released_one_and_the_papers_form_has_none() -> None:
    with torch.device("meta"):
        released, paper = create("structured-lsp"), create("structured-flic")
    (norm,) = (m for m in released.modules() if isinstance(m, nn.BatchNorm2d))
    assert (norm.eps, norm.momentum) == (1e-7, 0.1)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in paper.modules())
    kernels = [tuple(t.weight.shape[1:]) for t in paper.transforms]
    assert kernels == [(128, 7, 7)] * 3
    assert (paper.fcn6[0].out_channels, paper.activate) == (4096, "before")


@pytest.mark.parametrize("part", [0, 2, 6, 14, 25])
def test_a_part_is_classified_from_its_subtree_and_its_ancestors(part: int) -> None:
    network = narrow(types=2)
    with torch.no_grad():  # all positive: no ReLU stops what does flow
        for transform in network.transforms:
            transform.weight.abs_()
            transform.bias.abs_()
    maps = uniform("maps", (1, 2, PARTS, 3, 4, 5)).requires_grad_()
    logits = network.classify(network.pass_messages(maps).transpose(1, 2).flatten(1, 3))
    (gradient,) = torch.autograd.grad(logits[:, 2 * part : 2 * part + 2].sum(), maps)

    def ancestors(k: int) -> list[int]:
        return [k, *ancestors(PARENTS[k])] if k >= 0 else []

    heard = gradient[0].abs().flatten(2).sum(-1)
    up, down = (set(row.nonzero().ravel().tolist()) for row in heard)
    assert up == {k for k in range(PARTS) if part in ancestors(k)}
    assert down == set(ancestors(part))


@pytest.mark.parametrize("kernels", [1, 2, 3])
def test_kernels_can_shift_a_response_by_three_cells_each(kernels: int) -> None:
    network = narrow(part_channels=1, num_transform_convs=kernels, transform_mid_channels=1)
    reach = 3 * kernels
    with torch.no_grad():
        for transform in network.transforms:
            transform.weight.zero_()
            transform.bias.zero_()
            transform.weight[..., 6, 0] = 1.0  # the response moves 3 cells up and 3 to the right
        maps = torch.zeros(1, 2, PARTS, 1, 21, 21)
        wrist, forearm = 6, 5
        maps[0, 0, wrist, 0, 10, 10] = 1.0
        refined = network.pass_messages(maps)[0, 0, :, 0]
    assert refined[forearm].nonzero().tolist() == [[10 - reach, 10 + reach]]
    assert refined[forearm].max() == 1.0
    assert refined[wrist].nonzero().tolist() == [[10, 10]]


def test_pre_activation_stops_negative_responses_before_messages_come() -> None:
    maps = -uniform("maps", (1, 2, PARTS, 3, 4, 5))
    with torch.no_grad():
        after, before = (narrow(pre_activate=early).pass_messages(maps) for early in (False, True))
        silent = narrow(pre_activate=True).pass_messages(torch.zeros_like(maps))
    assert torch.equal(before, silent)
    assert not torch.allclose(after, before)


def test_training_drops_whole_maps_of_fcn6() -> None:
    network = narrow(fcn6_channels=64).train()
    shared = network.fcn6(uniform("trunk", (4, 512, 3, 3)))
    alive = (shared > 0).flatten(2).sum(-1)
    dropped = (alive == 0).float().mean()
    assert 0.3 < dropped < 0.7  # drawn: 256 maps, half of them kept; norms leave each some life
    assert alive[alive > 0].float().mean() > 3


def test_pixels_and_views_as_released() -> None:
    spec = model_spec("structured-lsp")
    assert (spec.mean, spec.std, spec.rgb) == ((128.0,) * 3, (1.0,) * 3, False)
    assert spec.views == tuple(2 ** (k / 10) for k in range(5))
    assert len(model_spec("structured-flic").views) == 10  # 448 pixels down to 224


def test_weights_start_as_released() -> None:
    torch.manual_seed(0)
    network = Structured(14, fcn6_channels=64, part_channels=16, transform_mid_channels=8)
    deviations = {
        network.fcn6[0]: 0.001, network.fcn7: 0.01, network.transforms[0]: 0.01,
        network.classify: 0.1, network.background[0]: 0.01, network.background[-1]: 0.1,
    }  # fmt: skip
    for layer, deviation in deviations.items():
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
    for layer in network.modules():
        assert not isinstance(layer, nn.Conv2d) or not layer.bias.any()


def test_untrained_network_stays_in_range_of_half_precision() -> None:
    torch.manual_seed(0)
    network = Structured(14, part_channels=16).eval().half()
    pixels = 255 * uniform("pixels", (1, 3, 32, 32)) - 128
    with torch.no_grad():
        probabilities = network.predict(pixels.half())
    assert torch.isfinite(probabilities).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_keypoints": 16}, "lsp26 are made of the 14 joints of lsp14, got 16"),
        ({"tree": "flic18"}, "flic18 are made of the 10 joints of flic10, got 14"),
        ({"tree": "mpii30"}, "unknown part tree 'mpii30'; known: lsp26, flic18"),
        ({"num_transform_convs": 0}, "must be at least 1, got .*0"),
        ({"types": 0}, "must be at least 1, got"),
        ({"part_channels": -1}, "must be at least 1, got"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Structured(**({"num_keypoints": 14} | options))
