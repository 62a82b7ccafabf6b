"""Truth: one message after the other, edge by edge, as the released network sends them.

The reference is tested against it, and the kernel against the reference.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernels import kernels as kernels_here
from seeded import seed_weights, uniform
from torch import Tensor

from fastpose.errors import BackendError
from fastpose.models.structured import Structured
from fastpose.ops import propagate
from fastpose.ops.propagate import propagate_reference, schedule, tree_depths

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
    parents: tuple[int, ...],
    widths: tuple[int, ...] = (3, 2, 3),
    n: int = 2,
    lead: tuple = (),
    side: int = 7,
    size: tuple[int, int] = (8, 6),
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Features and, from width to width, the kernels and biases of messages; of both signs."""
    edges = len(parents) - 1

    def values(name: str, *shape: int, scale: float = 1.0) -> Tensor:
        return (2 * uniform(name, shape) - 1) * scale

    steps = list(itertools.pairwise(widths))
    return (
        values("features", n, *lead, len(parents), widths[0], *size),
        [
            values(f"kernel {i}", *lead, edges, b, a, side, side, scale=(3 / side**2 / a) ** 0.5)
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


POINTERS = {"*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16}
FORK = (-1, 0, 1, 1, 0)  # two children, one of which has two itself
# of the largest value; 16-bit maps are rounded behind every convolution
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a launcher allocates holds NaN, and torch's convolutions are exact."""
    empty = Tensor.new_empty

    def nan(like: Tensor, *shape: object, **how: object) -> Tensor:
        made = empty(like, *shape, **how)
        return made.fill_(np.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", nan)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    error = (actual.float() - expected).abs().max()  # NaN is in no tolerance
    assert error <= TOLERANCES[dtype] * expected.abs().max()


def on(
    device: str, dtype: torch.dtype, inputs: tuple[Tensor, list[Tensor], list[Tensor]]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    features, kernels, biases = inputs
    kernels, biases = ([x.to(device, dtype) for x in group] for group in (kernels, biases))
    return features.to(device, dtype), kernels, biases


def check(
    device: str,
    parents: tuple[int, ...],
    widths: tuple[int, ...],
    direction: str = "up",
    activate: str = "after",
    dtype: torch.dtype = torch.float32,
    **sizes: object,
) -> Tensor:
    """The kernel's result, compared with the reference's in float32 of the same rounded inputs."""
    lead = (2,) if direction == "both" else ()
    inputs = on(device, dtype, tensors(parents, widths, lead=lead, **sizes))
    how = {"direction": direction, "activate": activate}
    actual = propagate(*inputs, parents, **how, backend="triton")
    expected = propagate_reference(*on(device, torch.float32, inputs), parents, **how)
    close(actual, expected, dtype)
    return actual


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("backend", "device"), kernels_here("triton"))
class TestKernel:
    """On small maps, so that the interpreter can do it."""

    @pytest.mark.parametrize("direction", ["up", "down", "both"])
    @pytest.mark.parametrize("activate", ["after", "before"])
    def test_equals_the_reference(
        self, backend: str, device: str, direction: str, activate: str
    ) -> None:
        check(device, FORK, (16, 32, 16), direction, activate, side=3, size=(5, 6))

    @pytest.mark.parametrize("widths", [(16, 16), (16, 32, 16), (16, 8, 24, 16)])
    def test_any_number_of_convolutions(
        self, backend: str, device: str, widths: tuple[int, ...]
    ) -> None:
        check(device, (1, 2, -1), widths, side=3, size=(5, 6))

    @pytest.mark.parametrize("side", [1, 5, 7])
    def test_any_side_even_beyond_that_of_the_map(
        self, backend: str, device: str, side: int
    ) -> None:
        check(device, (-1, 0), (16, 16), side=side, size=(5, 3))

    @pytest.mark.parametrize("widths", [(3, 5, 3), (40, 33, 40), (16, 80, 16), (1, 1)])
    def test_any_number_of_channels(
        self, backend: str, device: str, widths: tuple[int, ...]
    ) -> None:
        check(device, (-1, 0), widths, "down", side=3, size=(5, 6))

    def test_tiles_that_end_amid_a_row_and_amid_an_image(self, backend: str, device: str) -> None:
        check(device, (-1, 0), (16, 16), side=3, size=(13, 7), n=3)

    @pytest.mark.parametrize("direction", ["up", "both"])
    def test_half_precision(self, backend: str, device: str, direction: str) -> None:
        check(device, FORK, (32, 16, 32), direction, dtype=torch.float16, side=3)

    @pytest.mark.parametrize("direction", ["up", "both"])
    def test_one_part_hears_nobody_and_nobody_may_be_there(
        self, backend: str, device: str, direction: str
    ) -> None:
        check(device, (-1,), (16, 16), direction, side=3, size=(5, 6))
        lead = (2,) if direction == "both" else ()
        features, kernels, biases = on(device, torch.float32, tensors((-1, 0), lead=lead))
        none = propagate(
            features[:0], kernels, biases, (-1, 0), direction=direction, backend=backend
        )
        assert none.shape == (0, *features.shape[1:])

    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize("direction", ["up", "down"])
    def test_delta_kernels_move_a_response_by_three_cells_each(
        self, backend: str, device: str, count: int, direction: str
    ) -> None:
        sender, receiver = (1, 0) if direction == "up" else (0, 1)
        features = torch.zeros(1, 2, 16, 8, 7, device=device)
        features[0, sender, 5, 1, 6] = 1.0
        kernel = torch.zeros(1, 16, 16, 7, 7, device=device)
        kernel[0, torch.arange(16), torch.arange(16), 0, 6] = 1.0  # 3 cells down, 3 to the left
        biases = [torch.zeros(1, 16, device=device)] * count
        refined = propagate(
            features, [kernel] * count, biases, (-1, 0), direction=direction, backend=backend
        )
        place = refined[0, receiver].nonzero().tolist()
        assert place == [[5, 1 + 3 * count, 6 - 3 * count]]
        assert refined[0, receiver].sum() == 1.0
        assert torch.equal(refined[0, sender], features[0, sender])

    def test_a_nan_reaches_the_cells_around_it_alone(self, backend: str, device: str) -> None:
        features, kernels, biases = on(
            device, torch.float32, tensors((-1, 0), (16, 16), side=3, size=(5, 6))
        )
        features[0, 1, 3, 2, 5] = np.nan
        run = functools.partial(propagate, parents=(-1, 0), direction="up")
        actual = run(features, kernels, biases, backend=backend).cpu()
        # on a GPU, torch may choose an algorithm that computes whole tiles of a map at once
        on_host = on("cpu", torch.float32, (features, kernels, biases))
        expected = run(*on_host, backend="reference")
        assert expected[:, 0].isnan().sum() == 16 * 3 * 2  # of all channels, at the right border
        assert torch.equal(actual.isnan(), expected.isnan())

    @pytest.mark.parametrize("changed", ["features", "kernels", "steps", "room"])
    def test_memory_in_any_order(self, backend: str, device: str, changed: str) -> None:
        features, kernels, biases = on(
            device, torch.float32, tensors((-1, 0), (16, 16), lead=(2,), side=3, size=(5, 6))
        )
        expected = propagate(features, kernels, biases, (-1, 0), direction="both", backend=backend)
        match changed:
            case "features":  # as the network makes them
                features = features.flatten(1, 3).to(memory_format=torch.channels_last)
                features = features.unflatten(1, (2, 2, 16))
            case "kernels":
                kernels = [k.movedim(3, -1).contiguous().movedim(-1, 3) for k in kernels]
            case "steps":
                features = features.transpose(1, 2).contiguous().transpose(1, 2)
                kernels = [k.transpose(4, 5).contiguous().transpose(4, 5) for k in kernels]
            case "room":  # channels-last with gaps, another distance on every axis
                wide = torch.full((3, 7, 9, 3, 3, 17), np.nan, device=device)
                part = wide.permute(0, 3, 4, 5, 1, 2)[1:, :2, 1:, 1:, 2:, 3:]
                features = part.copy_(features)
                biases = [b.mT.contiguous().mT for b in biases]
        before = features.clone()
        actual = propagate(features, kernels, biases, (-1, 0), direction="both", backend=backend)
        assert torch.equal(actual, expected)
        assert torch.equal(features, before)

    def test_nothing_is_copied_between_the_convolutions_of_a_network(
        self, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features, kernels, biases = on(
            device, torch.float32, tensors((-1, 0), (16, 16), lead=(2,), side=1, size=(5, 6))
        )
        features = features.flatten(1, 3).to(memory_format=torch.channels_last)
        (kernel,), (bias,) = kernels, biases
        kernel = kernel.flatten(0, 2).to(memory_format=torch.channels_last)
        contiguous, copies = Tensor.contiguous, []

        def watched(tensor: Tensor) -> Tensor:
            result = contiguous(tensor)
            copies.append(result.data_ptr() != tensor.data_ptr())
            return result

        monkeypatch.setattr(Tensor, "contiguous", watched)
        refined = propagate(
            features.unflatten(1, (2, 2, 16)),
            [kernel.unflatten(0, (2, 1, 16))],
            [bias],
            (-1, 0),
            direction="both",
            backend=backend,
        )
        assert copies
        assert not any(copies)
        classified = refined.transpose(1, 2).flatten(1, 3)
        assert classified.data_ptr() == refined.data_ptr()
        assert classified.is_contiguous(memory_format=torch.channels_last)

    def test_gradients_are_those_of_the_reference(self, backend: str, device: str) -> None:
        inputs = on(device, torch.float32, tensors(FORK, (16, 8, 16), side=3, size=(5, 6)))
        weight = uniform("weight", tuple(inputs[0].shape)).to(device)

        def gradients(run: str, needed: set[int]) -> list[Tensor]:
            flat = [inputs[0], *inputs[1], *inputs[2]]
            leaves = [x.clone().requires_grad_(i in needed) for i, x in enumerate(flat)]
            result = propagate(
                leaves[0], leaves[1:3], leaves[3:], FORK, direction="up", backend=run
            )
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            return list(torch.autograd.grad((result * weight).sum(), wanted))

        for needed in ({0, 1, 2, 3, 4}, {2, 3}):
            actual, expected = gradients(backend, needed), gradients("reference", needed)
            for a, e in zip(actual, expected, strict=True):
                assert e.abs().max() > 0
                torch.testing.assert_close(a, e, atol=1e-5 * e.abs().max().item(), rtol=0)

    def test_without_a_gradient_nothing_is_kept_for_one(self, backend: str, device: str) -> None:
        features, kernels, biases = on(
            device, torch.float32, tensors((-1, 0), (16, 16), side=1, size=(5, 6))
        )
        kernels[0].requires_grad_()
        with torch.no_grad():
            refined = propagate(features, kernels, biases, (-1, 0), direction="up", backend=backend)
        assert not refined.requires_grad

    def test_autocast(self, backend: str, device: str) -> None:
        features, kernels, biases = on(
            device, torch.float32, tensors(FORK, (16, 32, 16), side=3, size=(5, 6))
        )
        half = on(device, torch.float16, (features, kernels, biases))
        expected = propagate(*half, FORK, direction="up", backend=backend)
        kernels[1].requires_grad_()
        with torch.autocast(device, torch.float16):
            refined = propagate(features, kernels, biases, FORK, direction="up", backend=backend)
            mixed = propagate(half[0], kernels, biases, FORK, direction="up", backend=backend)
        assert refined.dtype == torch.float32
        assert torch.equal(refined, expected.float())
        assert mixed.dtype == torch.float16
        assert torch.equal(mixed, expected)
        (gradient,) = torch.autograd.grad(refined.sum(), kernels[1])
        assert gradient.dtype == torch.float32
        assert gradient.abs().max() > 0

    def test_what_has_no_kernel_takes_the_reference_unless_it_is_named(
        self, backend: str, device: str
    ) -> None:
        double = on(device, torch.float64, tensors((-1, 0), (2, 2), side=3))
        wide = on(device, torch.float32, tensors((-1, 0), (2, 2), side=17))
        for inputs, what in ((double, "torch.float64"), (wide, "kernels of side 17")):
            expected = propagate(*inputs, (-1, 0), direction="up", backend="reference")
            assert torch.equal(propagate(*inputs, (-1, 0), direction="up"), expected)
            with pytest.raises(BackendError, match=f"'triton' cannot run on {what}; usable"):
                propagate(*inputs, (-1, 0), direction="up", backend=backend)

    def test_a_trace_holds_ordinary_convolutions(self, backend: str, device: str) -> None:
        class Messages(torch.nn.Module):
            def __init__(self, backend: str | None) -> None:
                super().__init__()
                self.backend = backend

            def forward(self, features: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
                return propagate(
                    features, [kernel], [bias], FORK, direction="up", backend=self.backend
                )

        features, (kernel,), (bias,) = on(device, torch.float32, tensors(FORK, (2, 2), side=3))
        program = torch.export.export(Messages(None), (features, kernel, bias))
        targets = [str(node.target) for node in program.graph.nodes]
        assert sum("conv2d" in target for target in targets) == 2  # one for each level
        traced = program.module()(features, kernel, bias)
        close(traced, propagate(features, [kernel], [bias], FORK, direction="up"), torch.float32)
        with pytest.raises(BackendError, match="'triton' cannot run on tensors that are traced"):
            torch.export.export(Messages(backend), (features, kernel, bias))


def test_the_reference_passes_gradcheck() -> None:
    features, kernels, biases = tensors(FORK, (2, 1, 2), n=1, side=3, size=(3, 4))
    leaves = [x.double().requires_grad_() for x in (features, *kernels, *biases)]

    def function(*leaves: Tensor) -> Tensor:
        return propagate(leaves[0], leaves[1:3], leaves[3:], FORK, direction="up")

    assert torch.autograd.gradcheck(function, leaves)


def test_tiles_are_large_where_there_is_work_for_all() -> None:
    from fastpose.ops.triton.propagate import TILES, best_tile

    few, wide, many = TILES[90]["16-bit"]
    pixels = 42 * 42

    def chosen(channels: int, images: int, jobs: int) -> object:
        return best_tile((few, wide, many), channels, images * pixels, jobs, processors=132)

    assert chosen(64, 1, 8) == chosen(64, 1, 1) == few
    assert chosen(128, 1, 8) == wide  # 112 programs; half as large they would be 224 on 132
    assert chosen(64, 4, 8) == wide
    assert chosen(128, 4, 8) == chosen(128, 8, 8) == many


FORMS = [  # images, cells, channels and activation of what Structured may give to its messages
    (1, 42, (128, 64, 128), "after"),
    (8, 42, (128, 64, 128), "after"),
    (4, 56, (128, 128, 128, 128), "before"),
]


def launches(capability: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The arguments of all launches for `FORMS` on such a device with 132 multiprocessors."""
    from fastpose.ops.triton import propagate as module

    launched: list[dict] = []

    class Kernel:
        def __init__(self, names: list[str]) -> None:
            self.names = names

        def __getitem__(self, grid: tuple[int, ...]) -> Callable:
            return lambda *given, **named: launched.append(
                dict(zip(self.names, given, strict=False)) | named
            )

    def hardware(device: torch.device, arithmetic: str) -> tuple:
        return module.TILES[capability][arithmetic], 132

    for name in ("_activate", "_convolve"):
        monkeypatch.setattr(module, name, Kernel(getattr(module, name).arg_names))
    monkeypatch.setattr(module, "_precision", lambda maps: precision)
    monkeypatch.setattr(module, "_hardware", hardware)
    edges = len(LSP26) - 1
    for dtype, (n, cells, widths, activate) in itertools.product(POINTERS.values(), FORMS):
        maps = torch.empty(n, cells, cells, 2, len(LSP26), 128, dtype=dtype)
        kernels = [
            torch.empty(2, edges, b, 7, 7, a, dtype=dtype).movedim(-1, 3)
            for a, b in itertools.pairwise(widths)
        ]
        biases = [torch.empty(2, edges, b, dtype=dtype) for b in widths[1:]]
        maps = maps.permute(0, 3, 4, 5, 1, 2)
        module.propagate(maps, kernels, biases, LSP26, direction="both", activate=activate)
    monkeypatch.undo()
    return launched


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_instances_are_what_is_launched(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpose.ops.triton.propagate import instances

    launched = [
        values for way in ("ieee", "tf32") for values in launches(capability, way, monkeypatch)
    ]
    for instance in (one for one in instances() if capability in one.capabilities):
        wanted = {**instance.constants, "num_warps": instance.warps}
        if "BLOCK_K" in wanted:
            wanted["num_stages"] = instance.stages
        same = [
            values
            for values in launched
            if wanted.items() <= values.items()
            and values["raw"].dtype is POINTERS[instance.types["raw"]]
        ]
        assert same, instance.name
        for values, (name, kind) in itertools.product(same, instance.types.items()):
            if kind == "i32":
                assert type(values[name]) is int
                assert 1 < values[name] < 2**31
                assert values[name] % 16 == 0 or name not in instance.aligned
            else:
                assert values[name].data_ptr() % 16 == 0
                assert values[name].dtype is POINTERS.get(kind, torch.int32)


def released(
    dtype: torch.dtype, n: int, side: int = 42
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What the released network gives to its messages at that size, channels-last, on CUDA."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    edges = len(LSP26) - 1

    def values(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.rand(shape, generator=generator, device=device) * 2 - 1) * scale

    def last(x: Tensor) -> Tensor:
        return x.to(dtype, memory_format=torch.channels_last)

    maps = last(values(n, 2 * len(LSP26) * 128, side, side)).unflatten(1, (2, len(LSP26), 128))
    kernels = [
        last(values(2 * edges * b, a, 7, 7, scale=(3 / 49 / a) ** 0.5)).unflatten(0, (2, edges, b))
        for a, b in ((128, 64), (64, 128))
    ]
    return maps, kernels, [values(2, edges, b).to(dtype) for b in (64, 128)]


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
class TestOnCuda:
    """At the size of the released network."""

    @pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
    @pytest.mark.parametrize(("n", "side"), [(1, 42), (4, 42), (1, 56)])
    def test_equals_the_reference(self, dtype: torch.dtype, n: int, side: int) -> None:
        maps, kernels, biases = released(dtype, n, side)
        with torch.no_grad():
            actual = propagate(maps, kernels, biases, LSP26, direction="both")
            again = propagate(maps, kernels, biases, LSP26, direction="both", backend="triton")
            exact = on("cuda", torch.float32, (maps, kernels, biases))
            expected = propagate_reference(*exact, LSP26, direction="both", activate="after")
        close(actual, expected, dtype)
        assert torch.equal(actual, again)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_each_tile_gives_the_same(
        self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fastpose.ops.triton import propagate as module

        maps, kernels, biases = released(dtype, 1)
        exact = on("cuda", torch.float32, (maps, kernels, biases))
        expected = propagate_reference(*exact, LSP26, direction="both", activate="before")
        tiles, _ = module._hardware(maps.device, "16-bit")
        for tile in tiles:
            monkeypatch.setattr(module, "_hardware", lambda *_, tile=tile: ((tile,), 1))
            actual = propagate(
                maps, kernels, biases, LSP26, direction="both", activate="before", backend="triton"
            )
            close(actual, expected, dtype)

    def test_float32_is_multiplied_as_torch_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        maps, kernels, biases = released(torch.float32, 1)
        exact = propagate(maps, kernels, biases, LSP26, direction="both", backend="triton")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        rounded = propagate(maps, kernels, biases, LSP26, direction="both", backend="triton")
        assert not torch.equal(rounded, exact)
        assert (rounded - exact).abs().max() <= TOLERANCES[torch.float16] * exact.abs().max()

    def test_a_graph_replays_bit_for_bit(self) -> None:
        maps, kernels, biases = released(torch.float16, 1)
        other = released(torch.float16, 2)[0][1:].clone(memory_format=torch.preserve_format)

        def run() -> Tensor:
            return propagate(maps, kernels, biases, LSP26, direction="both", backend="triton")

        with torch.no_grad():
            first = run().clone()  # also compiles and makes the tables
            maps_first = maps.clone()
            stream = torch.cuda.Stream()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = run()
            maps.copy_(other)
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(result, run())
            maps.copy_(maps_first)
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(result, first)

    def test_gradients_are_those_of_the_reference(self) -> None:
        maps, kernels, biases = released(torch.float32, 1, side=20)
        weight = torch.rand(maps.shape, device="cuda")
        found = []
        for backend in ("triton", "reference"):
            leaves = [x.detach().requires_grad_() for x in (maps, *kernels, *biases)]
            result = propagate(
                leaves[0], leaves[1:3], leaves[3:], LSP26, direction="both", backend=backend
            )
            found.append(torch.autograd.grad((result * weight).sum(), leaves))
        for actual, expected in zip(*found, strict=True):
            # a ReLU whose sum is rounded to the other side of 0 lets a gradient through or not
            assert (actual - expected).norm() <= 1e-3 * expected.norm()

    def test_structured_predicts_as_on_the_cpu(self) -> None:
        network = Structured(14, fcn6_channels=32, part_channels=32, transform_mid_channels=16)
        seed_weights(network.eval())
        image = 2 * uniform("image", (2, 3, 64, 80)) - 1
        with torch.no_grad():
            expected = network.predict(image)
            network = network.to("cuda", memory_format=torch.channels_last)
            actual = network.predict(image.cuda())
        assert (actual.cpu() - expected).abs().max() <= 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA the kernel multiplies it")
def test_the_interpreter_is_not_trusted_with_bfloat16():
    features, kernel = torch.zeros(1, 2, 16, 3, 3), torch.zeros(1, 16, 16, 3, 3)
    arguments = [features, [kernel], [torch.zeros(1, 16)]]
    halved = [features.bfloat16(), [kernel.bfloat16()], [torch.zeros(1, 16).bfloat16()]]
    propagate(*arguments, (-1, 0), direction="up", backend="reference")
    with pytest.raises(BackendError, match="bfloat16 in Triton's interpreter"):
        propagate(*halved, (-1, 0), direction="up", backend="triton")
