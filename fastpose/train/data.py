"""Annotated pictures -> augmented batches, cut by the crop module."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fastpose.crop import Augmentation, Window, augment_boxes, crop_affines
from fastpose.datasets import PoseData, Sample, read_image
from fastpose.errors import DataError
from fastpose.geometry import apply, invert, points_to_boxes
from fastpose.train.pins import random_windows

MIN_LABELLED = 6  # a sample with fewer labelled joints, or not all of fewer, rather teaches wrong
HALF_BODY_LABELLED = 3
Item = TypeVar("Item")
AHEAD = 4  # batches prepared while one is trained on


@dataclass(frozen=True)
class Batch:
    """N windows and their joints.

    Attributes:
        images: [N, 3, h, w] float32, normalised.
        joints: [N, K, 2] float32 (x, y) in window pixels.
        visibility: [N, K] float32, COCO's v: 0 where the joint's place is not known, 1 where it is
            hidden, 2 where it can be seen; in the window or outside.
    """

    images: npt.NDArray[np.float32]
    joints: npt.NDArray[np.float32]
    visibility: npt.NDArray[np.float32]


def usable_samples(sets: Sequence[PoseData]) -> list[Sample]:
    """Those that have enough labelled joints to be trained on."""
    return [
        sample
        for data in sets
        for sample in data.samples
        if sample.labelled.sum() >= min(MIN_LABELLED, len(data.skeleton))
    ]


class TrainingSet:
    """Samples of one skeleton whose pictures are kept decoded in memory.

    A set that is given twice counts twice: a small, well-labelled set can weigh more that way.
    """

    def __init__(self, sets: list[PoseData]) -> None:
        if not sets:
            raise DataError("training needs at least one set")
        self.skeleton = sets[0].skeleton
        if any(s.skeleton != self.skeleton for s in sets):
            raise DataError("all training sets must have the same joints")
        self.samples = usable_samples(sets)
        if not self.samples:
            least = min(MIN_LABELLED, len(self.skeleton))
            raise DataError(f"no sample has {least} labelled joints")
        read = functools.cache(read_image)  # one picture, however many people are marked in it
        self.images = [read(s.image) for s in self.samples]
        lower = [any(w in j for w in ("hip", "knee", "ankle")) for j in self.skeleton.joints]
        self.halves = np.array([lower, np.logical_not(lower)])

    def __len__(self) -> int:
        return len(self.samples)

    def batch(
        self,
        indices: npt.NDArray[np.int64],
        window: Window,
        augmentation: Augmentation,
        rng: np.random.Generator,
    ) -> Batch:
        """Random views of the samples `indices`."""
        joints = np.stack([self.samples[i].joints for i in indices])
        labelled = np.stack([self.samples[i].labelled for i in indices])
        visibility = labelled + np.stack([self.samples[i].visible for i in indices]).astype(int)
        if augmentation.crops:
            known = np.where(labelled[..., None], joints, np.nan)
            pictures = np.array([self.images[i].shape[:2] for i in indices])
            affines = random_windows(known, pictures, window, rng, zoom=augmentation.crops)
            flips = np.zeros(len(indices), bool)
        else:
            affines, flips = augment_boxes(
                self._boxes(joints, labelled, augmentation, rng),
                window.size,
                augmentation,
                rng,
                padding=window.padding,
                convention=window.convention,
            )
        joints = apply(invert(affines), joints)
        order = self.skeleton.flip_order()
        joints = np.where(flips[:, None, None], joints[:, order], joints)
        visibility = np.where(flips[:, None], visibility[:, order], visibility)
        images = np.empty((len(indices), 3, *window.size), np.float32)
        for row, i in enumerate(indices):
            crop_affines(self.images[i], affines[row : row + 1], window, out=images[row : row + 1])
        recolour(images, window, augmentation.gain, augmentation.grey, rng)
        return Batch(images, joints.astype(np.float32), visibility.astype(np.float32))

    def _boxes(
        self,
        joints: npt.NDArray[np.float32],
        labelled: npt.NDArray[np.bool_],
        augmentation: Augmentation,
        rng: np.random.Generator,
    ) -> npt.NDArray[np.float32]:
        """[N, 4] round all labelled joints, or round those of one half of the body."""
        n = len(joints)
        half = self.halves[rng.integers(0, 2, n)] & labelled
        halved = (rng.random(n) < augmentation.half_body) & (half.sum(1) >= HALF_BODY_LABELLED)
        boxes = points_to_boxes(joints, np.where(halved[:, None], half, labelled))
        # Joints on one line make a box without width, and a half folded up makes a tiny one: no
        # side is shorter than a third of the whole body's longer side.
        whole = points_to_boxes(joints, labelled)
        least = (whole[:, 2:] - whole[:, :2]).max(axis=1, keepdims=True) / 3 + 1
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        extent = np.maximum(boxes[:, 2:] - boxes[:, :2], least)
        return np.concatenate((centre - extent / 2, centre + extent / 2), axis=1)


def batches(
    data: TrainingSet,
    window: Window,
    size: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """One epoch in random order; the last short batch is left out."""
    order = rng.permutation(len(data))[: len(data) // size * size].reshape(-1, size)
    return prepared(data.batch(indices, window, augmentation, rng) for indices in order)


def prepared(items: Iterator[Item]) -> Iterator[Item]:
    """The items, made ahead by a thread; an error in it is raised in the caller."""
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def offer(item: Item | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def prepare() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                offer(item)
            offer(None)
        except BaseException as error:  # the caller must learn of it, whatever it is
            offer(error)

    thread = threading.Thread(target=prepare, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def recolour(
    images: npt.NDArray[np.float32],
    window: Window,
    gain: float,
    grey: float,
    rng: np.random.Generator,
) -> None:
    """Random channel gains and pictures without colour, in place, on normalised values.

    Args:
        images: [N, 3, h, w].
        window: how they were normalised.
        gain: each channel is multiplied by a number from 1 - gain to 1 + gain.
        grey: share of pictures that lose their colour.
        rng: decides.
    """
    n = len(images)
    mean = np.array(window.mean, np.float32)[:, None, None]
    std = np.array(window.std, np.float32)[:, None, None]
    gains = rng.uniform(1 - gain, 1 + gain, (n, 3, 1, 1))
    images *= gains.astype(np.float32)
    images += ((gains - 1) * mean / std).astype(np.float32)
    for i in np.flatnonzero(rng.random(n) < grey):
        images[i] = images[i].mean(axis=0)
    np.clip(images, (0 - mean) / std, (255 - mean) / std, out=images)
