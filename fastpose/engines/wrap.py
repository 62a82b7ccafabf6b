"""Networks from elsewhere: what their graph tells, what must be stated, and whether both agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.engines.engine import Port, axes_text
from fastpose.errors import ModelError
from fastpose.geometry import CONVENTIONS
from fastpose.models.registry import IMAGENET_MEAN, IMAGENET_STD
from fastpose.models.spec import ModelSpec
from fastpose.ops.decode import METHODS
from fastpose.skeleton import SKELETONS, Skeleton, read_skeleton

Shape = tuple[int, ...]

OUTPUTS = ("heatmap", "simcc")
PADDING = 1.25  # of mmpose, HRNet and Simple Baselines
ROWS_PER_SIGMA = 32  # the published networks: sigma 2 on maps 64 high, 3 on maps 96 high


@dataclass(frozen=True)
class Statement:
    """What is said of a network; None is left to its graph, its family, or a default.

    Attributes:
        skeleton: a name of `SKELETONS` or a file for `read_skeleton`.
        size: (h, w) of the input in pixels.
        output: "heatmap" or "simcc".
        ports: names of the outputs: the heat maps, or x and y of the SimCC vectors.
        convention, mean, std, rgb, padding, method, sigma, split, peak_value, name: as in
            `ModelSpec`.
    """

    skeleton: str | None = None
    size: tuple[int, int] | None = None
    output: str | None = None
    ports: tuple[str, ...] | None = None
    convention: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    rgb: bool | None = None
    padding: float | None = None
    method: str | None = None
    sigma: float | None = None
    split: float | None = None
    peak_value: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        for flag, value, choices in (
            ("--output", self.output, OUTPUTS),
            ("--convention", self.convention, tuple(CONVENTIONS)),
            ("--method", self.method, METHODS),
        ):
            if value is not None and value not in choices:
                raise ModelError(f"{flag} must be one of {', '.join(choices)}, got {value!r}")
        for flag in ("padding", "sigma", "split", "peak_value"):
            number = getattr(self, flag)
            if number is not None and not 0 < number < math.inf:
                raise ModelError(f"--{flag.replace('_', '-')} must be above 0, got {number!r}")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ModelError(f"--mean must be three finite numbers, got {self.mean}")
        if self.std is not None and not all(1 <= s < math.inf for s in self.std):
            raise ModelError(
                f"--std must be three numbers from 1 in units of 0-255, got {self.std}; a network "
                "that was trained on 0-1 has 255 times its mean and std here"
            )

    def filled(self, family: str | None) -> Statement:
        """With what is known of a family, wherever nothing is stated.

        Raises:
            ModelError: no family has that name.
        """
        if family is None:
            return self
        if family not in FAMILIES:
            raise ModelError(f"--like must be one of {', '.join(FAMILIES)}, got {family!r}")
        known = FAMILIES[family]
        gaps = [f.name for f in fields(self) if getattr(self, f.name) is None]
        return replace(self, **{name: getattr(known, name) for name in gaps})


_IMAGENET = Statement(mean=IMAGENET_MEAN, std=IMAGENET_STD, padding=PADDING, peak_value=1.0)
FAMILIES = {
    # Sun et al., Deep High-Resolution Representation Learning for Human Pose Estimation, CVPR 2019
    "hrnet": replace(_IMAGENET, output="heatmap", convention="msra", method="quarter", rgb=True),
    # Xiao et al., Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018; the authors
    # trained on BGR, mmpose on RGB
    "simplebaseline": replace(_IMAGENET, output="heatmap", convention="msra", method="quarter"),
    # Xu et al., ViTPose: Simple Vision Transformer Baselines for Human Pose Estimation,
    # NeurIPS 2022
    "vitpose": replace(_IMAGENET, output="heatmap", convention="udp", method="udp", rgb=True),
    # Jiang et al., RTMPose: Real-Time Multi-Person Pose Estimation based on MMPose, 2023
    "rtmpose": replace(_IMAGENET, output="simcc", convention="msra", rgb=True),
}


def input_size(
    graph: Path, inputs: Mapping[str, Port], stated: tuple[int, int] | None
) -> tuple[int, int]:
    """(h, w) of the windows that a graph takes.

    Raises:
        ModelError: it takes none, or its size is neither fixed nor stated, or not the stated one.
    """
    found = list(inputs.values())
    axes, dtype = found[0] if len(found) == 1 else ((), None)
    if len(axes) != 4 or axes[1] not in (None, 3) or dtype != np.float32:
        raise ModelError(
            f"{graph}: the input must be one float32 [N, 3, h, w], got "
            + "; ".join(f"{dtype} {axes_text(axes)}" for axes, dtype in found)
        )
    if stated is None and (axes[2] is None or axes[3] is None):
        raise ModelError(f"{graph}: its input may have any size: state --size HxW, such as 256x192")
    height, width = stated or (axes[2] or 0, axes[3] or 0)
    if axes[2] not in (None, height) or axes[3] not in (None, width):
        raise ModelError(
            f"{graph}: --size {height}x{width} (height x width), but the graph takes "
            f"{axes_text(axes)}"
        )
    return height, width


def describe(
    graph: Path, results: Mapping[str, npt.NDArray[Any]], size: tuple[int, int], said: Statement
) -> ModelSpec:
    """The spec of a network, from what its graph gave for one batch and what is said of it.

    Args:
        graph: its file, for the errors and the name.
        results: every output of the graph.
        size: (h, w) of the input.
        said: what is stated.

    Raises:
        ModelError: something is neither told by the graph nor stated, or the two differ. The text
            names the flag of `fastpose wrap` and the choices.
    """
    output, ports = _find_outputs(graph, results, size, said)
    for name in ports:
        if results[name].dtype != np.float32:
            raise ModelError(f"{graph}: {name} must be float32, got {results[name].dtype}")
        if not np.isfinite(results[name]).all():
            raise ModelError(f"{graph}: {name} is not finite for a plain grey window")
    shapes = [results[name].shape[1:] for name in ports]
    joints = _find_joints(graph, shapes[0][0], said.skeleton)
    _check_stated(graph, said)
    assert said.convention is not None, "checked above, like the next two"
    assert said.mean is not None, "checked"
    assert said.std is not None, "checked"
    cells = shapes[0][1:] if output == "heatmap" else size
    return ModelSpec(
        name=said.name or graph.stem,
        network="",
        size=size,
        stride=size[0] // cells[0],
        skeleton=joints.name,
        mean=said.mean,
        std=said.std,
        rgb=bool(said.rgb),
        convention=said.convention,
        padding=said.padding or PADDING,
        method=said.method or ("udp" if said.convention == "udp" else "quarter"),
        sigma=said.sigma or max(1.0, cells[0] / ROWS_PER_SIGMA),
        peak_value=said.peak_value or 1.0,
        paper="",
        output=output,
        split=shapes[0][1] / size[1] if output == "simcc" else 2.0,
        ports=ports,
        custom=None if SKELETONS.get(joints.name) == joints else joints,
    )


def check_used(graph: Path, stated: Statement, output: str) -> None:
    """Refuse what outputs of this kind have no use for.

    Args:
        graph: its file, for the error.
        stated: by whoever wraps; what a family fills in is for another kind without harm.
        output: "heatmap" or "simcc".

    Raises:
        ModelError: something would be without effect.
    """
    useless = {"heatmap": ("split",), "simcc": ("method", "sigma")}[output]
    flags = [f"--{name}" for name in useless if getattr(stated, name) is not None]
    if flags:
        found = {"heatmap": "heat maps", "simcc": "SimCC vectors"}[output]
        raise ModelError(f"{graph}: it gives {found}, for which {flags[0]} has no meaning")


def _find_outputs(
    graph: Path, results: Mapping[str, npt.NDArray[Any]], size: tuple[int, int], said: Statement
) -> tuple[str, tuple[str, ...]]:
    """The kind of the outputs that count, and their names."""
    shapes = {name: array.shape for name, array in results.items()}
    listing = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    missing = [name for name in said.ports or () if name not in shapes]
    if missing:
        raise ModelError(f"{graph}: --ports: there is no output {missing[0]!r}; it has {listing}")
    found = list(_candidates(shapes, size, said))
    if not found:
        raise ModelError(_refusal(graph, shapes, size, said, listing))
    kind, ports = found[0]
    if len(found) > 1 or (said.output is None and len(ports) < len(said.ports or shapes)):
        raise ModelError(
            f"{graph}: it is not clear which outputs are the joints': {listing}; state --output "
            "heatmap or simcc, and --ports with the name of the heat maps or of the x and the y "
            "vectors"
        )
    bins = shapes[ports[0]][2]
    if kind == "simcc" and said.split is not None and not math.isclose(said.split, bins / size[1]):
        raise ModelError(
            f"{graph}: --split {said.split:g}, but {ports[0]} has {bins} bins for {size[1]} "
            f"pixels, which is {bins / size[1]:g}"
        )
    return kind, ports


def _candidates(
    shapes: Mapping[str, Shape], size: tuple[int, int], said: Statement
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What might be the joints by shape, and by what is stated: kinds and names of outputs."""
    names = said.ports or tuple(shapes)
    if said.output != "simcc":
        yield from (("heatmap", (name,)) for name in names if _are_maps(shapes[name], size))
    if said.output != "heatmap":
        orders = [names] if said.ports else list(itertools.permutations(names, 2))
        pairs = [pair for pair in orders if _are_vectors([shapes[name] for name in pair], size)]
        # Of a square input only the names can tell x from y.
        told = [(x, y) for x, y in pairs if x.endswith("x") and y.endswith("y")]
        yield from (("simcc", pair) for pair in told or pairs)


def _refusal(
    graph: Path,
    shapes: Mapping[str, Shape],
    size: tuple[int, int],
    said: Statement,
    listing: str,
) -> str:
    """Why no output can be used."""
    names = said.ports or tuple(shapes)
    vectors = [name for name in names if len(shapes[name]) == 3]
    if len(names) == len(vectors) == 2 and said.output != "heatmap":
        return (
            f"{graph}: {listing}: these are no SimCC vectors of an input of {size[0]}x{size[1]} "
            "(height x width): x must have as many bins for each pixel across as y down, for the "
            "same joints; state the right --size, or x before y in --ports"
        )
    if said.ports and len(vectors) == len(names) != 2 and said.output != "heatmap":
        return (
            f"{graph}: --ports {','.join(names)}: SimCC vectors are two outputs: give two names, "
            f"that of x and that of y; it has {listing}"
        )
    wanted = {
        "heatmap": "heat maps [N, joints, height / s, width / s]",
        "simcc": "SimCC vectors [N, joints, width * s] and [N, joints, height * s]",
    }
    kinds = [wanted[said.output]] if said.output else list(wanted.values())
    return (
        f"{graph}: no output has {' or '.join(kinds)} for an input of {size[0]}x{size[1]}: "
        f"{listing}; only top-down pose networks can be wrapped, no detectors and no one-stage "
        "networks"
    )


def _are_maps(shape: Shape, size: tuple[int, int]) -> bool:
    if len(shape) != 4 or shape[2] < 1 or shape[3] < 1:
        return False
    down, across = size[0] / shape[2], size[1] / shape[3]
    return down == across and down >= 1 and down.is_integer()


def _are_vectors(shapes: Sequence[Shape], size: tuple[int, int]) -> bool:
    """They are those of SimCC vectors, x before y."""
    if len(shapes) != 2 or any(len(shape) != 3 for shape in shapes):
        return False
    (_, joints_x, across), (_, joints_y, down) = shapes
    split = across / size[1]
    return joints_x == joints_y and split >= 1 and math.isclose(split, down / size[0])


def _find_joints(graph: Path, count: int, stated: str | None) -> Skeleton:
    """The joint set of `count` joints that is stated, or the only known one."""
    if stated is None:
        fitting = [s.name for s in SKELETONS.values() if len(s) == count]
        if len(fitting) != 1:
            known = " or ".join(fitting) or "none of the known ones; give a file"
            raise ModelError(f"{graph}: it has {count} joints: state --skeleton: {known}")
        return SKELETONS[fitting[0]]
    if stated not in SKELETONS and not Path(stated).suffix:
        raise ModelError(
            f"--skeleton must be {', '.join(SKELETONS)} or a JSON file, got {stated!r}"
        )
    joints = SKELETONS[stated] if stated in SKELETONS else read_skeleton(Path(stated))
    if len(joints) != count:
        raise ModelError(
            f"{graph}: --skeleton {stated} has {len(joints)} joints, the graph gives {count}"
        )
    return joints


def _check_stated(graph: Path, said: Statement) -> None:
    """Raise ModelError where what no graph can tell is missing; the text has all of it."""
    wanted = {
        "convention": f"--convention ({', '.join(CONVENTIONS)})",
        "mean": "--mean A,B,C",
        "std": "--std A,B,C (units of 0-255; 0,0,0 and 1,1,1 where the graph normalises)",
        "rgb": "--rgb or --bgr",
    }
    missing = [text for name, text in wanted.items() if getattr(said, name) is None]
    if missing:
        raise ModelError(
            f"{graph}: the graph cannot tell how its pictures were made: state "
            f"{', '.join(missing)}; --like {', '.join(FAMILIES)} states what is known of these"
        )
