"""`fastpose predict`: pictures and video in, joints and annotated video out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose import __version__
from fastpose.cli import UNUSABLE
from fastpose.cli.options import add_engine, engine_and_model, positive, run_options, share
from fastpose.cli.progress import Progress
from fastpose.errors import DetectorError, FrameError

if TYPE_CHECKING:
    from fastpose.detect import BoxesFile
    from fastpose.pose import Pose
    from fastpose.sinks.files import Sink
    from fastpose.types import Frame, People

FORMATS = ("jsonl", "csv", "coco", "openpose", "parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "source", nargs="+", help="picture, folder, 'glob', video, camera number, or URL"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder for the results; files of an earlier run are replaced (default: out)",
    )
    parser.add_argument(
        "--save",
        type=_formats,
        default=("jsonl",),
        metavar="LIST",
        help=f"some of {','.join(FORMATS)} (default: jsonl)",
    )
    parser.add_argument(
        "--video",
        action="store_true",
        help="write the frames with the poses drawn: a video, or pictures for pictures",
    )
    parser.add_argument(
        "--show", action="store_true", help="show the drawn frames in a window; q ends"
    )
    parser.add_argument(
        "--min-score",
        type=share,
        default=0.3,
        metavar="SCORE",
        help="draw joints from this score on; files hold all of them (default: 0.3)",
    )
    parser.add_argument(
        "--model",
        default="default",
        metavar="NAME|FILE",
        help="a name that `fastpose models` lists, or a file: of weights (.safetensors) with their "
        "card, or of a built engine (default: cpn-light)",
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--detector",
        default="default",
        metavar="NAME|FILE|none",
        help="what finds people: a detector that `fastpose models` lists, cpm-person, a graph "
        "(.onnx), what `fastpose build` made of a detector (.json), or none for the whole frame as "
        "one person (default: fpn-light)",
    )
    parser.add_argument(
        "--detector-layout",
        metavar="LAYOUT",
        help="what its outputs mean; an unknown name lists the known ones (default: recognised)",
    )
    parser.add_argument(
        "--detector-score",
        type=share,
        metavar="SCORE",
        help="least score of a person (default: 0.5 for fpn-light and cpm-person, else 0.3)",
    )
    who.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="people's boxes in place of a detector: .jsonl, .json (COCO) or .csv",
    )
    add_engine(parser)
    parser.add_argument(
        "--detect-every",
        type=positive,
        default=1,
        metavar="N",
        help="look for people in every N-th frame, follow them in between (default: 1)",
    )
    parser.add_argument("--track", action="store_true", help="give people numbers that stay")
    parser.add_argument(
        "--smooth", action="store_true", help="filter joints over time; implies --track"
    )
    parser.add_argument(
        "--max-frames", type=positive, metavar="N", help="stop after N of each source"
    )


def run(args: argparse.Namespace) -> int:
    """Do it for each source in turn; one that cannot be read does not stop the others."""
    from fastpose.detect import beside, open_detector, read_boxes
    from fastpose.ops import set_num_threads
    from fastpose.pose import Pose

    kind, model = engine_and_model(args)
    if args.boxes and args.detector_layout:
        raise DetectorError(f"--detector-layout is for --detector FILE.onnx, got {args.boxes}")
    boxes = read_boxes(args.boxes) if args.boxes else None
    beside_kind, precision = beside(kind, args.precision, args.detector)
    detector = open_detector(
        "none" if boxes else args.detector,
        layout=args.detector_layout,
        kind=beside_kind,
        device=args.device,
        precision=precision,
        threads=args.threads,
        score=args.detector_score,
    )
    if args.threads:
        set_num_threads(args.threads)
    with Pose(
        model,
        detector=detector,
        engine=kind,
        device=args.device,
        precision=args.precision,
        threads=args.threads,
        single_view=args.single_view,
        options=run_options(args),
        build=args.build,
    ) as pose:
        names: set[str] = set()
        sources = []
        for what in args.source:
            try:
                sources.append(_source(args, pose, what, boxes, names))
            except FrameError as error:
                if args.debug or len(args.source) == 1:
                    raise
                print(f"fastpose predict: {error}", file=sys.stderr)
                sources.append({"source": what, "error": str(error)})
        manifest = pose.engine.manifest
    if args.json:
        engine = {"kind": manifest.kind, "precision": manifest.precision}
        print(json.dumps({"model": manifest.spec.name, "engine": engine, "sources": sources}))
    return UNUSABLE if any("error" in source for source in sources) else 0


def _source(
    args: argparse.Namespace,
    pose: Pose,
    what: str,
    boxes: BoxesFile | None,
    names: set[str],
) -> dict[str, Any]:
    """One source from its first frame to its last; what was finished is kept whatever happens."""
    from fastpose.frames import open_source
    from fastpose.sinks import open_sinks

    sinks: list[Sink] = []
    try:
        with open_source(what, max_frames=args.max_frames) as source:
            own, source.name = source.name, _free_name(source.name, names)
            sinks += open_sinks(
                args.save,
                args.out,
                source,
                _header(pose, what),
                video=args.video,
                show=args.show,
                min_score=args.min_score,
            )
            results = pose.stream(
                source,
                detect_every=args.detect_every,
                track=args.track,
                smooth="one-euro" if args.smooth else None,
                boxes=boxes,
            )
            # a picture that is drawn, and frames in files, go by the name of their frame
            renamed = (
                (replace(frame, name=source.name) if frame.name == own else frame, people)
                for frame, people in results
            )
            progress = Progress(source.name, source.count)
            seen = _write(renamed, sinks, progress)
    finally:
        for sink in sinks:
            _tell_files(sink)
    if source.warning:
        print(f"fastpose predict: {source.warning}", file=sys.stderr)
    return {
        "source": what,
        "frames": progress.done,
        "people": seen,
        "seconds": round(progress.seconds, 3),
        "fps": round(progress.rate, 2),
        "files": [str(path) for sink in sinks for path in sink.files],
        "warning": source.warning,
    }


def _write(
    results: Iterable[tuple[Frame, People]], sinks: Sequence[Sink], progress: Progress
) -> int:
    """Write every frame to every sink, which are closed at the end; return how many people."""
    seen = 0
    with ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
        try:
            for frame, people in results:
                for sink in sinks:
                    sink.write(frame, people)
                seen += len(people)
                progress.step(_people(len(people)))
        finally:
            progress.finish(f"{_people(seen)} in all")
    return seen


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or, where a source before has it, with a number, so that no result is replaced."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"


def _tell_files(sink: Sink) -> None:
    """Say what was written: each file, or how many where there are several."""
    from fastpose.sinks.background import BackgroundSink
    from fastpose.sinks.video import OpenCVVideoSink

    if len(sink.files) > 1:
        print(f"wrote {len(sink.files)} files in {sink.files[0].parent}", file=sys.stderr)
        return
    for path in sink.files:
        note = ""
        writer = sink.inner if isinstance(sink, BackgroundSink) else sink
        if isinstance(writer, OpenCVVideoSink):
            note = f" ({writer.codec}; the extra fastpose-inference[video] gives H.264)"
        print(f"wrote {path}{note}", file=sys.stderr)


def _header(pose: Pose, what: str) -> dict[str, Any]:
    manifest = pose.engine.manifest
    return {
        "model": manifest.spec.name,
        "skeleton": manifest.spec.skeleton,
        "joints": list(manifest.spec.joints.joints),
        "source": Path(what).name,
        "engine": {"kind": manifest.kind, "precision": manifest.precision},
        "versions": {"fastpose": __version__, **manifest.versions},
    }


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown {unknown}; choose from {','.join(FORMATS)}")
    return names
