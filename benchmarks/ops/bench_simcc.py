"""`ops.decode_simcc` on one thread, beside its reference and the published steps.

Those are an argmax and a maximum of each vector and the lower of the two maxima, for all joints of
all people at once, without the frame's affine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from beside import FEW, forced, instruction_sets, mmpose_version, of_mmpose, within
from peers import mmpose
from suite import Beside

from fastpose.ops import cpp, decode_simcc

JOINTS, BINS = 17, (384, 512)  # an input of 256x192, 2 bins a pixel
# Between the ratios of this kernel and of one that takes twice its time, both measured on a Zen 4
# with AVX-512, at 32 people.
LEAST = 1.6

Vectors = tuple[np.ndarray, np.ndarray]
Found = tuple[Any, ...]


def vectors(people: int) -> Vectors:
    """[people, JOINTS, bins] float32 for both axes, without two equal maxima."""
    random = np.random.default_rng(people)
    x, y = (random.random((people, JOINTS, bins), np.float32) for bins in BINS)
    return x, y


def equal(ours: Found, others: Found) -> str:
    """Points, and scores if there are any, must be the same; raises `WrongAnswerError`."""
    for mine, theirs, unit in zip(ours, others, ("pixels", "of the score"), strict=False):
        words = within(float(np.abs(np.subtract(mine, theirs)).max()), 0.0, unit)
    return words


def check(x: np.ndarray, y: np.ndarray) -> str:
    """Compare our answer with the reference's."""
    expected = decode_simcc(x, y, backend="reference")
    return f"reference: {equal(decode_simcc(x, y), expected)}"


def in_numpy(x: np.ndarray, y: np.ndarray) -> Found:
    points = np.stack((x.argmax(axis=-1), y.argmax(axis=-1)), axis=-1) / np.float32(2)
    return points, np.minimum(x.max(axis=-1), y.max(axis=-1))


def beside(run: Callable[..., Found], x: Any, y: Any, ours: Found, **known: Any) -> Beside:
    """A function of both vectors that gives points and scores."""
    call = functools.partial(run, x, y)
    return Beside(call, lambda: equal(ours, tuple(map(np.asarray, call()))), **known)


def with_torch(x: np.ndarray, y: np.ndarray, ours: Found) -> Beside:
    try:
        import torch
    except ImportError:
        return Beside(absent="torch is not installed here")

    def run(x: torch.Tensor, y: torch.Tensor) -> Found:
        best_x, place_x = x.max(dim=-1)
        best_y, place_y = y.max(dim=-1)
        return torch.stack((place_x, place_y), dim=-1) / 2, torch.minimum(best_x, best_y)

    tensors = torch.from_numpy(x), torch.from_numpy(y)
    return beside(run, *tensors, ours, version=torch.__version__)


def in_mmpose(x: np.ndarray, y: np.ndarray, ours: Found) -> Beside:
    maximum = mmpose.load("mmpose.codecs.utils.post_processing").get_simcc_maximum

    def run(x: np.ndarray, y: np.ndarray) -> Found:
        points, scores = maximum(x, y)
        return points / 2, scores

    return beside(run, x, y, ours, version=mmpose_version())


def bench_simcc_beside_peers(timed, peers, people):
    """A kernel that takes twice its time does not pass beside numpy."""
    x, y = vectors(people)
    ours = decode_simcc(x, y)
    gate = LEAST if people == 32 and cpp.best_isa() == "avx512" else None
    timed(
        "ops",
        "decode_simcc",
        {"people": people},
        functools.partial(decode_simcc, x, y),
        check=lambda: check(x, y),
        beside={
            "numpy": beside(in_numpy, x, y, ours, at_least=gate, version=np.__version__),
            "torch": with_torch(x, y, ours),
            "mmpose": of_mmpose(lambda: in_mmpose(x, y, ours)),
            "rtmlib": peers.beside(
                "rtmlib",
                "simcc",
                {"x": x, "y": y},
                # its scores are the mean of the two maxima, where RTMPose's are the lower
                compare=lambda answer: equal(ours[:1], (answer["points"],)),
                clock="thread",
            ),
        },
    )


@pytest.mark.parametrize("isa", instruction_sets())
def bench_simcc_beside_its_reference(timed, isa):
    """Each instruction set."""
    x, y = vectors(8)
    with forced("decode_simcc", isa):
        timed(
            "ops",
            "decode_simcc",
            {"people": 8, "backend": "cpp", "isa": isa},
            functools.partial(decode_simcc, x, y),
            check=lambda: check(x, y),
            beside={
                "reference": Beside(functools.partial(decode_simcc, x, y, backend="reference"))
            },
            rounds=FEW,
        )
