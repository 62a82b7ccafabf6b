"""The published CPN against its specification and against the published code's own outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import nn

from fastpose.errors import ModelError
from fastpose.geometry import apply, boxes_to_affines, invert
from fastpose.models import create, model_spec
from fastpose.models.cpn import BLOCKS, CPN, Bottleneck, Upsample

GOLDEN = Path(__file__).parent.parent / "golden" / "pytorch_cpn.npz"


@pytest.mark.parametrize("depth", [50, 101])
# With batch statistics 101 layers turn the rounding of float32 into 4e-5, whoever computes; in
# double the two networks can be told apart.
@pytest.mark.parametrize(("mode", "dtype"), [("eval", torch.float32), ("train", torch.float64)])
def test_five_outputs_equal_the_published_network(
    depth: int, mode: str, dtype: torch.dtype
) -> None:
    network = CPN(depth=depth)
    seed_weights(network)
    network.to(dtype).train(mode == "train")
    image = 2 * uniform("image", (2, 3, 128, 96)) - 1
    with torch.no_grad():
        coarse, refined = network(image.to(dtype))
    with np.load(GOLDEN) as golden:
        for level, maps in enumerate((*coarse, refined)):
            expected = golden[f"cpn{depth}.{mode}.{level}"]
            error = np.abs(maps.flatten()[::13].numpy() - expected).max()
            assert error <= 1e-5 * np.abs(expected).max(), f"output {level}"


@pytest.mark.parametrize(("depth", "resnet"), [(50, 23_508_032), (101, 42_500_160)])
def test_parameters_by_part(depth: int, resnet: int) -> None:
    with torch.device("meta"):
        network = CPN(depth=depth)
    parts = {name: sum(p.numel() for p in m.parameters()) for name, m in network.named_children()}
    assert parts == {"resnet": resnet, "global_net": 1_604_232, "refine_net": 2_294_562}


def test_names_are_those_of_published_checkpoints() -> None:
    with torch.device("meta"):
        names = {name.rpartition(".")[0] for name in CPN().state_dict()}
    assert {n for n in names if n.startswith("global_net.predict.0")} == {
        f"global_net.predict.0.{i}" for i in (0, 1, 3, 5)
    }
    cascade = [len({n.split(".")[3] for n in names if f"cascade.{i}." in n}) for i in range(4)]
    assert cascade == [3, 2, 1, 0]
    assert {"global_net.laterals.3.0", "global_net.upsamples.2.1", "refine_net.final_predict.2"} < (
        names
    )
    assert {"resnet.conv1", "resnet.layer3.5.bn3", "resnet.layer4.0.downsample.1"} < names


def enlarge_tensorflow1(x: np.ndarray, factor: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize, cell by cell: it reads cell u of the result at u / factor."""
    h, w = x.shape
    result = np.empty((h * factor, w * factor))
    for v in range(h * factor):
        for u in range(w * factor):
            (i, b), (j, a) = divmod(v / factor, 1), divmod(u / factor, 1)
            top, left = int(i), int(j)
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = (1 - a) * x[top, left] + a * x[top, right]
            lower = (1 - a) * x[below, left] + a * x[below, right]
            result[v, u] = (1 - b) * upper + b * lower
    return result


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_tensorflow_style_enlarges_on_the_old_grid(factor: int) -> None:
    x = uniform("map", (1, 1, 3, 5))
    expected = enlarge_tensorflow1(x[0, 0].double().numpy(), factor)
    np.testing.assert_allclose(Upsample(factor, "tf")(x)[0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_torch_style_lays_corner_on_corner(factor: int) -> None:
    ramp = torch.arange(5.0).expand(1, 1, 3, 5)
    row = Upsample(factor, "torch")(ramp)[0, 0, -1]
    torch.testing.assert_close(row, torch.linspace(0, 4, 5 * factor))


def test_tensorflow_style_has_its_own_norms_biases_and_shortcuts() -> None:
    with torch.device("meta"):
        tf, other = CPN(style="tf"), CPN()
    norms = [m for m in tf.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-9, 0.01)}
    merge = tf.global_net.upsamples[0]
    assert merge[1].bias is not None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merge)
    assert isinstance(tf.global_net.predict[0][-1], Upsample)
    assert isinstance(other.global_net.predict[0][-1], nn.BatchNorm2d)

    def projections(network: CPN) -> int:
        blocks = [m for m in network.refine_net.modules() if isinstance(m, Bottleneck)]
        return sum(isinstance(b.downsample, nn.Sequential) for b in blocks)

    assert (projections(tf), projections(other)) == (1, 7)


def test_refine_net_reads_features_and_not_heat_maps() -> None:
    network = create("cpn50")
    seed_weights(network)
    image = uniform("image", (1, 3, 64, 64))
    with torch.no_grad():
        _, before = network(image)
        for head in network.global_net.predict:
            head[3].weight.zero_()
        _, after = network(image)
    assert torch.equal(before, after)


def test_exports_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, 50, (1, 1, 1, 1))  # every kind of layer, a third of the tracing
    network = CPN(style="tf").eval()  # has all that style "torch" has, and its own grid
    seed_weights(network)
    image = uniform("image", (2, 3, 64, 64))
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    program = torch.export.export(network, (image,), dynamic_shapes=shapes, strict=True)
    with torch.no_grad():
        expected, exported = network(image[:1])[1], program.module()(image[:1])[1]
    assert (exported - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("style", ["torch", "tf"])
def test_untrained_network_stays_in_range_of_half_precision(style: str) -> None:
    torch.manual_seed(0)
    network = CPN(depth=101, style=style).eval().half()
    with torch.no_grad():
        coarse, refined = network(uniform("image", (1, 3, 64, 64)).half())
    assert all(torch.isfinite(maps).all() for maps in (*coarse, refined))


@pytest.mark.parametrize("arguments", [{"depth": 18}, {"style": "caffe"}])
def test_refuses_other_depths_and_styles(arguments: dict) -> None:
    with pytest.raises(ModelError, match="depth 50 or 101 and style torch or tf, got"):
        CPN(**arguments)


@pytest.mark.parametrize("size", [(64, 48), (100, 96)])
def test_refuses_sizes_that_its_levels_do_not_divide(size: tuple[int, int]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"multiples of 32, got \[1, 3, "):
        CPN()(torch.empty(1, 3, *size))


@pytest.mark.parametrize("name", ["cpn50", "cpn50-384"])
def test_boxes_are_enlarged_by_axis_then_fitted(name: str) -> None:
    spec = model_spec(name)
    h, w = spec.size
    low = uniform("low", (50, 2)).numpy() * 500 - 100
    boxes = np.concatenate((low, low + 5 + uniform("extent", (50, 2)).numpy() * 300), axis=1)
    affines = boxes_to_affines(boxes, spec.size, padding=spec.padding, convention=spec.convention)
    # window edges are half a pixel outside the outer pixel centres
    corners = apply(affines, np.array([[-0.5, -0.5], [w - 0.5, h - 0.5]]))
    extent = corners[:, 1] - corners[:, 0]
    box = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(extent[:, 1] / extent[:, 0], h / w, rtol=1e-12)
    np.testing.assert_allclose(corners.mean(axis=1), boxes.reshape(-1, 2, 2).mean(axis=1))
    assert (corners[:, 0] <= boxes[:, :2]).all()
    assert (corners[:, 1] >= boxes[:, 2:]).all()
    # one axis is exactly its enlarged box, the other is no smaller than that
    slack = extent / (box * [1.2, 1.3])
    np.testing.assert_allclose(slack.min(axis=1), 1)
    assert 0.2 < (slack[:, 0] < slack[:, 1]).mean() < 0.8  # both axes decide in turn
    pixels = np.array([[0.0, 0.0], [w / 3, h / 5], [w - 1, h - 1]])
    there = apply(affines, pixels)
    np.testing.assert_allclose(
        apply(invert(affines), there), np.tile(pixels, (50, 1, 1)), atol=1e-3
    )


@pytest.mark.parametrize(
    ("name", "rgb", "mean"),
    [
        ("cpn50", True, (122.7717, 115.9465, 102.9801)),
        ("cpn50-tf", False, (102.9801, 115.9465, 122.7717)),
    ],
)
def test_pixels_as_released(name: str, rgb: bool, mean: tuple[float, ...]) -> None:
    spec = model_spec(name)
    assert (spec.rgb, spec.mean, spec.std) == (rgb, mean, (255.0,) * 3)
