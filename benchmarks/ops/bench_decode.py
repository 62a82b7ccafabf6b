"""`ops.decode` on one thread, beside its reference and what other projects do for the same answer.

Maps are written anew before each call, as a network leaves them: some peers write into those that
they refine, and no call finds them better placed in the caches than another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from beside import (
    FEW,
    SHORT,
    forced,
    instruction_sets,
    mmpose_version,
    of_mmpose,
    scalar_twin,
    within,
)
from peers import mmpose
from suite import Beside

from fastpose.bench.rows import Row
from fastpose.ops import cpp, decode

torch = pytest.importorskip("torch", reason="torch is not installed here")
import torch_decode  # noqa: E402 - needs torch

METHODS = ("argmax", "quarter", "parabola", "taylor", "dark", "udp", "soft", "cpn")
JOINTS, SIZE = 17, (64, 48)
CELLS = 0.01  # that another answer may be away
BLURRED = ("dark", "udp", "cpn")  # by the reference in 10 ms and more
EXACT = ("argmax", "quarter")  # where it must be the same
# Ratios at 8 people between those of this kernel and of one that takes twice its time, measured on
# a Zen 4: to the reference with vectors, to torch with AVX-512, and to the scalar kernel by
# instruction set.
LEAST = {"quarter": 10, "taylor": 15, "dark": 70, "udp": 64, "soft": 26, "cpn": 14}
LEAST_TORCH = {"quarter": 5.3}
LEAST_SCALAR = {
    "avx2": {
        "argmax": 2.3,
        "quarter": 2.3,
        "parabola": 2.2,
        "taylor": 1.9,
        "dark": 2.0,
        "udp": 1.9,
        "soft": 2.2,
        "cpn": 1.2,
    },
    "avx512": {
        "argmax": 2.4,
        "quarter": 2.4,
        "parabola": 2.5,
        "taylor": 2.1,
        "dark": 2.2,
        "udp": 2.1,
        "soft": 1.9,
        "cpn": 1.3,
    },
}
WITHOUT_VECTORS = 2.0  # the least of the scalar kernel, to the reference
# Half of the margins that are aimed at, 10x and 8x.
LEAST_MMPOSE, LEAST_RTMLIB = 5.0, 4.0

Decode = Callable[..., tuple[Any, Any]]


def heatmaps(people: int) -> np.ndarray:
    """Gaussians anywhere in the map, its border included, on a little noise.

    Returns:
        [people, JOINTS, *SIZE] float32.
    """
    random = np.random.default_rng(people)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centres = random.uniform((0, 0), SIZE[::-1], (people, JOINTS, 2))[..., None, None]
    square = (x - centres[:, :, 0]) ** 2 + (y - centres[:, :, 1]) ** 2
    noise = 0.05 * random.random((people, JOINTS, *SIZE))
    return (np.exp(-square / 8) + noise).astype(np.float32)


def apart(points: np.ndarray, others: np.ndarray, method: str) -> str:
    """How far two answers [N, K, 2] are apart, in words; raises `WrongAnswerError`."""
    worst = float(np.abs(points - others).max(initial=0.0))
    return within(worst, 0.0 if method in EXACT else CELLS, "cells")


def check(function: Decode, maps: np.ndarray, method: str) -> str:
    """Compare the points and scores of a `decode` with those of the reference."""
    points, scores = function(maps, method=method)
    expected, heights = decode(maps, method=method, backend="reference")
    within(float(np.abs(scores - heights).max()), 1e-6, "of the peak")
    return f"reference: {apart(points, expected, method)}"


def _backends(maps: np.ndarray, scratch: np.ndarray, method: str, isa: str) -> Mapping[str, Beside]:
    """The reference and, beside a kernel with vectors, that without."""
    isa = cpp.best_isa() if isa == "auto" else isa
    gated = len(maps) == 8
    least = LEAST.get(method)
    if least and isa == "scalar":
        least = WITHOUT_VECTORS
    slow = functools.partial(decode, scratch, method=method, backend="reference")
    found = {"reference": Beside(slow, at_least=least if gated else None)}
    if isa == "scalar":
        return found

    def check() -> str:
        with forced("decode", "scalar"):
            points = decode(maps, method=method)[0]
        return apart(decode(maps, method=method)[0], points, method)

    run = functools.partial(decode, scratch, method=method)
    least = LEAST_SCALAR[isa][method] if gated else None
    return {**found, "scalar": scalar_twin("decode", run, check, least)}


def beside_reference(
    timed: Callable[..., Row],
    method: str,
    *,
    function: Decode = decode,
    isa: str = "auto",
    people: int = 8,
) -> Row:
    """One row: `function`, which stands for `decode`, and its reference and twin by turns.

    Raises:
        WrongAnswerError: its answer is another one.
        AssertionError: it is too slow for a kernel with that instruction set.
    """
    maps = heatmaps(people)
    scratch = np.empty_like(maps)
    with forced("decode", isa):
        return timed(
            "ops",
            "decode",
            {"people": people, "method": method, "backend": "cpp", "isa": isa},
            functools.partial(function, scratch, method=method),
            check=lambda: check(function, maps, method),
            beside=_backends(maps, scratch, method, isa),
            before=lambda: np.copyto(scratch, maps),
            repeats=1,
            rounds=FEW if method in BLURRED else 40,
        )


def in_torch(maps: np.ndarray, scratch: np.ndarray, method: str) -> Beside:
    """Vectorised torch on the same memory."""
    theirs = torch.from_numpy(scratch)

    def check() -> str:
        found = torch_decode.decode(torch.from_numpy(maps), method).numpy()
        return apart(decode(maps, method=method)[0], found, method)

    return Beside(
        functools.partial(torch_decode.decode, theirs, method),
        check,
        at_least=LEAST_TORCH.get(method) if len(maps) == 8 and _has_avx512() else None,
        version=torch.__version__,
    )


def _has_avx512() -> bool:
    return cpp.best_isa() == "avx512"


def in_mmpose(maps: np.ndarray, scratch: np.ndarray, method: str) -> Beside:
    """The order of its codecs' `decode`, for one person at a time as there."""
    peaks = mmpose.load("mmpose.codecs.utils.post_processing").get_heatmap_maximum
    refinement = mmpose.load("mmpose.codecs.utils.refinement")
    refine, margin = {
        "quarter": (refinement.refine_keypoints, 2),
        "dark": (functools.partial(refinement.refine_keypoints_dark, blur_kernel_size=11), 2),
        "udp": (functools.partial(refinement.refine_keypoints_dark_udp, blur_kernel_size=11), 6),
    }[method]

    def run(maps: np.ndarray) -> list[np.ndarray]:
        return [refine(peaks(person)[0][None], person)[0] for person in maps]

    def check() -> str:
        # Next to the border it leaves joints where they are that other code moves, and its blur
        # for "udp", which reaches 6 cells, takes zeros where the released code mirrors.
        found = decode(maps, method="argmax")[0]
        inside = (found >= margin) & (found < np.subtract(SIZE[::-1], margin))
        kept = inside.all(axis=-1)
        ours, theirs = decode(maps, method=method)[0], np.stack(run(maps.copy()))
        words = apart(ours[kept], theirs[kept], method)
        return f"{words}, of joints {margin} cells from the border"

    return Beside(
        functools.partial(run, scratch),
        check,
        at_least=LEAST_MMPOSE,
        version=mmpose_version(),
    )


def others(peers: Any, maps: np.ndarray, scratch: np.ndarray, method: str) -> Mapping[str, Beside]:
    """The projects that have this method, by name."""
    found = {"torch": in_torch(maps, scratch, method)}
    if method in ("quarter", "dark", "udp"):
        found["mmpose"] = of_mmpose(lambda: in_mmpose(maps, scratch, method))
    if method == "udp":
        found["rtmlib"] = peers.beside(
            "rtmlib",
            "dark_udp",
            {"maps": maps},
            compare=lambda answer: apart(decode(maps, method=method)[0], answer["points"], method),
            at_least=LEAST_RTMLIB,
            clock="thread",
        )
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("isa", instruction_sets())
def bench_decode_beside_its_reference(timed, method, isa):
    """A kernel that takes twice its time does not pass."""
    beside_reference(timed, method, isa=isa)


@pytest.mark.parametrize("method", METHODS)
def bench_decode_beside_peers(timed, peers, method, people):
    """Half of the margins that are aimed at."""
    maps = heatmaps(people)
    scratch = np.empty_like(maps)
    timed(
        "ops",
        "decode",
        {"people": people, "method": method},
        functools.partial(decode, scratch, method=method),
        check=lambda: check(decode, maps, method),
        beside=others(peers, maps, scratch, method),
        before=lambda: np.copyto(scratch, maps),
        repeats=SHORT if people == 1 else 1,
        rounds=FEW if people > 8 else 40,
    )
