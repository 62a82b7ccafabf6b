"""The training loop: resumable at every epoch, progressive in size, averaged weights."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastpose.errors import ModelError, WeightsError

CHECKPOINT = "last.pt"


@dataclass(frozen=True)
class Recipe:
    """What decides the outcome of a training run, apart from its data.

    Attributes:
        schedule: ((h, w), epochs) in turn: small inputs first, since most is learnt there at a
            fraction of the cost, then the size the network is used at.
        batch: samples a step.
        rate: peak learning rate; 5 % linear warm-up, then a cosine to 1 % of it.
        decay: weight decay, on the kernels alone.
        ema: share of the old averaged weights kept each step, once warmed up.
        bf16: the forward pass runs in bfloat16 under autocast.
        seed: of weights, order and views.
        clip: largest norm of a gradient, which longer ones are cut to; None: any.
        name: "ours", or "published": see `train.recipes`.
    """

    schedule: tuple[tuple[tuple[int, int], int], ...]
    batch: int = 32
    rate: float = 2e-3
    decay: float = 0.02
    ema: float = 0.9995
    bf16: bool = True
    seed: int = 0
    clip: float | None = 1.0
    name: str = "ours"

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

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """What takes the steps down a loss: AdamW. `descend` sets its rates."""
        return torch.optim.AdamW(parameter_groups(network, self.decay))


class Update(Protocol):
    """How batches change a network, with all that must survive a run that is broken off."""

    def step(self, batch: Any, rate: float) -> float:
        """Learn from a batch at this learning rate; returns the loss."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, without those of the network."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Descent:
    """A recipe's optimiser on one loss; see `Update`.

    Args:
        network: in training mode.
        loss: of a batch.
        recipe: says which optimiser, and how long a gradient may be.
    """

    def __init__(self, network: nn.Module, loss: Callable[[Any], Tensor], recipe: Recipe) -> None:
        self._loss, self._clip = loss, recipe.clip
        self._optimizer = recipe.optimizer(network)

    def step(self, batch: Any, rate: float) -> float:
        """See `Update`."""
        loss = self._loss(batch)
        descend(self._optimizer, loss, rate, limit=self._clip)
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """See `Update`."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Update`."""
        self._optimizer.load_state_dict(state)


def parameter_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """For an optimiser: kernels, which decay, and biases and norms, which do not."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, limit: float | None = None
) -> None:
    """One step of an optimiser down a loss, the gradient cut to the norm `limit` if given.

    A group of parameters that has a "factor" learns so many times as fast.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if limit is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, limit)
    optimizer.step()


class Task(Protocol):
    """What is trained, on what, and how it is judged.

    Attributes:
        name: of the network.
        recipe: how.
        steps: of an epoch.
    """

    name: str
    steps: int

    @property
    def recipe(self) -> Recipe: ...

    def network(self) -> nn.Module:
        """The network as training starts."""

    def batches(self, size: tuple[int, int], epoch: int) -> Iterator[Any]:
        """The `steps` batches of an epoch, the same whenever they are asked for.

        Args:
            size: (h, w) of the inputs.
            epoch: from 0.
        """

    def update(self, network: nn.Module, device: str) -> Update:
        """How its batches change the network, which is in training mode and on the device."""


def fit(
    task: Task,
    folder: Path,
    *,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> nn.Module:
    """Train a network; go on where `folder` was left, if it was.

    Args:
        task: the network, its data and its recipe.
        folder: holds `last.pt`, rewritten after each epoch, and `log.jsonl`, a line an epoch.
        device: "cpu" or "cuda".
        report: called with each line of the log.
        validate: called every five epochs and at the end with the averaged network.

    Returns:
        The averaged network, in eval mode.

    Raises:
        ModelError: `folder` holds a run of another model or recipe.
        WeightsError: its checkpoint is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = task.recipe
    torch.manual_seed(recipe.seed)
    run = _Run(task, device)
    run.resume(folder / CHECKPOINT)
    for epoch in range(run.epoch, recipe.epochs):
        start = time.monotonic()
        size = recipe.size_at(epoch)
        # dropout and the like: a run that goes on from here must not depend on what was before
        torch.manual_seed(int(np.random.default_rng((recipe.seed, epoch)).integers(2**63)))
        losses = [run.step(batch) for batch in task.batches(size, epoch)]
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

    def __init__(self, task: Task, device: str) -> None:
        self.task, self.recipe, self.device = task, task.recipe, device
        self.steps = task.steps * task.recipe.epochs
        layout = torch.channels_last
        self.network = task.network().to(device, memory_format=layout).train()
        self.average = copy.deepcopy(self.network)
        self.update = task.update(self.network, device)
        self.epoch = self.done = 0

    def step(self, batch: Any) -> float:
        """One step; returns its loss."""
        loss = self.update.step(batch, self.recipe.rate_at(self.done / self.steps))
        self.done += 1
        self._update_average()
        return loss

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
                "optimizer": self.update.state_dict(),
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
        if not self._is_of(state["identity"]):
            raise ModelError(f"{path}: is of another model or recipe; choose another folder")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.update.load_state_dict(state["optimizer"])
        self.epoch, self.done = state["epoch"], state["done"]

    def _identity(self) -> str:
        return json.dumps([self.task.name, asdict(self.recipe), self.steps], sort_keys=True)

    def _is_of(self, identity: str) -> bool:
        """Whether that is this run; a field that was added since then had its default."""
        name, recorded, steps = json.loads(identity)
        usual = json.loads(json.dumps(asdict(type(self.recipe)(self.recipe.schedule))))
        return [name, _overlaid(usual, recorded), steps] == json.loads(self._identity())


def _overlaid(usual: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Values of `other`, and where it has none, the usual ones; in nested tables too."""
    nested = {
        key: _overlaid(usual[key], value)
        for key, value in other.items()
        if isinstance(value, dict) and isinstance(usual.get(key), dict)
    }
    return usual | other | nested
