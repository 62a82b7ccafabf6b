"""The command line: one module a verb, each with `add_arguments(parser)` and `run(args)`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

from fastpose import __version__
from fastpose.errors import FastposeError

VERBS = {
    "predict": ("predict", "find people's joints in pictures and video"),
    "wrap": ("wrap", "make a network from elsewhere, an ONNX file, run like our own"),
    "models": ("models", "list the models: accuracy, size, terms of their data"),
    "build": ("build", "build an engine from a network, and check it in pixels"),
    "verify": ("verify", "check a built engine in pixels"),
    "inspect": ("inspect", "print what a built engine is, and whether it fits this machine"),
    "eval": ("evaluate", "measure accuracy on annotated data"),
    "bench": ("bench", "measure speed, memory and accuracy here, or compare two measurements"),
    "train": ("train", "train a model, or go on training it"),
    "import-weights": (
        "import_weights",
        "turn another project's checkpoint into weights of a model",
    ),
    "doctor": ("doctor", "what this machine can run, and why not the rest"),
}
INTERRUPTED = 130
UNUSABLE = 2


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as for every other fault, instead of all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = _Parser(prog="fastpose", description="Human pose estimation.")
    top.add_argument("--version", action="version", version=f"fastpose {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (module, text) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        import_module(f"fastpose.cli.{module}").add_arguments(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON document")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 2 for a fault of the input, told in one line; 130 after Ctrl-C.
    """
    args = parser().parse_args(argv)
    with _interrupts() as interrupts:
        return _run(args, interrupts)


def _run(args: argparse.Namespace, interrupts: list[int]) -> int:
    try:
        with warnings.catch_warnings(), _log(args.verb):
            warnings.showwarning = _warn(args.verb)
            status = int(import_module(f"fastpose.cli.{VERBS[args.verb][0]}").run(args))
            sys.stdout.flush()  # here, where a reader that has gone is dealt with
            return status
    except (FastposeError, KeyboardInterrupt) as error:
        if interrupts or isinstance(error, KeyboardInterrupt):
            print(f"fastpose {args.verb}: interrupted", file=sys.stderr)
            return INTERRUPTED
        if args.debug:
            raise
        print(f"fastpose {args.verb}: {error}", file=sys.stderr)
        return UNUSABLE
    except MemoryError as error:  # such as an input of a size that no machine holds
        if args.debug:
            raise
        print(f"fastpose {args.verb}: not enough memory: {error}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        # whoever read our output has gone; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C as ever, and remembered in the list.

    A compiled module that is being imported turns it into an ImportError, and the user would be
    told to install what is there.
    """
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield seen  # not ours to handle: a thread, a job in the background, a host program
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _log(verb: str) -> Iterator[None]:
    """What the library's log tells of its slow steps, one line each, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"fastpose {verb}: %(message)s"))
    log = logging.getLogger("fastpose")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def _warn(verb: str) -> Callable[..., None]:
    """A warning in one line, without the place in the source that Python shows."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        first = str(message).partition("\n")[0]
        print(f"fastpose {verb}: warning: {first}", file=sys.stderr)

    return show
