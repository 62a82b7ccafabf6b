"""Time of the Tompson cascade against its coarse network alone, at 4x, 8x and 16x pooling.

The paper's own table, on a K40, could not be recovered: its column stays empty. Both run eager in
torch, float32, random weights, on noise of 256x256 pixels, on one thread; the coarse maps that they
share are compared before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from suite import Beside, WrongAnswerError

from fastpose.bench.rows import Row
from fastpose.models import model_spec

torch = pytest.importorskip("torch", reason="torch is not installed here")
from torch import Tensor  # noqa: E402 - needs torch

from fastpose.engines.build import random_network  # noqa: E402 - needs torch
from fastpose.models.tompson import Cascade  # noqa: E402 - needs torch

MODELS = {"4x": "tompson-mpii", "8x": "tompson-mpii-8x", "16x": "tompson-mpii-16x"}
PAPER = "the paper's own times, on a K40, are not public"


@dataclass(frozen=True)
class Pair:
    """A cascade, whole and without its fine network, on the same picture."""

    network: Cascade
    image: Tensor

    def coarse(self) -> Tensor:
        return self._predict(coarse_only=True)

    def cascade(self) -> Tensor:
        return self._predict(coarse_only=False)

    def check(self) -> str:
        """The cascade's coarse maps are those of the coarse network."""
        maps = self.coarse().flatten(2)
        if not torch.equal(self.cascade()[..., : maps.shape[2]], maps):
            raise WrongAnswerError("the cascade has other coarse maps than its coarse network")
        return "the coarse maps of the two are equal"

    def _predict(self, *, coarse_only: bool) -> Tensor:
        self.network.coarse_only = coarse_only
        with torch.inference_mode():
            return self.network.predict(self.image)


def make_pair(pooling: str, batch: int) -> Pair:
    """With the same weights and the same noise every time."""
    name = MODELS[pooling]
    network = random_network(name).eval()
    assert isinstance(network, Cascade)
    noise = torch.Generator().manual_seed(0)
    return Pair(network, torch.rand(batch, 3, *model_spec(name).size, generator=noise))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("pooling", MODELS)
def bench_cascade_beside_its_coarse_network(
    timed: Callable[..., Row], request: pytest.FixtureRequest, pooling: str, batch: int
):
    if not request.config.getoption("--full"):
        pytest.skip("with --full")
    pair = make_pair(pooling, batch)
    timed(
        "engines",
        MODELS[pooling],
        {"batch": batch, "engine": "torch", "precision": "f32", "method": "cascade"},
        pair.cascade,
        check=pair.check,
        beside={
            "coarse network": Beside(pair.coarse, at_least=0.5),
            "paper, K40": Beside(absent=PAPER),
        },
        rounds=4,
        repeats=1,
        warm_up=1,
        per_second=("windows_per_s", batch),
    )
