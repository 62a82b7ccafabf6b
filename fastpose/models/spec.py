"""What a user of a network must know to feed it and to read it: ModelSpec."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fastpose.crop import Window
from fastpose.errors import ModelError
from fastpose.skeleton import SKELETONS, Skeleton, skeleton


@dataclass(frozen=True)
class ModelSpec:
    """A network's border: input, heat maps, joints and conventions, as data.

    Attributes:
        name: the model's name.
        network: "module:callable" under fastpose.models that builds the module.
        size: (h, w) of the input in pixels.
        stride: input pixels per heat-map cell.
        skeleton: name of the joint set; its length is the number of heat maps.
        mean, std: per input channel, in units of 0-255, after `rgb`.
        rgb: the input is RGB (frames are BGR).
        convention: crop and grid of `fastpose.geometry`.
        padding: the box is enlarged by this before it is cropped; a pair is for (x, y).
        method, sigma, peak_value: arguments of `ops.decode` that the maps were trained for.
        kwargs: further arguments of the callable.
        paper: author, title, venue, year.
        parameters: exact number of parameters where the publication or we know it.
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

    def __post_init__(self) -> None:
        if self.skeleton not in SKELETONS:
            raise ModelError(f"{self.name}: unknown skeleton {self.skeleton!r}")
        if self.size[0] % self.stride or self.size[1] % self.stride:
            raise ModelError(f"{self.name}: size {self.size} is no multiple of {self.stride}")

    @property
    def joints(self) -> Skeleton:
        return skeleton(self.skeleton)

    @property
    def window(self) -> Window:
        """How its windows are cut."""
        return Window(self.size, self.mean, self.std, self.rgb, self.convention, self.padding)

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the heat maps."""
        return self.size[0] // self.stride, self.size[1] // self.stride

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a card or a manifest keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ModelError: a field is missing or not known.
        """
        tuples = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        try:
            return cls(**{**values, **tuples})
        except TypeError as error:
            raise ModelError(f"not a model spec: {error}") from None
