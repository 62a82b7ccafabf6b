"""All measurements of one model on this machine: its engines, then a video by number of people."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpose.bench.engines import (
    EngineCase,
    available_cases,
    case_of_bundle,
    measure_engines,
    parse_case,
)
from fastpose.bench.people import PEOPLE, AnswerError, measure_people
from fastpose.bench.rows import Document, Row, new_document, without_folders
from fastpose.bundles import build_engine
from fastpose.detect import open_detector
from fastpose.engines import (
    Manifest,
    Options,
    names_file,
    open_engine,
    read_bundle,
    runtime_module,
    source,
)
from fastpose.errors import BackendError, EngineError, FrameError
from fastpose.fixtures import Fixtures, built_in_pictures, windows
from fastpose.frames import open_source, read_picture
from fastpose.measure import FEWEST, TRIES, Times, take_turns
from fastpose.models import model_spec
from fastpose.models.spec import ModelSpec
from fastpose.ops import set_num_threads
from fastpose.pose import Image, Pose
from fastpose.sinks.video import OpenCVVideoSink
from fastpose.types import Frame, People

BATCHES = (1, 8)
FRAMES = 6  # of each pass of a video
TURNS, PASSES = 10, 5  # of an engine, of a video: few, for a first look
CLIP_SIZE, CLIP_FPS, CLIP_STEP = (720, 1280), 25.0, 8  # (h, w); pixels that it pans a frame
ALL = "all"

Keep = Callable[[Document], object]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        model: a registered name, a weight file, or a bundle, which is its one engine.
        engines: of them, "ENGINE:PRECISION" or "torch:PRECISION:COMPILE", or "all"; the video runs
            in each. None of them takes those that run here at once, int8 only where there are
            pictures for it, and for the video the engine that `Pose` takes.
        device: "cpu" or "cuda".
        threads: of the CPU for each network and the kernels; None leaves the number to them.
        batches: numbers of windows in a run of an engine; none leaves the engines out.
        people: numbers of people placed in the video's frames; none leaves these passes out.
        video: None takes a clip of the built-in pictures.
        detector: that finds the people of the video, in passes of their own; None is the default
            one where a video is given, else nobody, as "none" is.
        detect_every: of these passes, as in `Pose.stream`.
        data: KIND:PATH of an annotated set, or a folder of pictures, on which the engines are
            compared with the network in f32; None takes the built-in pictures.
        limit: most windows of it.
        calibration: pictures for int8: a folder, or KIND:PATH.
        frames: of each pass of the video.
        rounds: turns of each engine and passes of each video, at least `fastpose.measure.FEWEST`;
            None takes 10 and 5.
        draw: draw the people, too.
        alone: start each engine once in a process of its own, for its memory and its start.
    """

    model: str = "default"
    engines: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    batches: tuple[int, ...] = BATCHES
    people: tuple[int, ...] = PEOPLE
    video: Path | None = None
    detector: str | None = None
    detect_every: int = 1
    data: str | None = None
    limit: int | None = None
    calibration: str | None = None
    frames: int = FRAMES
    rounds: int | None = None
    draw: bool = False
    alone: bool = True

    @property
    def finder(self) -> str:
        """The detector; "none" where nobody is searched for."""
        return self.detector or ("none" if self.video is None else "default")

    @property
    def weights(self) -> Path | None:
        """The file, where the model is one of weights."""
        return Path(self.model) if self.model.endswith(".safetensors") else None

    @property
    def bundle(self) -> Path | None:
        """The file, where the model is one of an engine."""
        return Path(self.model) if names_file(self.model) and not self.weights else None


def run_bench(
    plan: Plan, *, command: str = "", keep: Keep | None = None, tell: Tell | None = None
) -> Document:
    """Measure the engines of a model by batch, and a video from end to end by number of people.

    Args:
        plan: what is measured.
        command: that makes the document, for its rows.
        keep: called with the document whenever it has more rows.
        tell: called with what begins.

    Returns:
        The rows of all. What cannot run here is among them, with the reason.

    Raises:
        ModelError: no model has that name.
        FrameError, DataError: video or pictures cannot be read.
        WeightsError, EngineError, DetectorError: a file is damaged.
        BackendError: engines are asked for of a model that is one itself, or none can run a video.
        ValueError: an argument is out of range.
    """
    return _Bench(plan, new_document((), command), keep or _nothing, tell or _nothing).run()


def _nothing(_: object) -> None:
    """Keep nothing, tell nobody."""


def chosen_cases(plan: Plan) -> list[EngineCase]:
    """The engines that were asked for, or else those that run here at once.

    Raises:
        BackendError: engines are asked for of a model that is an engine itself.
        ValueError: a word names none.
    """
    if plan.bundle:
        if plan.engines:
            engines = ", ".join(plan.engines)
            raise BackendError(f"{plan.bundle} is an engine itself, got engines {engines}")
        return [case_of_bundle(plan.bundle)]
    if not plan.engines:
        # compiling and building takes longer than all the rest
        return [
            case
            for case in available_cases(plan.device)
            if case.compile == "eager" and (not case.built or _wants_int8(plan, case))
        ]
    if plan.engines == (ALL,):
        cases = available_cases(plan.device)
    else:
        cases = [parse_case(text, plan.device) for text in dict.fromkeys(plan.engines)]
    return [_with_pictures(plan, case) for case in cases]


def _wants_int8(plan: Plan, case: EngineCase) -> bool:
    return case.precision == "int8" and plan.calibration is not None


def _with_pictures(plan: Plan, case: EngineCase) -> EngineCase:
    """Absent, where it is int8 and there is nothing to calibrate it with."""
    if case.precision != "int8" or plan.calibration or case.absent:
        return case
    return replace(case, absent="int8 needs pictures to calibrate it with")


def spec_of(plan: Plan) -> ModelSpec:
    """Of a registered name, a weight file or a bundle.

    Raises:
        ModelError: no model has that name.
        WeightsError: the weights have no card.
        EngineError: there is no such bundle, or it is a detector's.
    """
    if not plan.bundle:
        return source.read_spec(plan.weights) if plan.weights else model_spec(plan.model)
    manifest, path = read_bundle(plan.bundle)
    if not isinstance(manifest, Manifest):
        raise EngineError(f"{path}: the bundle of a detector, and not of a pose network")
    return manifest.spec


@dataclass
class _Bench:
    """A run in progress."""

    plan: Plan
    document: Document
    keep: Keep
    tell: Tell

    def run(self) -> Document:
        plan = self.plan
        if plan.rounds is not None and plan.rounds < FEWEST:
            raise ValueError(
                f"rounds must be at least {FEWEST}, or nothing is known of their spread, got "
                f"{plan.rounds}"
            )
        if not plan.batches and not self._who():
            raise ValueError("batches and people are none, as is the detector: nothing to measure")
        spec, cases = spec_of(plan), chosen_cases(plan)
        self._look_first(spec)
        if plan.threads:
            set_num_threads(plan.threads)
        watched = self._watched(cases)
        pictures = windows(spec, plan.data, limit=plan.limit, threads=plan.threads)
        if plan.batches:
            self._add(self._engines(cases, pictures))
        if not watched:
            return self.document
        with tempfile.TemporaryDirectory() as folder:
            video = plan.video or make_clip(Path(folder) / "built-in.mp4", plan.frames)
            for case in watched:
                for rows in self._passes(spec, case, video, Path(folder)):
                    self._add(rows)
        return self.document

    def _look_first(self, spec: ModelSpec) -> None:
        """Find out what cannot be read before minutes have gone into the rest."""
        if self.plan.finder != "none":
            open_detector(self.plan.finder, threads=self.plan.threads).close()
        if self.plan.video is not None:
            with open_source(self.plan.video, max_frames=1) as frames:
                if not any(True for _ in frames):
                    raise FrameError(f"{self.plan.video}: has no frame")
        if self.plan.calibration:
            windows(spec, self.plan.calibration, limit=1, split="train")

    def _add(self, rows: Sequence[Row]) -> None:
        command = self.document.command
        self.document = self.document.with_rows(replace(row, command=command) for row in rows)
        self.keep(self.document)

    def _engines(self, cases: Sequence[EngineCase], pictures: Fixtures) -> list[Row]:
        plan = self.plan
        return list(
            measure_engines(
                plan.model,
                cases,
                batches=plan.batches,
                pictures=pictures,
                rounds=plan.rounds or TURNS,
                threads=plan.threads,
                calibration=plan.calibration,
                alone=plan.alone,
                tell=self.tell,
            )
        )

    def _watched(self, cases: Sequence[EngineCase]) -> list[EngineCase]:
        """The engines that the video runs in: those asked for, else the one that `Pose` takes.

        Raises:
            BackendError: that one cannot run here.
        """
        plan = self.plan
        if not self._who():
            return []
        if plan.engines or plan.bundle:
            return list(cases)
        with closing(open_engine(plan.model, device=plan.device, threads=plan.threads)) as engine:
            manifest = engine.manifest
        return [EngineCase(manifest.kind, manifest.precision, device=plan.device)]

    def _reason_against(self, case: EngineCase) -> tuple[str, str]:
        """Why a video would say nothing of an engine: it is absent, or it is refused.

        One whose joints are wrong is not timed here either; one that was only unsteady is.
        """
        rows = [
            row
            for row in self.document.rows
            if row.group == "engines" and case.key.items() <= row.case.items()
        ]
        absent = case.absent
        if rows and all(row.absent for row in rows):  # and not only in batches that are too large
            absent = rows[0].absent
        refused = (row.refused for row in rows if row.refused and not row.unsteady)
        return absent, next(refused, "")

    def _passes(
        self, spec: ModelSpec, case: EngineCase, video: Path, folder: Path
    ) -> Iterator[list[Row]]:
        """The rows of one engine: people who are placed, then people who are found."""
        plan = self.plan
        row = Row(
            "pipeline",
            spec.name,
            {**case.key, "video": video.name},
            threads=plan.threads or 0,
            device=case.device,
        )
        absent, refused = self._reason_against(case)
        if absent or refused:
            yield [replace(row, absent=absent, refused="" if absent else refused)]
            return
        self.tell(f"{case.name}: open for video")
        with ExitStack() as stack:
            try:
                pose = stack.enter_context(self._pose(case, folder))
            except (BackendError, EngineError) as error:
                yield [replace(row, absent=without_folders(str(error)))]
                return
            for people in self._who():
                which = "placed" if people else "found"
                steps = _Steps(self.tell, f"{case.name}: people {which}")
                who = {} if people else {"detector": Path(plan.finder).name}
                failed = replace(row, case={**who, **row.case})
                try:
                    rows = self._measure(pose, spec, video, people, steps)
                except AnswerError as error:
                    rows = [replace(failed, refused=str(error))]
                except (BackendError, EngineError) as error:  # such as of memory, with many people
                    rows = [replace(failed, absent=without_folders(str(error)))]
                yield [_tidy(one, case.key) for one in rows]

    def _who(self) -> list[tuple[int, ...] | None]:
        """Numbers of people who are placed, then None for those who are found."""
        placed: list[tuple[int, ...] | None] = [self.plan.people] if self.plan.people else []
        return placed if self.plan.finder == "none" else [*placed, None]

    def _measure(
        self,
        pose: Pose,
        spec: ModelSpec,
        video: Path,
        people: tuple[int, ...] | None,
        steps: _Steps,
    ) -> list[Row]:
        plan = self.plan
        return measure_people(
            pose,
            video,
            people=people,
            frames=plan.frames,
            rounds=plan.rounds or PASSES,
            detect_every=plan.detect_every if people is None else 1,
            draw=plan.draw,
            threads=plan.threads or 0,
            detector=Path(plan.finder).name,
            name=spec.name,
            tell=steps,
            take=steps.take,
        )

    def _pose(self, case: EngineCase, folder: Path) -> Pose:
        """The model in an engine, with the detector of the passes that have one."""
        plan = self.plan
        given: dict[str, Any] = {"detector": plan.finder, "threads": plan.threads}
        if plan.bundle:
            return Pose(plan.model, **given)
        if not plan.engines:  # as `fastpose predict` does, which also chooses for the detector
            return Pose(plan.model, device=plan.device, **given)
        options = Options(compile=case.compile)
        if case.built:
            return Pose(self._built(case, options, folder), **given)
        return Pose(
            plan.model,
            engine=case.engine,
            precision=case.precision,
            device=case.device,
            options=options,
            **given,
        )

    def _built(self, case: EngineCase, options: Options, folder: Path) -> Path:
        """A bundle with all sizes of batch that people come in."""
        plan = self.plan
        self.tell(f"{case.name}: build for video")
        suffix = runtime_module(case.engine).suffix(case.precision, options)
        return build_engine(
            spec_of(plan).name,
            engine=case.engine,
            precision=case.precision,
            device=case.device,
            weights=plan.weights,
            options=options,
            calibration=plan.calibration if case.precision == "int8" else None,
            allow=bool(plan.batches),  # then it was compared with the network among the engines
            out=folder / f"{case.name.replace(' ', '-')}{suffix}",
            threads=plan.threads,
        )


@dataclass
class _Steps:
    """The steps of a video's passes: minutes go by in them, and more where times are unsteady."""

    tell: Tell
    label: str
    tries: int = 0

    def __call__(self, step: str) -> None:
        self.tell(f"{self.label}: {step}")

    def take(self, *args: Any, **options: Any) -> dict[str, Times]:
        """`take_turns`, announced where it is not the first time."""
        self.tries += 1
        if self.tries > 1:
            self(f"time, try {self.tries} of {TRIES}, for the last was unsteady")
        return take_turns(*args, **options)


def _tidy(row: Row, key: dict[str, str]) -> Row:
    """With all words of its engine, and without the memory of a process that has held others."""
    figures = {name: value for name, value in row.figures.items() if name != "rss_mb"}
    return replace(row, case={**row.case, **key}, figures=figures)


def make_clip(path: Path, frames: int) -> Path:
    """A video that pans over the built-in pictures, side by side in one long strip.

    Raises:
        OutputError: it cannot be written.
    """
    height, width = CLIP_SIZE
    strip = np.concatenate(
        [_of_height(read_picture(file), height) for file, _ in built_in_pictures()], axis=1
    )
    nobody = People.empty(model_spec("default").joints)
    with OpenCVVideoSink(path, CLIP_FPS) as sink:
        for i in range(frames):
            columns = np.arange(i * CLIP_STEP, i * CLIP_STEP + width) % strip.shape[1]
            image = np.ascontiguousarray(strip[:, columns])
            sink.write(Frame(image, i, i / CLIP_FPS, path.stem), nobody)
    return path


def _of_height(image: Image, height: int) -> Image:
    width = round(image.shape[1] * height / image.shape[0])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
