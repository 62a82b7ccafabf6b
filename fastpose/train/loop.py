"""The training loop: resumable at every epoch, progressive in size, averaged weights."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastpose.crop import Augmentation
from fastpose.errors import DataError, ModelError, WeightsError
from fastpose.models import create
from fastpose.models.spec import ModelSpec
from fastpose.train.data import Batch, TrainingSet, batches
from fastpose.train.objective import objective

CHECKPOINT = "last.pt"


@dataclass(frozen=True)
class Recipe:
    """What decides the outcome of a training run, apart from its data.

    Attributes:
        schedule: ((h, w), epochs) in turn: small windows first, since most is learnt there at a
            fraction of the cost, then the size the network is used at.
        batch: samples a step.
        rate: peak learning rate of AdamW; 5 % linear warm-up, then a cosine to 1 % of it.
        decay: weight decay, on convolution kernels alone.
        ema: share of the old averaged weights kept each step, once warmed up.
        hard: M of online hard keypoint mining.
        bf16: the forward pass runs in bfloat16 under autocast.
        seed: of weights, order and views.
        augmentation: the ranges of the random views.
    """

    schedule: tuple[tuple[tuple[int, int], int], ...]
    batch: int = 32
    rate: float = 2e-3
    decay: float = 0.02
    ema: float = 0.9995
    hard: int = 8
    bf16: bool = True
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def epochs(self) -> int:
        return sum(count for _, count in self.schedule)

    def size_at(self, epoch: int) -> tuple[int, int]:
        """(h, w) of the windows in an epoch, counted from 0."""
        for size, count in self.schedule:
            if epoch < count:
                return size
            epoch -= count
        return self.schedule[-1][0]

    def rate_at(self, progress: float) -> float:
        """Learning rate when this share of all steps is done."""
        warm = 0.05
        if progress < warm:
            return self.rate * (progress / warm + 1e-3)
        done = (progress - warm) / (1 - warm)
        return self.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def fit(
    spec: ModelSpec,
    data: TrainingSet,
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> nn.Module:
    """Train a network; go on where `folder` was left, if it was.

    Args:
        spec: the network.
        data: its training samples.
        recipe: how.
        folder: holds `last.pt`, rewritten after each epoch, and `log.jsonl`, a line an epoch.
        device: "cpu" or "cuda".
        report: called with each line of the log.
        validate: called every five epochs and at the end with the averaged network.

    Returns:
        The averaged network, in eval mode.

    Raises:
        ModelError: the data's joints are not the network's, or `folder` holds a run of another
            model or recipe.
        DataError: the data does not fill one batch.
        WeightsError: its checkpoint is damaged.
    """
    if data.skeleton != spec.joints:
        raise ModelError(
            f"{spec.name} has the joints {spec.skeleton}, the data has {data.skeleton.name}"
        )
    if len(data) < recipe.batch:
        raise DataError(f"{len(data)} samples do not fill one batch of {recipe.batch}")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    run = _Run(spec, recipe, device, steps=len(data) // recipe.batch * recipe.epochs)
    run.resume(folder / CHECKPOINT)
    for epoch in range(run.epoch, recipe.epochs):
        start = time.monotonic()
        size = recipe.size_at(epoch)
        window = replace(spec.window, size=size)
        rng = np.random.default_rng((recipe.seed, epoch))
        losses = []
        for batch in batches(data, window, recipe.batch, recipe.augmentation, rng):
            losses.append(run.step(batch, size))
        run.epoch = epoch + 1
        run.save(folder / CHECKPOINT)
        row = {
            "epoch": run.epoch,
            "size": list(size),
            "loss": float(np.mean(losses)),
            "seconds": round(time.monotonic() - start, 1),
        }
        if validate and (run.epoch % 5 == 0 or run.epoch == recipe.epochs):
            row |= validate(run.average.eval())
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        report(row)
    return run.average.eval()


class _Run:
    """Everything that a checkpoint holds."""

    def __init__(self, spec: ModelSpec, recipe: Recipe, device: str, steps: int) -> None:
        self.spec, self.recipe, self.device, self.steps = spec, recipe, device, steps
        self.loss = objective(spec, recipe.hard)
        layout = torch.channels_last
        self.network = create(spec.name).to(device, memory_format=layout).train()
        self.average = create(spec.name).to(device, memory_format=layout)
        self.average.load_state_dict(self.network.state_dict())
        kernels = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": kernels, "weight_decay": recipe.decay}, {"params": others}],
            lr=recipe.rate,
            weight_decay=0.0,
        )
        self.epoch = self.done = 0

    def step(self, batch: Batch, size: tuple[int, int]) -> float:
        """One step on a `Batch`; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.done / self.steps)
        images = torch.from_numpy(batch.images).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.bf16):
            output = self.network(images)
        joints = torch.from_numpy(batch.joints).to(self.device)
        visibility = torch.from_numpy(batch.visibility).to(self.device)
        loss = self.loss(output, joints, visibility, size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        self._update_average()
        return loss.item()

    def _update_average(self) -> None:
        keep = min(self.recipe.ema, (1 + self.done) / (10 + self.done))
        current = self.network.state_dict()  # detached, as are the averages
        for name, value in self.average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(current[name], 1 - keep)

    def save(self, path: Path) -> None:
        """Write the checkpoint whole or not at all."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "identity": self._identity(),
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "done": self.done,
            },
            part,
        )
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from `path` if it exists."""
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises errors of many kinds for a damaged file
            cause = str(error).partition("\n")[0]
            raise WeightsError(f"{path}: not a readable checkpoint: {cause}") from None
        if not isinstance(state, dict) or "identity" not in state:
            raise WeightsError(f"{path}: not a checkpoint of a training run")
        if state["identity"] != self._identity():
            raise ModelError(f"{path}: is of another model or recipe; choose another folder")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.done = state["epoch"], state["done"]

    def _identity(self) -> str:
        return json.dumps([self.spec.name, asdict(self.recipe), self.steps], sort_keys=True)
