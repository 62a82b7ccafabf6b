"""`fastpose train`: train a model, or go on where its folder was left."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose.cli.options import positive
from fastpose.cli.progress import Progress
from fastpose.datasets import BoxData, PoseData
from fastpose.errors import DataError, ModelError, WeightsError
from fastpose.models.spec import DetectorSpec, ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from fastpose.train.loop import Task
    from fastpose.train.tasks import AdversarialRecipe, PoseRecipe

Schedule = tuple[tuple[tuple[int, int], int], ...]

LIGHT_SCHEDULE = "128x96:26,192x160:12"  # that of the weights in trained/
EPOCHS = 40  # of the other pose networks
# Networks that do not learn in their published form, and those to train in their place: see
# `fastpose.models.pbn.PBN`.
GROWING = {
    "pbn-mpii": "pbn-mpii-norm",
    "pbn6-mpii": "pbn-mpii-norm",
    "pbn-lsp": "pbn-lsp-norm",
}
RECIPES = ("ours", "published")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("model", help="a pose network or detector that `fastpose models` lists")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="KIND:PATH",
        help="training set: lsp:DIR, lspet:DIR or another of people with joints, for a detector "
        "also boxes:DIR; give several, or one twice to count it twice. A detector sees each set "
        "equally often",
    )
    parser.add_argument(
        "--val",
        action="append",
        default=[],
        metavar="KIND:PATH",
        help="set to measure the result on, for a detector also several; without it the card has "
        "no accuracy",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="checkpoint, log and final weights; a run that was broken off there goes on",
    )
    parser.add_argument(
        "--start",
        metavar="NAME|FILE",
        help="trained weights to start from: of the same network or, for a detector, of a pose "
        "network with the same trunk (default: random)",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default=RECIPES[0],
        help="published: a pose network's published optimiser, rates, batch, ranges of views and "
        "number of epochs; other options still hold (default: ours, one for all)",
    )
    parser.add_argument(
        "--schedule",
        type=_schedule,
        metavar="HxW:EPOCHS,...",
        help=f"input sizes in turn (default: {LIGHT_SCHEDULE} for cpn-light, the network's own "
        f"size for {EPOCHS} epochs, or as many as published, a detector's for 16)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="samples a step (default: 32; 8 for detectors and adversarial networks; or as "
        "published)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        help="peak of the learning rate (default: 0.002; detectors 0.001; adversarial networks "
        "0.00025 from beginning to end; or as published)",
    )
    parser.add_argument(
        "--samples", type=positive, metavar="N", help="detectors: views of an epoch (default: 4000)"
    )
    parser.add_argument(
        "--teacher",
        metavar="FILE.onnx",
        help="detectors: finds the people of lsp and lspet pictures, whose boxes nobody marked",
    )
    parser.add_argument(
        "--terms",
        metavar="TEXT",
        help="detectors: terms of the boxes: pictures and labels, for the card",
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
    from fastpose.models import DEFAULT_DETECTOR, DETECTORS, detector_spec, model_spec

    if args.model == "default-detector":
        args.model = DEFAULT_DETECTOR
    spec = detector_spec(args.model) if args.model in DETECTORS else model_spec(args.model)
    torch = _torch()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = _device(torch, args.device)
    if isinstance(spec, ModelSpec):
        card = _train_pose(args, spec, device)
    else:
        card = _train_detector(args, spec, device)
    if args.json:
        print(json.dumps(card))
    return 0


def _train_pose(args: argparse.Namespace, spec: ModelSpec, device: str) -> dict[str, Any]:
    from fastpose.datasets import open_poses, with_joints
    from fastpose.models import DEFAULT_MODEL
    from fastpose.sinks.files import make_folder
    from fastpose.train.data import TrainingSet, usable_samples
    from fastpose.train.recipes import published
    from fastpose.train.release import release
    from fastpose.train.tasks import pose_recipe, pose_task

    _refuse(args, spec, "--samples", "--teacher", "--terms")
    if spec.name in GROWING:
        warnings.warn(
            f"{spec.name}: in this published form features grow about sixfold from stack to stack, "
            f"and eight stacks did not learn in our trials; train {GROWING[spec.name]}",
            UserWarning,
            stacklevel=2,
        )
    if len(args.val) > 1:
        raise DataError(f"{spec.name} is measured on one set, got {len(args.val)} of --val")
    publication = published(spec) if args.recipe == "published" else None
    start = _start(args.start)
    sets = [with_joints(open_poses(text, split="train"), spec.joints) for text in args.data]
    _warn_of_untaught(spec, sets)
    validation = open_poses(args.val[0], split="test") if args.val else None
    recipe: PoseRecipe | AdversarialRecipe
    if publication:
        epochs = publication.epochs_of(len(usable_samples(sets)))
        recipe = replace(publication.recipe, **_recipe(args, ((spec.size, epochs),)))
    else:
        own: Schedule = ((spec.size, EPOCHS),)
        usual = _schedule(LIGHT_SCHEDULE) if spec.name == DEFAULT_MODEL else own
        recipe = pose_recipe(spec, **_recipe(args, usual))
    _check_sizes(spec, recipe.schedule)
    make_folder(args.out)
    task = pose_task(spec, TrainingSet(sets), recipe, start)
    network = _fit(args, task, device)
    return release(
        network,
        spec,
        args.out,
        sets=sets,
        recipe=recipe,
        command=_command(),
        start=start,
        validation=validation,
    )


def _warn_of_untaught(spec: ModelSpec, sets: list[PoseData]) -> None:
    """Say which joints nobody in the sets has: a network's maps of these stay as they began."""
    labelled = [sample.labelled for data in sets for sample in data.samples]
    if not labelled:
        return
    taught = map(any, zip(*labelled, strict=True))
    names = [name for name, some in zip(spec.joints.joints, taught, strict=True) if not some]
    if names:
        text = f"{spec.name}: nobody has {', '.join(names)}: what it says of these is not learnt"
        warnings.warn(text, UserWarning, stacklevel=3)


def _train_detector(args: argparse.Namespace, spec: DetectorSpec, device: str) -> dict[str, Any]:
    from fastpose.datasets import open_data
    from fastpose.models.fpn import FPNDetector
    from fastpose.sinks.files import make_folder
    from fastpose.train.release import release_detector
    from fastpose.train.scenes import SceneSet
    from fastpose.train.tasks import DetectorRecipe, DetectorTask
    from fastpose.train.teach import CLASSES

    if args.recipe == "published":
        raise ModelError(f"--recipe published: {spec.name} is a detector; pose networks have one")
    recipe = DetectorRecipe(**_recipe(args, ((spec.size, 16),)))
    start = _start(args.start)
    read = {
        text: open_data(text, split="train", classes=spec.classes)
        for text in dict.fromkeys(args.data)
    }
    taught = sorted({data.name for data in read.values() if isinstance(data, PoseData)})
    if taught and spec.classes != CLASSES:
        raise DataError(
            f"{' and '.join(taught)}: persons alone, but {spec.name} learns "
            f"{len(spec.classes)} classes; give boxes:DIR"
        )
    if taught and not args.teacher:
        raise DataError(
            f"{' and '.join(taught)}: no boxes of all the people; give --teacher FILE.onnx"
        )
    validation = _validation(args.val)
    make_folder(args.out)
    boxed = {text: _boxes(args, data) for text, data in read.items()}
    sets = [boxed[text] for text in args.data]
    task = DetectorTask(spec, SceneSet(sets), recipe, start)
    network = _fit(args, task, device)
    assert isinstance(network, FPNDetector), "made by the task"
    return release_detector(
        network,
        spec,
        args.out,
        sets=sets,
        recipe=recipe,
        command=_command(),
        start=start,
        notes=f"People of {' and '.join(taught)} beside the annotated one were labelled by "
        f"{Path(args.teacher).name}, and boxes round the annotated one taken from it where it "
        "agrees with the joints."
        if taught
        else "",
        terms=args.terms or "",
        validation=validation,
    )


def _validation(texts: list[str]) -> list[tuple[str, BoxData]]:
    """Each set under the name of its folder, by which the card tells them apart."""
    from fastpose.datasets import open_boxes

    found = {}
    for text in texts:
        name, data = Path(text.partition(":")[2]).name, open_boxes(text, split="val")
        if name in found:
            raise DataError(f"--val {text}: another set is called {name} too; rename a folder")
        if all(sample.ignored.all() for sample in data.samples):
            raise DataError(f"--val {text}: nobody is in it to be found")
        found[name] = data
    return list(found.items())


def _boxes(args: argparse.Namespace, data: PoseData | BoxData) -> BoxData:
    """The set itself, or what the teacher sees in it."""
    from fastpose.detect import open_detector
    from fastpose.train.teach import DOUBTFUL, teach_boxes

    if isinstance(data, BoxData):
        return data
    with closing(open_detector(args.teacher, score=DOUBTFUL, threads=args.threads)) as teacher:
        progress = Progress(data.name, len(data), unit="pictures")
        taught = teach_boxes(data, teacher, lambda count: progress.step(count=count))
        progress.finish()
    return taught


def _fit(args: argparse.Namespace, task: Task, device: str) -> nn.Module:
    from fastpose.train.loop import fit

    progress = Progress(task.name, task.recipe.epochs, unit="epochs")

    def report(row: dict[str, Any]) -> None:
        if not progress.done:
            progress.resume(row["epoch"] - 1)
        progress.step(f"loss {row['loss']:.5f}")

    network = fit(task, args.out, device=device, report=report)
    if not progress.done:  # by a run before, all of it
        progress.resume(task.recipe.epochs)
    progress.finish()
    return network.cpu()


def _recipe(args: argparse.Namespace, schedule: Schedule) -> dict[str, Any]:
    """The fields of a recipe that the command line sets."""
    asked = {"batch": args.batch, "rate": args.rate, "samples": args.samples}
    return {
        "schedule": args.schedule or schedule,
        "bf16": args.precision == "bf16",
        "seed": args.seed,
        **{name: value for name, value in asked.items() if value is not None},
    }


def _refuse(args: argparse.Namespace, spec: ModelSpec, *options: str) -> None:
    for option in options:
        if getattr(args, option.strip("-")) is not None:
            raise DataError(f"{option} is for detectors, {spec.name} is a pose network")


def _start(text: str | None) -> Path | None:
    """The weight file that a name or a path stands for."""
    from fastpose.models import DETECTORS, MODELS
    from fastpose.models.trained import weights_path

    if text is None:
        return None
    if text not in (*MODELS, *DETECTORS):
        if not Path(text).is_file():
            known = ", ".join((*MODELS, *DETECTORS))
            raise WeightsError(f"--start {text}: no such file; it is a file or one of {known}")
        return Path(text)
    path = weights_path(text)
    if path is None:
        raise WeightsError(f"{text} has no trained weights here")
    return path


def _command() -> str:
    return shlex.join(["fastpose", *_words()])


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
    if any(min(*size, count) < 1 for size, count in stages):
        raise argparse.ArgumentTypeError(f"sizes and epochs must be at least 1, got {text!r}")
    return tuple(stages)


def _check_sizes(spec: ModelSpec, schedule: Schedule) -> None:
    """Refuse sizes that the network does not take, before any picture is read.

    Raises:
        DataError: the text names the size and what it should be.
    """
    import torch

    from fastpose.models import create

    with torch.device("meta"):  # shapes without arithmetic or memory
        network = create(spec.name)
        for size, _ in schedule:
            try:
                network(torch.empty(2, 3, *size))
            except ValueError as error:
                raise DataError(f"--schedule: {spec.name}: {error}") from None
