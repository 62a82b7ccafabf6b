"""One person on a CPU, the whole loop: our default model beside MediaPipe Pose, with both PCKs.

    pytest benchmarks/pipeline/bench_one_person.py --data-dir DATA [--full]

MediaPipe finds one person only, so this is where it is at home. Both read one clip, in which people
come and go, and find the joints in each frame: MediaPipe in its tracking mode, complexity 1, ours
with the default detector in each frame or in every tenth. Frames with a person and empty ones are
timed apart, in parts of the clip that were told apart by looking at it. What it does in empty
frames is part of its answer: it finds a person in many of them, and goes on following that.

Beside the times stand both PCKs@0.2 on the twelve limb joints of Leeds Sports Pose, test, of the
very engine that was timed. Both get the same pictures, each padded with grey to twice its longer
side, and search them for the person; where they find none, all joints are wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from one_person import FRAMES, MARKS, Answers, Pictures, check_marks, check_people, limbs, pad, seen
from peers import Peers, Prepared
from suite import Beside, Timed

from fastpose import Pose
from fastpose.datasets import read_image, read_lsp
from fastpose.evaluate import predict_joints
from fastpose.frames import Source
from fastpose.skeleton import joint_places
from fastpose.types import Frame, People

VIDEO = "one_person_indoor.mp4"
PARTS = {  # the first frame of each part
    "person": (110, 300, 560, 800, 1000, 1280),
    "empty": (10, 35, 460, 480, 715, 880),
}
ROUNDS = 6
PICTURES = 100  # of LSP's test set, and all of them with --full


class Part:
    """FRAMES frames of a video from one on, as `fastpose.frames.Source` reads them."""

    kind, warning = "video", None

    def __init__(self, video: Path, first: int) -> None:
        self.name, self.count = video.stem, FRAMES
        self.capture = cv2.VideoCapture(str(video))
        self.fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.capture.set(cv2.CAP_PROP_POS_FRAMES, first)
        self.index = 0

    def read(self) -> Frame | None:
        if self.index == FRAMES:
            return None
        read, image = self.capture.read()
        if not read:
            return None
        self.index += 1
        return Frame(image, self.index - 1, (self.index - 1) / self.fps)

    def close(self) -> None:
        self.capture.release()


class OurLoop:
    """Our stream over one part after the other; opening and going there is off the clock.

    Implements `fastpose.measure.Elsewhere`, with the seconds of a frame.
    """

    def __init__(self, pose: Pose, video: Path, starts: tuple[int, ...], every: int) -> None:
        self.pose, self.video, self.starts, self.every = pose, video, starts, every
        self.turns = 0

    def turn(self, repeats: int) -> float:
        spent = 0.0
        for _ in range(repeats):
            part = Part(self.video, self.starts[self.turns % len(self.starts)])
            self.turns += 1
            start = time.perf_counter()
            for _ in self.people(part):
                pass
            spent += time.perf_counter() - start
            part.close()
        return spent / FRAMES

    def people(self, part: Part) -> Iterator[People]:
        source = Source(part, None)
        return (found for _, found in self.pose.stream(source, detect_every=self.every))

    def answers(self) -> Answers:
        """The people of each frame of each part."""
        found = []
        for first in self.starts:
            part = Part(self.video, first)
            found.append(list(self.people(part)))
            part.close()
        return found


class PerFrame:
    """A peer's turns, with the seconds of a frame."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def turn(self, repeats: int) -> float:
        return self.prepared.turn(repeats) / FRAMES


@pytest.fixture(scope="module")
def pictures(
    data_dir: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Pictures:
    count = None if request.config.getoption("--full") else PICTURES
    data = read_lsp(data_dir / "lsp", "test").head(count)
    folder = tmp_path_factory.mktemp("padded")
    files, zooms, shifts = [], [], []
    for sample in data.samples:
        padded, zoom, shift = pad(read_image(sample.image))
        files.append(folder / f"{sample.image.stem}.bmp")
        cv2.imwrite(str(files[-1]), padded)
        zooms.append([zoom])
        shifts.append(shift)
    return Pictures(data, tuple(files), np.array(zooms), np.array(shifts))


@pytest.fixture(scope="module")
def their_pck(peers: Peers, pictures: Pictures, threads: int) -> dict[str, float]:
    """MediaPipe's; empty where it is absent."""
    try:
        found = peers.prepare(
            "mediapipe", "pictures", threads=threads, clock="wall", files=list(pictures.files)
        )
    except peers.AbsentError:
        return {}
    marks = found.answer["landmarks"]
    points = np.full((len(marks), len(pictures.data.skeleton), 2), np.nan, np.float32)
    for joint, mark in MARKS.items():
        points[:, pictures.data.skeleton.joints.index(joint)] = marks[:, mark]
    return pictures.pck(points)


@pytest.fixture(scope="module")
def theirs(peers: Peers, data_dir: Path, threads: int) -> dict[str, Prepared] | str:
    """MediaPipe in the parts of the video, by their kind; or why it is absent."""
    options = {"clock": "wall", "threads": threads, "frames": FRAMES}
    options["video"] = data_dir / "video" / VIDEO
    try:
        return {
            kind: peers.prepare("mediapipe", "video", starts=list(starts), **options)
            for kind, starts in PARTS.items()
        }
    except peers.AbsentError as error:
        return str(error)


@pytest.fixture(scope="module", params=["auto", "f32"])
def pose(request: pytest.FixtureRequest, threads: int) -> Iterator[Pose]:
    """Ours, one person at a time."""
    if request.param == "f32" and not request.config.getoption("--full"):
        pytest.skip("with --full")
    with Pose(precision=request.param, batch=(1,), threads=threads) as own:
        yield own


@pytest.fixture(scope="module")
def our_pck(pose: Pose, pictures: Pictures) -> dict[str, float]:
    """PCKs of the likeliest person of each picture; `pck_whole` with the whole picture as box."""
    skeleton = pictures.data.skeleton
    order = joint_places(pose.engine.manifest.spec.joints, skeleton)
    points = np.full((len(pictures.files), len(skeleton), 2), np.nan, np.float32)
    for row, file in zip(points, pictures.files, strict=True):
        people = pose(read_image(file))
        if len(people):
            row[:] = people.keypoints[people.box_scores.argmax(), order]
    whole = limbs(pictures.data, predict_joints(pose.engine, pictures.data))
    return {**pictures.pck(points), "pck_whole": whole}


@pytest.mark.threads
@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("every", [1, 10])
def bench_one_person(
    timed: Timed,
    data_dir: Path,
    pose: Pose,
    theirs: dict[str, Prepared] | str,
    our_pck: dict[str, float],
    their_pck: dict[str, float],
    threads: int,
    every: int,
    kind: str,
) -> None:
    """Seconds of a frame. No gate: a ratio says nothing without both accuracies."""
    manifest = pose.engine.manifest
    people = int(kind == "person")
    loop = OurLoop(pose, data_dir / "video" / VIDEO, PARTS[kind], every)
    answers = loop.answers()
    timed(
        "pipeline",
        "one person",
        {
            "people": people,
            "engine": manifest.kind,
            "precision": manifest.precision,
            "every": every,
            "video": VIDEO,
        },
        loop,
        check=lambda: check_people(answers, people),
        beside={"MediaPipe": mediapipe(theirs, kind, answers, their_pck)},
        figures={**our_pck, "seen_percent": seen(answers)},
        rounds=ROUNDS,
        repeats=1,
        warm_up=1,
        clock="wall",
        threads=threads,
        per_second=("fps", 1),
    )


def mediapipe(
    theirs: dict[str, Prepared] | str, kind: str, answers: Answers, pck: dict[str, float]
) -> Beside:
    """MediaPipe in the same parts of the video."""
    if isinstance(theirs, str):
        return Beside(absent=theirs)
    prepared = theirs[kind]
    marks = prepared.answer["landmarks"]
    whole, alone = 1e3 * np.median(prepared.answer["laps"], axis=(0, 1))
    figures = {
        **pck,
        "seen_percent": round(100 * float(np.isfinite(marks[..., 0, 0]).mean()), 2),
        "read_ms": round(float(whole - alone), 3),
    }
    return Beside(
        PerFrame(prepared),
        lambda: check_marks(marks, answers),
        version=prepared.version,
        figures=figures,
    )
