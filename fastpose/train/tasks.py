"""What is trained here: pose networks, on one loss or against discriminators, and detectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastpose.crop import Augmentation
from fastpose.errors import DataError, ModelError
from fastpose.models import create, create_detector
from fastpose.models.adversarial import (
    AdversarialPoseNet,
    ConfidenceDiscriminator,
    PoseDiscriminator,
)
from fastpose.models.fpn import FPNDetector
from fastpose.models.hourglass import DEPTH
from fastpose.models.spec import DetectorSpec, ModelSpec
from fastpose.models.tompson import Cascade
from fastpose.models.weights import load_weights, start_detector
from fastpose.train.adversarial import AdversarialStep, Rules, true_maps, yardstick
from fastpose.train.data import Batch, TrainingSet, batches, prepared
from fastpose.train.detection import detection_loss
from fastpose.train.loop import Descent, Recipe
from fastpose.train.objective import cascade_objective, objective
from fastpose.train.pins import ZOOM
from fastpose.train.scenes import SceneBatch, Scenery, SceneSet
from fastpose.train.tompson import phase_at, set_phase

# The extent of the joints, enlarged by this, is about the box of the whole body, which a detector
# finds and `ModelSpec.padding` enlarges in prediction.
BODY = 1.25


@dataclass(frozen=True)
class PeopleRecipe(Recipe):
    """How windows of people are cut to train on.

    Attributes:
        padding: the extent of a person's joints is enlarged by this; a pair is for (x, y).
        augmentation: the ranges of the random views.
    """

    padding: float | tuple[float, float] = BODY
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class PoseRecipe(PeopleRecipe):
    """How a pose network is trained.

    Attributes:
        hard: M of online hard keypoint mining.
        hard_cells: share of the cells that is mined, where a map holds several joints.
    """

    hard: int = 8
    hard_cells: float = 0.25


@dataclass(frozen=True)
class AdversarialRecipe(PeopleRecipe):
    """How Adversarial PoseNet is trained: as published, where the paper says.

    It gives RMSprop's rate, at which this stays since no schedule is given, and ranges of rotation
    and zoom: 30 degrees and a quarter to either side. It averages no weights and names no decay.

    Attributes:
        rules: the constants of the game; None takes those of the network's joints.
    """

    batch: int = 8
    rate: float = 2.5e-4
    decay: float = 0.0
    ema: float = 0.0
    clip: float | None = None
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(
            rotation=15, rotated=1, scale=0.125, shift=0, half_body=0, grey=0
        )
    )
    rules: Rules | None = None

    def rate_at(self, progress: float) -> float:
        """The same from beginning to end."""
        return self.rate


class PeopleTask:
    """A network and people with joints, without what it learns from them; see `loop.Task`.

    Args:
        spec: the network.
        data: its samples.
        recipe: how.
        start: a weight file of the same network to go on from.

    Raises:
        ModelError: the data's joints are not the network's.
        DataError: the data does not fill one batch.
    """

    def __init__(
        self, spec: ModelSpec, data: TrainingSet, recipe: PeopleRecipe, start: Path | None = None
    ) -> None:
        if data.skeleton != spec.joints:
            raise ModelError(
                f"{spec.name} has the joints {spec.skeleton}, the data has {data.skeleton.name}"
            )
        if len(data) < recipe.batch:
            raise DataError(f"{len(data)} samples do not fill one batch of {recipe.batch}")
        self.name, self.recipe, self.steps = spec.name, recipe, len(data) // recipe.batch
        self._spec, self._data, self._start, self._options = spec, data, start, recipe

    def network(self) -> nn.Module:
        """See `loop.Task`."""
        network = create(self._spec.name)
        if self._start:
            load_weights(network, self._start)
        return network

    def batches(self, size: tuple[int, int], epoch: int) -> Iterator[Batch]:
        """See `loop.Task`."""
        window = replace(self._spec.window, size=size, padding=self._options.padding)
        rng = np.random.default_rng((self.recipe.seed, epoch))
        return batches(self._data, window, self.recipe.batch, self._options.augmentation, rng)


class PoseTask(PeopleTask):
    """A pose network that learns from one loss, `train.objective`'s.

    Args, raises: as in `PeopleTask`; ModelError too if nothing is known of the network's loss.
    """

    def __init__(
        self, spec: ModelSpec, data: TrainingSet, recipe: PoseRecipe, start: Path | None = None
    ) -> None:
        super().__init__(spec, data, recipe, start)
        self._objective = objective(spec, recipe.hard, recipe.hard_cells)

    def update(self, network: nn.Module, device: str) -> Descent:
        """See `loop.Task`."""
        return Descent(network, lambda batch: self.loss(network, batch, device), self.recipe)

    def loss(self, network: nn.Module, batch: Batch, device: str) -> Tensor:
        """How far the network is from right on a batch."""
        images = _images(batch.images, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.recipe.bf16):
            output = network(images)
        joints = torch.from_numpy(batch.joints).to(device)
        visibility = torch.from_numpy(batch.visibility).to(device)
        size = (images.shape[2], images.shape[3])
        return self._objective(output, joints, visibility, size)


class CascadeTask(PoseTask):
    """A coarse-to-fine cascade, whose networks learn in turn and then together.

    Args, raises: as in `PoseTask`.
    """

    def batches(self, size: tuple[int, int], epoch: int) -> Iterator[Batch]:
        """See `loop.Task`."""
        self._phase = phase_at(epoch, self.recipe.epochs)
        self._objective = cascade_objective(self._spec, self._phase)
        return super().batches(size, epoch)

    def loss(self, network: nn.Module, batch: Batch, device: str) -> Tensor:
        """How far what is trained now is from right on a batch."""
        assert isinstance(network, Cascade), "made by `network`"
        set_phase(network, self._phase)
        return super().loss(network, batch, device)


class AdversarialTask(PeopleTask):
    """Adversarial PoseNet, whose generator learns beside two discriminators.

    Args, raises: as in `PeopleTask`; ModelError too if the joints have no yardstick.
    """

    def __init__(
        self,
        spec: ModelSpec,
        data: TrainingSet,
        recipe: AdversarialRecipe,
        start: Path | None = None,
    ) -> None:
        super().__init__(spec, data, recipe, start)
        self._rules = recipe.rules or Rules(delta=yardstick(spec.joints).delta)
        self._depth = spec.kwargs.get("depth", DEPTH)

    def update(self, network: nn.Module, device: str) -> AdversarialUpdate:
        """See `loop.Task`."""
        assert isinstance(network, AdversarialPoseNet), "made by `network`"
        joints, occlusion = len(self._spec.joints), self._spec.kwargs.get("occlusion", True)
        pose = PoseDiscriminator(joints, occlusion, depth=self._depth)
        confidence = ConfidenceDiscriminator(joints, occlusion, depth=self._depth)
        step = AdversarialStep(
            network,
            pose.to(device, memory_format=torch.channels_last),
            confidence.to(device, memory_format=torch.channels_last),
            self._rules,
            decay=self.recipe.decay,
            bf16=self.recipe.bf16,
        )
        return AdversarialUpdate(step, self._spec, device)


class AdversarialUpdate:
    """Algorithm 1 on the loop's batches; see `loop.Update`."""

    def __init__(self, step: AdversarialStep, spec: ModelSpec, device: str) -> None:
        self._step, self._spec, self._device = step, spec, device
        self.state_dict, self.load_state_dict = step.state_dict, step.load_state_dict

    def step(self, batch: Batch, rate: float) -> float:
        """See `loop.Update`; the loss is L_G."""
        images = _images(batch.images, self._device)
        joints = torch.from_numpy(batch.joints).to(self._device)
        visibility = torch.from_numpy(batch.visibility).to(self._device)
        truth = true_maps(joints, visibility, self._spec, (images.shape[2], images.shape[3]))
        return self._step.step(images, truth, rate)["generator"]


def pose_recipe(spec: ModelSpec, **fields: Any) -> PoseRecipe | AdversarialRecipe:
    """How a network is trained unless its fields say otherwise."""
    if spec.network == "adversarial:AdversarialPoseNet":
        return AdversarialRecipe(**fields)
    if spec.peaks > 1:
        fields = {"augmentation": Augmentation(crops=ZOOM), **fields}
    return PoseRecipe(**fields)


def pose_task(
    spec: ModelSpec,
    data: TrainingSet,
    recipe: PoseRecipe | AdversarialRecipe,
    start: Path | None = None,
) -> PoseTask | AdversarialTask:
    """The task of a recipe; arguments and errors as in `PeopleTask` and the two tasks."""
    if isinstance(recipe, AdversarialRecipe):
        return AdversarialTask(spec, data, recipe, start)
    task = CascadeTask if spec.output == "cascade" else PoseTask
    return task(spec, data, recipe, start)


@dataclass(frozen=True)
class DetectorRecipe(Recipe):
    """How a detector is trained.

    Attributes:
        samples: views of an epoch.
        spread: least and largest side of the inputs in sizes of the schedule; each batch has one.
        regions: boxes of a view that the head is shown.
        hardest: how many of them it is taught, those of the highest loss; None: all.
        scenery: the ranges of the random views.
        whole: last share of the epochs in which nothing is put together of several pictures.
    """

    batch: int = 8
    rate: float = 1e-3
    samples: int = 4000
    spread: tuple[float, float] = (0.75, 1.1)
    regions: int = 64
    hardest: int | None = 32
    scenery: Scenery = field(default_factory=Scenery)
    whole: float = 0.15


class DetectorTask:
    """A detector and pictures with boxes; see `loop.Task`.

    Args:
        spec: the detector.
        data: its pictures.
        recipe: how.
        start: a weight file that its trunk starts from, of a pose network with such a trunk, or of
            a detector.

    Raises:
        ModelError: the data's classes are not the detector's.
    """

    def __init__(
        self, spec: DetectorSpec, data: SceneSet, recipe: DetectorRecipe, start: Path | None = None
    ) -> None:
        if data.classes != spec.classes:
            raise ModelError(
                f"{spec.name} finds {len(spec.classes)} classes ({', '.join(spec.classes[:3])}), "
                f"the data has {len(data.classes)} ({', '.join(data.classes[:3])})"
            )
        self.name, self.recipe = spec.name, recipe
        self.steps = max(1, recipe.samples // recipe.batch)
        self._spec, self._data, self._start, self._options = spec, data, start, recipe
        self._rng = np.random.default_rng(recipe.seed)  # of the loss; the views have their own

    def network(self) -> nn.Module:
        """See `loop.Task`."""
        network = create_detector(self._spec.name)
        if self._start:
            start_detector(network, self._start)
        return network

    def batches(self, size: tuple[int, int], epoch: int) -> Iterator[SceneBatch]:
        """See `loop.Task`."""
        return prepared(self._views(size, epoch))

    def _views(self, size: tuple[int, int], epoch: int) -> Iterator[SceneBatch]:
        options = self._options
        rng = np.random.default_rng((options.seed, epoch))
        self._rng = np.random.default_rng((options.seed, epoch, 1))
        last = epoch >= options.epochs * (1 - options.whole)
        scenery = replace(options.scenery, mosaic=0.0) if last else options.scenery
        step = max(self._spec.strides[: self._spec.pooled])
        for _ in range(self.steps):
            zoom = rng.uniform(*options.spread)
            height, width = (max(1, round(side * zoom / step)) * step for side in size)
            window = replace(self._spec.window, size=(height, width))
            yield self._data.batch(options.batch, window, scenery, rng)

    def update(self, network: nn.Module, device: str) -> Descent:
        """See `loop.Task`."""
        return Descent(network, lambda batch: self.loss(network, batch, device), self.recipe)

    def loss(self, network: nn.Module, batch: SceneBatch, device: str) -> Tensor:
        """How far the detector is from right on a batch."""
        assert isinstance(network, FPNDetector), "made by `network`"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.recipe.bf16):
            return detection_loss(
                network,
                network(_images(batch.images, device)),
                batch,
                self._spec,
                regions=self._options.regions,
                rng=self._rng,
                hardest=self._options.hardest,
            )


def _images(values: np.ndarray, device: str) -> Tensor:
    images = torch.from_numpy(values).to(device)
    return images.contiguous(memory_format=torch.channels_last)
