"""Convolutional pose machines against their specification and the published graphs' outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.crop import crop_people, view_boxes
from fastpose.errors import ModelError
from fastpose.geometry import boxes_to_affines
from fastpose.models import create, model_spec
from fastpose.models.cpm import (
    CPM,
    CPMVGG,
    CPMBatchNorm,
    CPMPerson,
    centre_map,
    pool_centre,
)
from fastpose.models.joints import locate_joints

GOLDEN = Path(__file__).parent.parent / "golden" / "cpm.npz"
PUBLISHED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "flic": (lambda: CPM(9, stages=4), 4),
    "lsp": (CPM, 4),
    "vgg": (CPMVGG, 4),
    "person": (CPMPerson, 3),
    "padded": (lambda: CPM(pooling="padded"), 4),
    "batchnorm": (CPMBatchNorm, 3),
}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    network = on_meta(build).to_empty(device="cpu")  # random weights would only be overwritten
    seed_weights(network)
    return network.eval()


def forward(network: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return network(image)


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_equal_the_published_graph(name: str) -> None:
    build, channels = PUBLISHED[name]
    stages = forward(seeded(build), 2 * uniform("image", (1, channels, 64, 80)) - 1)
    with np.load(GOLDEN) as golden:
        assert len(stages) == sum(key.startswith(f"{name}.") for key in golden)
        for number, maps in enumerate(stages, 1):
            expected = golden[f"{name}.{number}"]
            error = np.abs(maps.numpy() - expected).max()
            assert error <= 1e-5 * np.abs(expected).max(), f"stage {number}"


@pytest.mark.parametrize(
    ("name", "maps", "stages", "joined", "parameters"),
    [
        ("cpm-flic", 10, 4, 43, 21_323_816),
        ("cpm-lsp", 15, 6, 48, 31_219_866),
        ("cpm-vgg", 15, 6, 144, 29_852_058),
        ("cpm-person", 1, 4, 129, 25_714_372),
    ],
)
def test_shapes_and_parameters(
    name: str, maps: int, stages: int, joined: int, parameters: int
) -> None:
    network = on_meta(lambda: create(name))
    results = network(torch.empty(2, 3, 368, 368, device="meta"))
    assert [result.shape for result in results] == [(2, maps, 46, 46)] * stages
    if name != "cpm-person":  # the released graphs take the centre map with the picture
        results = network(torch.empty(2, 4, 368, 368, device="meta"))
        assert [result.shape for result in results] == [(2, maps, 46, 46)] * stages
    for stage in range(2, stages + 1):
        assert network.get_submodule(f"Mconv1_stage{stage}").in_channels == joined
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_batch_norm_variant_is_mmposes() -> None:
    network = on_meta(lambda: create("cpm-bn"))
    results = network(torch.empty(2, 3, 368, 368, device="meta"))
    assert [result.shape for result in results] == [(2, 16, 46, 46)] * 6
    assert sum(p.numel() for p in network.parameters()) == 31_225_568
    names = network.state_dict().keys()
    for name in (
        "stem.0.conv.weight", "stem.8.bn.running_mean", "stem.9.conv.bias", "middle.4.bn.bias",
        "cpm_stages.4.model.2.conv.weight", "middle_conv.0.0.conv.weight",
        "out_convs.4.1.conv.bias",
    ):  # fmt: skip
        assert name in names
    assert "stem.0.conv.bias" not in names


def test_names_are_those_of_the_released_weights() -> None:
    """Written out from the list of layers of the four-stage graph."""
    first, shared, refining = range(1, 8), range(1, 5), range(1, 6)
    layers = [f"conv{i}_stage1" for i in first] + [f"conv{i}_stage2" for i in shared]
    layers += [f"Mconv{i}_stage{t}" for t in (2, 3, 4) for i in refining]
    layers += ["conv1_stage3", "conv1_stage4"]
    wanted = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert on_meta(lambda: CPM(9, stages=4)).state_dict().keys() == wanted


@pytest.mark.parametrize(
    ("pooling", "pixels"), [("caffe", (167, 407, 647)), ("2x2", (160, 400, 640))]
)
def test_receptive_field_of_every_stage(pooling: str, pixels: tuple[int, ...]) -> None:
    """Weights above 0 and an empty picture: a cell answers just to the pixels that it sees.

    Over the 8 columns of a cell the numbers of cells that answer to a column add up to the columns
    that a cell sees.
    """
    network = CPM(1, stages=3, pooling=pooling, width=4).double().eval()
    for name, parameter in network.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1 / parameter[0].numel())
    image = torch.zeros(8, 4, 8, 1024, dtype=torch.float64)
    for phase in range(8):
        image[phase, :3, :, 512 + phase] = 1.0
    seen = [int((maps[:, 0, 0] > 0).sum()) for maps in forward(network, image)]
    assert tuple(seen) == pixels


def test_centre_map_and_its_pooled_form_are_transcriptions() -> None:
    h, w = 64, 104
    expected = np.empty((h, w))
    for y in range(1, h + 1):  # counted from 1, as MATLAB does
        for x in range(1, w + 1):
            square = (x - w / 2) ** 2 + (y - h / 2) ** 2
            expected[y - 1, x - 1] = math.exp(-square / 2 / 21 / 21)
    pooled = np.empty((h // 8, w // 8))
    for row in range(h // 8):
        for column in range(w // 8):
            pooled[row, column] = expected[
                8 * row : min(8 * row + 9, h), 8 * column : min(8 * column + 9, w)
            ].mean()
    drawn = centre_map((h, w))
    assert np.abs(drawn[0, 0].numpy() - expected).max() <= 1e-6
    assert np.abs(pool_centre(drawn)[0, 0].numpy() - pooled).max() <= 1e-6
    peak = divmod(int(centre_map((368, 368)).argmax()), 368)
    assert peak == (183, 183)


@pytest.mark.parametrize("build", [lambda: CPM(3, stages=2, width=8), lambda: CPMVGG(3, stages=2)])
def test_a_picture_without_centre_map_has_it_in_the_middle(build: Callable[[], nn.Module]) -> None:
    network, image = seeded(build), 2 * uniform("picture", (2, 3, 40, 48)) - 1
    given = torch.cat((image, centre_map((40, 48)).expand(2, -1, -1, -1)), dim=1)
    elsewhere = torch.cat((image, torch.zeros(2, 1, 40, 48)), dim=1)
    first, second = forward(network, image)
    torch.testing.assert_close(forward(network, given), [first, second], rtol=0, atol=1e-6)
    other = forward(network, elsewhere)
    assert torch.equal(other[0], first), "stage 1 sees no centre map"
    assert not torch.allclose(other[1], second)


def test_prediction_is_the_last_stage_or_their_sum() -> None:
    image = 2 * uniform("picture", (2, 3, 32, 40)) - 1
    last, summed = (
        seeded(lambda rule=rule: CPM(3, stages=3, width=8, stage_reduce=rule))
        for rule in ("last", "sum")
    )
    stages = forward(last, image)
    with torch.inference_mode():
        assert torch.equal(last.predict(image), stages[-1])
        torch.testing.assert_close(summed.predict(image), stages[0] + stages[1] + stages[2])


def test_stage_1_drops_out_in_training_alone() -> None:
    network, image = seeded(lambda: CPM(3, stages=1, width=8)), uniform("picture", (1, 3, 32, 32))
    assert torch.equal(forward(network, image)[0], forward(network, image)[0])
    network.train()
    assert not torch.equal(forward(network, image)[0], forward(network, image)[0])


def test_half_of_what_the_last_two_layers_of_stage_1_see_is_dropped() -> None:
    network, seen = seeded(lambda: CPM(3, stages=1, width=32)).train(), []
    for before, layer in (("conv5_stage1", "conv6_stage1"), ("conv6_stage1", "conv7_stage1")):
        nn.init.constant_(network.get_submodule(before).weight, 0.0)
        nn.init.constant_(network.get_submodule(before).bias, 1.0)  # 0 is what was dropped
        network.get_submodule(layer).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        forward(network, uniform("picture", (1, 3, 128, 128)))
    assert len(seen) == 2
    for x in seen:
        assert set(x.unique().tolist()) == {0.0, 2.0}
        assert (x == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("build", [lambda: CPM(9, stages=2, width=32), lambda: CPMBatchNorm(4, 1)])
def test_weights_start_as_published(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    for layer in build().modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: CPM(pooling="4x4"), "pooling must be one of caffe, 2x2, padded, got '4x4'"),
        (lambda: CPM(0), "num_keypoints must be a whole number from 1, got 0"),
        (lambda: CPMVGG(-1), "num_keypoints must be a whole number from 1, got -1"),
        (lambda: CPMPerson(0), "num_keypoints must be a whole number from 1, got 0"),
        (lambda: CPMBatchNorm(2.5), "num_keypoints must be a whole number from 1, got 2.5"),
        (lambda: CPM(stages=0), "at least 1 stage, got 0"),
        (lambda: CPM(width=30), "width must be a multiple of 4 from 4, got 30"),
        (lambda: CPMVGG(stage_reduce="max"), "stage_reduce must be last or sum, got 'max'"),
        (lambda: CPMBatchNorm(stages=True), "at least 1 stage, got True"),
    ],
)
def test_bad_options_are_refused(build: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        build()


@pytest.mark.parametrize("name", ["cpm-flic", "cpm-lsp", "cpm-vgg"])
def test_a_person_is_shown_at_the_published_scale(name: str) -> None:
    """234.3 pixels high, and 0.7 to 1.3 times that."""
    spec = model_spec(name)
    box = view_boxes(np.array([[100.0, 50.0, 190.0, 250.0]]), spec.views)
    affines = boxes_to_affines(box, spec.size, padding=spec.padding, convention=spec.convention)
    heights = 200 / affines[:, 1, 1]
    expected = 200 * (41 / 35) / (200 / 200) * np.arange(7, 14) / 10
    np.testing.assert_allclose(heights, expected, rtol=1e-9)
    torso = 80.0  # of FLIC's box: a person is 2.2 times as high
    np.testing.assert_allclose(
        368 / (2.2 * torso * spec.padding), (41 / 35) / (0.0110 * torso), rtol=1e-9
    )


def test_a_shifted_picture_and_box_shift_the_joints() -> None:
    network = seeded(lambda: CPM(9, stages=2, width=8))
    spec = replace(model_spec("cpm-flic"), size=(96, 96), views=(1.0, 1 / 0.8))
    texture = (255 * uniform("texture", (90, 70, 3))).numpy().astype(np.uint8)

    def locate(shift: np.ndarray) -> np.ndarray:
        dx, dy = shift
        frame = np.full((220, 200, 3), 128, np.uint8)  # what lies outside a frame is 128, too
        frame[40 + dy : 130 + dy, 50 + dx : 120 + dx] = texture
        box = np.array([[50.0, 40.0, 120.0, 130.0]]) + np.tile(shift, 2)
        windows, affines = crop_people(frame, view_boxes(box, spec.views), spec.window)
        with torch.inference_mode():
            maps = network.predict(torch.from_numpy(windows)).numpy()
        return locate_joints(maps, affines, spec)[0]

    here, shift = locate(np.zeros(2, int)), np.array([23, -17])
    assert np.isfinite(here).any()
    np.testing.assert_allclose(locate(shift), here + shift, atol=1e-3)
