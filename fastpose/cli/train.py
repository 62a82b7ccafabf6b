"""`fastpose train`: train a model, or go on where its folder was left."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from fastpose.cli.options import positive
from fastpose.cli.progress import Progress

Schedule = tuple[tuple[tuple[int, int], int], ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("model", help="a name that `fastpose models` lists")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="KIND:PATH",
        help="training set: lsp:DIR or lspet:DIR; give several, or one twice to count it twice",
    )
    parser.add_argument(
        "--val",
        metavar="KIND:PATH",
        help="set to measure the result on; without it the card has no accuracy",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="checkpoint, log and final weights; a run that was broken off there goes on",
    )
    parser.add_argument(
        "--schedule",
        type=_schedule,
        default=_schedule("128x96:26,192x160:12"),
        metavar="HxW:EPOCHS,...",
        help="window sizes in turn (default: 128x96:26,192x160:12)",
    )
    parser.add_argument(
        "--batch", type=positive, default=32, metavar="N", help="samples a step (default: 32)"
    )
    parser.add_argument(
        "--rate", type=float, default=2e-3, help="peak of the learning rate (default: 0.002)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the first weights, the order of the samples and their augmentation (default: 0)",
    )
    parser.add_argument(
        "--precision",
        choices=("bf16", "f32"),
        default="bf16",
        help="of the arithmetic; weights are f32 (default: bf16)",
    )
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: cuda if there)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of the CPU (default: all)")


def run(args: argparse.Namespace) -> int:
    """Train, measure, and write the weights with their card."""
    from fastpose.models import model_spec

    spec = model_spec(args.model)
    torch = _torch()
    from fastpose.datasets import open_data
    from fastpose.sinks.files import make_folder
    from fastpose.train.data import TrainingSet
    from fastpose.train.loop import Recipe, fit
    from fastpose.train.release import release

    if args.threads:
        torch.set_num_threads(args.threads)
    device = _device(torch, args.device)
    recipe = Recipe(
        schedule=args.schedule,
        batch=args.batch,
        rate=args.rate,
        bf16=args.precision == "bf16",
        seed=args.seed,
    )
    sets = [open_data(text, split="train") for text in args.data]
    validation = open_data(args.val, split="test") if args.val else None
    make_folder(args.out)
    progress = Progress(spec.name, recipe.epochs, unit="epochs")

    def report(row: dict[str, Any]) -> None:
        if not progress.done:
            progress.resume(row["epoch"] - 1)
        progress.step(f"loss {row['loss']:.5f}")

    network = fit(spec, TrainingSet(sets), recipe, args.out, device=device, report=report)
    progress.finish()
    card = release(
        network.cpu(),
        spec,
        args.out,
        sets=sets,
        recipe=recipe,
        command=shlex.join(["fastpose", *_words()]),
        validation=validation,
    )
    if args.json:
        print(json.dumps(card))
    return 0


def _torch() -> Any:
    from fastpose.errors import BackendError

    try:
        import torch
    except ImportError:
        raise BackendError(
            "training needs torch; install the extra: fastpose-inference[train]"
        ) from None
    return torch


def _device(torch: Any, name: str) -> str:
    from fastpose.errors import BackendError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        first = str(error).partition("\n")[0]
        raise BackendError(f"device {name!r} cannot be used by torch: {first}") from None
    return name


def _words() -> list[str]:
    """The command line without folders of this machine: paths keep their last part."""
    # what stands before a path: an option and "=", a kind of data and ":", or nothing
    return [
        re.sub(r"^((?:--[a-z-]+=)?(?:[a-z]+:)?)(.*/.*)$", _last_part, word) for word in sys.argv[1:]
    ]


def _last_part(found: re.Match[str]) -> str:
    return found[1] + Path(found[2]).name


def _schedule(text: str) -> Schedule:
    stages = []
    try:
        for part in text.split(","):
            size, _, epochs = part.partition(":")
            height, _, width = size.partition("x")
            stages.append(((int(height), int(width)), int(epochs)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected HxW:EPOCHS,..., got {text!r}") from None
    if any(min(*size, count) < 1 or size[0] % 32 or size[1] % 32 for size, count in stages):
        raise argparse.ArgumentTypeError(f"sizes must be multiples of 32, got {text!r}")
    return tuple(stages)
