"""Adversarial PoseNet's training: what the maps should be, what is judged, and Algorithm 1.

Chen, Shen, Wei, Liu, Yang, Adversarial PoseNet: A Structure-aware Convolutional Network for Human
Pose Estimation, ICCV 2017. G is the generator, P the discriminator of poses, C that of confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.models.adversarial import (
    AdversarialPoseNet,
    ConfidenceDiscriminator,
    PoseDiscriminator,
    StackMaps,
)
from fastpose.models.spec import ModelSpec
from fastpose.skeleton import Skeleton
from fastpose.train.loop import descend, parameter_groups
from fastpose.train.targets import to_cells

GEN_ADV = ("bad_joints", "literal", "non_saturating")
FLOOR = 1e-7  # least probability of which a logarithm is taken


class Yardstick(NamedTuple):
    """The length by which a joint set's metric divides distances.

    Attributes:
        ends: the joints it lies between.
        factor: the length is their distance times this.
        delta: distance in that length below which the metric counts a joint as right.
    """

    ends: tuple[str, str]
    factor: float
    delta: float


YARDSTICKS = {
    # PCKh@0.5. The unit, 0.6 of the diagonal of the annotated head, is not among the joints; on
    # MPII's validation people it is 0.744 to 0.756 times this line in 98 % of all cases.
    "mpii16": Yardstick(("upper_neck", "head_top"), 0.75, 0.5),
    "lsp14": Yardstick(("left_shoulder", "right_hip"), 1.0, 0.2),  # PCK@0.2, of the torso
}


def yardstick(skeleton: Skeleton) -> Yardstick:
    """The joint set's own.

    Raises:
        ModelError: it has none.
    """
    try:
        return YARDSTICKS[skeleton.name]
    except KeyError:
        known = " and ".join(YARDSTICKS)
        raise ModelError(f"distances can be measured on {known}, not on {skeleton.name}") from None


@dataclass(frozen=True)
class Truth:
    """What a generator's maps of N windows should be.

    Attributes:
        maps: the true pose and occlusion maps.
        points: [N, K, 2] the joints (x, y) in cells.
        labelled: [N, K] bool, where a joint's place is known: these count in the maps' loss.
        inside: [N, K] bool, where it is known and in the window: these are judged.
        unit: [N] cells by which distances are divided; not above 0 or NaN where not known.
    """

    maps: StackMaps
    points: Tensor
    labelled: Tensor
    inside: Tensor
    unit: Tensor


def true_maps(joints: Tensor, visibility: Tensor, spec: ModelSpec, size: tuple[int, int]) -> Truth:
    """A Gaussian at each joint and, in the occlusion maps, at each joint that is hidden.

    The paper gives neither the Gaussian's width nor how the visibility flags are drawn: here it is
    `spec.sigma` cells, and a visible joint's occlusion map is empty. A labelled joint outside the
    window has empty maps.

    Args:
        joints: [N, K, 2] (x, y) in window pixels.
        visibility: [N, K], COCO's v: 0 without a label, 1 hidden, 2 visible.
        spec: the network.
        size: (h, w) of the windows.

    Raises:
        ModelError: nothing is known by which distances between these joints are measured.
    """
    cells = size[0] // spec.stride, size[1] // spec.stride
    points, within = to_cells(joints, spec, size, cells)
    labelled = visibility > 0
    inside = labelled & (within > 0)
    pose = ops.render(points, inside, cells, sigma=spec.sigma)
    hidden = None
    if spec.kwargs.get("occlusion", True):
        hidden = ops.render(points, inside & (visibility < 2), cells, sigma=spec.sigma)
    rule = yardstick(spec.joints)
    a, b = (spec.joints.joints.index(end) for end in rule.ends)
    length = rule.factor * (points[:, a] - points[:, b]).norm(dim=-1)
    unit = torch.where(labelled[:, a] & labelled[:, b], length, torch.nan)
    return Truth(StackMaps(pose, hidden), points, labelled, inside, unit)


def generator_loss(output: list[StackMaps], truth: Truth) -> Tensor:
    """L_G: half the squared distance of the maps from the true ones, mean of stacks and samples.

    The square is summed over cells and joints, pose and occlusion. A joint without a label has no
    part in it.

    Args:
        output: of the generator, every stack's.
        truth: of the same windows.
    """
    weights = truth.labelled[..., None, None]
    pairs = [pair for stack in output for pair in zip(stack, truth.maps, strict=True)]
    squares = [
        ((maps.float() - true).square() * weights).sum()
        for maps, true in pairs
        if maps is not None and true is not None
    ]
    return torch.stack(squares).sum() / (2 * len(truth.points) * len(output))


class Labels(NamedTuple):
    """What a discriminator should answer.

    Attributes:
        target: [N, K] float, 1 where the maps are right, else 0.
        known: [N, K] bool, where that can be told; the other joints are skipped.
    """

    target: Tensor
    known: Tensor

    @property
    def imperfect(self) -> Tensor:
        """[N] bool, where something is wrong.

        Where nothing is, an imperfect discriminator must not disturb G: the sample's adversarial
        term is dropped.
        """
        return (self.known & (self.target == 0)).any(dim=1)


def real_labels(truth: Truth) -> Labels:
    """p_real and c_real: ones."""
    return Labels(torch.ones_like(truth.inside, dtype=torch.float32), truth.inside)


def pose_labels(pose: Tensor, truth: Truth, delta: float) -> Labels:
    """p_fake: whether each joint was found, so that P is not taught that a right place is wrong.

    Args:
        pose: [N, K, h, w] generated pose maps; no gradient flows back.
        truth: of the same windows; a joint outside, or of a person without a unit, is skipped.
        delta: a joint is right below this distance, in the truth's units.
    """
    found, _ = ops.decode(pose.detach().float(), method="quarter")
    distance = (found - truth.points).norm(dim=-1)  # NaN, so wrong, where there is no peak
    measurable = truth.inside & (truth.unit > 0)[:, None]
    return Labels((distance < delta * truth.unit[:, None]).float(), measurable)


def confidence_labels(pose: Tensor, truth: Truth, epsilon: float) -> Labels:
    """c_fake: whether each pose map is nearly the true one.

    Args:
        pose: [N, K, h, w] generated pose maps; no gradient flows back.
        truth: of the same windows; a joint outside is skipped.
        epsilon: a map is right if its distance from the true one is below this share of the true
            one's norm.
    """
    true = truth.maps.pose.flatten(2)
    distance = (pose.detach().float().flatten(2) - true).norm(dim=-1)
    return Labels((distance < epsilon * true.norm(dim=-1)).float(), truth.inside)


def discriminator_loss(verdict: Tensor, labels: Labels) -> Tensor:
    """-log(1 - |D - target|), mean over all joints, those that are skipped counting as 0.

    The absolute value is that of the published paper; its preprint lacks it.

    Args:
        verdict: [N, K] of P or C, from 0 to 1.
        labels: what they should have been.
    """
    return -(_log(1 - (verdict - labels.target).abs()) * labels.known).mean()


def adversarial_loss(verdict: Tensor, labels: Labels, gen_adv: str = "bad_joints") -> Tensor:
    """G's share of the game, to be minimised; mean over all joints, as in `discriminator_loss`.

    "literal" is the paper's min-max: log(1 - |D - target|). It also drives the verdict on a right
    joint down, away from 1. "bad_joints" drops the right joints, so log(1 - D) on the wrong ones;
    "non_saturating" is -log(D) on them, whose gradient does not vanish where D is sure (Goodfellow
    et al., Generative Adversarial Nets, NIPS 2014). A sample that is all right has no part in any.

    Args:
        verdict: [N, K] of P or C on the generated maps, from 0 to 1.
        labels: of `pose_labels` or `confidence_labels`.
        gen_adv: as above.

    Raises:
        ValueError: `gen_adv` is none of these.
    """
    if gen_adv not in GEN_ADV:
        raise ValueError(f"gen_adv must be one of {', '.join(GEN_ADV)}, got {gen_adv!r}")
    if gen_adv == "literal":
        counted = labels.known & labels.imperfect[:, None]
        return (_log(1 - (verdict - labels.target).abs()) * counted).mean()
    wrong = labels.known & (labels.target == 0)
    cost = _log(1 - verdict) if gen_adv == "bad_joints" else -_log(verdict)
    return (cost * wrong).mean()


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=FLOOR).log()


@dataclass(frozen=True)
class Rules:
    """The game's constants.

    The paper gives `alpha` and `beta`; `delta` and `epsilon` it names only.

    Attributes:
        delta: of `pose_labels`.
        epsilon: of `confidence_labels`.
        alpha: weight of C's term in G's objective.
        beta: weight of P's.
        gen_adv: of `adversarial_loss`.
    """

    delta: float
    epsilon: float = 0.25
    alpha: float = 1 / 220
    beta: float = 1 / 180
    gen_adv: str = "bad_joints"


class AdversarialStep:
    """Algorithm 1: how one batch changes G, P and C.

    In this order: G by L_G; P by the generated maps, then by the true ones; C likewise; G by its
    full objective L_G + alpha * C's term + beta * P's. The discriminators see the last stack's
    maps, those that the first update of G was made with, cut off from G. The full objective is
    taken of new maps, since G has changed, with labels of their own.

    Norms: all three networks normalise by the statistics of the batch, P and C by those of the
    generated or of the true maps alone. Running statistics move in the steps of their own network
    only: G's twice a batch, P's and C's once by generated and once by true maps, so they describe
    both; judging for G leaves P and C as they are, running statistics included.

    Args:
        generator: G, in training mode.
        pose: P.
        confidence: C.
        rules: the constants.
        decay: weight decay of G's kernels.
        bf16: forward passes run in bfloat16 under autocast.
    """

    def __init__(
        self,
        generator: AdversarialPoseNet,
        pose: PoseDiscriminator,
        confidence: ConfidenceDiscriminator,
        rules: Rules,
        *,
        decay: float = 0.0,
        bf16: bool = False,
    ) -> None:
        self.generator, self.pose, self.confidence = generator, pose, confidence
        self.rules, self._bf16 = rules, bf16
        self._optimizers = {
            "generator": torch.optim.RMSprop(parameter_groups(generator, decay)),
            "pose": torch.optim.RMSprop(pose.parameters()),
            "confidence": torch.optim.RMSprop(confidence.parameters()),
        }

    def step(self, images: Tensor, truth: Truth, rate: float) -> dict[str, float]:
        """Change all three networks by one batch.

        Args:
            images: [N, 3, h, w], normalised.
            truth: of them.
            rate: the learning rate of all three; the paper starts from 2.5e-4.

        Returns:
            the losses before each update: "generator" (L_G), "pose fake", "pose real",
            "confidence fake", "confidence real", and "objective", G's full one.
        """
        rules, losses = self.rules, {}
        with self._arithmetic(images):
            output = self.generator(images)
        losses["generator"] = generator_loss(output, truth)
        self._update("generator", losses["generator"], rate)

        pose, fake, real = output[-1].pose.detach(), output[-1].joined.detach(), truth.maps.joined
        ones = real_labels(truth)
        near = pose_labels(pose, truth, rules.delta)
        losses["pose fake"] = self._teach("pose", (images, fake), near, rate)
        losses["pose real"] = self._teach("pose", (images, real), ones, rate)
        near = confidence_labels(pose, truth, rules.epsilon)
        losses["confidence fake"] = self._teach("confidence", (fake,), near, rate)
        losses["confidence real"] = self._teach("confidence", (real,), ones, rate)

        losses["objective"] = self.objective(images, truth)
        self._update("generator", losses["objective"], rate)
        return {name: loss.item() for name, loss in losses.items()}

    def objective(self, images: Tensor, truth: Truth) -> Tensor:
        """G's full objective. Its gradient reaches G alone, through P and C as they are.

        Args, returns: as in `step`.
        """
        rules = self.rules
        with self._arithmetic(images):
            output = self.generator(images)
            plausible = _judge(self.pose, images, output[-1].joined)
            confident = _judge(self.confidence, output[-1].joined)
        pose, mode = output[-1].pose, rules.gen_adv
        sure = confidence_labels(pose, truth, rules.epsilon)
        near = pose_labels(pose, truth, rules.delta)
        return (
            generator_loss(output, truth)
            + rules.alpha * adversarial_loss(confident, sure, mode)
            + rules.beta * adversarial_loss(plausible, near, mode)
        )

    def state_dict(self) -> dict[str, Any]:
        """What besides G must survive a run that is broken off: P, C and three optimisers."""
        return {
            "pose": self.pose.state_dict(),
            "confidence": self.confidence.state_dict(),
            "optimizers": {name: one.state_dict() for name, one in self._optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.pose.load_state_dict(state["pose"])
        self.confidence.load_state_dict(state["confidence"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def _teach(self, name: str, seen: tuple[Tensor, ...], labels: Labels, rate: float) -> Tensor:
        """One step of the discriminator `name`, P or C; returns its loss."""
        discriminator = {"pose": self.pose, "confidence": self.confidence}[name]
        with self._arithmetic(seen[0]):
            verdict = discriminator(*seen)
        loss = discriminator_loss(verdict, labels)
        self._update(name, loss, rate)
        return loss

    def _arithmetic(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16)

    def _update(self, name: str, loss: Tensor, rate: float) -> None:
        descend(self._optimizers[name], loss, rate)


def _judge(discriminator: nn.Module, *seen: Tensor) -> Tensor:
    """The verdict [N, K]: gradients reach what is seen; the discriminator stays as it is."""
    state = {name: value.detach() for name, value in discriminator.named_parameters()}
    state |= {name: value.clone() for name, value in discriminator.named_buffers()}
    verdict: Tensor = functional_call(discriminator, state, seen)
    return verdict
