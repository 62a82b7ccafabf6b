"""`fastpose build`: a network becomes the file of a runtime, checked in pixels."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose.cli.bundles import files_text, precision_text, report_lines, row, told_in_one_line
from fastpose.cli.evaluate import DETECTOR
from fastpose.cli.options import make_options, positive
from fastpose.cli.progress import Stages
from fastpose.engines import BUCKETS, KINDS, SUFFIXES
from fastpose.engines.engine import PRECISIONS
from fastpose.engines.options import CHOICES, Options
from fastpose.errors import BackendError, DataError, EngineError, UnverifiedError

if TYPE_CHECKING:
    from fastpose.engines import DetectorManifest, Manifest

OPTIONS = (  # of `fastpose.engines.Options`, by their names in the arguments
    "flip",
    "stages",
    "joints",
    "mode",
    "requests",
    "compile",
    "workspace",
    "version_compatible",
    "hardware_compatible",
    "refit",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a pose network or detector that `fastpose models` lists, default, or {DETECTOR}; or "
        "a plan that was built with --refit, to make another of it with --weights",
    )
    parser.add_argument("--engine", choices=KINDS, default="openvino", help="(default: openvino)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="f32",
        help="int8 needs --calibration (default: f32)",
    )
    parser.add_argument(
        "--batch",
        type=_sizes,
        metavar="N,N,...",
        help="windows of a run that it is compiled for, such as 1,8,32; more people are split "
        f"(default: {','.join(map(str, BUCKETS))})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the runtime's file (.onnx; .xml for int8 of openvino, .pt2 of torch, .plan of "
        "tensorrt), of a detector the .json beside its two (default: in the user's cache, where "
        "the other verbs find what they can only run when it was built)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a .safetensors file of the model (default: its trained weights, else random ones)",
    )
    parser.add_argument(
        "--calibration",
        metavar="DIR|KIND:PATH",
        help="pictures of people like yours, for int8: a folder, or an annotated set, such as "
        "lsp:DIR",
    )
    parser.add_argument(
        "--images",
        metavar="DIR|KIND:PATH",
        help="pictures to check the engine on beside torch in f32; with an annotated set its "
        "accuracy too (default: a few that are built in)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads of building and checking"
    )
    parser.add_argument(
        "--allow", action="store_true", help="keep the engine though it moved joints too far"
    )
    parser.add_argument(
        "--rebuild", action="store_true", help="build it anew though the cache has it"
    )
    _add_graph(parser.add_argument_group("what the graph does"))
    _add_kinds(parser.add_argument_group("of single runtimes"))


def _add_graph(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--flip", action="store_true", help="average the maps with those of the mirrored window"
    )
    group.add_argument(
        "--stages",
        metavar="last|sum|mean|N",
        help="of a network with several: the last stage's maps, their sum or mean, or stage N's, "
        "behind which the graph ends (default: last)",
    )
    group.add_argument(
        "--decode",
        dest="joints",
        action="store_true",
        help="find the joints in the graph, which then gives these and no maps",
    )


def _add_kinds(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mode", choices=CHOICES["mode"], help="how it is run by default (openvino)"
    )
    group.add_argument(
        "--requests", type=positive, metavar="N", help="side by side in throughput mode (openvino)"
    )
    group.add_argument(
        "--compile",
        choices=CHOICES["compile"],
        help="a file of torch is compiled by AOTInductor, and the other choices have none (torch; "
        "default: aot)",
    )
    group.add_argument(
        "--workspace", type=positive, metavar="MIB", help="most scratch memory (tensorrt)"
    )
    group.add_argument(
        "--version-compatible", action="store_true", help="for later versions too (tensorrt)"
    )
    group.add_argument(
        "--hardware-compatible",
        choices=CHOICES["hardware_compatible"],
        help="for other GPUs too: of compute capability 8.0 and later, or of the same (tensorrt)",
    )
    group.add_argument(
        "--refit", action="store_true", help="so that other weights can be put in (tensorrt)"
    )


def run(args: argparse.Namespace) -> int:
    """Build it; the stages go to standard error, what came out to standard output."""
    from fastpose.engines import read_bundle

    stages = Stages()
    try:
        with told_in_one_line():
            path = _build(args, stages)
    except UnverifiedError as error:
        stages.finish()
        print("\n".join(report_lines(error.report)), file=sys.stderr)
        pictures = "more or other pictures for --calibration, or " if args.calibration else ""
        raise EngineError(f"{error}; {pictures}--allow to keep it as it is") from None
    stages.finish()
    manifest, path = read_bundle(path)
    if args.json:
        print(json.dumps(_document(path, manifest, stages)))
    else:
        print(_summary(path, manifest))
        if "verify" not in stages.seconds:
            print(row("built", "before: it is the cache's; --rebuild builds it anew"))
    return 0


def _build(args: argparse.Namespace, stages: Stages) -> Path:
    """The manifest of what was built."""
    from fastpose.bundles import build_engine
    from fastpose.models import DETECTORS

    common: dict[str, Any] = {
        "engine": args.engine,
        "precision": args.precision,
        "device": args.device,
        "weights": args.weights,
        "calibration": args.calibration,
        "images": args.images,
        "allow": args.allow,
        "out": args.out,
        "rebuild": args.rebuild,
        "threads": args.threads,
        "progress": stages.begin,
    }
    if args.calibration and args.precision != "int8":
        raise DataError(f"--calibration is for --precision int8, got {args.precision}")
    if args.model.endswith(SUFFIXES):
        return _refit(args, stages)
    options = make_options({name: getattr(args, name) for name in OPTIONS})
    if args.model == DETECTOR or args.model in DETECTORS:
        name = "default" if args.model == DETECTOR else args.model
        return _build_detector(args, name, options, common)
    return build_engine(args.model, buckets=args.batch or BUCKETS, options=options, **common)


def _refit(args: argparse.Namespace, stages: Stages) -> Path:
    from fastpose.bundles import refit_engine

    if not args.weights or not args.out:
        raise BackendError(
            f"{args.model}: --weights FILE says what is put into a plan that has been built, --out "
            "FILE where the new one goes"
        )
    return refit_engine(
        args.model,
        args.weights,
        out=args.out,
        images=args.images,
        allow=args.allow,
        threads=args.threads,
        progress=stages.begin,
    )


def _build_detector(
    args: argparse.Namespace, name: str, options: Options, common: dict[str, Any]
) -> Path:
    from fastpose.detectors import build_detector

    if args.batch or options != Options():
        raise BackendError(
            f"{name}: a detector takes one frame at a time and its graphs are as they are: "
            "--batch and what the graph does are for pose networks"
        )
    return build_detector(name, **common)


def _summary(path: Path, manifest: Manifest | DetectorManifest) -> str:
    """What was built, in a table of two columns."""
    files = files_text(path.parent, (*manifest.files, path.name))
    return "\n".join(
        [
            row("model", manifest.name),
            row("engine", f"{manifest.kind} on {manifest.device}"),
            row("folder", str(path.parent)),
            row("files", files),
            row("precision", precision_text(manifest)),
            *report_lines(manifest.report),
        ]
    )


def _document(path: Path, manifest: Manifest | DetectorManifest, stages: Stages) -> dict[str, Any]:
    sizes = {name: (path.parent / name).stat().st_size for name in (*manifest.files, path.name)}
    return {
        "manifest": str(path),
        "files": sizes,
        "stages": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        **{name: value for name, value in manifest.to_dict().items() if name != "files"},
    }


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))
