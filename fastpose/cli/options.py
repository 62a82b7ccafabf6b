"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from fastpose.engines import KINDS, SUFFIXES
from fastpose.engines.engine import PRECISIONS
from fastpose.engines.options import CHOICES, Options
from fastpose.errors import BackendError

ENGINES = ("auto", *KINDS)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """How the network is run."""
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="KIND|FILE",
        help=f"{', '.join(ENGINES)}, or a file of `fastpose build` or `wrap` "
        f"({' '.join(SUFFIXES)}) (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="auto (the default) is bf16 where the machine computes in it and the model's card "
        "says that it passed, else f32; int8 is the network's that `fastpose build` has put into "
        "the cache, beside a detector in auto",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="of the networks: cpu, cuda, ... (default: auto); with cuda a detector from a file "
        "stays on the CPU",
    )
    parser.add_argument(
        "--single-view",
        action="store_true",
        help="look at each person once, with models whose published procedure joins several views "
        "of a person (`fastpose models` lists their number)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="CPU threads of each network and of the kernels",
    )
    run = parser.add_argument_group("how the engine runs")
    run.add_argument(
        "--build",
        action="store_true",
        help="build first what has to be built for this machine and is not in the cache, or was "
        "built for another one",
    )
    run.add_argument(
        "--mode",
        choices=CHOICES["mode"],
        help="throughput: the windows of many people side by side, each on few threads (openvino; "
        "default: latency, or what the bundle was built for)",
    )
    run.add_argument(
        "--requests",
        type=positive,
        metavar="N",
        help="runs side by side in throughput mode (default: the runtime's choice)",
    )
    run.add_argument(
        "--memory",
        choices=CHOICES["memory"],
        help="whose device memory is used: torch's, pycuda's or cuda-bindings' (tensorrt; default: "
        "auto, torch's where it is loaded, else the first that is installed)",
    )
    run.add_argument(
        "--host-code",
        action="store_true",
        help="let a version-compatible plan run the code that it carries (tensorrt): only for "
        "files whose source you trust",
    )
    run.add_argument(
        "--compile",
        choices=CHOICES["compile"],
        help="run the module as it is, let torch compile it first, or take what `fastpose build` "
        "has compiled into the cache (torch; default: eager)",
    )


def run_options(args: argparse.Namespace) -> Options | None:
    """How to run an engine, as `add_engine` was answered; None where nothing was asked.

    Raises:
        BackendError: the answers do not go together.
    """
    names = ("mode", "requests", "memory", "host_code", "compile")
    asked = {name: getattr(args, name) for name in names}
    return make_options(asked) if any(asked.values()) else None


def make_options(asked: dict[str, Any]) -> Options:
    """The options by name; None is the default of that one.

    Raises:
        BackendError: they do not go together.
    """
    try:
        return Options(**{name: value for name, value in asked.items() if value is not None})
    except ValueError as error:
        raise BackendError(str(error)) from None


def engine_and_model(args: argparse.Namespace) -> tuple[str, str]:
    """The kind of `--engine`, and the model: its file where it names one, else the model's name.

    Raises:
        BackendError: both name a model, and not the same.
        EngineError: the file is no bundle.
    """
    kind, file = engine_kind(args.engine)
    if file is None or args.model in (None, "default"):
        return kind, file or args.model
    from fastpose.engines import read_bundle

    manifest, _ = read_bundle(Path(file))
    if args.model != manifest.name:
        raise BackendError(f"{file}: the engine of {manifest.name}, and the model is {args.model}")
    return kind, file


def engine_kind(engine: str) -> tuple[str, str | None]:
    """Split `--engine` into the kind and, where it names a file, that file.

    Raises:
        BackendError: it is neither a kind nor looks like a file.
    """
    if engine in ENGINES:
        return engine, None
    if not Path(engine).suffix and not Path(engine).exists():
        known = ", ".join(ENGINES)
        raise BackendError(f"unknown engine {engine!r}; known: {known}, or an engine's file")
    if Path(engine).suffix not in SUFFIXES:
        raise BackendError(f"{engine}: the file of an engine ends in {' '.join(SUFFIXES)}")
    return "auto", engine


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return number


def share(text: str) -> float:
    """An argument between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return number
