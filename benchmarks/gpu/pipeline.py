"""Whole frames through `fastpose.Pose` on CUDA, by the number of people: time, memory, launches.

    python benchmarks/gpu/pipeline.py --out FILE.json

"video": reading, pose, drawing and writing, with the split into stages, as `fastpose bench` has it.
"frame": one frame at a time, given as numpy or as a tensor on the device, by turns; joints are
compared with the network's in f32 on the CPU. "counts": what the host asks of the device for such a
frame. "memory": frames with changing numbers of people, one after another, until it must be flat.

Frames are made of the pictures of this package, and everybody in them is seen as often as it takes.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from stand_in import read_safetensors
from timing import Bench, Case, Found, WrongResultError

from fastpose import Pose
from fastpose.bench import cuda
from fastpose.bench.people import measure_people
from fastpose.bench.rows import Row
from fastpose.datasets import read_image
from fastpose.errors import BackendError
from fastpose.fixtures import built_in_pictures
from fastpose.machine import resident_bytes
from fastpose.measure import Times, steady, take_turns
from fastpose.types import People

MODEL = "cpn-light"
PEOPLE = (0, 1, 2, 4, 8, 16, 32)
COUNTED = (0, 1, 8, 32)
SIZE = (720, 1280)
SCENES = ("scene-0.jpg", "scene-1.jpg")  # side by side
VIDEO_FRAMES, VIDEO_ROUNDS = 20, 6
ROUNDS = 40
MANY, SETTLED, GROWTH = 2000, 500, 1.0  # frames; those that may still grow; percent
CONFIDENT = 0.3  # score from which a joint counts
SHIFT, MOVED, FAR = 0.1, 0.005, 2.0  # median, share of joints that move by more than FAR
TENSOR = "as a tensor on the device"

Give = Callable[[np.ndarray], object]


def make_frame() -> tuple[np.ndarray, np.ndarray]:
    """[720, 1280, 3] uint8 BGR, and [N, 4] boxes of the people in it."""
    frame = np.full((*SIZE, 3), 127, np.uint8)
    boxes, left = [], 0
    for path, found in built_in_pictures():
        if path.name in SCENES:
            picture = read_image(path)
            frame[: picture.shape[0], left : left + picture.shape[1]] = picture
            boxes.append(found + np.array([left, 0, left, 0], np.float32))
            left += picture.shape[1]
    return frame, np.concatenate(boxes).astype(np.float32)


def people_of(boxes: np.ndarray, people: int) -> np.ndarray:
    """[people, 4]: the boxes again and again."""
    return np.resize(boxes, (people, 4)) if people else np.empty((0, 4), np.float32)


def write_video(path: Path, frame: np.ndarray, frames: int) -> None:
    """The frame, moved by two pixels each time."""
    size = (frame.shape[1], frame.shape[0])
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, size)
    if not video.isOpened():
        raise RuntimeError("this OpenCV cannot write MJPG")
    for i in range(frames):
        video.write(np.roll(frame, 2 * i, axis=1))
    video.release()


def open_pose(bench: Bench, device: str, precision: str) -> Pose:
    """With the sizes of batches that a user gets, in a dry run the smallest."""
    return Pose(
        MODEL,
        detector="none",
        engine="torch",
        device=device,
        precision=precision,
        batch=(1, 2) if bench.dry else (1, 2, 4, 8, 16, 32),
    )


def describe(pose: Pose, **case: str | int) -> Case:
    """Of a row."""
    manifest = pose.engine.manifest
    known = {"model": manifest.spec.name, "engine": manifest.kind, "precision": manifest.precision}
    return {**case, **known, "frame": f"{SIZE[1]}x{SIZE[0]}"}


def compare(found: People, expected: People, boxes: np.ndarray, height: int) -> str:
    """How far joints are from others, in pixels of the network's input, in words.

    Raises:
        WrongResultError: too far, or there are none to compare.
    """
    if len(found) != len(expected):
        raise WrongResultError(f"{len(found)} people instead of {len(expected)}")
    if not len(expected):
        return "nobody, as in f32 on the CPU"
    scale = (boxes[:, 3] - boxes[:, 1])[:, None] / height
    sure = expected.scores >= CONFIDENT
    if not sure.any():
        raise WrongResultError("no joint is sure enough to be compared")
    apart = np.linalg.norm(found.keypoints - expected.keypoints, axis=2) / scale
    apart = np.where(np.isfinite(apart), apart, np.inf)[sure]
    shift, moved = float(np.median(apart)), float((apart > FAR).mean())
    text = f"{sure.sum()} joints {shift:.3g} px from those in f32 on the CPU (median)"
    if not (shift <= SHIFT and moved <= MOVED):
        raise WrongResultError(f"{text}, {100 * moved:.2g} % by more than {FAR:g} px")
    return text


def gives(bench: Bench) -> dict[str, Give]:
    """The ways to give a frame, by what the rows call them."""
    return {
        "numpy": lambda frame: frame,
        "tensor": lambda frame: torch.from_numpy(frame).to(bench.device),
    }


def measure_videos(
    bench: Bench, pose: Pose, people: Sequence[int], *, draw: bool, write: bool
) -> list[Row]:
    """A row for each number of people."""
    frame, _ = make_frame()
    frames = 2 if bench.dry else VIDEO_FRAMES
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "built-in.avi")
        write_video(video, frame, frames)
        rows = measure_people(
            pose,
            video,
            people=people,
            frames=frames,
            rounds=1 if bench.dry else VIDEO_ROUNDS,
            draw=draw,
            write=write,
        )
    if bench.dry:
        return rows
    used = {"device_mb": round(bench.device_bytes() / 1e6, 1)}
    return [replace(row, figures={**row.figures, **used}) for row in rows]


def measure_frame(bench: Bench, pose: Pose, exact: Pose, people: int) -> dict[str, Found]:
    """What is found of a frame that is given in each way, taking turns."""
    frame, known = make_frame()
    boxes = people_of(known, people)
    height = pose.engine.manifest.spec.size[0]
    expected = exact(frame, boxes=boxes)
    given = {name: give(frame) for name, give in gives(bench).items()}
    checks = {
        name: compare(pose(one, boxes=boxes), expected, boxes, height)
        for name, one in given.items()
    }
    if bench.dry:
        return {name: Found(check) for name, check in checks.items()}
    calls = {name: functools.partial(pose, one, boxes=boxes) for name, one in given.items()}
    times = steady(lambda: take_turns(calls, rounds=ROUNDS, repeats=1))
    used = {"device_mb": round(bench.device_bytes() / 1e6, 1)}
    return {name: _found(name, times, checks[name], used) for name in given}


def _found(name: str, times: dict[str, Times], check: str, figures: dict[str, float]) -> Found:
    """Of one way; the row of numpy is held against the other way."""
    others = {TENSOR: times["tensor"]} if name == "numpy" else {}
    fps = {"fps": round(1 / times[name].median, 2)}
    return Found(check, {"ours": times[name], **others}, fps | figures, clock="wall")


def measure_counts(bench: Bench, pose: Pose, exact: Pose, people: int, way: str) -> Found:
    """What the host asks of the device for a frame."""
    frame, known = make_frame()
    boxes = people_of(known, people)
    given = gives(bench)[way](frame)
    height = pose.engine.manifest.spec.size[0]
    check = compare(pose(given, boxes=boxes), exact(frame, boxes=boxes), boxes, height)
    if bench.dry:
        return Found(check)
    counts = cuda.count_launches(functools.partial(pose, given, boxes=boxes))
    return Found(check, figures={name: float(count) for name, count in counts.items()})


def measure_memory(bench: Bench, pose: Pose) -> Found:
    """Many frames, after which memory must not be more than after the first of them.

    Raises:
        WrongResultError: it has grown.
        BackendError: this system does not tell.
    """
    frame, known = make_frame()
    many, settled = (4, 2) if bench.dry else (MANY, SETTLED)
    wanted = itertools.cycle(
        people_of(known, people) for people in PEOPLE[: 2 if bench.dry else None]
    )
    early: dict[str, int] = {}
    for i in range(many):
        pose(frame, boxes=next(wanted))
        if i + 1 == settled:
            early = taken(bench)
    late = taken(bench)
    growth = {name: 100 * (late[name] - early[name]) / early[name] for name in early}
    worst = max(growth.values())
    if not bench.dry and not worst <= GROWTH:
        raise WrongResultError(f"memory grew by {worst:.2f} %, at most {GROWTH:g}")
    figures = {name: round(size / 1e6, 1) for name, size in late.items()}
    figures["growth_percent"] = round(worst, 3)
    said = f"after {settled} frames of {many}, memory grew by at most {GROWTH:g} %"
    return Found(said, figures={} if bench.dry else figures)


def taken(bench: Bench) -> dict[str, int]:
    """Bytes of this program in RAM, and on the device."""
    resident = resident_bytes()
    if resident is None:
        raise BackendError("this system does not tell what memory is in use")
    return {"rss_mb": resident} | ({} if bench.dry else {"device_mb": bench.device_bytes()})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure frames and videos, counts and memory."""
    bench = Bench(__file__, arguments)
    read_safetensors()
    with ExitStack() as stack:
        pose = open_pose(bench, bench.device.type, "f32" if bench.dry else "f16")
        stack.callback(pose.close)
        exact = pose
        if not bench.dry:
            exact = open_pose(bench, "cpu", "f32")
            stack.callback(exact.close)
        for people in (0, 1) if bench.dry else PEOPLE:
            record_frame(bench, pose, exact, people)
        for people in (1,) if bench.dry else COUNTED:
            for way in gives(bench):
                bench.record(
                    "counts",
                    "frame",
                    describe(pose, people=people, given=way),
                    functools.partial(measure_counts, bench, pose, exact, people, way),
                )
        videos = [((0, 1), True)] if bench.dry else [(PEOPLE, False), ((1, 8), True)]
        for people, done in videos:
            bench.collect(
                "pipeline",
                "video",
                describe(pose, people=people[0], draw=done, write=done),
                functools.partial(measure_videos, bench, pose, people, draw=done, write=done),
            )
        bench.record(
            "memory",
            "frames",
            describe(pose, frames=4 if bench.dry else MANY),
            functools.partial(measure_memory, bench, pose),
        )
    bench.close()


def record_frame(bench: Bench, pose: Pose, exact: Pose, people: int) -> None:
    """A row for each way to give the frame, measured together."""
    measured = functools.cache(lambda: measure_frame(bench, pose, exact, people))
    for way in gives(bench):
        bench.record(
            "pipeline",
            "frame",
            describe(pose, people=people, given=way),
            lambda way=way: measured()[way],
        )


if __name__ == "__main__":
    main()
