"""Finding the people of a frame: the default detector beside YOLOX-nano.

Both go through `fastpose.detect`, from the frame's bytes to boxes in its pixels, in the same
runtime, precision and threads. How accurate they are, `fastpose eval` says. YOLOX-nano is read from
`models/yolox_nano.onnx` beside the folder of data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from suite import Beside, Timed, WrongAnswerError

from fastpose.detect import Detector, open_detector
from fastpose.errors import BackendError
from fastpose.frames import open_source
from fastpose.types import Boxes, Floats

FRAMES, ROUNDS = 5, 12
SURE = 0.6  # score of the boxes that must be found again
SAME = 0.8  # intersection over union of two boxes that are the same
MOST = 0.9  # share of the sure boxes that must be
PEER = "YOLOX-nano"

pytestmark = pytest.mark.threads


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def bench_detect(
    timed: Timed, video: Path, threads: int, precision: str, request: pytest.FixtureRequest
) -> None:
    with open_source(video, max_frames=FRAMES) as source:
        frames = [frame.image for frame in source]
    height, width = frames[0].shape[:2]
    try:
        ours = open_detector("default", precision=precision, threads=threads)
    except BackendError as error:
        pytest.skip(str(error))
    given = request.config.getoption("--data-dir")
    with closing(ours):
        timed(
            "pipeline",
            "detect",
            {
                "detector": "default",
                "precision": precision,
                "video": video.name,
                "frame": f"{width}x{height}",
            },
            lambda: _find(ours, frames),
            check=lambda: _check(ours, frames),
            beside={PEER: _beside(given, precision, threads, frames)},
            rounds=ROUNDS,
            clock="wall",
            threads=threads,
            repeats=1,
            settle=0.02,
            per_second=("fps", len(frames)),
        )


def _find(detector: Detector, frames: Sequence[np.ndarray]) -> list[Boxes]:
    """One frame after the other, as in a stream."""
    return [detector([frame])[0] for frame in frames]


def _check(ours: Detector, frames: Sequence[np.ndarray]) -> str:
    """Of the sure boxes in ONNX Runtime in f32, how many ours finds again, in words.

    Raises:
        WrongAnswerError: too few.
    """
    with closing(open_detector("default", kind="onnxruntime", precision="f32")) as reference:
        expected = _find(reference, frames)
    again = total = 0
    for wanted, found in zip(expected, _find(ours, frames), strict=True):
        sure = wanted.boxes[wanted.scores >= SURE]
        total += len(sure)
        if len(sure) and len(found):
            again += int((overlaps(sure, found.boxes).max(axis=1) >= SAME).sum())
    text = f"{again} of {total} sure boxes of onnxruntime f32 are found again"
    if again < MOST * total:
        raise WrongAnswerError(text)
    return text


def overlaps(ours: Floats, theirs: Floats) -> Floats:
    """[N, M] intersection over union of boxes [N, 4] and [M, 4]."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (ours, theirs)]
    return inside / (areas[0][:, None] + areas[1][None] - inside)


def _beside(data: str | None, precision: str, threads: int, frames: Sequence[np.ndarray]) -> Beside:
    graph = Path(data or "").parent / "models" / "yolox_nano.onnx"
    if not data or not graph.is_file():
        return Beside(absent="no models/yolox_nano.onnx beside the folder of data sets")
    theirs = open_detector(str(graph), precision=precision, threads=threads)
    return Beside(
        lambda: _find(theirs, frames),
        lambda: f"{sum(map(len, _find(theirs, frames)))} people in {len(frames)} frames",
    )
