"""Every registered model: what holds for all of them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models import MODELS, create, final_maps, list_models, model_spec
from fastpose.models.cpn_light import LightCPN
from fastpose.models.spec import ModelSpec

SIZE = (64, 96)  # small, and not square, so that swapped axes show


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


def picture(count: int) -> Tensor:
    return 2 * uniform("picture", (count, 3, *SIZE)) - 1


def all_maps(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Every map that a cascade answers with, the refined one last."""
    with torch.no_grad():
        coarse, refined = network(image)
    return [*coarse, refined]


def assert_maps_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Tolerance is relative to the largest absolute value, as everywhere between networks."""
    assert actual.shape == expected.shape
    error = (actual.float() - expected.float()).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2e}"


def test_shapes_and_parameters_at_the_size_of_the_spec(name: str) -> None:
    spec = model_spec(name)
    with torch.device("meta"):  # shapes without arithmetic or memory
        network = create(name)
        coarse, refined = network(torch.empty(2, 3, *spec.size))
    expected = (2, len(spec.joints), *spec.cells)
    assert [m.shape for m in coarse] == [expected] * 4
    assert refined.shape == expected
    assert sum(p.numel() for p in network.parameters()) == spec.parameters


def test_spec_survives_json(name: str) -> None:
    spec = model_spec(name)
    assert spec.name == name
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batch_sizes(network: nn.Module, name: str, count: int) -> None:
    joints = len(model_spec(name).joints)
    for maps in all_maps(network, picture(count)):
        assert maps.shape == (count, joints, SIZE[0] // 4, SIZE[1] // 4)
        assert torch.isfinite(maps).all()


def test_a_window_does_not_depend_on_its_batch(network: nn.Module) -> None:
    batch = picture(3)
    together = all_maps(network, batch)
    for row in range(3):
        for one, many in zip(all_maps(network, batch[row : row + 1]), together, strict=True):
            assert_maps_close(one, many[row : row + 1], 1e-5)


def test_channels_last_gives_the_same_maps(network: nn.Module) -> None:
    image = picture(2)
    expected = all_maps(network, image)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    actual = all_maps(other, image.contiguous(memory_format=torch.channels_last))
    for a, e in zip(actual, expected, strict=True):
        assert_maps_close(a, e, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near(network: nn.Module, dtype: torch.dtype) -> None:
    image = picture(1)
    low = copy.deepcopy(network).to(dtype)
    for a, e in zip(all_maps(low, image.to(dtype)), all_maps(network, image), strict=True):
        assert a.dtype == dtype
        assert_maps_close(a, e, 0.1 if dtype == torch.bfloat16 else 0.02)


def test_final_maps_are_the_refined_ones(network: nn.Module) -> None:
    with torch.no_grad():
        output = network(picture(1))
    assert final_maps(output) is output[-1]
    assert final_maps(output[-1]) is output[-1]


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
    with torch.no_grad():
        maps, mirrored = final_maps(network(image)), final_maps(network(image.flip(-1)))
    return float((mirrored.flip(-1) - maps).abs().max() / maps.abs().max())


def test_light_network_is_small_and_mirrors_exactly() -> None:
    network = LightCPN().eval()
    seed_weights(network)
    assert sum(p.numel() for p in network.parameters()) <= 6_000_000
    assert mirror_error(network, picture(1)) < 1e-5


def test_an_odd_stem_does_not_mirror() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, padding=3), nn.MaxPool2d(3, 2, padding=1))
    seed_weights(stem)
    assert mirror_error(stem, picture(1)) > 0.1
