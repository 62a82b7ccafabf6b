"""`fastpose verify`: how far an engine moves joints, or a detector boxes, on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fastpose.cli import UNUSABLE
from fastpose.cli.bundles import report_lines, told_in_one_line
from fastpose.cli.options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a file of `fastpose build`, or the .json beside it"
    )
    parser.add_argument(
        "--images",
        "--data",
        metavar="DIR|KIND:PATH",
        help="pictures of people like yours, or an annotated set, such as lsp:DIR (of a detector "
        "boxes:DIR), whose accuracy may not fall either (default: a few that are built in)",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only the first N pictures or people"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the .safetensors file that it was built from, if it was not from the trained weights",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of each network")


def run(args: argparse.Namespace) -> int:
    """0 when it passed, 2 when it did not."""
    report = _verify(args)
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(report_lines(report)))
    return 0 if report["passed"] else UNUSABLE


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    """The report, of whichever sort of bundle it is."""
    from fastpose.engines import DetectorManifest, read_bundle

    manifest, path = read_bundle(args.file)
    asked: dict[str, Any] = {
        "images": args.images,
        "weights": args.weights,
        "limit": args.limit,
        "threads": args.threads,
    }
    with told_in_one_line():
        if isinstance(manifest, DetectorManifest):
            from fastpose.detectors import verify_detector_bundle

            return verify_detector_bundle(path, **asked).to_dict()
        from fastpose.bundles import verify_engine

        return verify_engine(path, **asked).to_dict()
