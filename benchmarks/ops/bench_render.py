"""`ops.render` on one thread, interleaved with mmpose's functions and with whole maps in torch.

    FASTPOSE_MMPOSE=CHECKOUT python benchmarks/ops/bench_render.py

The peers are mmpose's `generate_unbiased_gaussian_heatmaps` (exact Gaussians) and
`generate_gaussian_heatmaps` (a rounded stamp), where a checkout is, one person after the other as
in its training; and the exact Gaussian in torch without the product of two profiles. Each answer is
compared before it is timed. Times are medians of the processor time of the one thread.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from peers import mmpose
import numpy as np
import pytest
from interleave import interleave, report

from fastpose.ops import render

torch = pytest.importorskip("torch", reason="torch is not installed here")

PEOPLE, JOINTS, SIZE, SIGMA = (1, 8, 32), 17, (64, 48), 2
TOLERANCE = 2e-6


def joints(people: int) -> np.ndarray:
    """[people, JOINTS, 2] float32: anywhere in the map."""
    random = np.random.default_rng(people)
    return random.uniform(0, np.subtract(SIZE[::-1], 1), (people, JOINTS, 2)).astype(np.float32)


def race(
    name: str, style: str, points: np.ndarray, peer: Callable[[], object], of: Callable
) -> float:
    """The ratio of the peer, whose result `of` turns into maps, to ours; same answers or none."""
    places, weights = torch.from_numpy(points), torch.ones(points.shape[:2])

    def ours() -> torch.Tensor:
        return render(places, weights, SIZE, sigma=SIGMA, style=style)

    worst = float(np.abs(ours().numpy() - of(peer())).max())
    assert worst < TOLERANCE, f"{name}: {worst} from ours"
    return report(f"{name} (within {worst:.0e})", *interleave(peer, ours))


def against_mmpose() -> dict[tuple[str, int], float]:
    """Ratio by style and number of people."""
    torch.set_num_threads(1)
    targets = mmpose.load("mmpose.codecs.utils.gaussian_heatmap")
    functions = {
        "exact": targets.generate_unbiased_gaussian_heatmaps,
        "msra": targets.generate_gaussian_heatmaps,
    }
    ratios = {}
    for style, function in functions.items():
        for people in PEOPLE:
            points, weights = joints(people), np.ones((1, JOINTS), np.float32)

            def peer(function=function, points=points, weights=weights) -> list[np.ndarray]:
                return [function(SIZE[::-1], person[None], weights, SIGMA)[0] for person in points]

            name = f"{style}, mmpose, {people} people"
            ratios[style, people] = race(name, style, points, peer, np.stack)
    return ratios


def against_torch() -> dict[int, float]:
    """Ratio by number of people."""
    torch.set_num_threads(1)
    ratios = {}
    for people in PEOPLE:
        points = joints(people)
        places = torch.from_numpy(points)

        def peer(places=places) -> torch.Tensor:
            rows, columns = (torch.arange(cells, dtype=torch.float32) for cells in SIZE)
            dx = columns - places[..., 0, None]
            dy = rows - places[..., 1, None]
            square = dx[..., None, :] ** 2 + dy[..., :, None] ** 2
            return torch.exp(square * (-0.5 / SIGMA**2))

        name = f"exact, torch, {people} people"
        ratios[people] = race(name, "exact", points, peer, torch.Tensor.numpy)
    return ratios


def bench_render_beside_mmpose():
    """Half of the margins that are aimed at, 3, 6.5 and 6x for 1, 8 and 32 people."""
    if why := mmpose.missing():
        pytest.skip(why)
    ratios = against_mmpose()
    for people, least in zip(PEOPLE, (1.5, 3.25, 3.0), strict=True):
        assert ratios["exact", people] >= least, f"{people} people"


def bench_render_beside_whole_maps():
    """What takes twice its time does not pass: measured are 5.2 to 6.1 and, of that, 3.

    At one person: with more, the system's time for fresh memory comes and goes.
    """
    assert against_torch()[1] >= 3.6


def main() -> None:
    print(f"{platform.machine()}, one thread, {JOINTS} maps of {SIZE} a person, sigma {SIGMA}")
    if why := mmpose.missing():
        print(f"{why}: left out")
    else:
        against_mmpose()
    against_torch()


if __name__ == "__main__":
    main()
