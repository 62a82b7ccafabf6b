"""`fastpose eval`: the accuracy of a model, or of somebody's predictions, on annotated data."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose.cli.options import add_engine, engine_and_model, engine_kind, positive, run_options
from fastpose.cli.progress import Progress

if TYPE_CHECKING:
    from fastpose.datasets import BoxData, CocoData, PoseData
    from fastpose.detect import Detector
    from fastpose.engines import Engine
    from fastpose.evaluate import Report
    from fastpose.types import Boxes

DETECTOR = "default-detector"

Measured = tuple["Report", dict[str, Any]]
"""The figures, and what was measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a name that `fastpose models` lists, 'default', or a built engine's file; for "
        f"boxes: data {DETECTOR}, another of the listed detectors, or a detector's file: a graph "
        "(.onnx) or what `fastpose build` made of it (.json)",
    )
    what.add_argument(
        "--predictions",
        metavar="FILE",
        help="joints of all the set's people in order, [N, K, 2] in pixels as the set's own files "
        "count them (LSP and MPII from 1): FILE.npy or FILE.npz:KEY; for coco: data COCO results "
        "(.json)",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="KIND:PATH",
        help="lsp:DIR and lspet:DIR give pck@0.2, mpii:FILE pckh@0.5, flic:FILE pck@0.2 with elbow "
        "and wrist (all in percent); coco:ANNOTATIONS.json gives ap of poses, boxes:DIR det_ap50, "
        "det_ap and recall of boxes (all from 0 to 1); boxes:FILE.json is one annotation file",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="test",
        help="part of the set; of val and test, a set has the one that is there (default: test)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="pictures of mpii:, flic: or coco: data (default: images/ beside the annotations)",
    )
    parser.add_argument(
        "--observer-centric",
        action="store_true",
        help="flic: left and right as in the picture, as some papers have it",
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="coco: people's boxes, such as COCO results of a detector (default: the true boxes)",
    )
    who.add_argument(
        "--detector",
        metavar="default|FILE|none",
        help="coco: what finds people, in place of the true boxes",
    )
    parser.add_argument(
        "--detector-layout",
        metavar="LAYOUT",
        help="what a detector's outputs mean; an unknown name lists the known ones (default: "
        "recognised)",
    )
    add_engine(parser)
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only the first N pictures (mpii, flic: people)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; progress goes to standard error."""
    from fastpose.datasets import BoxData, CocoData, open_data

    data = open_data(args.data, args.split, args.images)
    _check(args, data)
    match data:
        case BoxData():
            report, about = _measure_detector(args, data.head(args.limit))
        case CocoData():
            report, about = _measure_coco(args, data)
        case _:
            report, about = _measure_joints(args, data)
    left_out = data.head(args.limit).left_out
    document = {
        **about,
        "data": data.name,
        "split": data.split,
        "images": report.images,
        "people": report.people,
        **({"left_out": left_out} if left_out else {}),
        "rule": report.rule,
    }
    if args.json:
        print(json.dumps({**document, "metrics": report.to_dict()}))
    else:
        print(", ".join(f"{key} {value}" for key, value in document.items()))
        print(_table(report))
    return 0


def _check(args: argparse.Namespace, data: PoseData | BoxData) -> None:
    """Refuse what this set cannot use.

    Raises:
        DataError: an option is given that belongs to other sets, or with predictions, which have
            been made without it.
    """
    from fastpose.errors import DataError

    fitting = {
        "--observer-centric": (args.observer_centric, {"flic"}),
        "--boxes": (args.boxes, {"coco"}),
        "--detector": (args.detector, {"coco"}),
        "--detector-layout": (args.detector_layout, {"coco", "boxes"}),
        "--flip": (args.flip, {"lsp", "lspet", "mpii", "flic", "coco"}),
        "--single-view": (args.single_view, {"lsp", "lspet", "mpii", "flic", "coco"}),
        "--predictions": (args.predictions, {"lsp", "lspet", "mpii", "flic", "coco"}),
    }
    alone = {"--flip": args.flip, "--boxes": args.boxes, "--detector": args.detector}
    for option, value in alone.items():
        if args.predictions and value:
            raise DataError(f"{option} is for a model, got --predictions {args.predictions}")
    if args.detector_layout and data.name == "coco" and not args.detector:
        raise DataError("--detector-layout is for --detector FILE.onnx, got no --detector")
    for option, (value, kinds) in fitting.items():
        if value and data.name not in kinds:
            raise DataError(f"{option} is for {', '.join(sorted(kinds))} data, got {args.data}")


def _measure_joints(args: argparse.Namespace, data: PoseData) -> Measured:
    from fastpose.datasets import observer_centric, read_predictions
    from fastpose.evaluate import evaluate_model, evaluate_predictions

    if args.observer_centric:
        data = observer_centric(data)
    about = {"observer_centric": True} if args.observer_centric else {}
    few = data.head(args.limit)
    if args.predictions:
        predicted = read_predictions(args.predictions, data)[: args.limit]
        return evaluate_predictions(few, predicted), {"predictions": args.predictions, **about}
    with closing(_open_engine(args)) as engine:
        progress = Progress(data.name, len(few), "people")
        report = evaluate_model(
            engine, few, flip=args.flip, progress=lambda count: progress.step(count=count)
        )
        progress.finish()
        return report, {**_about(args, engine, progress), **about}


def _measure_coco(args: argparse.Namespace, data: CocoData) -> Measured:
    from fastpose.datasets import read_coco_results
    from fastpose.evaluate import evaluate_people, evaluate_results

    if args.predictions:
        results = read_coco_results(Path(args.predictions), data)
        report = evaluate_results(data.head(args.limit), results)
        return report, {"predictions": args.predictions}
    data = data.head(args.limit)
    with closing(_open_engine(args)) as engine:
        boxes = _boxes(args, data)
        progress = Progress(data.name, sum(map(len, boxes)), "boxes")
        report = evaluate_people(
            engine,
            data,
            boxes,
            suppress=bool(args.boxes or args.detector),
            flip=args.flip,
            progress=lambda count: progress.step(count=count),
        )
        progress.finish()
        source = args.boxes or args.detector or "gt"
        return report, {**_about(args, engine, progress), "boxes": str(source)}


def _boxes(args: argparse.Namespace, data: CocoData) -> list[Boxes]:
    """The boxes of each picture, from where the options say.

    Raises:
        DataError: those of a file are of none of the pictures, and so of another set.
    """
    from fastpose.detect import read_boxes
    from fastpose.errors import DataError
    from fastpose.evaluate import annotated_boxes, detected_boxes, listed_boxes

    if args.boxes:
        boxes = listed_boxes(data, read_boxes(args.boxes))
        if not any(map(len, boxes)):
            raise DataError(f"{args.boxes}: has no box in any of the {len(boxes)} pictures")
        return boxes
    if not args.detector:
        return annotated_boxes(data)
    with closing(_open_detector(args, args.detector)) as detector:
        progress = Progress(args.detector, len(data.pictures), "pictures")
        boxes = detected_boxes(data, detector, progress=lambda count: progress.step(count=count))
        progress.finish()
    return boxes


def _measure_detector(args: argparse.Namespace, data: BoxData) -> Measured:
    from fastpose.detect import runtime_of
    from fastpose.evaluate import evaluate_detector

    name = "default" if args.model == DETECTOR else args.model
    with closing(_open_detector(args, name, args.precision)) as detector:
        progress = Progress(data.name, len(data), "pictures")
        report = evaluate_detector(
            detector, data, progress=lambda count: progress.step(count=count)
        )
        progress.finish()
        ran = runtime_of(detector)
    return report, {
        "detector": args.model,
        **ran,
        "seconds": round(progress.seconds, 2),
    }


def _open_detector(args: argparse.Namespace, name: str, precision: str = "auto") -> Detector:
    """A detector that also gives the boxes it is not sure of, which the curve needs."""
    from fastpose.detect import open_detector
    from fastpose.errors import BackendError
    from fastpose.evaluate import FLOOR

    kind, file = engine_kind(args.engine)
    if file and not args.detector:
        raise BackendError(f"a detector is given as MODEL; --engine is its runtime, got {file}")
    return open_detector(
        name,
        layout=args.detector_layout,
        kind=kind,
        device=args.device,
        precision=precision,
        threads=args.threads,
        score=FLOOR,
        iou=0.6,
    )


def _open_engine(args: argparse.Namespace) -> Engine:
    from fastpose.bundles import open_or_build
    from fastpose.engines import open_engine

    kind, model = engine_and_model(args)
    return (open_or_build if args.build else open_engine)(
        model,
        kind=kind,
        device=args.device,
        precision=args.precision,
        threads=args.threads,
        single_view=args.single_view,
        options=run_options(args),
    )


def _about(args: argparse.Namespace, engine: Engine, progress: Progress) -> dict[str, Any]:
    manifest = engine.manifest
    return {
        "model": manifest.name,
        "engine": manifest.kind,
        "precision": manifest.precision,
        "flip": args.flip or manifest.spec.flip_inside,
        "seconds": round(progress.seconds, 2),
    }


def _table(report: Report) -> str:
    """The figures, then the first of them joint by joint."""
    first = next(iter(report.metrics))
    rows = report.metrics | {f"{first} {joint}": v for joint, v in report.per_joint.items()}
    width = max(len(name) for name in rows)
    digits = 2 if report.unit == "percent" else 3
    return "\n".join(f"{name:<{width}}  {value:6.{digits}f}" for name, value in rows.items())
