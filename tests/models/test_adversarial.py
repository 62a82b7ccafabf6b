"""Adversarial PoseNet's generator and discriminators against the paper's figures and text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.models import model_spec
from fastpose.models.adversarial import (
    AdversarialPoseNet,
    ConfidenceDiscriminator,
    PoseDiscriminator,
    StackMaps,
)
from fastpose.models.hourglass import Hourglass

JOINTS = 5
SIZE = (32, 64)  # of the image, for hourglasses of depth 2


def generator(stacks: int = 3, occlusion: bool = True) -> AdversarialPoseNet:
    network = AdversarialPoseNet(
        JOINTS, stacks, channels=32, stem=(8, 16), depth=2, occlusion=occlusion
    )
    seed_weights(network)
    return network.eval()


def picture(count: int = 2) -> Tensor:
    return 2 * uniform("picture", (count, 3, *SIZE)) - 1


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_four_stacks_of_pose_and_occlusion_maps() -> None:
    with torch.device("meta"):
        network = AdversarialPoseNet()
        maps = network(torch.empty(2, 3, 256, 256))
    assert len(maps) == 4
    for pose, occlusion in maps:
        assert pose.shape == occlusion.shape == (2, 16, 64, 64)
    assert maps[0].joined.shape == (2, 32, 64, 64)


@pytest.mark.parametrize(("channels", "millions"), [(512, 90.0), (256, 22.7)])
def test_parameters_of_the_default(channels: int, millions: float) -> None:
    with torch.device("meta"):
        network = AdversarialPoseNet(channels=channels)
    assert count_parameters(network) == pytest.approx(millions * 1e6, rel=0.01)


def test_widths_of_the_stem_and_cells_of_the_hourglass() -> None:
    """64, 128, 128 and 512 channels; 64x64 cells down to 4x4 and back."""
    seen: list[tuple[int, ...]] = []
    with torch.device("meta"):
        network = AdversarialPoseNet(stacks=1)
        convolutions = [m for m in network.stem.children() if not isinstance(m, nn.ReLU)]
        for module in (*convolutions, *network.stacks[0].pose.modules()):
            module.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[1:])))
        network.predict(torch.empty(1, 3, 256, 256))
    assert seen[:6] == [
        (64, 128, 128),
        (64, 128, 128),
        (128, 128, 128),
        (128, 64, 64),
        (128, 64, 64),
        (512, 64, 64),
    ]
    assert {shape[1] for shape in seen[6:]} == {64, 32, 16, 8, 4}
    assert seen[-1] == (512, 64, 64)


def test_a_head_is_a_reduction_and_a_linear_classifier() -> None:
    """Two 1x1 convolutions, C to K and K to K, nothing between them."""
    head = generator().stacks[0].pose_head
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in head] == [
        (32, JOINTS, (1, 1)),
        (JOINTS, JOINTS, (1, 1)),
    ]


def zero(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


@pytest.mark.parametrize("stack", [0, 1, 2])
def test_the_second_hourglass_reaches_the_poses_of_later_stacks_alone(stack: int) -> None:
    network = generator()
    with torch.no_grad():
        before = network(picture())
        zero(network.stacks[stack].occlusion)
        after = network(picture())
    same = [torch.equal(b.pose, a.pose) for b, a in zip(before, after, strict=True)]
    assert same == [m <= stack for m in range(3)]
    assert not torch.equal(before[stack].occlusion, after[stack].occlusion)


@pytest.mark.parametrize("kind", ["pose", "occlusion"])
def test_a_remap_reaches_the_next_stack(kind: str) -> None:
    network = generator()
    with torch.no_grad():
        before = network(picture())
        zero(getattr(network.remaps[0], kind))
        after = network(picture())
    same = [torch.equal(b.pose, a.pose) for b, a in zip(before, after, strict=True)]
    assert same == [True, False, False]


def inputs(network: AdversarialPoseNet, module: str) -> list[Tensor]:
    """What reaches the hourglass called `module` in each stack, behind X itself."""
    found: list[Tensor] = []
    hooks = [network.stem.register_forward_hook(lambda *args: found.append(args[2]))]
    for stack in network.stacks:
        hourglass = getattr(stack, module)
        hooks.append(hourglass.register_forward_pre_hook(lambda _, args: found.append(args[0])))
    with torch.no_grad():
        network(picture())
    for hook in hooks:
        hook.remove()
    return found


def test_without_remaps_every_stack_sees_the_image_alone() -> None:
    network = generator()
    features, first, *later = inputs(network, "pose")
    assert torch.equal(first, features)
    assert not any(torch.equal(x, features) for x in later)
    zero(network.remaps)
    features, *given = inputs(network, "pose")
    assert all(torch.equal(x, features) for x in given)


def test_a_stack_is_the_sum_and_the_remaps_of_the_papers_figure() -> None:
    """Y_n + I_n enters the second hourglass, X + remap(y_n) + remap(z_n) the next stack."""
    network = generator(stacks=2)
    features, first, second = inputs(network, "pose")
    _, middle, _ = inputs(network, "occlusion")
    stack, remap = network.stacks[0], network.remaps[0]
    with torch.no_grad():
        y = stack.pose(features)
        pose, occlusion = stack.pose_head(y), stack.occlusion_head(stack.occlusion(y + features))
        assert torch.equal(first, features)
        torch.testing.assert_close(middle, y + features)
        expected = features + remap.pose(pose) + remap.occlusion(occlusion)
        torch.testing.assert_close(second, expected)
        maps = network(picture())[0]
    torch.testing.assert_close(maps, StackMaps(pose, occlusion))


def hourglasses_run(network: AdversarialPoseNet, method: str) -> int:
    ran: list[nn.Module] = []
    for stack in network.stacks:
        for module in (stack.pose, stack.occlusion):
            if module is not None:
                module.register_forward_hook(lambda module, *_: ran.append(module))
    with torch.no_grad():
        getattr(network, method)(picture())
    return len(ran)


@pytest.mark.parametrize("stacks", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_pruned_graph_gives_the_same_poses_to_the_bit(stacks: int, count: int) -> None:
    network = generator(stacks)
    with torch.no_grad():
        assert torch.equal(network.predict(picture(count)), network(picture(count))[-1].pose)


def test_pruned_graph_leaves_out_the_last_second_hourglass() -> None:
    assert hourglasses_run(generator(), "forward") == 6
    assert hourglasses_run(generator(), "predict") == 5


def test_single_task_has_neither_second_hourglasses_nor_occlusion_maps() -> None:
    network = generator(occlusion=False)
    with torch.no_grad():
        maps = network(picture())
        assert torch.equal(network.predict(picture()), maps[-1].pose)
    assert [m.occlusion for m in maps] == [None] * 3
    assert maps[0].joined is maps[0].pose
    assert hourglasses_run(network, "forward") == 3
    assert sum(isinstance(m, Hourglass) for m in network.modules()) == 3 * 2  # one in another


def test_the_single_task_network_exports() -> None:
    network = generator(stacks=1, occlusion=False)
    network.forward = network.predict  # what the export of an engine calls
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    program = torch.export.export(network, (picture(2),), dynamic_shapes=shapes, strict=True)
    with torch.no_grad():
        expected, exported = network.predict(picture(3)), program.module()(picture(3))
    assert (exported - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (1, 3, 32, 40), (3, 32, 32)])
def test_an_image_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 16, got"):
        generator()(torch.zeros(shape))


@pytest.mark.parametrize(
    "arguments",
    [{"stacks": 0}, {"channels": 31}, {"stem": (8, 0)}, {"depth": 0}],
)
def test_a_generator_that_cannot_be_built_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="AdversarialPoseNet needs stacks and"):
        AdversarialPoseNet(**arguments)


@pytest.mark.parametrize("name", ["adversarial-mpii", "adversarial-lsp"])
def test_windows_pixels_and_decoding_are_the_hourglass_codes(name: str) -> None:
    """The paper names none of them; see the mean of MPII in `bearpaw/pytorch-pose`."""
    spec, hourglass = model_spec(name), model_spec("hourglass8")
    for shown in (spec, hourglass):
        assert (shown.size, shown.stride, shown.convention) == ((256, 256), 4, "hourglass")
        assert (shown.padding, shown.method, shown.sigma) == (1.25, "quarter", 1.0)
        mean, std = (0.4404, 0.4440, 0.4327), (255.0, 255.0, 255.0)
        assert shown.rgb
        assert shown.mean == pytest.approx([255 * value for value in mean], abs=0.06)
        assert shown.std == std


def test_an_untrained_generator_draws_nothing() -> None:
    network = AdversarialPoseNet(JOINTS, 2, channels=32, stem=(8, 16), depth=2)
    with torch.no_grad():
        assert not any(maps.joined.any() for maps in network(picture()))


# The discriminators


def maps(joined: int = 2 * JOINTS, size: tuple[int, int] = (16, 8)) -> Tensor:
    return uniform("maps", (2, joined, *size))


def discriminators(occlusion: bool = True) -> tuple[PoseDiscriminator, ConfidenceDiscriminator]:
    judges = (
        PoseDiscriminator(JOINTS, occlusion, channels=16, depth=2),
        ConfidenceDiscriminator(JOINTS, occlusion, channels=16, depth=2),
    )
    for judge in judges:
        seed_weights(judge.eval())
    return judges


def test_discriminators_of_sixteen_joints_take_35_and_32_channels() -> None:
    with torch.device("meta"):
        pose, confidence = PoseDiscriminator(), ConfidenceDiscriminator()
        image, joined = torch.empty(2, 3, 256, 256), torch.empty(2, 32, 64, 64)
        assert pose(image, joined).shape == confidence(joined).shape == (2, 16)
    assert (pose.judge[0].bn1.num_features, confidence.judge[0].bn1.num_features) == (35, 32)
    assert [type(m).__name__ for m in pose.judge] == [
        "Residual",
        "Hourglass",
        "Residual",
        "Conv2d",
    ]


@pytest.mark.parametrize("occlusion", [True, False])
def test_verdicts_lie_between_0_and_1_joint_by_joint(occlusion: bool) -> None:
    pose, confidence = discriminators(occlusion)
    joined = maps((1 + occlusion) * JOINTS)
    for verdict in (pose(picture(), joined), confidence(joined)):
        assert verdict.shape == (2, JOINTS)
        assert ((verdict > 0) & (verdict < 1)).all()
    assert pose(picture(0), joined[:0]).shape == (0, JOINTS)


def test_a_verdict_is_the_sigmoid_of_the_mean_of_a_map() -> None:
    _, confidence = discriminators()
    with torch.no_grad():
        expected = torch.sigmoid(confidence.judge(maps()).flatten(2).mean(dim=2))
        torch.testing.assert_close(confidence(maps()), expected)


def test_the_pose_discriminator_uses_the_image() -> None:
    pose, _ = discriminators()
    image, joined = picture().requires_grad_(), maps().requires_grad_()
    pose(image, joined).sum().backward()
    for given in (image, joined):
        assert given.grad is not None
        assert (given.grad.abs().amax(dim=(0, 2, 3)) > 0).all()  # every channel
    assert not torch.equal(pose(image, joined), pose(image.flip(-1), joined))


def test_the_pose_discriminator_averages_the_image_down() -> None:
    pose, _ = discriminators()
    coarse = uniform("coarse", (2, 3, 16, 8))
    fine = coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    fine = fine + torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(8)  # no matter to a mean of four
    torch.testing.assert_close(pose(fine, maps()), pose(coarse, maps()))


def test_the_confidence_discriminator_takes_no_image() -> None:
    _, confidence = discriminators()
    with pytest.raises(TypeError):
        confidence(picture(), maps())  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"maps must be \[N, 10, h, w\] .* got \[2, 13, 16, 8\]"):
        confidence(torch.cat((uniform("image", (2, 3, 16, 8)), maps()), dim=1))


def test_maps_that_do_not_fit_are_refused() -> None:
    pose, confidence = discriminators()
    with pytest.raises(ValueError, match=r"multiples of 4, got \[2, 10, 16, 6\]"):
        confidence(maps(size=(16, 6)))
    with pytest.raises(ValueError, match=r"maps must be \[N, 10, h, w\] .* got \[2, 5, 16, 8\]"):
        pose(picture(), maps(JOINTS))


@pytest.mark.parametrize("arguments", [{"channels": 15}, {"depth": 0}, {"num_keypoints": 0}])
def test_a_discriminator_that_cannot_be_built_is_refused(arguments: dict[str, int]) -> None:
    for kind in (PoseDiscriminator, ConfidenceDiscriminator):
        with pytest.raises(ModelError, match="a discriminator needs num_keypoints and depth"):
            kind(**arguments)
