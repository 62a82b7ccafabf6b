"""A video from its first frame to the finished files, by the number of people in it."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.bench.rows import Row, load
from fastpose.bench.rows import timed as figures_of
from fastpose.detect import BoxesFile
from fastpose.errors import FastposeError
from fastpose.frames import Source, open_source
from fastpose.machine import resident_bytes
from fastpose.measure import SPREAD, TRIES, Times, spread, stage, stages, take_turns
from fastpose.pose import Follower, Image, Pose
from fastpose.sinks import open_sinks
from fastpose.sinks.background import BackgroundSink
from fastpose.sinks.files import Sink
from fastpose.sinks.overlay import draw as draw_people
from fastpose.sinks.video import open_drawn
from fastpose.types import Boxes, Floats, Frame, People

PEOPLE = (0, 1, 2, 4, 8, 16, 32)
FRAMES, ROUNDS = 20, 8
CHECKED = 3  # frames whose joints are compared before anything is timed
NEAR = 0.01  # pixels that they may be apart
WATCHED = 3  # passes that tell where the time goes
HEIGHTS = (0.4, 0.9)  # of the placed people, as shares of the frame's
SLIM = 0.4  # width of a placed person, as a share of its height

Case = dict[str, str | int | float | bool]
Tell = Callable[[str], None]
Turns = Callable[..., dict[str, Times]]


class AnswerError(FastposeError, RuntimeError):
    """What was to be timed gives another answer than it should."""


def measure_people(
    pose: Pose,
    video: str | Path,
    *,
    people: Sequence[int] | None = PEOPLE,
    frames: int = FRAMES,
    rounds: int = ROUNDS,
    detect_every: int = 1,
    track: bool = False,
    smooth: str | None = None,
    draw: bool = False,
    write: bool = False,
    threads: int = 0,
    detector: str = "default",
    name: str = "video",
    command: str = "",
    tell: Tell | None = None,
    take: Turns = take_turns,
) -> list[Row]:
    """Time a video from end to end, by the number of people.

    Each pass opens the video, finds the joints of everybody in each frame, and finishes the files.
    The numbers of people take turns. Before anything is timed, the stream must give as many frames
    as the video has, a person for each box, and in the first frames the joints that `Pose.batch`
    finds there.

    Args:
        pose: the network, and the detector where `people` is None; it stays open.
        video: what `fastpose.frames.open_source` takes and can open again.
        people: how many boxes are placed in each frame; see `place_boxes`. None takes the pose's
            detector instead, which gives one row.
        frames: of each pass; all of a video that is shorter.
        rounds: passes that are counted.
        detect_every: as in `Pose.stream`.
        track: as there.
        smooth: as there.
        draw: draw the people on each frame.
        write: write the joints as JSON lines, and, with `draw`, the drawn video.
        threads: that the pose was given, for the row; 0 where the runtime chose.
        detector: how the row calls the pose's.
        name: of the rows.
        command: that makes the rows again.
        tell: called with the name of each step.
        take: how the passes take turns.

    Returns:
        A row for each number of people. Its time is that of a frame: percentiles over all frames
        of all passes, of which those that an engine in throughput mode takes at once share their
        time evenly, but `spread` is that of the passes. Its figures are `fps`, of whole passes;
        `people_found`, a frame, where the detector was asked; `<stage>_ms`, milliseconds a frame of
        each stage, where drawing and writing are done in line, not in a thread of their own as
        otherwise; and `rss_mb`, of this process at the end.

    Raises:
        AnswerError: see above.
        FrameError: the video cannot be read.
        ValueError: an argument is out of range.
    """
    counts = _checked_counts(people, frames, rounds)
    loop = Loop(detect_every, track, smooth, draw, write)
    clip = read_clip(video, frames)
    say = tell or (lambda step: None)
    who: Case = {"detector": detector, "every": detect_every} if people is None else {}
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(pose, clip, count, loop, Path(folder)) for count in counts]
        say("check")
        checks = [run.check() for run in runs]
        say("time")
        times = _take_turns(runs, rounds, take)
        say("stages")
        splits = [run.split() for run in runs]
    return [
        Row(
            group="pipeline",
            name=name,
            case={**who, **run.case},
            check=check,
            threads=threads,
            device="cuda" if "cuda" in pose.engine.manifest.device.lower() else "cpu",
            clock="wall",
            load=load(),
            command=command,
            **_measured(run, passes, of_frames, split),
        )
        for run, check, (passes, of_frames), split in zip(runs, checks, times, splits, strict=True)
    ]


def place_boxes(width: int, height: int, people: int) -> Floats:
    """Upright boxes of several sizes side by side, all inside the frame.

    Args:
        width: of the frame, pixels.
        height: of the frame, pixels.
        people: how many; with many, neighbours overlap.

    Returns:
        [people, 4] (x0, y0, x1, y1) in frame pixels.
    """
    tall = height * np.linspace(*HEIGHTS, people)
    wide = np.minimum(SLIM * tall, width)
    left = (width - wide) * np.linspace(0, 1, people)
    top = (height - tall) * 0.5
    return np.stack((left, top, left + wide, top + tall), axis=1).astype(np.float32)


@dataclass(frozen=True)
class Loop:
    """What is done with each frame, as `measure_people` says."""

    detect_every: int = 1
    track: bool = False
    smooth: str | None = None
    draw: bool = False
    write: bool = False

    @property
    def follows(self) -> dict[str, Any]:
        """The arguments of `Pose.stream`."""
        return {"detect_every": self.detect_every, "track": self.track, "smooth": self.smooth}


@dataclass(frozen=True)
class Clip:
    """A video that was read once; `read_clip` makes it.

    Attributes:
        source: it.
        name: of the file.
        width: of a frame, pixels.
        height: of a frame, pixels.
        frames: how many there are, or are wanted.
        first: the first of them.
    """

    source: str | Path
    name: str
    width: int
    height: int
    frames: int
    first: tuple[Image, ...]


@dataclass
class Run:
    """Passes over a clip with one number of people, each from opening it to finished files.

    Attributes:
        pose: that finds the joints.
        clip: that is read.
        people: boxes in each frame; None where the detector finds them.
        loop: what else is done.
        folder: where files are written; each pass replaces them.
        seconds: of the frames of each pass so far.
        found: people a frame, as `check` counted them.
    """

    pose: Pose
    clip: Clip
    people: int | None
    loop: Loop
    folder: Path
    seconds: list[tuple[float, ...]] = field(default_factory=list)
    found: float = 0.0

    @property
    def case(self) -> Case:
        """What a row says of it."""
        manifest = self.pose.engine.manifest
        return {
            **({} if self.people is None else {"people": self.people}),
            "model": manifest.spec.name,
            "engine": manifest.kind,
            "precision": manifest.precision,
            "video": self.clip.name,
            "frame": f"{self.clip.width}x{self.clip.height}",
            "draw": self.loop.draw,
            "write": self.loop.write,
            **({"mode": manifest.options.mode} if manifest.options.mode != "latency" else {}),
        }

    def __call__(self) -> None:
        """One pass, its frames' times kept."""
        stamps = []
        with open_source(self.clip.source, max_frames=self.clip.frames) as source:
            stamps.append(time.perf_counter())
            for _ in self._results(source):
                stamps.append(time.perf_counter())
        self.seconds.append(_of_each(stamps, self._together))

    def check(self) -> str:
        """How the answers were found right.

        Raises:
            AnswerError: they are not.
        """
        with open_source(self.clip.source, max_frames=self.clip.frames) as source:
            given = [people for _, people in self._stream(source)]
        if len(given) != self.clip.frames:
            raise AnswerError(f"expected {self.clip.frames} frames, got {len(given)}")
        counts = {len(people) for people in given}
        if self.people is not None and counts != {self.people}:
            raise AnswerError(f"expected {self.people} people a frame, got {sorted(counts)}")
        expected = self._batch()
        distance = max(
            (_distance(a, b) for a, b in zip(given, expected, strict=False)), default=0.0
        )
        if not distance <= NEAR:
            raise AnswerError(f"joints are {distance:.3g} px from those of Pose.batch")
        self.found = sum(map(len, given)) / len(given)
        return (
            f"{len(given)} frames, {sum(map(len, given))} people; joints of the first "
            f"{len(expected)} at most {distance:.2g} px from Pose.batch's"
        )

    def split(self) -> dict[str, float]:
        """Milliseconds a frame by stage, as `<stage>_ms`: the median of some passes."""
        found = []
        for _ in range(WATCHED):
            with (
                stages() as spent,
                open_source(self.clip.source, max_frames=self.clip.frames) as source,
            ):
                for _ in self._results(source, in_line=True):
                    pass
            found.append(spent)
        per_frame = 1e3 / self.clip.frames
        return {
            f"{name}_ms": float(f"{per_frame * statistics.median(s[name] for s in found):.4g}")
            for name in found[0]
        }

    def _results(self, source: Source, in_line: bool = False) -> Iterator[People]:
        """The people of each frame, drawn and written."""
        with ExitStack() as stack:
            sinks = [stack.enter_context(sink) for sink in self._sinks(source, in_line)]
            for frame, people in self._stream(source):
                if self.loop.draw and not self.loop.write:
                    with stage("draw"):
                        draw_people(frame.image, people)
                for sink in sinks:
                    sink.write(frame, people)
                yield people

    def _sinks(self, source: Source, in_line: bool) -> list[Sink]:
        if not self.loop.write:
            return []
        spec = self.pose.engine.manifest.spec
        header = {"model": spec.name, "joints": list(spec.joints.joints)}
        sinks = open_sinks(("jsonl",), self.folder, source, header)
        if self.loop.draw:
            drawn = open_drawn(self.folder, source)
            sinks.append(drawn if in_line else BackgroundSink(drawn))
        return sinks

    def _stream(self, source: Source) -> Iterator[tuple[Frame, People]]:
        return self.pose.stream(source, boxes=self._boxes, **self.loop.follows)

    @property
    def _boxes(self) -> BoxesFile | None:
        if self.people is None:
            return None
        placed = place_boxes(self.clip.width, self.clip.height, self.people)
        found = Boxes(placed, np.ones(len(placed), np.float32))
        return BoxesFile(Path(self.clip.name), dict.fromkeys(range(self.clip.frames), found))

    @property
    def _together(self) -> int:
        """How many frames the stream takes at once."""
        return Follower(self.pose, **self.loop.follows).together(self._boxes)

    def _batch(self) -> list[People]:
        """The people of the first frames, in batches as large as the stream's.

        Filters and boxes that follow joints leave only the first frame as it is.
        """
        together = self._together
        follows = self.people is None and self.loop.detect_every > 1
        images = self.clip.first[: 1 if self.loop.smooth or follows else None]
        found: list[People] = []
        for start in range(0, len(images), together):
            part = images[start : start + together]
            boxes = self._boxes
            rows = None if boxes is None else [boxes.boxes_for(0, "").boxes] * len(part)
            found += self.pose.batch(part, boxes=rows)
        return found


def _of_each(stamps: Sequence[float], together: int) -> tuple[float, ...]:
    """Seconds of each frame: those that go together come at once, and share their time evenly.

    Args:
        stamps: when the first began, and when each was there.
        together: how many are taken at once.
    """
    last = len(stamps) - 1
    found: list[float] = []
    for start in range(0, last, together):
        end = min(start + together, last)
        found += [(stamps[end] - stamps[start]) / (end - start)] * (end - start)
    return tuple(found)


def _checked_counts(
    people: Sequence[int] | None, frames: int, rounds: int
) -> tuple[int | None, ...]:
    for name, value in (("frames", frames), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if people is None:
        return (None,)
    if not people or any(count < 0 for count in people):
        raise ValueError(f"people must be numbers from 0, got {list(people)}")
    return tuple(dict.fromkeys(people))


def read_clip(video: str | Path, frames: int) -> Clip:
    """Read a video once: how many frames it has, and the first of them.

    Args:
        video: what `fastpose.frames.open_source` takes.
        frames: at most so many.

    Raises:
        FrameError: it cannot be read.
    """
    first: list[Image] = []
    count = 0
    with open_source(video, max_frames=frames) as source:
        for count, frame in enumerate(source, 1):
            if count <= CHECKED:
                first.append(frame.image)
        height, width = source.size
    return Clip(video, Path(str(video)).name, width, height, count, tuple(first))


def _distance(ours: People, theirs: People) -> float:
    """Largest distance of two joints, in pixels; infinite where others were found."""
    if len(ours) != len(theirs):
        return math.inf
    known = np.isfinite(theirs.keypoints)
    if not np.array_equal(np.isfinite(ours.keypoints), known):
        return math.inf
    offsets = np.where(known, ours.keypoints - theirs.keypoints, 0)
    return float(np.abs(offsets).max(initial=0))


def _take_turns(runs: Sequence[Run], rounds: int, take: Turns) -> list[tuple[Times, Times]]:
    """Of each run the times of its passes and of the frames in them, of its steadiest try.

    Runs are not held against each other, so only those that are unsteady take turns once more.
    """
    best: dict[str, tuple[Times, Times]] = {}
    left = {str(run.people): run for run in runs}
    for _ in range(TRIES):
        for name, passes in take(left, rounds=rounds, repeats=1).items():
            if name not in best or passes.spread < best[name][0].spread:
                best[name] = passes, Times(sum(left[name].seconds[-rounds:], ()))
        left = {name: run for name, run in left.items() if best[name][0].spread > SPREAD}
        if not left:
            break
    return list(best.values())


def _measured(run: Run, passes: Times, of_frames: Times, split: dict[str, float]) -> dict[str, Any]:
    """The row's time, figures, and why they are refused."""
    time_, _, refused = figures_of({"passes": passes})
    figures = dict(split)
    if run.people is None:
        figures["people_found"] = round(run.found, 2)
    if time_ is not None:
        time_ = {**of_frames.to_dict(), "spread": round(spread(passes.seconds), 4)}
        figures["fps"] = round(run.clip.frames / passes.median, 2)
    resident = resident_bytes()
    if resident is not None:
        figures["rss_mb"] = round(resident / 1e6, 1)
    return {"time": time_, "figures": figures, "refused": refused}
