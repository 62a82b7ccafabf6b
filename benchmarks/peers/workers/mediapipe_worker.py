"""MediaPipe Pose over a video, tracking, and over single pictures."""

from __future__ import annotations

import functools
import itertools
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from serve import Task, serve

THREADS = int(os.environ["OMP_NUM_THREADS"])
LANDMARKS = 33
LEAD = 5  # frames before the first that counts, off the clock: it tracks as in the midst of a video


def video(
    video: str, starts: list[int], frames: int, complexity: int = 1, lead: int = LEAD
) -> Task:
    """Landmarks [S, T, 33, 2] in pixels, NaN where nobody was found, of S parts of a video.

    A call is one part of T frames, read and searched as its own examples do; the next call is the
    next part. Seconds of each frame are kept, [T, 2]: reading and pose, and pose alone; those of
    all parts, [S, T, 2], belong to the answer.
    """
    pose, capture, laps = _pose(False, complexity), cv2.VideoCapture(video), []
    parts = itertools.cycle(starts)

    def before() -> None:
        pose.reset()
        first = next(parts)
        begin = max(0, first - lead)
        capture.set(cv2.CAP_PROP_POS_FRAMES, begin)
        for _ in range(first - begin):
            step()

    def step() -> np.ndarray:
        start = time.perf_counter()
        read, frame = capture.read()
        if not read:
            raise ValueError(f"{Path(video).name} ends before its {frames} frames")
        got = time.perf_counter()
        found = _landmarks(pose, frame)
        end = time.perf_counter()
        laps.append((end - start, end - got))
        return found

    def call() -> np.ndarray:
        laps.clear()
        return np.stack([step() for _ in range(frames)])

    def answer(first: np.ndarray) -> dict[str, Any]:
        found, seconds = [first], [list(laps)]
        for _ in starts[1:]:
            before()
            found.append(call())
            seconds.append(list(laps))
        return {"landmarks": np.stack(found), "laps": np.array(seconds)}

    return Task(call, answer, before=before, laps=laps)


def pictures(files: list[str], complexity: int = 1) -> Task:
    """Landmarks [N, 33, 2] in pixels of pictures, NaN where nobody was found; static mode."""
    pose = _pose(True, complexity)

    def call() -> np.ndarray:
        return np.stack([_landmarks(pose, cv2.imread(file)) for file in files])

    return Task(call, lambda found: {"landmarks": found})


@functools.cache
def _pose(static: bool, complexity: int) -> Any:
    """One for all tasks of a kind, for it is reset before it is used again."""
    return mediapipe.solutions.pose.Pose(static_image_mode=static, model_complexity=complexity)


def _landmarks(pose: Any, frame: np.ndarray) -> np.ndarray:
    """[33, 2] float32 in pixels, centres at whole numbers, of a BGR frame."""
    found = pose.process(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).pose_landmarks
    if found is None:
        return np.full((LANDMARKS, 2), np.nan, np.float32)
    shares = np.array([(mark.x, mark.y) for mark in found.landmark])
    return (shares * frame.shape[1::-1] - 0.5).astype(np.float32)


if __name__ == "__main__":
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > THREADS:  # its graph takes as many threads as there are cores
        os.sched_setaffinity(0, cores[:THREADS])
    import mediapipe

    cv2.setNumThreads(THREADS)
    about = f"{version('mediapipe')} (numpy {np.__version__}, OpenCV {cv2.__version__})"
    serve(about, {task.__name__: task for task in (video, pictures)})
