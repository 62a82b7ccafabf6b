"""`fastpose predict`: pictures and video in, joints and annotated video out."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose import __version__
from fastpose.cli.options import add_engine, engine_kind, positive, share
from fastpose.cli.progress import Progress

if TYPE_CHECKING:
    from fastpose.detect import BoxesFile
    from fastpose.pose import Pose

FORMATS = ("jsonl", "csv", "coco", "openpose", "parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "source", nargs="+", help="picture, folder, glob, video, camera number, or URL"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    parser.add_argument(
        "--save", type=_formats, default=("jsonl",), metavar="LIST", help=",".join(FORMATS)
    )
    parser.add_argument("--video", action="store_true", help="write the frames with poses drawn")
    parser.add_argument("--show", action="store_true", help="show them in a window")
    parser.add_argument("--min-score", type=share, default=0.3, help="draw joints above this")
    parser.add_argument("--model", default="default", help="name, see `fastpose models`")
    parser.add_argument(
        "--detector",
        default="default",
        metavar="NAME|FILE.onnx|none",
        help="who finds people; none takes the whole frame for one person",
    )
    parser.add_argument("--detector-layout", metavar="LAYOUT", help="what its outputs mean")
    parser.add_argument(
        "--detector-score", type=share, default=0.3, help="least score of a person (default: 0.3)"
    )
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="people's boxes, no detector")
    add_engine(parser)
    parser.add_argument("--detect-every", type=positive, default=1, metavar="N")
    parser.add_argument("--track", action="store_true", help="number people over time")
    parser.add_argument("--smooth", action="store_true", help="filter joints over time; tracks")
    parser.add_argument("--max-frames", type=positive, metavar="N", help="of each source")


def run(args: argparse.Namespace) -> int:
    """Do it for each source in turn."""
    from fastpose.detect import open_detector, read_boxes
    from fastpose.pose import Pose

    kind, file = engine_kind(args.engine)
    boxes = read_boxes(args.boxes) if args.boxes else None
    detector = open_detector(
        "none" if boxes else args.detector,
        layout=args.detector_layout,
        device=args.device,
        score=args.detector_score,
    )
    with Pose(
        file or args.model,
        detector=detector,
        engine=kind,
        device=args.device,
        precision=args.precision,
    ) as pose:
        sources = [_source(args, pose, source, boxes) for source in args.source]
        manifest = pose.engine.manifest
    if args.json:
        engine = {"kind": manifest.kind, "precision": manifest.precision}
        print(json.dumps({"model": manifest.spec.name, "engine": engine, "sources": sources}))
    return 0


def _source(
    args: argparse.Namespace, pose: Pose, what: str, boxes: BoxesFile | None
) -> dict[str, Any]:
    """One source from its first frame to its last; what was finished is kept whatever happens."""
    from fastpose.frames import open_source
    from fastpose.sinks import open_sinks

    with ExitStack() as stack:
        source = stack.enter_context(open_source(what, max_frames=args.max_frames))
        sinks = [
            stack.enter_context(sink)
            for sink in open_sinks(
                args.save,
                args.out,
                source,
                _header(pose, what),
                video=args.video,
                show=args.show,
                min_score=args.min_score,
            )
        ]
        progress = Progress(source.name, source.count)
        people_seen = 0
        try:
            for frame, people in pose.stream(
                source,
                detect_every=args.detect_every,
                track=args.track,
                smooth="one-euro" if args.smooth else None,
                boxes=boxes,
            ):
                for sink in sinks:
                    sink.write(frame, people)
                people_seen += len(people)
                progress.step(f"{len(people)} people")
        finally:
            progress.finish(f"{people_seen} people in all")
    if source.warning:
        print(f"fastpose predict: {source.warning}", file=sys.stderr)
    files = [str(path) for sink in sinks for path in sink.files]
    for path in files:
        print(f"wrote {path}", file=sys.stderr)
    return {
        "source": what,
        "frames": progress.done,
        "people": people_seen,
        "seconds": round(progress.seconds, 3),
        "fps": round(progress.rate, 2),
        "files": files,
        "warning": source.warning,
    }


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
