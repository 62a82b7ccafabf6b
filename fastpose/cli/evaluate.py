"""`fastpose eval`: the accuracy of a model, or of somebody's predictions, on annotated data."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose.cli.options import add_engine, engine_kind, positive
from fastpose.cli.progress import Progress

if TYPE_CHECKING:
    from fastpose.datasets import PoseData
    from fastpose.evaluate import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a name that `fastpose models` lists, 'default', or a built engine's file",
    )
    what.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help=".npy [N, K, 2] of joints, for all its pictures in order, in pixels as the set's own "
        "files count them (LSP from 1)",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="KIND:PATH",
        help="annotated pictures: lsp:DIR or lspet:DIR",
    )
    add_engine(parser)
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N pictures")


def run(args: argparse.Namespace) -> int:
    """Measure and print; progress goes to standard error."""
    from fastpose.datasets import open_data

    data = open_data(args.data)
    measure = _measure_predictions if args.predictions else _measure_model
    report, about = measure(args, data)
    document = {**about, "data": data.name, "split": data.split, "images": report.images}
    if args.json:
        print(json.dumps({**document, "metrics": report.to_dict()}))
    else:
        print(", ".join(f"{key} {value}" for key, value in document.items()))
        print(_table(report))
    return 0


def _measure_predictions(args: argparse.Namespace, data: PoseData) -> tuple[Report, dict[str, Any]]:
    from fastpose.datasets import read_predictions
    from fastpose.evaluate import evaluate_predictions

    predicted = read_predictions(args.predictions, data)
    report = evaluate_predictions(data.head(args.limit), predicted[: args.limit])
    return report, {"predictions": str(args.predictions)}


def _measure_model(args: argparse.Namespace, data: PoseData) -> tuple[Report, dict[str, Any]]:
    from fastpose.engines import open_engine
    from fastpose.evaluate import evaluate_model

    kind, file = engine_kind(args.engine)
    data = data.head(args.limit)
    with closing(
        open_engine(
            file or args.model,
            kind=kind,
            device=args.device,
            precision=args.precision,
            threads=args.threads,
        )
    ) as engine:
        progress = Progress(data.name, len(data), "pictures")
        report = evaluate_model(
            engine, data, flip=args.flip, progress=lambda count: progress.step(count=count)
        )
        progress.finish()
        manifest = engine.manifest
    return report, {
        "model": manifest.name,
        "engine": manifest.kind,
        "precision": manifest.precision,
        "flip": args.flip,
        "seconds": round(progress.seconds, 2),
    }


def _table(report: Report) -> str:
    """The figures in percent, then the first of them joint by joint."""
    first = next(iter(report.metrics))
    rows = report.metrics | {f"{first} {joint}": v for joint, v in report.per_joint.items()}
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:<{width}}  {value:6.2f}" for name, value in rows.items())
