"""`ops.decode_simcc` on one thread, interleaved with the published steps in numpy.

    python benchmarks/ops/bench_simcc.py

The peer is an argmax and a maximum of each vector and the lower of the two maxima, vectorised over
all joints of all people, without the frame's affine. The answers are compared before they are
timed. Times are medians of the processor time of the one thread, of functions called by turns.
"""

from __future__ import annotations

import functools
import platform

import numpy as np
from interleave import interleave, report

from fastpose.ops import cpp, decode_simcc

PEOPLE, JOINTS, BINS = (1, 8, 32), 17, (384, 512)  # an input of 256x192, 2 bins a pixel


def in_numpy(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What mmpose and rtmlib do, in our words."""
    points = np.stack((x.argmax(axis=-1), y.argmax(axis=-1)), axis=-1) / np.float32(2)
    return points, np.minimum(x.max(axis=-1), y.max(axis=-1))


def against_numpy() -> dict[int, float]:
    """Ratio by number of people."""
    ratios = {}
    for people in PEOPLE:
        random = np.random.default_rng(people)
        x, y = (random.random((people, JOINTS, bins), np.float32) for bins in BINS)
        peer, kernel = (functools.partial(f, x, y) for f in (in_numpy, decode_simcc))
        for expected, actual in zip(peer(), kernel(), strict=True):
            np.testing.assert_array_equal(actual, expected)
        ratios[people] = report(f"SimCC, numpy, {people} people", *interleave(peer, kernel))
    return ratios


def bench_simcc_beside_numpy():
    """A kernel that takes twice its time does not pass: measured are 3.1 and, of that, 1.9."""
    assert against_numpy()[32] >= 2.4


def main() -> None:
    cpp.set_num_threads(1)
    print(f"{platform.machine()}, {cpp.best_isa()}, one thread, {JOINTS} pairs of {BINS} a person")
    against_numpy()


if __name__ == "__main__":
    main()
