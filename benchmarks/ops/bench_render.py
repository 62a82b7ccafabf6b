"""`ops.render` on one thread, which on a CPU is torch, beside other ways to the same maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from beside import FEW, mmpose_version, of_mmpose, within
from peers import mmpose
from suite import Beside

from fastpose.ops import render

torch = pytest.importorskip("torch", reason="torch is not installed here")

METHODS = ("exact", "msra")  # styles
JOINTS, SIZE, SIGMA = 17, (64, 48), 2.0
TOLERANCE = 2e-6  # of the peak
# Half of the margins over mmpose that are aimed at, 3, 6.5 and 6x for 1, 8 and 32 people.
LEAST_MMPOSE = {1: 1.5, 8: 3.25, 32: 3.0}
# What takes twice its time does not pass. At one person: with more, the system's time for fresh
# memory comes and goes.
LEAST_TORCH = {1: 5.0}


def joints(people: int) -> np.ndarray:
    """[people, JOINTS, 2] float32: anywhere in the map."""
    random = np.random.default_rng(people)
    return random.uniform(0, np.subtract(SIZE[::-1], 1), (people, JOINTS, 2)).astype(np.float32)


def beside(maps: np.ndarray, run: Callable[[], object], **known: object) -> Beside:
    """A function that makes the maps, as an array, a tensor, or a list of people's."""
    return Beside(run, lambda: apart(maps, np.asarray(run())), **known)


def apart(maps: np.ndarray, others: np.ndarray) -> str:
    """How far maps are apart, in words; raises `WrongAnswerError`."""
    return within(float(np.abs(maps - others).max()), TOLERANCE, "of the peak")


def truth(points: np.ndarray, style: str) -> np.ndarray:
    """The definition of the style in float64, one joint after the other."""
    rows, columns = (np.arange(cells, dtype=np.float64) for cells in SIZE)
    maps = np.empty((*points.shape[:2], *SIZE))
    for person, joint in np.ndindex(points.shape[:2]):
        x, y = points[person, joint].astype(np.float64)
        cell = np.floor((x + 0.5, y + 0.5))
        centre = cell if style == "msra" else (x, y)
        square = (columns - centre[0]) ** 2 + (rows[:, None] - centre[1]) ** 2
        near = np.maximum(abs(columns - cell[0]), abs(rows[:, None] - cell[1])) <= 3 * SIGMA
        drawn = near if style == "msra" else True
        maps[person, joint] = np.where(drawn, np.exp(-square / (2 * SIGMA**2)), 0.0)
    return maps


def whole_maps(points: torch.Tensor) -> torch.Tensor:
    """The Gaussian of every cell in torch."""
    rows, columns = (torch.arange(cells, dtype=torch.float32) for cells in SIZE)
    dx = columns - points[..., 0, None]
    dy = rows - points[..., 1, None]
    square = dx[..., None, :] ** 2 + dy[..., :, None] ** 2
    return torch.exp(square * (-0.5 / SIGMA**2))


def separable(points: torch.Tensor) -> torch.Tensor:
    """The product of a row's and a column's Gaussian in torch."""
    rows, columns = (torch.arange(cells, dtype=torch.float32) for cells in SIZE)
    across = torch.exp((columns - points[..., 0, None]) ** 2 * (-0.5 / SIGMA**2))
    down = torch.exp((rows - points[..., 1, None]) ** 2 * (-0.5 / SIGMA**2))
    return down[..., :, None] * across[..., None, :]


def in_numpy(points: np.ndarray) -> np.ndarray:
    """The same product in numpy."""
    rows, columns = (np.arange(cells, dtype=np.float32) for cells in SIZE)
    scale = np.float32(-0.5 / SIGMA**2)
    across = np.exp((columns - points[..., 0, None]) ** 2 * scale)
    down = np.exp((rows - points[..., 1, None]) ** 2 * scale)
    return down[..., :, None] * across[..., None, :]


def in_mmpose(points: np.ndarray, maps: np.ndarray, style: str) -> Beside:
    """One person after the other, as in its training."""
    targets = mmpose.load("mmpose.codecs.utils.gaussian_heatmap")
    function = {
        "exact": targets.generate_unbiased_gaussian_heatmaps,
        "msra": targets.generate_gaussian_heatmaps,
    }[style]
    weights = np.ones((1, JOINTS), np.float32)

    def run() -> list[np.ndarray]:
        return [function(SIZE[::-1], person[None], weights, SIGMA)[0] for person in points]

    gate = LEAST_MMPOSE.get(len(points)) if style == "exact" else None
    return beside(maps, run, at_least=gate, version=mmpose_version())


def others(points: np.ndarray, maps: np.ndarray, style: str) -> Mapping[str, Beside]:
    """The ways to a style, by name."""
    found = {"mmpose": of_mmpose(lambda: in_mmpose(points, maps, style))}
    if style == "exact":
        places, least = torch.from_numpy(points), LEAST_TORCH.get(len(points))
        known = {"version": torch.__version__}
        found |= {
            "torch": beside(maps, functools.partial(whole_maps, places), at_least=least, **known),
            "torch separable": beside(maps, functools.partial(separable, places), **known),
            "numpy": beside(maps, functools.partial(in_numpy, points), version=np.__version__),
        }
    return found


@pytest.mark.parametrize("method", METHODS)
def bench_render_beside_peers(timed, people, method):
    points = joints(people)
    places, weights = torch.from_numpy(points), torch.ones(points.shape[:2])
    run = functools.partial(render, places, weights, SIZE, sigma=SIGMA, style=method)
    timed(
        "ops",
        "render",
        {"people": people, "method": method},
        run,
        check=lambda: f"definition: {apart(truth(points, method), run().numpy())}",
        beside=others(points, run().numpy(), method),
        rounds=FEW if people > 8 else 40,
        # The first call of a turn takes up to twice its time, by who had the turn before.
        repeats=20 if people == 1 else None,
    )
