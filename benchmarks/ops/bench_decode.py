"""`ops.decode` on one thread, interleaved with what this environment has of its peers.

    FASTPOSE_MMPOSE=CHECKOUT python benchmarks/ops/bench_decode.py

The peers are rtmlib's `post_dark_udp`, where rtmlib is installed; mmpose's `refine_keypoints` and
`refine_keypoints_dark` after `get_heatmap_maximum`, where a checkout and torch are; and argmax +
quarter as vectorised torch. Each answer is compared before it is timed. Times are medians of the
processor time of the one thread, of functions called by turns: a busy machine adds least to those.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
from collections.abc import Callable

from peers import mmpose
import numpy as np
import pytest
from interleave import interleave, report

from fastpose.ops import cpp, decode

PEOPLE, JOINTS, SIZE = (1, 8, 32), 17, (64, 48)
# Ratios to the reference at 8 people between those of this kernel and of one that takes twice its
# time, both measured on a Zen 4.
LEAST = {"quarter": 10, "taylor": 15, "dark": 70, "udp": 64, "soft": 26, "cpn": 14}


def heatmaps(people: int) -> np.ndarray:
    """Gaussians anywhere in the map, its border included, on a little noise."""
    random = np.random.default_rng(people)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centres = random.uniform((0, 0), SIZE[::-1], (people, JOINTS, 2))[..., None, None]
    square = (x - centres[:, :, 0]) ** 2 + (y - centres[:, :, 1]) ** 2
    noise = 0.05 * random.random((people, JOINTS, *SIZE))
    return (np.exp(-square / 8) + noise).astype(np.float32)


def by_turns(maps: np.ndarray, *functions: Callable[[np.ndarray], object]) -> list[float]:
    """Median microseconds of each on maps that were just written, as a network leaves them.

    Some peers write into the maps they refine.
    """
    scratch = np.empty_like(maps)
    return interleave(
        *(functools.partial(function, scratch) for function in functions),
        before=lambda: np.copyto(scratch, maps),
    )


def against_rtmlib() -> dict[int, float]:
    """Ratio by number of people."""
    import cv2
    from rtmlib.tools.pose_estimation.post_processings import post_dark_udp

    cv2.setNumThreads(1)

    def peer(maps: np.ndarray) -> np.ndarray:
        # What rtmlib does before it refines: the first maximum of every map, -1 where it is not
        # above 0.
        flat = maps.reshape(*maps.shape[:2], -1)
        index, score = flat.argmax(-1), flat.max(-1)
        points = np.stack((index % SIZE[1], index // SIZE[1]), axis=-1).astype(np.float32)
        return post_dark_udp(np.where(score[..., None] > 0, points, -1), maps, kernel=11)

    ratios = {}
    for people in PEOPLE:
        maps = heatmaps(people)
        worst = np.abs(decode(maps, method="udp")[0] - peer(maps.copy())).max()
        assert worst < 0.01, f"{worst} cells from rtmlib"
        theirs, ours = by_turns(maps, peer, functools.partial(decode, method="udp"))
        name = f"udp, rtmlib, {people} people (within {worst:.0e} cells)"
        ratios[people] = report(name, theirs, ours)
    return ratios


def against_mmpose() -> dict[tuple[str, int], float]:
    """Ratio by method and number of people."""
    import cv2

    cv2.setNumThreads(1)
    peaks = mmpose.load("mmpose.codecs.utils.post_processing").get_heatmap_maximum
    refinement = mmpose.load("mmpose.codecs.utils.refinement")

    def refine_quarter(points: np.ndarray, maps: np.ndarray) -> np.ndarray:
        return refinement.refine_keypoints(points, maps)

    def refine_dark(points: np.ndarray, maps: np.ndarray) -> np.ndarray:
        return refinement.refine_keypoints_dark(points, maps, blur_kernel_size=11)

    ratios = {}
    for method, refine, bound in (("quarter", refine_quarter, 0.0), ("dark", refine_dark, 0.01)):

        def peer(maps: np.ndarray, refine=refine) -> list[np.ndarray]:
            # The order of MSRAHeatmap.decode, for one person at a time as there.
            return [refine(peaks(person)[0][None], person)[0] for person in maps]

        for people in PEOPLE:
            maps = heatmaps(people)
            # Next to the border mmpose leaves joints where they are that other code moves.
            found = decode(maps, method="argmax")[0]
            inside = ((found > 1) & (found < np.subtract(SIZE[::-1], 2))).all(axis=-1)
            apart = np.abs(decode(maps, method=method)[0] - np.stack(peer(maps.copy())))
            worst = apart[inside].max()
            assert worst <= bound, f"{method}: {worst} cells from mmpose"
            theirs, ours = by_turns(maps, peer, functools.partial(decode, method=method))
            name = f"{method}, mmpose, {people} people (within {worst:.0e} cells)"
            ratios[method, people] = report(name, theirs, ours)
    return ratios


def against_torch() -> dict[int, float]:
    """Ratio by number of people."""
    import torch

    torch.set_num_threads(1)
    h, w = SIZE

    def peer(maps: torch.Tensor) -> torch.Tensor:
        flat = maps.flatten(2)
        _, peak = flat.max(dim=-1)
        x, y = peak % w, peak // w

        def shift(place: torch.Tensor, size: int, step: int) -> torch.Tensor:
            inside = (place > 0) & (place < size - 1)
            centre = torch.where(inside, peak, w + 1)[..., None]
            slope = flat.gather(-1, centre + step) - flat.gather(-1, centre - step)
            return 0.25 * torch.sign(slope)[..., 0] * inside

        return torch.stack((x + shift(x, w, 1), y + shift(y, h, w)), dim=-1)

    ratios = {}
    for people in PEOPLE:
        maps = torch.from_numpy(heatmaps(people))
        assert torch.equal(decode(maps, method="quarter")[0], peer(maps))
        theirs, ours = interleave(
            functools.partial(peer, maps), functools.partial(decode, maps, method="quarter")
        )
        ratios[people] = report(f"quarter, torch, {people} people", theirs, ours)
    return ratios


def against_reference() -> dict[str, float]:
    """Ratio by method."""
    maps, ratios = heatmaps(8), {}
    for method in ("argmax", "quarter", "parabola", "taylor", "dark", "udp", "soft", "cpn"):
        theirs, ours = by_turns(
            maps,
            functools.partial(decode, method=method, backend="reference"),
            functools.partial(decode, method=method),
        )
        ratios[method] = report(f"{method}, our reference, 8 people", theirs, ours)
    return ratios


def bench_decode_beside_rtmlib():
    """At least half of the margin that is aimed at, 8x."""
    pytest.importorskip("rtmlib", reason="rtmlib is not installed here")
    assert min(against_rtmlib().values()) >= 4


def bench_decode_beside_mmpose():
    """At least half of the margin that is aimed at, 10x."""
    if why := mmpose.missing():
        pytest.skip(why)
    assert min(against_mmpose().values()) >= 5


def bench_decode_beside_torch():
    """A kernel that takes twice its time does not pass."""
    pytest.importorskip("torch", reason="torch is not installed here")
    assert against_torch()[8] >= 5.3


def bench_decode_beside_its_reference():
    """A kernel that takes twice its time does not pass."""
    ratios = against_reference()
    least = LEAST if cpp.best_isa() == "avx512" else dict.fromkeys(LEAST, 2)
    slow = {method: ratios[method] for method in least if ratios[method] < least[method]}
    assert not slow, f"below {least}"


def main() -> None:
    cpp.set_num_threads(1)
    print(f"{platform.machine()}, {cpp.best_isa()}, one thread, {JOINTS} maps of {SIZE} a person")
    if why := mmpose.missing():
        print(f"{why}: left out")
    else:
        against_mmpose()
    for peer, run in (("rtmlib", against_rtmlib), ("torch", against_torch)):
        if importlib.util.find_spec(peer) is None:
            print(f"{peer} is not installed here: left out")
        else:
            run()
    against_reference()


if __name__ == "__main__":
    main()
