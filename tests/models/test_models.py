"""Every registered model: what holds for all of them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.engines import open_graph
from fastpose.engines.build import export_onnx
from fastpose.errors import ModelError
from fastpose.models import MODELS, create, list_models, model_spec
from fastpose.models.cpn_light import LightCPN
from fastpose.models.spec import ModelSpec

SIZE = (64, 128)  # small, and not square, so that swapped axes show
LEAVE_HALF = ("pbn-mpii", "pbn6-mpii", "pbn-lsp")  # three stacks do not: see test_pbn.py


@pytest.fixture(scope="module", params=list_models())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(name: str) -> nn.Module:
    with torch.device("meta"):  # random weights would only be overwritten
        module = create(name)
    module.to_empty(device="cpu")
    seed_weights(module)
    return module


@pytest.fixture(scope="module")
def small(name: str) -> ModelSpec:
    """The spec at a size that a CPU computes at once."""
    return replace(model_spec(name), size=SIZE)


def picture(count: int) -> Tensor:
    return 2 * uniform("picture", (count, 3, *SIZE)) - 1


def predict(network: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.predict(image)


def assert_maps_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Tolerance is relative to the largest absolute value, as everywhere between networks."""
    assert actual.shape == expected.shape
    error = (actual.float() - expected.float()).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2e}"


def test_shapes_and_parameters_at_the_size_of_the_spec(name: str) -> None:
    spec = model_spec(name)
    with torch.device("meta"):  # shapes without arithmetic or memory
        network = create(name)
        result = network.predict(torch.empty(2, 3, *spec.size))
    (shape,) = spec.results
    assert result.shape == (2, *shape)
    assert sum(p.numel() for p in network.parameters()) == spec.parameters


def test_spec_survives_json(name: str) -> None:
    spec = model_spec(name)
    assert spec.name == name
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batch_sizes(network: nn.Module, small: ModelSpec, count: int) -> None:
    result = predict(network, picture(count))
    assert result.shape == (count, *small.results[0])
    assert torch.isfinite(result).all()


def test_a_window_does_not_depend_on_its_batch(network: nn.Module) -> None:
    batch = picture(3)
    together = predict(network, batch)
    for row in range(3):
        one = predict(network, batch[row : row + 1])
        assert_maps_close(one, together[row : row + 1], 1e-5)


def test_channels_last_gives_the_same_maps(network: nn.Module) -> None:
    image = picture(2)
    expected = predict(network, image)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    actual = predict(other, image.contiguous(memory_format=torch.channels_last))
    assert_maps_close(actual, expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near(name: str, network: nn.Module, dtype: torch.dtype) -> None:
    if name in LEAVE_HALF and dtype == torch.float16:
        pytest.skip("features that grow from stack to stack leave the range of half: see PBN")
    image = picture(1)
    actual = predict(copy.deepcopy(network).to(dtype), image.to(dtype))
    assert actual.dtype == dtype
    expected = predict(network, image)
    if MODELS[name].output == "cascade":  # its fine maps compare where they show the same window
        cells = SIZE[0] * SIZE[1] // MODELS[name].stride ** 2
        same = actual[..., :cells].argmax(dim=2) == expected[..., :cells].argmax(dim=2)
        assert same.float().mean() > 0.5
        actual, expected = actual[same], expected[same]
    assert_maps_close(actual, expected, 0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("shape", [(1, 5, *SIZE), (1, 3, 64, 97), (3, *SIZE)])
def test_wrong_input_names_the_expected(network: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must be \[N, 3.*, h, w\].*multiples of \d+, got"):
        network.predict(torch.zeros(shape))


def test_every_runtime_gives_the_modules_maps(
    name: str, network: nn.Module, small: ModelSpec, tmp_path: Path
) -> None:
    """One export, traced by torch.export on the way, in each runtime that reads it."""
    if (twin := first_of_graph(name)) != name:
        pytest.skip(f"the graph of {twin} at this size")
    path = tmp_path / "network.onnx"
    export_onnx(network, small, path, half=False)
    images = picture(3)
    expected = predict(network, images)
    for kind in ("openvino", "onnxruntime"):
        pytest.importorskip(kind)
        run = open_graph(path, kind=kind, threads=2)
        for count in (1, 3):
            actual = run({"image": images[:count].numpy()})["heatmaps"]
            assert_maps_close(torch.from_numpy(actual), expected[:count], 1e-4)
        run.close()


def first_of_graph(name: str) -> str:
    """The first model that differs from this one in its input's size or its training alone."""

    def graph(spec: ModelSpec) -> tuple[object, ...]:
        return spec.network, spec.kwargs, len(spec.joints) // spec.peaks

    return next(other for other in MODELS if graph(MODELS[other]) == graph(MODELS[name]))


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
    assert mirror_error(network, picture(1)) < 1e-5


def test_an_odd_stem_does_not_mirror() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, padding=3), nn.MaxPool2d(3, 2, padding=1))
    seed_weights(stem)
    assert mirror_error(stem, picture(1)) > 0.1
