"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fastpose.errors import BackendError

ENGINES = ("auto", "openvino", "onnxruntime", "torch", "tensorrt")
PRECISIONS = ("auto", "f32", "bf16", "f16")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """How the network is run."""
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="KIND|FILE",
        help="auto, openvino, onnxruntime, torch, or the file of a built engine; tensorrt is not "
        "in this release (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto (the default) is bf16 where the machine computes in it and the model's card "
        "says that it passed, else f32",
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
