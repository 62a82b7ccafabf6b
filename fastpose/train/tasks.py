"""The two things that are trained here: pose networks and detectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastpose.crop import Augmentation
from fastpose.errors import DataError, ModelError
from fastpose.models import create, create_detector
from fastpose.models.fpn import FPNDetector
from fastpose.models.spec import DetectorSpec, ModelSpec
from fastpose.models.weights import load_weights, start_detector
from fastpose.train.data import Batch, TrainingSet, batches, prepared
from fastpose.train.detection import detection_loss
from fastpose.train.loop import Recipe
from fastpose.train.objective import objective
from fastpose.train.scenes import SceneBatch, Scenery, SceneSet


@dataclass(frozen=True)
class PoseRecipe(Recipe):
    """How a pose network is trained.

    Attributes:
        hard: M of online hard keypoint mining.
        padding: the extent of a person's joints is enlarged by this. That makes about the box of
            the whole body, which a detector finds and `ModelSpec.padding` enlarges in prediction.
        augmentation: the ranges of the random views.
    """

    hard: int = 8
    padding: float = 1.25
    augmentation: Augmentation = field(default_factory=Augmentation)


class PoseTask:
    """A pose network and people with joints; see `loop.Task`.

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
        self, spec: ModelSpec, data: TrainingSet, recipe: PoseRecipe, start: Path | None = None
    ) -> None:
        if data.skeleton != spec.joints:
            raise ModelError(
                f"{spec.name} has the joints {spec.skeleton}, the data has {data.skeleton.name}"
            )
        if len(data) < recipe.batch:
            raise DataError(f"{len(data)} samples do not fill one batch of {recipe.batch}")
        self.name, self.recipe, self.steps = spec.name, recipe, len(data) // recipe.batch
        self._spec, self._data, self._start, self._options = spec, data, start, recipe
        self._objective = objective(spec, recipe.hard)

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

    def loss(self, network: nn.Module, batch: Batch, device: str) -> Tensor:
        """See `loop.Task`."""
        images = _images(batch.images, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.recipe.bf16):
            output = network(images)
        joints = torch.from_numpy(batch.joints).to(device)
        visibility = torch.from_numpy(batch.visibility).to(device)
        size = (images.shape[2], images.shape[3])
        return self._objective(output, joints, visibility, size)


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

    def loss(self, network: nn.Module, batch: SceneBatch, device: str) -> Tensor:
        """See `loop.Task`."""
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
