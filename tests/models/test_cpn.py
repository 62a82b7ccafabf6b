"""The published CPN against its specification and against the published code's own outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import nn

from fastpose.errors import ModelError
from fastpose.geometry import apply, boxes_to_affines, invert
from fastpose.models import create, model_spec
from fastpose.models.count import walk
from fastpose.models.cpn import BLOCKS, CPN, LEVELS, Bottleneck, CPNStar, Upsample

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


# The relatives: without RefineNet, with other forms of it, and with other outputs decoded.


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bottleneck a stage: every kind of layer at a fraction of the cost."""
    monkeypatch.setitem(BLOCKS, 50, (1, 1, 1, 1))


def seeded(**options: object) -> CPN:
    network = CPN(**options).eval()  # type: ignore[arg-type]
    seed_weights(network)
    return network


@pytest.mark.parametrize(
    ("options", "style", "parameters"),
    [
        # RefineNet's final bottleneck is the same in all but the last
        ({}, "torch", 2_294_562),
        ({"refine": "concat"}, "torch", 2_294_562 - 6 * 280_064),
        ({"refine": "single"}, "torch", 2_294_562 - 2 * 280_064),
        ({"refine": "concat"}, "tf", 2_294_562 - 6 * 280_064),
        ({"refine": "single"}, "tf", 2_294_562 - 6 * 280_064 + 4 * 214_016),
        ({"levels": 3}, "torch", 2_294_562 - 3 * 280_064 - 256 * (128 + 256)),
        ({"levels": 1}, "torch", 2_294_562 - 6 * 280_064 - 3 * 256 * (128 + 256)),
        ({"refine": "none"}, "torch", 0),
    ],
)
def test_parameters_of_each_refinement(
    options: dict[str, object], style: str, parameters: int
) -> None:
    """A bottleneck on 256 channels has 214,016 parameters, its projection 66,048 more."""
    with torch.device("meta"):
        network = CPN(style=style, **options)  # type: ignore[arg-type]
    refine = sum(p.numel() for n, p in network.named_parameters() if n.startswith("refine_net"))
    assert refine == parameters
    rest = 23_508_032 + (1_604_232 if style == "torch" else 1_603_464)
    assert sum(p.numel() for p in network.parameters()) == parameters + rest


def test_refinements_cost_what_the_paper_says_more() -> None:
    """Its table: 5.87 GFLOPs joined as they are, 6.20 published, 6.92 with one bottleneck each.

    A GFLOP of it is 2 ** 30 multiply-adds; what the forms have in common is left out.
    """

    def giga(**options: object) -> float:
        with torch.device("meta"):
            network = CPN(**options)  # type: ignore[arg-type]
        return walk(network.predict, (256, 192)).macs / 2**30

    concat = giga(refine="concat")
    assert giga() - concat == pytest.approx(6.20 - 5.87, abs=0.01)
    assert giga(refine="single") - concat == pytest.approx(6.92 - 5.87, abs=0.01)


def test_forms_of_one_network_share_its_weights(shallow: None) -> None:
    """GlobalNet alone is the whole CPN without its RefineNet, and CPN* is the CPN."""
    image = uniform("image", (2, 3, 64, 96))
    whole, coarse = seeded(), seeded(refine="none")
    assert coarse.refine_net is None
    missing = whole.state_dict().keys() - coarse.state_dict().keys()
    assert missing == {n for n in whole.state_dict() if n.startswith("refine_net.")}
    with torch.no_grad():
        maps, refined = whole(image)
        others, nothing = coarse(image)
        assert nothing is None
        assert refined is not None
        assert all(torch.equal(a, b) for a, b in zip(maps, others, strict=True))
        assert torch.equal(coarse.predict(image), maps[-1])
        assert torch.equal(whole.predict(image), refined)
    assert CPNStar().state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("refine", ["cascade", "none"])
def test_any_level_can_be_decoded(shallow: None, level: int, refine: str) -> None:
    image = uniform("image", (2, 3, 64, 96))
    network = seeded(refine=refine, decoded=LEVELS[level])
    with torch.no_grad():
        maps, _ = network(image)
        assert torch.equal(network.predict(image), maps[level])
        seen = []
        for lateral in network.global_net.laterals:
            lateral.register_forward_hook(lambda *_: seen.append(1))
        network.predict(image)
        assert len(seen) == level + 1, "finer levels are not computed"


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_refine_net_reads_the_finest_levels(shallow: None, levels: int) -> None:
    """A level is read by its bottlenecks on the way to being joined, or not at all."""
    network = seeded(levels=levels)
    pyramid = [torch.full((1, 256, 2**i, 2**i), 1.0, requires_grad=True) for i in range(1, 5)]
    assert network.refine_net is not None
    network.refine_net(pyramid).square().sum().backward()
    assert [p.grad is not None for p in pyramid] == [i >= 4 - levels for i in range(4)]
    assert [len(branch) - 1 for branch in network.refine_net.cascade] == [3, 2, 1, 0][-levels:]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_keypoints": 0}, "num_keypoints must be a whole number from 1, got 0"),
        ({"depth": 34}, "depth 50 or 101 and style torch or tf, got 34"),
        ({"refine": "sum"}, "refine cascade, single, concat or none, got 'sum'"),
        ({"levels": 0}, "reads 1 to 4 levels, got 0"),
        ({"levels": 5}, "reads 1 to 4 levels, got 5"),
        ({"decoded": "C6"}, "gives refine, C5, C4, C3, C2, got decoded 'C6'"),
        ({"refine": "none", "decoded": "refine"}, "none gives C5, C4, C3, C2, got .*'refine'"),
    ],
)
def test_unknown_forms_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        CPN(**options)  # type: ignore[arg-type]


def test_registered_relatives() -> None:
    assert model_spec("cpn50-global").kwargs["refine"] == "none"
    published, star = model_spec("cpn50"), model_spec("cpn50-star")
    assert star == replace(published, name="cpn50-star", network="cpn:CPNStar")
