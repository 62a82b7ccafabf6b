"""What a user of a network must know to feed and to read it: ModelSpec, DetectorSpec."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from fastpose.crop import Window
from fastpose.errors import ModelError
from fastpose.geometry import CONVENTIONS
from fastpose.models.parts import METHODS as PART_METHODS
from fastpose.models.parts import PART_TREES
from fastpose.models.views import REDUCES
from fastpose.ops.decode import METHODS
from fastpose.skeleton import SKELETONS, Skeleton, skeleton

OUTPUTS = ("heatmap", "simcc", "parts", "cascade", "joints")


@dataclass(frozen=True)
class ModelSpec:
    """A network's border: input, result, joints and conventions, as data.

    Attributes:
        name: the model's name.
        network: "module:callable" under fastpose.models that builds the module; "" for one from
            elsewhere, of which there is only a graph.
        size: (h, w) of the input in pixels.
        stride: input pixels per heat-map cell; 1 where there are none.
        skeleton: name of the joint set.
        mean, std: per input channel, in units of 0-255, after `rgb`.
        rgb: the input is RGB (frames are BGR).
        convention: crop and grid of `fastpose.geometry`.
        padding: the box is enlarged by this before it is cropped; a pair is for (x, y).
        method, sigma, peak_value: arguments of `ops.decode` that the maps were trained for; for
            "parts", method is one of `fastpose.models.parts.METHODS`, and sigma has no meaning.
        kwargs: further arguments of the callable.
        paper: author, title, venue, year; "" for a network from elsewhere.
        parameters: exact number of parameters where the publication or we know it.
        output: what the network gives, [N, ...]:
            "heatmap": [C, h, w], `peaks` joints a map, and the background's map if it has one;
            "simcc": two vectors of bins for each joint, as `ops.decode_simcc` reads them; the grid
            of `convention`, `method` and `sigma` then have no meaning;
            "parts": probabilities [P * T + 1, h, w] of the T types of the P parts of `tree`, and
            of the background;
            "cascade": for each joint the cells of a coarse map, then those of a `fine` x `fine`
            window on it, in one vector;
            "joints": (x, y, score) of each joint, decoded inside the graph, in cells of what were
            its maps; several of one map are side by side, highest first.
        split: bins for each pixel of the input.
        ports: names of the graph's outputs that count: the heat maps, or x and y of the vectors;
            () where it has no others.
        custom: the joint set itself where it is none of `SKELETONS`.
        background: the last map is the background's.
        peaks: joints in one map, told apart by their place.
        views: a person is seen so often, the box enlarged by each of these factors besides
            `padding`, and the results are joined.
        scale_reduce: how the heat maps of the views are joined: "mean", "sum" or "max".
        enlarge: the heat maps of all views are made so many times larger, by cubic convolution,
            before the peak is sought; see `fastpose.models.views`.
        tree: for "parts", a name of `fastpose.models.parts.PART_TREES`.
        fine: for "cascade", the side of the windows in cells.
        flip_inside: the graph itself averages the results of the mirrored window in.
    """

    name: str
    network: str
    size: tuple[int, int]
    stride: int
    skeleton: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: bool
    convention: str
    padding: float | tuple[float, float]
    method: str
    sigma: float
    peak_value: float
    paper: str
    parameters: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: str = "heatmap"
    split: float = 2.0
    ports: tuple[str, ...] = ()
    custom: Skeleton | None = None
    background: bool = False
    peaks: int = 1
    views: tuple[float, ...] = (1.0,)
    scale_reduce: str = "mean"
    enlarge: int = 1
    tree: str = ""
    fine: int = 0
    flip_inside: bool = False

    def __post_init__(self) -> None:
        self._check_joints()
        for key, names in (
            ("convention", tuple(CONVENTIONS)),
            ("method", PART_METHODS if self.output == "parts" else METHODS),
            ("scale_reduce", REDUCES),
        ):
            if getattr(self, key) not in names:
                raise ModelError(
                    f"{self.name}: {key} must be one of {', '.join(names)}, "
                    f"got {getattr(self, key)!r}"
                )
        for key in ("rgb", "flip_inside"):
            if type(getattr(self, key)) is not bool:
                raise ModelError(
                    f"{self.name}: {key} must be true or false, got {getattr(self, key)!r}"
                )
        self._check_numbers("mean", 3, least=-math.inf)
        self._check_numbers("std", 3)
        self._check_numbers("padding", 2 if isinstance(self.padding, tuple) else None)
        for key in ("sigma", "peak_value", "split"):
            self._check_numbers(key, None)
        self._check_numbers("views", len(self.views) or 1 if type(self.views) is tuple else 1)
        if type(self.enlarge) is not int or self.enlarge < 1:
            raise ModelError(
                f"{self.name}: enlarge must be a positive whole number, got {self.enlarge!r}"
            )
        if self.peaks > 1 and (self.enlarge > 1 or len(self.views) > 1):
            raise ModelError(f"{self.name}: a map of several joints is neither enlarged nor joined")
        sides = self.size if isinstance(self.size, tuple) and len(self.size) == 2 else ()
        if not sides or any(type(n) is not int or n < 1 for n in (*sides, self.stride)):
            raise ModelError(
                f"{self.name}: size (h, w) and stride must be positive whole numbers, "
                f"got {self.size!r} and {self.stride!r}"
            )
        if self.size[0] % self.stride or self.size[1] % self.stride:
            raise ModelError(f"{self.name}: size {self.size} is no multiple of {self.stride}")

    def _check_joints(self) -> None:
        """Raise ModelError unless the joints are known and the output has a place for each."""
        known = self.custom.name if self.custom else self.skeleton in SKELETONS and self.skeleton
        if known != self.skeleton:
            raise ModelError(f"{self.name}: unknown skeleton {self.skeleton!r}")
        if self.output not in OUTPUTS:
            raise ModelError(
                f"{self.name}: output must be {' or '.join(OUTPUTS)}, got {self.output!r}"
            )
        if (self.output == "parts") != (self.tree in PART_TREES):
            raise ModelError(f"{self.name}: unknown part tree {self.tree!r}")
        if type(self.peaks) is not int or self.peaks < 1 or len(self.joints) % self.peaks:
            raise ModelError(
                f"{self.name}: peaks must divide its {len(self.joints)} joints, got {self.peaks!r}"
            )

    def _check_numbers(self, key: str, count: int | None, least: float = 0.0) -> None:
        """Raise ModelError unless the field is one number above `least`, or `count` of them."""
        value = getattr(self, key)
        numbers = (value,) if count is None else value
        fits = isinstance(numbers, tuple) and len(numbers) == (count or 1)
        if not fits or not all(type(n) in (int, float) and least < n < math.inf for n in numbers):
            wanted = f"{count} numbers, " if count else ""
            sort = "finite" if least else "positive and finite"
            raise ModelError(f"{self.name}: {key} must be {wanted}{sort}, got {value!r}")

    @property
    def joints(self) -> Skeleton:
        return self.custom or skeleton(self.skeleton)

    @property
    def window(self) -> Window:
        """How its windows are cut."""
        return Window(self.size, self.mean, self.std, self.rgb, self.convention, self.padding)

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the heat maps."""
        return self.size[0] // self.stride, self.size[1] // self.stride

    @property
    def results(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each of the network's outputs for one window."""
        k, (h, w) = len(self.joints), self.cells
        match self.output:
            case "simcc":
                height, width = (round(side * self.split) for side in self.size)
                return (k, width), (k, height)
            case "parts":
                tree = PART_TREES[self.tree]
                return ((len(tree.parts) * tree.types + 1, h, w),)
            case "cascade":
                return ((k, h * w + self.fine**2),)
            case "joints":
                return ((k, 3),)
        return ((k // self.peaks + self.background, h, w),)

    def single_view(self) -> ModelSpec:
        """The same, seeing each person once: in the view nearest to `padding` alone."""
        nearest = min(self.views, key=lambda factor: abs(math.log(factor)))
        return replace(self, views=(nearest,))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a card or a manifest keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ModelError: a field is missing or not known.
        """
        tuples: dict[str, Any] = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        try:
            if values.get("custom") is not None:
                tuples["custom"] = Skeleton.from_dict(values["custom"])
            return cls(**{**values, **tuples})
        except (TypeError, ModelError) as error:
            raise ModelError(f"not a model spec: {error}") from None


@dataclass(frozen=True)
class DetectorSpec:
    """A detector's border, as data.

    Attributes:
        name: the detector's name.
        network: "module:callable" under fastpose.models that builds the module.
        size: (h, w) of the input in pixels, a multiple of the coarsest stride of its trunk.
        classes: names, without the background.
        mean, std, rgb: as in `ModelSpec`.
        strides: input pixels per cell of each level with anchors, finest first.
        pooled: how many of these levels windows of features are cut from.
        anchors: by level, the square root of an anchor's area, in input pixels.
        ratios: height per width of the anchors.
        canonical: the square root of the area of a box that is read at stride 16.
        width: channels of the pyramid.
        per_level: most anchors of a level that are looked at.
        proposals: most boxes that are classified.
        batch: how many of them a run of the head takes.
        promising: least objectness of a box that is classified; lower ones cost time and, where
            the weights were measured, brought nothing.
        score: least score of a person unless somebody asks for another.
        paper: author, title, venue, year.
        parameters: exact number of parameters.
        pool: side of the window of features of a box.
        kwargs: further arguments of the callable.
    """

    name: str
    network: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: bool
    strides: tuple[int, ...]
    pooled: int
    anchors: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    canonical: float
    width: int
    per_level: int
    proposals: int
    batch: int
    promising: float
    score: float
    paper: str
    parameters: int
    pool: int = 7
    kwargs: tuple[tuple[str, Any], ...] = ()

    @property
    def window(self) -> Window:
        """How the whole frame is cut: fitted into the input, upright."""
        return Window(self.size, self.mean, self.std, self.rgb, "symmetric", 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a card keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectorSpec:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ModelError: a field is missing, not known or of another type.
        """
        try:
            spec = cls(**{key: _frozen(value) for key, value in values.items()})
        except TypeError as error:
            raise ModelError(f"not a detector spec: {error}") from None
        sorts: dict[str, type | tuple[type, ...]]
        sorts = {"str": str, "bool": bool, "int": int, "float": (int, float)}
        for one in fields(cls):
            value, sort = getattr(spec, one.name), sorts.get(str(one.type), tuple)
            if not isinstance(value, sort):
                raise ModelError(f"not a detector spec: {one.name}: {value!r}")
        return spec


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
