"""Every registered model: what holds for all of them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.engines import open_network
from fastpose.engines.build import export_onnx
from fastpose.engines.verify import verify
from fastpose.errors import ModelError
from fastpose.models import MODELS, create, hourglass, list_models, model_spec, pbn
from fastpose.models.cpn import BLOCKS
from fastpose.models.cpn_light import LightCPN
from fastpose.models.joints import locate_joints
from fastpose.models.spec import ModelSpec
from fastpose.models.tompson import Widths

HALVING = ("hourglass", "pbn", "adversarial")  # down to 1/64 of the input
LEAVE_HALF = tuple(n for n in MODELS if n.startswith("pbn"))  # two stacks do not: see test_pbn.py
# Without --full-size: options by which a network of the same layers is small enough for a test,
TWO_STACKS = {"stacks": 2}
NARROW_STACKS = {**TWO_STACKS, "channels": 64}
SHALLOW_STACKS = {**NARROW_STACKS, "stem": (16, 32), "depth": 2}
NARROW_PARTS = {"fcn6_channels": 256, "part_channels": 16, "transform_mid_channels": 16}
NARROW_BANKS = {"widths": Widths(stage=32, context=64, head=32, fine=16)}
THREE_STAGES = {"stages": 3}  # the first, the one behind it, and one behind one of its kind
SMALL = {
    "cpm-lsp": {**THREE_STAGES, "width": 64},
    "cpm-flic": {**THREE_STAGES, "width": 64},
    "cpm-vgg": THREE_STAGES,
    "cpm-bn": THREE_STAGES,
    "cpm-person": THREE_STAGES,
    "structured-lsp": {**NARROW_PARTS, "num_transform_convs": 1},
    "structured-flic": {**NARROW_PARTS, "num_transform_convs": 2},
    "adversarial-mpii": SHALLOW_STACKS,
    "adversarial-lsp": SHALLOW_STACKS,
    "pbn-mpii": {**NARROW_STACKS, "width": 16},
    "pbn6-mpii": {**NARROW_STACKS, "width": 16},
    "pbn-lsp": {**NARROW_STACKS, "width": 16},
    "pbn-mpii-norm": {**NARROW_STACKS, "width": 16},
    "pbn-lsp-norm": {**NARROW_STACKS, "width": 16},
    "hourglass2": NARROW_STACKS,
    "hourglass8": NARROW_STACKS,
    "tompson-flic": NARROW_BANKS,
    "tompson-mpii": NARROW_BANKS,
    "tompson-mpii-8x": NARROW_BANKS,
    "tompson-mpii-16x": NARROW_BANKS,
}
# and models that have another's layers, but more or fewer of them, fewer poolings, or other joints.
SIBLINGS = (
    "cpn101", "cpn101-tf", "cpn50-star", "cpn-pin", "cpm-flic", "tompson-flic",
    "tompson-mpii-8x", "tompson-mpii-16x", "adversarial-lsp", "pbn-mpii", "pbn6-mpii", "pbn-lsp",
    "pbn-lsp-norm", "hourglass8",
)  # fmt: skip


def first_of_graph(name: str) -> str:
    """The first model that differs from this one in its input's size or its training alone."""

    def graph(spec: ModelSpec) -> tuple[object, ...]:
        return spec.network, spec.kwargs, len(spec.joints) // spec.peaks

    return next(other for other in MODELS if graph(MODELS[other]) == graph(MODELS[name]))


@pytest.fixture(scope="module", params=dict.fromkeys(map(first_of_graph, MODELS)))
def small(request: pytest.FixtureRequest) -> ModelSpec:
    """Each spec with a graph of its own, at a size that a CPU computes at once.

    It is not square, so that swapped axes show.
    """
    spec = model_spec(request.param)
    size = (64, 128) if spec.network.startswith(HALVING) else (32, 64)
    options = {} if request.config.getoption("--full-size") else SMALL.get(spec.name, {})
    return replace(spec, size=size, kwargs=spec.kwargs | options)


def build(spec: ModelSpec, num_keypoints: int) -> nn.Module:
    module, _, builder = spec.network.partition(":")
    with torch.device("meta"):  # random weights would only be overwritten
        built: nn.Module = getattr(import_module(f"fastpose.models.{module}"), builder)(
            num_keypoints=num_keypoints, **spec.kwargs
        )
    return built


@pytest.fixture(scope="module")
def network(small: ModelSpec, request: pytest.FixtureRequest) -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        if not request.config.getoption("--full-size"):
            for depth in BLOCKS:  # every kind of block, also one behind another
                patch.setitem(BLOCKS, depth, (2, 1, 1, 1))
            for module in (hourglass, pbn):
                patch.setattr(module, "DEPTH", 2)
        built = build(small, len(small.joints) // small.peaks).to_empty(device="cpu")
    seed_weights(built)
    return built.eval()


def picture(spec: ModelSpec, count: int) -> Tensor:
    return 2 * uniform("picture", (count, 3, *spec.size)) - 1


def predict(network: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.predict(image)


def assert_maps_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Tolerance is relative to the largest absolute value, as everywhere between networks."""
    assert actual.shape == expected.shape
    error = (actual.float() - expected.float()).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("name", list_models())
def test_shapes_and_parameters_at_the_size_of_the_spec(name: str) -> None:
    spec = model_spec(name)
    with torch.device("meta"):  # shapes without arithmetic or memory
        network = create(name)
        result = network.predict(torch.empty(2, 3, *spec.size))
    (shape,) = spec.results
    assert result.shape == (2, *shape)
    assert sum(p.numel() for p in network.parameters()) == spec.parameters


@pytest.mark.parametrize("name", list_models())
def test_spec_survives_json(name: str) -> None:
    spec = model_spec(name)
    assert spec.name == name
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batch_sizes(network: nn.Module, small: ModelSpec, count: int) -> None:
    result = predict(network, picture(small, count))
    assert result.shape == (count, *small.results[0])
    assert torch.isfinite(result).all()


def test_a_window_does_not_depend_on_its_batch(network: nn.Module, small: ModelSpec) -> None:
    batch = picture(small, 3)
    together = predict(network, batch)
    for row in range(3):
        one = predict(network, batch[row : row + 1])
        assert_maps_close(one, together[row : row + 1], 1e-5)


def test_channels_last_gives_the_same_maps(network: nn.Module, small: ModelSpec) -> None:
    image = picture(small, 2)
    expected = predict(network, image)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    actual = predict(other, image.contiguous(memory_format=torch.channels_last))
    assert_maps_close(actual, expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near(network: nn.Module, small: ModelSpec, dtype: torch.dtype) -> None:
    many_stacks = small.name in LEAVE_HALF and small.kwargs.get("stacks") != 2
    if many_stacks and dtype == torch.float16:
        pytest.skip("features that grow from stack to stack leave the range of half: see PBN")
    image = picture(small, 1)
    low = copy.deepcopy(network).to(dtype, memory_format=torch.channels_last)  # as the engine does
    actual = predict(low, image.to(dtype, memory_format=torch.channels_last))
    assert actual.dtype == (torch.float32 if small.output == "parts" else dtype)  # a softmax's
    expected = predict(network, image)
    limit = 0.1 if dtype == torch.bfloat16 else 0.02
    assert_results_close(actual, expected, limit, small)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_what_is_no_number_of_joints_is_refused(small: ModelSpec, count: int) -> None:
    with pytest.raises(ModelError):
        build(small, count)


@pytest.mark.parametrize("name", list_models())
def test_a_window_that_lies_nowhere_has_no_joints(name: str) -> None:
    """Its affine is NaN, and it shows something nevertheless."""
    spec = model_spec(name)
    ((channels, *cells),) = spec.results
    views = len(spec.views)
    # a cascade's joints are its channels; every map has a peak
    results = spec.peak_value * uniform(name, (2 * views, channels, *cells)).numpy()
    affines = np.tile(np.eye(2, 3), (2 * views, 1, 1))
    affines[:views] = np.nan
    points, scores = locate_joints(results, affines, spec)
    assert points.shape == (2, len(spec.joints), 2)
    assert np.isnan(points[0]).all()
    assert (scores[0] == 0).all()
    assert np.isfinite(points[1]).all()
    assert (scores[1] > 0).all()


@pytest.mark.gpu
def test_cuda_gives_the_cpus_maps(network: nn.Module, small: ModelSpec) -> None:
    image = picture(small, 3)
    expected = predict(network, image)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        actual = predict(copy.deepcopy(network).cuda(), image.cuda()).cpu()
    assert_results_close(actual, expected, 1e-4, small)


def assert_results_close(
    actual: Tensor, expected: Tensor, tolerance: float, spec: ModelSpec
) -> None:
    """`assert_maps_close`; a cascade's fine maps where both show the same window."""
    if spec.output == "cascade":
        cells = spec.cells[0] * spec.cells[1]
        same = actual[..., :cells].argmax(dim=2) == expected[..., :cells].argmax(dim=2)
        assert same.float().mean() > 0.5
        actual, expected = actual[same], expected[same]
    assert_maps_close(actual, expected, tolerance)


@pytest.mark.parametrize("shape", [(1, 5, 64, 128), (1, 3, 64, 97), (3, 64, 128)])
def test_wrong_input_names_the_expected(network: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must be \[N, 3.*, h, w\].*multiples of \d+, got"):
        network.predict(torch.zeros(shape))


def test_every_runtime_gives_the_modules_maps(
    network: nn.Module, small: ModelSpec, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One export in each runtime that reads it: its maps, and the pixels of its joints."""
    if small.name in SIBLINGS and not request.config.getoption("--full-size"):
        pytest.skip("the layers of another model: give --full-size")
    path = tmp_path / "network.onnx"
    export_onnx(network, small, path, half=False)
    images = picture(small, 3)
    expected = predict(network, images)
    for kind, buckets in (("openvino", (3,)), ("onnxruntime", (1, 3))):  # the one compiles each
        pytest.importorskip(kind)
        engine = open_network(path, small, kind=kind, buckets=buckets, threads=2)
        for count in (1, 3):
            actual = engine(images[:count].numpy())
            assert_maps_close(torch.from_numpy(actual), expected[:count], 1e-4)
        found = verify(
            ModuleEngine(network, small), engine, [images.numpy()], source="seeded", random=True
        )
        assert found.passed, found.reasons
        assert found.shift.joints >= len(small.joints)  # of three windows; others have no peak
        engine.close()


class ModuleEngine:
    """A module as the reference of its engines."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        self.network = network
        self.manifest = SimpleNamespace(spec=spec, kind="torch", precision="f32")

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return predict(self.network, torch.from_numpy(batch)).numpy()


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'cpn52'; known: default, .*cpn101-384"):
        create("cpn52")


def test_default_is_registered() -> None:
    assert model_spec("default") in MODELS.values()


# The light network answers a mirrored picture with mirrored maps.


def mirror_error(network: nn.Module, image: Tensor) -> float:
    """How far maps(mirror(x)) lies from mirror(maps(x)) when every kernel is symmetric."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    maps = network.predict if hasattr(network, "predict") else network
    with torch.no_grad():
        straight, mirrored = maps(image), maps(image.flip(-1))
    return float((mirrored.flip(-1) - straight).abs().max() / straight.abs().max())


def test_light_network_is_small_and_mirrors_exactly() -> None:
    network = LightCPN().eval()
    seed_weights(network)
    assert sum(p.numel() for p in network.parameters()) <= 6_000_000
    assert mirror_error(network, picture(model_spec("cpn-light"), 1)) < 1e-5


def test_an_odd_stem_does_not_mirror() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, padding=3), nn.MaxPool2d(3, 2, padding=1))
    seed_weights(stem)
    assert mirror_error(stem, picture(model_spec("cpn-light"), 1)) > 0.1
