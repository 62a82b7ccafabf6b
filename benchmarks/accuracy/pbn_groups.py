"""Six groups of joints, five, or one: what PBN's branches are worth, on the same data.

    python benchmarks/accuracy/pbn_groups.py --train lsp:DIR --train lspet:DIR --test lsp:DIR

One stack of a narrow PBN and small windows, so that a CPU learns it. The widths of the branches
differ so that the three networks have as many parameters, within 0.3 %, at equal depth. They see
the same batches of the same views. Prints one JSON object; hidden joints have their own figure.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastpose.crop import Augmentation
from fastpose.datasets import PoseData, open_poses
from fastpose.evaluate.joints import leeds_report
from fastpose.evaluate.model import predict_joints
from fastpose.models import model_spec
from fastpose.models.pbn import PBN
from fastpose.models.spec import ModelSpec
from fastpose.train.data import TrainingSet, batches
from fastpose.train.objective import objective
from fastpose.train.recipes import published

WIDTHS = {"lsp14-hand6": 16, "lsp14-data5": 18, "lsp14-one": 48}
CHANNELS = 64
PADDING = 1.25  # of the joints' extent, as `fastpose train` cuts people
RECIPE = published(model_spec("pbn-lsp")).recipe
# the published ranges, with angles and zooms that are normal: so the recorded study was made
VIEWS = Augmentation(
    rotation=15.0, rotated=1.0, scale=math.log(1.25) / 2, shift=0.0, half_body=0.0, grey=0.0
)
FIGURES = ("pck@0.2", "pck@0.2_occluded", "pck@0.1")


class Trained:
    """A network as `predict_joints` wants an engine."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        self.network = network.eval()
        self.manifest = SimpleNamespace(spec=spec, buckets=(32,))

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.network.predict(torch.from_numpy(np.ascontiguousarray(windows))).numpy()


def train(spec: ModelSpec, data: TrainingSet, seed: int, epochs: int, rate: float) -> nn.Module:
    """The published optimiser and schedule in fewer epochs."""
    torch.manual_seed(seed)
    network = PBN(14, spec.kwargs["groups"], 1, WIDTHS[spec.kwargs["groups"]], channels=CHANNELS)
    network.train().to(memory_format=torch.channels_last)
    optimizer, loss = RECIPE.optimizer(network), objective(spec, hard=8)
    window = replace(spec.window, padding=PADDING)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.rate_at(epoch / epochs) * rate / RECIPE.rate
        rng = np.random.default_rng((seed, epoch))
        for batch in batches(data, window, RECIPE.batch, VIEWS, rng):
            images = torch.from_numpy(batch.images).contiguous(memory_format=torch.channels_last)
            joints, visibility = map(torch.from_numpy, (batch.joints, batch.visibility))
            step(optimizer, loss(network(images), joints, visibility, spec.size))
    return network


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def judge(network: nn.Module, spec: ModelSpec, test: PoseData) -> dict[str, float]:
    """PCK of all joints and of those that cannot be seen."""
    found = predict_joints(Trained(network, spec), test)
    metrics = leeds_report(test, found).metrics
    return {name: round(metrics[name], 2) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", action="append", required=True, metavar="KIND:PATH")
    parser.add_argument("--test", required=True, metavar="KIND:PATH")
    parser.add_argument("--groups", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--rate", type=float, default=RECIPE.rate, help="in place of the published one"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--side", type=int, default=64, help="of the windows in pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = TrainingSet([open_poses(text, "train") for text in args.train])
    test = open_poses(args.test, "test")
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for groups in args.groups:
            start = time.monotonic()
            spec = replace(
                model_spec("pbn-lsp"),
                size=(args.side, args.side),
                method="quarter",  # cells are large at this size
                kwargs={"groups": groups},
            )
            network = train(spec, data, seed, args.epochs, args.rate)
            row = {"groups": groups, "seed": seed, "width": WIDTHS[groups]}
            row["parameters"] = sum(p.numel() for p in network.parameters())
            row |= judge(network, spec, test)
            rows.append(row | {"seconds": round(time.monotonic() - start)})
    sets = [f"{text.partition(':')[0]}:{Path(text).name}" for text in args.train]
    print(
        json.dumps(
            {
                "train": sets,
                "samples": len(data),
                "test": len(test),
                "side": args.side,
                "epochs": args.epochs,
                "rate": args.rate,
                "rows": rows,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
