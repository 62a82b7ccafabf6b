"""`fastpose bench`: speed, memory and accuracy of a model on this machine; or what has changed."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose.cli.bundles import told_in_one_line
from fastpose.cli.options import positive
from fastpose.cli.progress import Stages
from fastpose.errors import BackendError, DataError, OutputError

if TYPE_CHECKING:
    from fastpose.bench.rows import Document

COMPARE = "compare"
NONE = "none"
SLOWER = 1  # exit status of a comparison that failed
USAGE = """%(prog)s [MODEL] [--video FILE] [--out DIR] [options]
       %(prog)s compare BEFORE.json AFTER.json [--fail-over 5%%] [--anyway] [--json]"""
MEASURING = (
    "engines",
    "device",
    "threads",
    "batches",
    "people",
    "video",
    "frames",
    "detector",
    "detect_every",
    "draw",
    "data",
    "limit",
    "calibration",
    "rounds",
)
FILES = ("bench.json", "bench.md", "latency.png", "accuracy.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb; those that are not given are None, or False."""
    parser.usage = USAGE
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL | compare BEFORE.json AFTER.json",
        help="a name that `fastpose models` lists, weights (.safetensors) with their card, or a "
        "built engine's file (default: default); or two documents of --json or --out",
    )
    _add_engines(parser.add_argument_group("engines"))
    _add_video(parser.add_argument_group("video, from end to end"))
    parser.add_argument(
        "--rounds",
        type=positive,
        metavar="N",
        help="turns of each engine and passes of each video, at least 4 (default: 10 and 5)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"write {', '.join(FILES)} there, as soon as there is something; the pictures need "
        "the extra fastpose-inference[bench]",
    )
    group = parser.add_argument_group("compare")
    group.add_argument(
        "--fail-over",
        type=_percentage,
        metavar="5%",
        help="exit with 1 and name the rows that have become worse by more than this, and than "
        "the spread of their times",
    )
    group.add_argument(
        "--anyway", action="store_true", help="compare times of two different machines, too"
    )


def _add_engines(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engines",
        type=_words,
        metavar="ENGINE:PRECISION,...",
        help="such as openvino:bf16,torch:f32:compile, or all; the "
        "video runs in each, too (default: those that run here and need nothing built, and for "
        "the video the one that predict takes)",
    )
    group.add_argument(
        "--batch",
        dest="batches",
        type=_numbers(1),
        metavar="N,N,...",
        help="windows of a run, or none for no engine alone (default: 1,8)",
    )
    group.add_argument(
        "--data",
        metavar="DIR|KIND:PATH",
        help="pictures of people like yours, or an annotated set, such as lsp:DIR, on which the "
        "engines' accuracy is measured (default: a few that are built in)",
    )
    group.add_argument(
        "--limit", type=positive, metavar="N", help="only the first N pictures or people of these"
    )
    group.add_argument(
        "--calibration",
        metavar="DIR|KIND:PATH",
        help="pictures of people like yours, with which int8 is built",
    )
    group.add_argument("--device", choices=("cpu", "cuda"), help="of the networks (default: cpu)")
    group.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads of each network and the kernels"
    )


def _add_video(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--video", type=Path, metavar="FILE", help="(default: a clip of the built-in pictures)"
    )
    group.add_argument(
        "--people",
        type=_numbers(0),
        metavar="N,N,...",
        help="numbers of people placed in each frame, or none (default: 0,1,2,4,8,16,32)",
    )
    group.add_argument(
        "--frames", type=positive, metavar="N", help="of each pass of the video (default: 6)"
    )
    group.add_argument(
        "--detector",
        metavar="NAME|FILE|none",
        help="also measure with the people that it finds (default: default with --video, else "
        "none)",
    )
    group.add_argument(
        "--detect-every",
        type=positive,
        metavar="N",
        help="it looks for people in every N-th frame (default: 1)",
    )
    group.add_argument("--draw", action="store_true", help="draw the people on the frames, too")


def run(args: argparse.Namespace) -> int:
    """Measure, or compare; progress goes to standard error."""
    with told_in_one_line():
        if args.words[:1] == [COMPARE]:
            return _compare(args)
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from fastpose.bench.run import Plan, run_bench
    from fastpose.bench.table import markdown

    _check_for_measuring(args)
    plan = Plan(*args.words, **_given(args))
    if args.out:
        _prepare(args.out)
    stages = Stages()
    try:
        document = run_bench(
            plan,
            command=_command(args),
            keep=lambda document: _keep(args.out, document),
            tell=stages.begin,
        )
    finally:
        stages.finish()
    if args.json:
        print(json.dumps(document.to_dict()))
    else:
        print(markdown(document), end="")
    if args.out:
        _plot(args.out, document)
        written = ", ".join(name for name in FILES if (args.out / name).exists())
        print(f"wrote {written} in {args.out}", file=sys.stderr)
    if all(row.absent for row in document.rows):
        raise BackendError("nothing could be measured here; each row says why")
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a measurement that were given, as `Plan` calls them."""
    values = {name: getattr(args, name) for name in MEASURING}
    return {
        name: value for name, value in values.items() if value is not None and value is not False
    }


def _check_for_measuring(args: argparse.Namespace) -> None:
    if len(args.words) > 1:
        raise DataError(f"expected one model, got {' '.join(args.words)}")
    if args.fail_over is not None or args.anyway:
        raise DataError("--fail-over and --anyway are for compare BEFORE.json AFTER.json")


def _command(args: argparse.Namespace) -> str:
    """What makes the document again, folders by their last name."""
    words = ["fastpose", "bench", *map(_short, args.words)]
    for name, value in _given(args).items():
        words.append({"batches": "--batch"}.get(name, f"--{name.replace('_', '-')}"))
        if isinstance(value, tuple):
            words.append(",".join(map(str, value)) or NONE)
        elif value is not True:
            words.append(_short(str(value)))
    return shlex.join(words)


def _short(word: str) -> str:
    """`lsp:/data/lsp` as `lsp:lsp`."""
    kind, colon, path = word.rpartition(":")
    return f"{kind}{colon}{Path(path).name or path}"


def _prepare(folder: Path) -> None:
    """Find out that results cannot be written before minutes have gone into them.

    Raises:
        OutputError: they cannot.
    """
    from fastpose.sinks.files import make_folder, not_writable

    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise not_writable(folder / FILES[0], error) from None


def _keep(folder: Path | None, document: Document) -> None:
    """Write what there is so far: the run may be stopped at any moment."""
    from fastpose.bench.table import markdown

    if folder is None:
        return
    document.write(folder / FILES[0])
    path = folder / FILES[1]
    try:
        path.write_text(markdown(document), encoding="utf-8")
        for name in FILES[2:]:  # of an earlier run
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def _plot(folder: Path, document: Document) -> None:
    from fastpose.bench.plots import plot_accuracy, plot_latency

    try:
        plot_latency(document, folder / FILES[2])
        plot_accuracy(document, folder / FILES[3])
    except BackendError as error:  # the figures are there without it
        print(f"fastpose bench: {error}", file=sys.stderr)


def _compare(args: argparse.Namespace) -> int:
    from fastpose.bench.compare import (
        FAIL_OVER,
        compare,
        machine_differences,
        other_differences,
    )
    from fastpose.bench.rows import read_document
    from fastpose.bench.table import change_text, markdown_of_changes

    _check_for_comparing(args)
    before, after = (read_document(Path(word)) for word in args.words[1:])
    bound = FAIL_OVER if args.fail_over is None else args.fail_over
    changes = compare(before, after, bound, anyway=args.anyway)
    machines = machine_differences(before, after)
    others = other_differences(before, after)
    if args.json:
        document = {
            "machines_differ": machines,
            "also_different": others,
            "times_compared": args.anyway or not machines,
            "fail_over": bound,
            "failed": sorted({change.row for change in changes if change.failing}),
            "changes": [change.to_dict() for change in changes],
        }
        print(json.dumps(document))
    else:
        print(markdown_of_changes(changes, machines, others, anyway=args.anyway), end="")
    failing = [change for change in changes if change.failing]
    if args.fail_over is None or not failing:
        return 0
    for change in failing:
        why = [f"{change.what} {change_text(change)}"] if change.what else [change.note]
        text = ": ".join([change.verdict, change.row, *filter(None, why)])
        print(f"fastpose bench: {text}", file=sys.stderr)
    return SLOWER


def _check_for_comparing(args: argparse.Namespace) -> None:
    if len(args.words) != 3:
        raise DataError(f"compare takes two files, got {len(args.words) - 1}")
    given = [f"--{name.replace('_', '-')}" for name in _given(args)]
    given += ["--out"] if args.out else []
    if given:
        raise DataError(f"{given[0].replace('batches', 'batch')} is for measuring, not for compare")


def _numbers(least: int) -> Any:
    """An argument of whole numbers with commas between them, or none."""

    def numbers(text: str) -> tuple[int, ...]:
        if text == NONE:
            return ()
        words = [word.strip() for word in text.split(",")]
        if not all(word.isdecimal() and int(word) >= least for word in words):
            raise argparse.ArgumentTypeError(
                f"must be whole numbers from {least} such as {least},8,32, or none, got {text!r}"
            )
        return tuple(dict.fromkeys(map(int, words)))

    return numbers


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise argparse.ArgumentTypeError(f"must be words with commas between, got {text!r}")
    return words


def _percentage(text: str) -> float:
    """5% as 0.05; a number alone would be taken for either."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    value = float(match[1]) / 100 if match else math.inf
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a percentage such as 5%, got {text!r}")
    return value
