"""`fastpose wrap`: a network from elsewhere becomes a bundle that runs like our own."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastpose.engines.engine import PRECISIONS

if TYPE_CHECKING:
    from fastpose.models.spec import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "graph",
        type=Path,
        metavar="MODEL.onnx",
        help="the network, with its weights in the same file",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="BUNDLE.onnx",
        help="the bundle: this copy of the network, and its description beside it (.json)",
    )
    parser.add_argument(
        "--like",
        metavar="FAMILY",
        help="hrnet, simplebaseline, vitpose or rtmpose: what its authors' training says, for all "
        "that is not stated",
    )
    parser.add_argument(
        "--skeleton",
        metavar="NAME|FILE.json",
        help="the joints; a file has name, joints, limbs, flip_pairs and sigmas (default: the "
        "known set with as many joints as the network has, if it is the only one)",
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="of the input (default: the graph's)"
    )
    parser.add_argument(
        "--output", metavar="KIND", help="heatmap or simcc (default: recognised by their shapes)"
    )
    parser.add_argument(
        "--ports",
        type=_names,
        metavar="NAME[,NAME]",
        help="the outputs that count: the heat maps, or the x and the y vectors",
    )
    parser.add_argument(
        "--convention",
        metavar="NAME",
        help="how boxes are cut and cells are placed: msra, udp, ...",
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            type=_triple,
            metavar="A,B,C",
            help=f"{name} of the input's channels, in units of 0-255",
        )
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--rgb", action="store_true", default=None, help="the input is RGB")
    order.add_argument("--bgr", dest="rgb", action="store_false", help="the input is BGR")
    for name, text in (
        ("padding", "boxes are enlarged by this (default: 1.25)"),
        ("sigma", "of heat maps, in cells (default: a 32nd of their height)"),
        ("split", "SimCC bins for each pixel (default: the graph's; else it is checked)"),
        ("peak-value", "value of a perfect peak (default: 1)"),
    ):
        parser.add_argument(f"--{name}", type=float, metavar="NUMBER", help=text)
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="how peaks of heat maps are refined (default: udp for the convention udp, else "
        "quarter)",
    )
    parser.add_argument("--name", help="of the model (default: the file's)")
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="KIND",
        help="auto, openvino or onnxruntime: the runtime of the bundle (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *(name for name in PRECISIONS if name != "int8")),
        default="f32",
        help="of the bundle; nobody has measured the network in less than f32 (default: f32)",
    )


def run(args: argparse.Namespace) -> int:
    """Wrap it and say what was taken for granted."""
    from fastpose.engines import Manifest, Statement, wrap_network

    stated = Statement(
        skeleton=args.skeleton,
        size=args.size,
        output=args.output,
        ports=args.ports,
        convention=args.convention,
        mean=args.mean,
        std=args.std,
        rgb=args.rgb,
        padding=args.padding,
        method=args.method,
        sigma=args.sigma,
        split=args.split,
        peak_value=args.peak_value,
        name=args.name,
    )
    path = wrap_network(
        args.graph,
        stated,
        like=args.like,
        engine=args.engine,
        precision=args.precision,
        out=args.out,
    )
    manifest = Manifest.load(path)
    print(f"wrote {args.out} and {path}", file=sys.stderr)
    if args.json:
        files = {"bundle": str(args.out), "manifest": str(path)}
        print(json.dumps({**files, "spec": manifest.spec.to_dict()}))
    else:
        print(_summary(manifest.spec))
    return 0


def _summary(spec: ModelSpec) -> str:
    """What the bundle says of the network, in one line: to be looked at."""
    kind = {
        "heatmap": f"heat maps of {spec.cells[0]}x{spec.cells[1]}, refined by {spec.method}",
        "simcc": f"SimCC vectors of {spec.split:g} bins a pixel",
    }[spec.output]
    order = "RGB" if spec.rgb else "BGR"
    return (
        f"{spec.name}: {spec.size[0]}x{spec.size[1]} {order}, mean {_text(spec.mean)}, "
        f"std {_text(spec.std)}, convention {spec.convention}, boxes x {spec.padding}; "
        f"{len(spec.joints)} joints ({spec.skeleton}), {kind}"
    )


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, such as 256x192, got {text!r}")
    return int(match[1]), int(match[2])


def _triple(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"must be three numbers with commas, got {text!r}")
    return numbers


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
