"""The stacked hourglass against the public PyTorch code's own outputs, and its blocks by parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models.hourglass import Hourglass, Residual, StackedHourglass

GOLDEN = Path(__file__).parent.parent / "golden" / "hourglass.npz"

BLOCKS = {
    "residual.same": (lambda: Residual(32, 32), (2, 32, 16, 8)),
    "residual.project": (lambda: Residual(16, 32), (2, 16, 16, 8)),
    "hourglass.1": (lambda: Hourglass(4, 32), (2, 32, 32, 16)),
    "hourglass.2": (lambda: Hourglass(4, 32, blocks=2), (2, 32, 32, 16)),
}


def assert_golden(key: str, actual: Tensor) -> None:
    with np.load(GOLDEN) as golden:
        expected = golden[key]
    error = np.abs(actual.flatten()[::13].numpy() - expected).max()
    assert error <= 1e-5 * np.abs(expected).max(), f"{key}: {error:.2e}"


def prepared(network: nn.Module, mode: str) -> nn.Module:
    """Seeded; with batch statistics in double, where rounding does not count."""
    seed_weights(network)
    return network.eval() if mode == "eval" else network.double().train()


def seeded_input(name: str, shape: tuple[int, ...], mode: str) -> Tensor:
    x = 2 * uniform(name, shape) - 1
    return x if mode == "eval" else x.double()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("key", BLOCKS)
def test_blocks_equal_the_public_code(key: str, mode: str) -> None:
    build, shape = BLOCKS[key]
    with torch.no_grad():
        result = prepared(build(), mode)(seeded_input("features", shape, mode))
    assert_golden(f"{key}.{mode}", result)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("stacks", [1, 2])
def test_stacks_equal_the_public_code(stacks: int, mode: str) -> None:
    network = prepared(StackedHourglass(16, stacks), mode)
    with torch.no_grad():
        maps = network(seeded_input("image", (2, 3, 128, 64), mode))
    assert len(maps) == stacks
    for stack, result in enumerate(maps):
        assert_golden(f"stacks.{stacks}.{mode}.{stack}", result)


@pytest.mark.parametrize(
    ("stacks", "parameters"), [(1, 3_586_960), (2, 6_730_912), (3, 9_874_864), (8, 25_594_624)]
)
def test_parameters(stacks: int, parameters: int) -> None:
    with torch.device("meta"):
        network = StackedHourglass(16, stacks)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (lambda: Residual(256, 256), 214_528),
        (lambda: Residual(64, 64), 13_696),
        (lambda: Hourglass(4, 256), 2_788_864),
    ],
)
def test_parameters_of_blocks(module, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in module().parameters()) == parameters


def test_a_residual_is_its_shortcut_when_its_last_convolution_is_zero() -> None:
    x = uniform("x", (2, 8, 4, 4))
    same, changed = Residual(8, 8).eval(), Residual(8, 12).eval()
    with torch.no_grad():
        for block in (same, changed):
            block.conv3.weight.zero_()
            block.conv3.bias.zero_()
        assert torch.equal(same(x), x)
        assert torch.equal(changed(x), changed.project(x))


def test_grouped_residual_is_one_residual_for_each_group() -> None:
    whole = Residual(12, 12, 6, groups=3).eval()
    seed_weights(whole)
    x = 2 * uniform("x", (2, 12, 4, 4)) - 1
    for group, features in enumerate(x.chunk(3, dim=1)):
        part = Residual(4, 4, 2).eval()
        own = whole.state_dict()
        part.load_state_dict(
            {
                name: own[name].chunk(3)[group] if own[name].ndim else own[name]
                for name in part.state_dict()
            }
        )
        with torch.no_grad():
            torch.testing.assert_close(part(features), whole(x).chunk(3, dim=1)[group])


def test_hourglass_is_the_published_recursion() -> None:
    network = Hourglass(2, 8).eval()
    seed_weights(network)
    x = 2 * uniform("x", (1, 8, 8, 4)) - 1
    with torch.no_grad():
        outer, inner = network, network.inner
        low = outer.down(F.max_pool2d(x, 2))
        lower = inner.up(inner.inner(inner.down(F.max_pool2d(low, 2))))
        lower = inner.skip(low) + lower.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        low = outer.up(lower)
        expected = outer.skip(x) + low.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        torch.testing.assert_close(network(x), expected)


def test_lowest_level_has_four_by_four_cells() -> None:
    with torch.device("meta"):
        network = StackedHourglass(16, 1)
        sizes = []
        for module in network.modules():
            if isinstance(module, Hourglass):
                module.inner.register_forward_hook(
                    lambda _, inputs, result: sizes.append(tuple(result.shape[2:]))
                )
        network(torch.empty(1, 3, 256, 256))
    assert sizes == [(4, 4), (8, 8), (16, 16), (32, 32)]


def test_predict_is_the_last_stack() -> None:
    network = StackedHourglass(5, 2, channels=16).eval()
    seed_weights(network)
    image = uniform("image", (2, 3, 64, 128))
    with torch.no_grad():
        maps = network(image)
        assert [m.shape for m in maps] == [(2, 5, 16, 32)] * 2
        assert torch.equal(network.predict(image), maps[-1])


def test_without_remaps_each_stack_sees_the_stem() -> None:
    network = StackedHourglass(5, 2, channels=16).eval()
    seed_weights(network)
    image = uniform("image", (1, 3, 64, 64))
    seen = []
    for hourglass in network.hourglasses:
        hourglass.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(image)
        assert not torch.equal(seen[0], seen[1])
        for remap in (*network.remap_features, *network.remap_scores):
            remap.weight.zero_()
            remap.bias.zero_()
        seen.clear()
        network(image)
    assert torch.equal(seen[0], seen[1])


def test_each_stack_is_told_what_the_one_before_found() -> None:
    network = StackedHourglass(5, 3, channels=16).eval()
    seed_weights(network)
    seen, features = [], []
    for hourglass in network.hourglasses:
        hourglass.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for layer in network.features:
        layer.register_forward_hook(lambda _, inputs, result: features.append(result))
    with torch.no_grad():
        maps = network(uniform("image", (1, 3, 64, 64)))
        for t in (0, 1):
            told = network.remap_features[t](features[t]) + network.remap_scores[t](maps[t])
            torch.testing.assert_close(seen[t + 1], seen[t] + told)


def test_eight_untrained_stacks_stay_in_range_of_half_precision() -> None:
    torch.manual_seed(0)
    network = StackedHourglass(16, 8).eval()
    image = uniform("image", (1, 3, 64, 64))
    with torch.no_grad():
        expected = network.predict(image)
        half = network.half().predict(image.half())
    assert (half - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("arguments", [{"stacks": 0}, {"blocks": 0}, {"channels": 30}])
def test_refuses_what_cannot_be_built(arguments: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="stacks and blocks from 1 on and channels in multiples"):
        StackedHourglass(16, **arguments)


def test_refuses_an_hourglass_without_depth() -> None:
    with pytest.raises(ModelError, match="at least once, got depth 0"):
        Hourglass(0, 16)


@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (1, 3, 32, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_refuses_other_images(shape: tuple[int, ...]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="multiples of 64, got"):
        StackedHourglass(16, 1)(torch.empty(shape))
