"""Truth: one message after the other, edge by edge, as the released network sends them."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded import uniform
from torch import Tensor

from fastpose.errors import BackendError
from fastpose.ops import propagate
from fastpose.ops.propagate import schedule, tree_depths

LSP26 = (-1, 0, 1, 2, 3, 4, 5, 2, 7, 8, 9, 10, 11, 12,
         1, 14, 15, 16, 17, 14, 19, 20, 21, 22, 23, 24)  # fmt: skip
TREES = {
    "pair": (-1, 0),
    "star": (2, 2, -1, 2, 2),
    "chain": (1, 2, 3, 4, -1),
    "root last, ragged": (6, 0, 0, 6, 3, 4, -1),
    "lsp26": LSP26,
}


def random_tree(count: int, seed: int) -> tuple[int, ...]:
    """Nodes in no order at all, the root anywhere."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(count)
    parents = np.full(count, -1)
    for i in range(1, count):
        parents[names[i]] = names[rng.integers(i)]
    return tuple(map(int, parents))


TREES |= {f"random {seed}": random_tree(9, seed) for seed in range(4)}


def tensors(
    parents: tuple[int, ...], widths: tuple[int, ...] = (3, 2, 3), n: int = 2, lead: tuple = ()
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Features and, from width to width, the kernels and biases of messages; of both signs."""
    edges = len(parents) - 1

    def values(name: str, *shape: int, scale: float = 1.0) -> Tensor:
        return (2 * uniform(name, shape) - 1) * scale

    steps = list(itertools.pairwise(widths))
    return (
        values("features", n, *lead, len(parents), widths[0], 8, 6),
        [
            values(f"kernel {i}", *lead, edges, b, a, 7, 7, scale=(3 / 49 / a) ** 0.5)
            for i, (a, b) in enumerate(steps)
        ],
        [values(f"bias {i}", *lead, edges, b) for i, (_, b) in enumerate(steps)],
    )


def one_by_one(
    features: Tensor,
    kernels: list[Tensor],
    biases: list[Tensor],
    parents: tuple[int, ...],
    direction: str,
    activate: str = "after",
) -> Tensor:
    """The definition, as a recursion over the nodes."""
    children = [node for node, parent in enumerate(parents) if parent >= 0]

    def message(child: int, x: Tensor) -> Tensor:
        edge = children.index(child)
        for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            x = F.conv2d(torch.relu(x) if i else x, kernel[edge], bias[edge], padding=3)
        return x

    def refined(node: int) -> Tensor:
        x = features[:, node]
        if activate == "before":
            x = torch.relu(x)
        if direction == "up":
            for child in children:
                if parents[child] == node:
                    x = x + message(child, refined(child))
        elif parents[node] >= 0:
            x = x + message(node, refined(parents[node]))
        return torch.relu(x)

    return torch.stack([refined(node) for node in range(len(parents))], dim=1)


@pytest.mark.parametrize("parents", TREES.values(), ids=TREES)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("activate", ["after", "before"])
def test_level_by_level_equals_edge_by_edge(
    parents: tuple[int, ...], direction: str, activate: str
) -> None:
    features, kernels, biases = tensors(parents)
    actual = propagate(features, kernels, biases, parents, direction=direction, activate=activate)
    expected = one_by_one(features, kernels, biases, parents, direction, activate)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (actual == 0).any()  # and some messages did take away
    assert (actual > 0).any()


@pytest.mark.parametrize("parents", TREES.values(), ids=TREES)
def test_both_is_the_two_directions_side_by_side(parents: tuple[int, ...]) -> None:
    features, kernels, biases = tensors(parents, lead=(2,))
    actual = propagate(features, kernels, biases, parents, direction="both")
    for i, direction in enumerate(("up", "down")):
        mine = [k[i] for k in kernels], [b[i] for b in biases]
        expected = one_by_one(features[:, i], *mine, parents, direction)
        assert (actual[:, i] - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("widths", [(3, 3), (2, 4, 2), (3, 2, 5, 3)])
def test_any_number_of_kernels(widths: tuple[int, ...]) -> None:
    features, kernels, biases = tensors(TREES["star"], widths)
    for direction in ("up", "down"):
        actual = propagate(features, kernels, biases, TREES["star"], direction=direction)
        expected = one_by_one(features, kernels, biases, TREES["star"], direction)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_gradients_are_those_of_the_definition(direction: str) -> None:
    parents = TREES["root last, ragged"]
    inputs = tensors(parents)
    weight = uniform("weight", (2, len(parents), 3, 8, 6)).double()

    def gradients(function, **arguments) -> list[Tensor]:
        features, kernels, biases = inputs
        leaves = [t.double().requires_grad_() for t in (features, *kernels, *biases)]
        result = function(leaves[0], leaves[1:3], leaves[3:], parents, **arguments)
        return list(torch.autograd.grad((result * weight).sum(), leaves))

    actual = gradients(propagate, direction=direction)
    expected = gradients(one_by_one, direction=direction)
    for a, e in zip(actual, expected, strict=True):
        assert e.abs().max() > 0
        torch.testing.assert_close(a, e, atol=1e-10, rtol=1e-10)


def relatives(parents: tuple[int, ...], node: int) -> tuple[set[int], set[int]]:
    """A node's subtree and its line to the root, itself in both."""

    def line(n: int) -> list[int]:
        return [n, *line(parents[n])] if parents[n] >= 0 else [n]

    return {n for n in range(len(parents)) if node in line(n)}, set(line(node))


@pytest.mark.parametrize("name", ["lsp26", "random 1"])
def test_a_map_hears_of_its_subtree_or_of_its_ancestors_alone(name: str) -> None:
    parents = TREES[name]
    features, kernels, biases = tensors(parents, (2, 2, 2), n=1, lead=(2,))
    # all positive: no ReLU stops what does flow
    features = features.abs().requires_grad_()
    kernels, biases = [k.abs() for k in kernels], [b.abs() for b in biases]
    refined = propagate(features, kernels, biases, parents, direction="both")
    for node in range(len(parents)):
        for i, family in enumerate(relatives(parents, node)):
            (gradient,) = torch.autograd.grad(
                refined[:, i, node].sum(), features, retain_graph=True
            )
            heard = gradient[0].abs().flatten(2).sum(-1)  # [2, J]
            assert set(heard[i].nonzero().ravel().tolist()) == family
            assert not heard[1 - i].any()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_delta_kernels_move_a_response_by_up_to_three_cells_each(
    count: int, direction: str
) -> None:
    parents = (-1, 0)
    sender, receiver = (1, 0) if direction == "up" else (0, 1)
    features = torch.zeros(1, 2, 1, 21, 23)
    features[0, sender, 0, 10, 11] = 1.0
    kernel = torch.zeros(1, 1, 1, 7, 7)
    kernel[..., 0, 6] = 1.0  # out(y, x) = in(y - 3, x + 3): 3 cells down, 3 to the left
    refined = propagate(
        features, [kernel] * count, [torch.zeros(1, 1)] * count, parents, direction=direction
    )
    expected = torch.zeros(21, 23)
    expected[10 + 3 * count, 11 - 3 * count] = 1.0
    torch.testing.assert_close(refined[0, receiver, 0], expected, atol=0, rtol=0)
    torch.testing.assert_close(refined[0, sender], features[0, sender], atol=0, rtol=0)


def test_a_message_may_take_away() -> None:
    features = torch.full((1, 2, 1, 7, 7), 5.0)
    kernel = torch.zeros(1, 1, 1, 7, 7)
    kernel[..., 3, 3] = -1.0
    refined = propagate(features, [kernel], [torch.ones(1, 1)], (-1, 0), direction="up")
    assert (refined[0, 0] == 1.0).all()  # 5 - 5 + 1


def test_a_step_for_each_depth_and_no_more() -> None:
    upward, downward = (schedule(LSP26, d) for d in ("up", "down"))
    assert len(upward) == len(downward) == max(tree_depths(LSP26)) == 9
    both = schedule(LSP26, "both")
    assert len(both) == 9
    assert [len(step) for step in both] == [3, 4, 6, 8, 8, 8, 6, 4, 3]
    assert sorted(edge.kernel for step in both for edge in step) == list(range(50))


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_nobody_there(direction: str) -> None:
    lead = (2,) if direction == "both" else ()
    features, kernels, biases = tensors(TREES["star"], lead=lead)
    refined = propagate(features[:0], kernels, biases, TREES["star"], direction=direction)
    assert refined.shape == (0, *features.shape[1:])


def test_one_part_hears_nobody() -> None:
    features, kernels, biases = tensors((-1,))
    for direction in ("up", "down"):
        refined = propagate(features, kernels, biases, (-1,), direction=direction)
        assert torch.equal(refined, torch.relu(features))


def test_strided_input_and_the_input_itself() -> None:
    features, kernels, biases = tensors(TREES["chain"])
    before = features.clone()
    expected = propagate(features, kernels, biases, TREES["chain"], direction="up")
    assert torch.equal(features, before)
    strided = features.transpose(3, 4).contiguous().transpose(3, 4)
    actual = propagate(strided, kernels, biases, TREES["chain"], direction="up")
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    features, kernels, biases = tensors(TREES["star"])
    expected = propagate(features, kernels, biases, TREES["star"], direction="up")
    low = [features.to(dtype), [k.to(dtype) for k in kernels], [b.to(dtype) for b in biases]]
    actual = propagate(*low, TREES["star"], direction="up")
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((-1, 0, -1), "one part must be the root, with parent -1; there are: 0, 2"),
        ((1, 2, 0), "one part must be the root, with parent -1; there are: none"),
        ((), "one part must be the root, with parent -1; there are: none"),
        ((-1, 2, 1), "part 1 has no way to the root: its parents form a ring"),
        ((-1, 1), "part 1 has no way to the root: its parents form a ring"),
        ((-1, 0, 3), "the parent of part 2 must be -1 to 2, got 3"),
        ((-1, -2, 0), "the parent of part 1 must be -1 to 2, got -2"),
    ],
)
def test_what_is_no_tree_is_refused(parents: tuple[int, ...], message: str) -> None:
    features, kernels, biases = tensors((-1, 0, 0))
    with pytest.raises(ValueError, match=message):
        propagate(features, kernels, biases, parents, direction="up")


STAR = TREES["star"]
FEATURES, KERNELS, BIASES = tensors(STAR)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"direction": "sideways"}, "direction must be one of up, down, both, got 'sideways'"),
        ({"activate": "never"}, "activate must be one of after, before, got 'never'"),
        ({"features": FEATURES.numpy()}, "features must be a floating torch tensor, got ndarray"),
        ({"features": FEATURES.int()}, "features must be a floating torch tensor, got torch.int32"),
        ({"features": FEATURES[:, :4]}, r"features must be \[N, 5, C, H, W\], got \[2, 4, "),
        ({"features": FEATURES[0]}, r"features must be \[N, 5, C, H, W\], got \[5, "),
        ({"direction": "both"}, r"features must be \[N, 2, 5, C, H, W\], got \[2, 5, "),
        ({"kernels": [], "biases": []}, "lists of one length, at least 1, got 0 and 0"),
        ({"biases": BIASES[:1]}, "lists of one length, at least 1, got 2 and 1"),
        ({"kernels": [KERNELS[0][:3], KERNELS[1]]}, r"kernels\[0\] must be \[4, 2, 3, s, s\]"),
        ({"kernels": [KERNELS[0], KERNELS[1][:, :2]]}, r"kernels\[1\] must be \[4, 3, 2, s, s\]"),
        ({"kernels": [KERNELS[0], KERNELS[0]]}, r"kernels\[1\] must be \[4, 3, 2, s, s\]"),
        ({"kernels": [KERNELS[0][..., :6, :6], KERNELS[1]]}, "with s odd, got"),
        ({"kernels": [KERNELS[0].numpy(), KERNELS[1]]}, r"kernels\[0\] must be a torch tensor"),
        (
            {"kernels": [KERNELS[0], KERNELS[1].half()]},
            r"must be torch.float32 on cpu like",
        ),
        ({"biases": [BIASES[1], BIASES[1]]}, r"biases\[0\] must be \[4, 2\] like its kernel"),
        ({"biases": [BIASES[0].to("meta"), BIASES[1]]}, r"biases\[0\] must be .* on meta"),
    ],
)
def test_bad_arguments_are_refused(changed: dict, message: str) -> None:
    arguments = {
        "features": FEATURES, "kernels": KERNELS, "biases": BIASES, "parents": STAR,
        "direction": "up",
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        propagate(**(arguments | changed))


def test_a_backend_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="'triton' cannot run on cpu; usable: reference"):
        propagate(FEATURES, KERNELS, BIASES, STAR, direction="up", backend="triton")
    named = propagate(FEATURES, KERNELS, BIASES, STAR, direction="up", backend="reference")
    assert torch.equal(named, propagate(FEATURES, KERNELS, BIASES, STAR, direction="up"))


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendError, match=r"propagate needs torch; .*fastpose-inference\[torch\]"):
        propagate(np.zeros((1, 1, 1, 2, 2)), (), (), (-1,), direction="up")
