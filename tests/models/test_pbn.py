"""PBN against its publication: branches, their groups, stacking; its parts against public code."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models import MODELS, create, model_spec
from fastpose.models.groups import Partition, found_groups, partition, partitions
from fastpose.models.hourglass import Hourglass, Residual
from fastpose.models.pbn import PBN, Branches
from fastpose.skeleton import skeleton

GOLDEN = Path(__file__).parent.parent / "golden" / "hourglass_pbn.npz"
PBNS = [name for name in MODELS if name.startswith("pbn")]


def small(groups: str | Partition = "mpii16-hand6", stacks: int = 2, **options) -> PBN:
    joints = len((partition(groups) if isinstance(groups, str) else groups).owners)
    options = {"width": 4, "channels": 16} | options
    network = PBN(joints, groups, stacks, **options).eval()
    seed_weights(network)
    return network


def picture(count: int = 2) -> Tensor:
    return 2 * uniform("picture", (count, 3, 64, 128)) - 1


# Groups


@pytest.mark.parametrize("name", partitions())
def test_every_partition_covers_each_joint_once_and_is_closed_under_the_mirror(name: str) -> None:
    groups, joints = partition(name).groups, skeleton(partition(name).skeleton)
    assert sorted(joint for group in groups for joint in group) == list(range(len(joints)))
    twin = joints.flip_order()
    assert {frozenset(twin[list(group)]) for group in groups} == {frozenset(g) for g in groups}


def test_groups_of_the_paper() -> None:
    names = skeleton("mpii16").joints

    def by_name(groups: str) -> set[frozenset[str]]:
        return {frozenset(names[joint] for joint in g) for g in partition(groups).groups}

    assert by_name("mpii16-hand6") == {
        frozenset({"head_top", "upper_neck", "thorax"}),
        frozenset({"left_wrist", "left_elbow", "left_shoulder"}),
        frozenset({"right_wrist", "right_elbow", "right_shoulder"}),
        frozenset({"left_knee", "left_ankle"}),
        frozenset({"right_knee", "right_ankle"}),
        frozenset({"left_hip", "right_hip", "pelvis"}),
    }
    assert by_name("mpii16-data5") == {
        frozenset({"right_wrist", "right_elbow"}),
        frozenset({"left_wrist", "left_elbow"}),
        frozenset({"head_top", "upper_neck", "thorax", "right_shoulder", "left_shoulder"}),
        frozenset({"right_hip", "left_hip", "pelvis"}),
        frozenset({"right_knee", "left_knee", "right_ankle", "left_ankle"}),
    }


def test_groups_of_lsp_are_those_of_mpii_without_pelvis_and_thorax() -> None:
    def by_name(groups: str) -> set[frozenset[str]]:
        names = skeleton(partition(groups).skeleton).joints
        kept = [{names[joint] for joint in group} for group in partition(groups).groups]
        return {frozenset(n.replace("upper_", "") for n in g - {"pelvis", "thorax"}) for g in kept}

    for kind in ("hand6", "data5", "data6"):
        assert by_name(f"lsp14-{kind}") == by_name(f"mpii16-{kind}")


def test_found_groups_say_how_they_were_found() -> None:
    for joints, row in found_groups().items():
        count = len(skeleton(joints))
        information = np.array(row["information"])
        assert information.shape == (count, count)
        assert np.array_equal(information, information.T)
        assert "fastpose.train.grouping" in row["command"]
        assert row["people"] > 20_000
        # five is where the spectrum has its widest gap beyond the first
        assert np.argmax(row["gaps"][1:]) + 2 == 5


def mine(*groups: tuple[int, ...]) -> Partition:
    return Partition("mine", "mpii16", groups)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ((tuple(range(16)), (3,)), "mine: left_hip is in two places"),
        ((tuple(range(15)), (15, 15)), "mine: left_wrist is in two places"),
        ((tuple(range(15)),), "mine: left_wrist is in no group"),
        ((tuple(range(17)),), "mine: mpii16 has joints 0 to 15, got 16"),
        ((tuple(range(-1, 15)),), "mine: mpii16 has joints 0 to 15, got -1"),
        (((0, 1, 2), tuple(range(3, 16))), r"\(right_ankle, right_knee, right_hip\), mirrored, is"),
    ],
)
def test_refuses_other_groups(groups: tuple[tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        mine(*groups)


def test_unknown_groups_list_the_known() -> None:
    with pytest.raises(ModelError, match="unknown part groups 'limbs'; known: mpii16-hand6, "):
        PBN(16, "limbs")


def test_refuses_groups_of_another_joint_set() -> None:
    with pytest.raises(ModelError, match="lsp14-data5 groups 14 joints, the network has 16"):
        PBN(16, "lsp14-data5")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("stacks", 0),
        ("width", 0),
        ("width", 5),
        ("depth", -1),
        ("channels", 30),
        ("propagate", "all"),
    ],
)
def test_refuses_what_cannot_be_built(option: str, value: object) -> None:
    with pytest.raises(ModelError, match=r"an even width, .* propagate shared or specific, got"):
        PBN(16, **{option: value})


# Shapes and counts


@pytest.mark.parametrize(
    ("groups", "parameters"),
    [
        ("mpii16-hand6", (3_604_368, 6_794_016, 9_983_664, 25_931_904)),
        ("mpii16-data5", (3_574_224, 6_733_728, 9_893_232, 25_690_752)),
    ],
)
def test_parameters(groups: str, parameters: tuple[int, ...]) -> None:
    with torch.device("meta"):
        networks = [PBN(16, groups, stacks) for stacks in (1, 2, 3, 8)]
    assert tuple(sum(p.numel() for p in n.parameters()) for n in networks) == parameters


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"norm_branches": True}, 3 * 2 * 6 * 64),
        ({"remap_features": True}, 2 * (256 * 256 + 256)),
        ({"propagate": "specific"}, 2 * (6 * 64 * 256 + 256)),
        ({"depth": 2}, 3 * 6 * 13_696),
    ],
)
def test_parameters_of_the_options(options: dict, more: int) -> None:
    with torch.device("meta"):
        network = PBN(16, stacks=3, **options)
    assert sum(p.numel() for p in network.parameters()) == 9_983_664 + more


@pytest.mark.parametrize("name", ["pbn-mpii", "pbn-lsp"])
def test_the_models_to_be_trained_have_norm_in_their_branches_and_else_what_is_published(
    name: str,
) -> None:
    published, normed = model_spec(name), model_spec(f"{name}-norm")
    assert published.kwargs | {"norm_branches": True} == normed.kwargs
    assert normed.parameters == published.parameters + 8 * 5 * 2 * 64
    same = {"name": normed.name, "kwargs": normed.kwargs, "parameters": normed.parameters}
    assert replace(published, **same) == normed


@pytest.mark.parametrize("name", PBNS)
def test_a_map_of_a_quarter_for_each_joint_and_stack(name: str) -> None:
    with torch.device("meta"):
        maps = create(name)(torch.empty(2, 3, 256, 256))
    assert [m.shape for m in maps] == [(2, len(model_spec(name).joints), 64, 64)] * 8


def test_lowest_level_has_four_by_four_cells() -> None:
    sizes = []
    with torch.device("meta"):
        network = PBN(16, stacks=1)
        for module in network.modules():
            if isinstance(module, Hourglass):
                module.inner.register_forward_hook(
                    lambda _, inputs, result: sizes.append(tuple(result.shape[2:]))
                )
        network(torch.empty(1, 3, 256, 256))
    assert sizes == [(4, 4), (8, 8), (16, 16), (32, 32)]


def test_inference_is_the_highest_cell_of_the_last_stack() -> None:
    network = small()
    with torch.no_grad():
        assert torch.equal(network.predict(picture()), network(picture())[-1])
    for name in PBNS:
        spec = model_spec(name)
        assert (spec.method, spec.convention, spec.cells) == ("argmax", "hourglass", (64, 64))
        assert (spec.mean, spec.std, spec.rgb) == ((0.0,) * 3, (255.0,) * 3, True)


@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (1, 1, 64, 64), (3, 64, 64)])
def test_refuses_other_images(shape: tuple[int, ...]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="multiples of 64, got"):
        PBN(16, stacks=1)(torch.empty(shape))


# Branches


class OneBranch(nn.Module):
    """The branch of one group as the paper draws it."""

    def __init__(self, channels: int, width: int, depth: int, joints: int, norm: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 1)
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()) if norm else nn.Identity()
        self.residuals = nn.Sequential(*(Residual(width, width) for _ in range(depth)))
        self.maps = nn.Conv2d(width, joints, 1)

    def forward(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        specific = self.residuals(self.norm(self.enter(shared)))
        return specific, self.maps(specific)


def apart(branches: Branches, parts: Partition) -> list[OneBranch]:
    """Each group's branch alone, with its share of the weights."""
    count = len(parts.groups)
    state = branches.state_dict()
    alone = []
    for index, group in enumerate(parts.groups):
        channels, width = branches.enter.in_channels, branches.enter.out_channels // count
        norm = not isinstance(branches.norm, nn.Identity)
        branch = OneBranch(channels, width, len(branches.residuals), len(group), norm)
        own = {}
        for name, tensor in state.items():
            if name.startswith("maps."):
                own[name] = tensor[list(group)]
            else:
                own[name] = tensor.chunk(count)[index] if tensor.ndim else tensor
        branch.load_state_dict(own)
        alone.append(branch)
    return alone


@pytest.mark.parametrize("groups", ["mpii16-hand6", "mpii16-data5", "lsp14-data5", "lsp14-one"])
@pytest.mark.parametrize(("depth", "norm"), [(0, False), (1, False), (2, False), (1, True)])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_fused_branches_equal_each_branch_by_itself(
    groups: str, depth: int, norm: bool, mode: str
) -> None:
    parts = partition(groups)
    fused = Branches(parts, channels=12, width=6, depth=depth, norm=norm)
    seed_weights(fused)
    alone = apart(fused, parts)
    for module in (fused, *alone):
        module.train(mode == "train")
    shared = 2 * uniform("shared", (2, 12, 8, 6)) - 1
    with torch.no_grad():
        specific, maps = fused(shared)
        results = [branch(shared) for branch in alone]
    expected = torch.empty_like(maps)
    for group, (_, own) in zip(parts.groups, results, strict=True):
        expected[:, list(group)] = own
    joined = torch.cat([own for own, _ in results], dim=1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(specific, joined, rtol=0, atol=1e-5)


def by_branch(tensor: Tensor, groups: int) -> Tensor:
    return torch.stack([rows.abs().amax() for rows in tensor.chunk(groups)])


@pytest.mark.parametrize("groups", ["mpii16-hand6", "mpii16-data5"])
def test_loss_of_one_group_teaches_its_branch_and_the_trunk_alone(groups: str) -> None:
    parts = partition(groups)
    count = len(parts.groups)
    for chosen, group in enumerate(parts.groups):
        network = small(groups, stacks=1).train()
        network(picture())[0][:, list(group)].square().sum().backward()
        branches = network.branches[0]
        others = [g for g in range(count) if g != chosen]
        for name, parameter in branches.named_parameters():
            if name.startswith("maps."):
                taught = parameter.grad.reshape(len(parameter), -1).abs().amax(dim=1)
                assert taught.nonzero().flatten().tolist() == sorted(group)
                continue
            strength = by_branch(parameter.grad, count)
            assert (strength[others] == 0).all(), name
            # a bias before a norm of batch statistics is taken away again
            assert strength[chosen] > 0 or name.endswith("bias"), name
        for part in (network.stem, network.trunks):
            kernels = [p.grad for p in part.parameters() if p.ndim == 4]
            assert all(gradient.abs().max() > 0 for gradient in kernels)


@pytest.mark.parametrize("groups", ["mpii16-hand6", "mpii16-data5", "lsp14-data5"])
def test_a_branch_changes_the_maps_of_its_joints_alone(groups: str) -> None:
    network = small(groups, stacks=1, width=4)
    with torch.no_grad():
        before = network(picture())[0]
        for index, group in enumerate(partition(groups).groups):
            changed, width = copy.deepcopy(network), 4
            changed.branches[0].enter.bias[index * width : (index + 1) * width] += 1
            moved = (changed(picture())[0] != before).any(dim=3).any(dim=2).any(dim=0)
            assert moved.nonzero().flatten().tolist() == sorted(group)
            changed = copy.deepcopy(network)
            changed.branches[0].maps.bias[list(group)] += 0.5
            difference = changed(picture())[0] - before
            expected = torch.zeros(len(before[0]))
            expected[list(group)] = 0.5
            expected = expected[:, None, None].expand_as(before)
            torch.testing.assert_close(difference, expected, rtol=0, atol=1e-4)


# Stacking


def pass_of(network: PBN) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What each stack sees, its shared features, and its maps."""
    seen, shared = [], []

    def keep(_: nn.Module, inputs: tuple[Tensor], result: Tensor) -> None:
        seen.append(inputs[0])
        shared.append(result)

    for trunk in network.trunks:
        trunk.register_forward_hook(keep)
    with torch.no_grad():
        return seen, shared, network(picture())


def zero(*layers: nn.Conv2d) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()


def test_without_maps_and_features_a_stack_sees_what_the_one_before_saw() -> None:
    network = small(stacks=3)
    zero(*network.remap_maps)
    for trunk in network.trunks:
        trunk.register_forward_hook(lambda _, inputs, result: torch.zeros_like(result))
    (first, *others), _, _ = pass_of(network)
    assert len(others) == 2
    assert all(torch.equal(x, first) for x in others)


def test_a_stack_is_told_the_maps_and_the_shared_features_as_they_are() -> None:
    network = small(stacks=3)
    seen, shared, maps = pass_of(network)
    with torch.no_grad():
        for t in (0, 1):
            expected = seen[t] + network.remap_maps[t](maps[t]) + shared[t]
            torch.testing.assert_close(seen[t + 1], expected)


def test_specific_features_go_through_a_convolution() -> None:
    network = small("mpii16-data5", propagate="specific", width=4)
    assert network.remap_features[0].weight.shape == (16, 5 * 4, 1, 1)
    seen, shared, maps = pass_of(network)
    with torch.no_grad():
        specific, _ = network.branches[0](shared[0])
        told = network.remap_maps[0](maps[0]) + network.remap_features[0](specific)
    torch.testing.assert_close(seen[1], seen[0] + told)


def test_shared_features_go_through_a_convolution_where_that_is_asked() -> None:
    network = small(remap_features=True)
    seen, shared, maps = pass_of(network)
    with torch.no_grad():
        told = network.remap_maps[0](maps[0]) + network.remap_features[0](shared[0])
    torch.testing.assert_close(seen[1], seen[0] + told)


@pytest.mark.parametrize(("stacks", "remap"), [(3, False), (8, True)])
def test_in_range_of_half_precision(stacks: int, remap: bool) -> None:
    torch.manual_seed(0)
    network = PBN(16, stacks=stacks, remap_features=remap).eval()
    image = picture(1)[..., :64]
    with torch.no_grad():
        expected = network.predict(image)
        half = network.half().predict(image.half())
    assert (half - expected).abs().max() <= 0.02 * expected.abs().max()


# Against public code: with one group of all joints, no residual in its branch and a width of 256
# the network is a plain stacked hourglass with a head of two 1x1 convolutions.


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_plain_hourglass_equals_one_of_public_modules(mode: str) -> None:
    network = PBN(16, "mpii16-one", stacks=2, width=256, depth=0)
    seed_weights(network)
    image = 2 * uniform("image", (1, 3, 128, 64)) - 1
    if mode == "train":
        network, image = network.double(), image.double()
    with torch.no_grad(), np.load(GOLDEN) as golden:
        for stack, maps in enumerate(network.train(mode == "train")(image)):
            expected = golden[f"pbn.{mode}.{stack}"]
            error = np.abs(maps.flatten()[::13].numpy() - expected).max()
            assert error <= 1e-5 * np.abs(expected).max(), f"stack {stack}: {error:.2e}"
