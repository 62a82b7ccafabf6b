"""From a network to what a runtime runs: a stage of it, the flip test, and the joints, as asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.geometry import CONVENTIONS
from fastpose.models.decoding import Decode
from fastpose.models.parts import part_tree
from fastpose.models.spec import ModelSpec
from fastpose.ops.decode import mirror_partners


class Predictor(nn.Module):
    """A registered network with all that is to be done in its graph.

    Args:
        network: of `fastpose.create`.
        spec: of the network.
        flip: it runs on the windows and on their mirror images, as one batch, and the results are
            averaged as `locate_joints` does with `flipped`.
        stages: "last" is what the network's `predict` gives; "sum" or "mean" of the maps of all its
            stages; or the number of the one, from 1, behind which a traced graph ends.
        joints: the results are joints, as `Decode` gives them.

    Raises:
        ModelError: the network has no flip test, or its joints cannot be found in a graph.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        *,
        flip: bool = False,
        stages: str = "last",
        joints: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.name, self.stages = network, spec.name, stages
        self.mirror = MirrorMean(spec) if flip else None
        self.decode = Decode(spec) if joints else None

    def forward(self, image: Tensor) -> Any:
        """[N, 3, h, w] -> results [N, ...]: see `ModelSpec.output`.

        Raises:
            ModelError: there is no such stage, or the stages have maps of several sizes.
        """
        if self.mirror is not None:
            image = torch.cat((image, image.flip(3)))
        results = self._joined(self.maps(image))
        if self.mirror is not None:
            results = self.mirror(results)
        return results if self.decode is None else self.decode(results)

    def maps(self, image: Tensor) -> list[Any]:
        """What the network says, of the stage that is asked for, or of each that is joined."""
        if self.stages == "last":
            return [self.network.predict(image)]
        maps = self._stage_maps(image)
        if self.stages in ("sum", "mean"):
            return list(maps)
        number = int(self.stages)
        if number > len(maps):
            raise ModelError(
                f"{self.name}: stages must be a number from 1 to {len(maps)}, got {number}"
            )
        return [maps[number - 1]]

    def _joined(self, maps: list[Any]) -> Any:
        if self.stages not in ("sum", "mean"):
            (results,) = maps
            return results.float() if isinstance(results, Tensor) else results
        if len({stage.shape[1:] for stage in maps}) > 1:
            raise ModelError(f"{self.name}: its stages have maps of several sizes")
        total = sum((stage.float() for stage in maps[1:]), maps[0].float())
        return total / len(maps) if self.stages == "mean" else total

    def _stage_maps(self, image: Tensor) -> list[Tensor]:
        """The maps of every stage, the last one's last."""
        given = self.network(image)
        match given:
            case list():  # of maps, or of what else a stage says with its pose maps
                return [getattr(stage, "pose", stage) for stage in given]
            case (list() as coarse, refined):
                return coarse if refined is None else [*coarse, refined]
        raise ModelError(f"{self.name}: it has no stages to choose from")


class MirrorMean(nn.Module):
    """The mean of what a network says of windows and, mirrored back, of their mirror images.

    Args:
        spec: of the network.

    Raises:
        ModelError: mirrored results have no meaning.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        check_mirrored(spec)
        self.register_buffer("order", torch.tensor(_mirror_order(spec)), persistent=False)
        self.shift = CONVENTIONS[spec.convention].flip_shift

    def forward(self, results: Tensor) -> Tensor:
        """[2 N, C, h, w], of windows and then of their mirror images -> [N, C, h, w] float32."""
        straight, mirrored = results.float().unflatten(0, (2, -1)).unbind(0)
        back = mirrored.index_select(1, self.get_buffer("order")).flip(3)
        if self.shift:
            back = torch.cat((back[..., :1], back[..., :-1]), dim=3)
        return (straight + back) * 0.5


def check_mirrored(spec: ModelSpec) -> None:
    """Raise ModelError unless a network's results for mirrored windows can be averaged in."""
    reason = {
        "cascade": "its fine maps lie in windows of their own, so that there are no two to average",
        "simcc": "only maps are averaged inside a graph",
    }.get(spec.output)
    if spec.output == "parts" and spec.method == "tree" and part_tree(spec.tree).types > 1:
        reason = "its types of parts have no mirror twins"
    if reason:
        raise ModelError(f"{spec.name} has no flip test inside the graph: {reason}")


def _mirror_order(spec: ModelSpec) -> Sequence[int]:
    """For each channel of the results the one that has its place in the mirror image."""
    if spec.output == "parts":
        tree = part_tree(spec.tree)
        types = range(tree.types)
        order = [twin * tree.types + kind for twin in tree.flip_order().tolist() for kind in types]
        return [*order, len(order)]
    maps = len(spec.joints) // spec.peaks
    pairs = [(a // spec.peaks, b // spec.peaks) for a, b in spec.joints.flip_pairs]
    order = mirror_partners([(a, b) for a, b in pairs if a != b], maps).tolist()
    return [*order, maps] if spec.background else order
