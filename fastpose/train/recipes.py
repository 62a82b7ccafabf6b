"""How networks were trained where they were published: `fastpose train --recipe published`.

Of each publication: optimiser, rates, batch, length and the ranges of the views. Its data, its
first weights, where those were trained on ImageNet, and its arithmetic are not part of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fastpose.crop import Augmentation
from fastpose.errors import ModelError
from fastpose.models.cpm import CPM, CPMVGG
from fastpose.models.spec import ModelSpec
from fastpose.models.structured import Structured
from fastpose.train.cpm import cpm_parameter_groups
from fastpose.train.loop import parameter_groups
from fastpose.train.pbn import augmentation as pbn_views
from fastpose.train.structured import structured_parameter_groups
from fastpose.train.tasks import BODY, AdversarialRecipe, PoseRecipe

LEAST_WARMTH = 1e-3  # share of the rate at which a warm-up begins


@dataclass(frozen=True)
class PublishedRecipe(PoseRecipe):
    """A publication's; it averages no weights and cuts no gradients.

    A run that is shorter or longer than the publication's changes its rate at the same shares.

    Attributes:
        method: the optimiser: "sgd" with a momentum of 0.9, "adam" or "rmsprop".
        drop: the rate is multiplied by this...
        drops: ...when these shares of the run are done.
        warm: share of the run in which the rate rises to its full height.
    """

    ema: float = 0.0
    clip: float | None = None
    method: str = "sgd"
    drop: float = 0.1
    drops: tuple[float, ...] = ()
    warm: float = 0.0

    def rate_at(self, progress: float) -> float:
        """See `Recipe`."""
        rate = self.rate * self.drop ** sum(progress >= share for share in self.drops)
        if progress < self.warm:
            rate *= LEAST_WARMTH + (1 - LEAST_WARMTH) * progress / self.warm
        return rate

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """See `Recipe`; what a publication does not say of it is as in torch."""
        groups = _groups(network, self.decay)
        match self.method:
            case "sgd":
                return torch.optim.SGD(groups, lr=self.rate, momentum=0.9)
            case "adam":
                return torch.optim.Adam(groups, lr=self.rate)
            case "rmsprop":
                return torch.optim.RMSprop(groups, lr=self.rate)
        raise ValueError(f"method must be sgd, adam or rmsprop, got {self.method!r}")


def _groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    match network:
        case CPM() | CPMVGG():
            return cpm_parameter_groups(network, decay)
        case Structured():
            return structured_parameter_groups(network, decay)
    return parameter_groups(network, decay)


@dataclass(frozen=True)
class Publication:
    """How a network was trained.

    Attributes:
        recipe: without a schedule.
        epochs: each person is seen so often; None where the publication counts views.
        views: of all people together, in the whole run; None where it counts epochs.
    """

    recipe: PublishedRecipe | AdversarialRecipe
    epochs: int | None = None
    views: int | None = None

    def epochs_of(self, samples: int) -> int:
        """How often each of so many people is seen, if the run is as long as the publication's."""
        if self.views is None:
            assert self.epochs is not None, "one of the two is known"
            return self.epochs
        return max(1, round(self.views / max(1, samples)))


def published(spec: ModelSpec) -> Publication:
    """How a network was trained where it was published.

    Raises:
        ModelError: that is not known.
    """
    match spec.network:
        case "cpm:CPM" | "cpm:CPMVGG":
            return _pose_machine(spec)
        case "cpm:CPMBatchNorm":
            return _mmpose(spec)
        case "structured:Structured" if spec.tree == "lsp26":
            return _structured(spec)
        case "adversarial:AdversarialPoseNet":
            return _adversarial(spec)
        case "pbn:PBN":
            return _pbn(spec)
        case "hourglass:StackedHourglass":
            return _hourglass(spec)
        case "tompson:Cascade":
            return _tompson(spec)
        case "cpn:CPN" | "cpn:CPNStar" if spec.peaks == 1:
            return _cpn(spec)
    raise ModelError(f"--recipe published: no published recipe of {spec.name} is known")


def _pose_machine(spec: ModelSpec) -> Publication:
    """Wei, Ramakrishna, Kanade, Sheikh, Convolutional Pose Machines, CVPR 2016, as released.

    Iterations are those of the released weights: FLIC's with 4 stages, else LSP's, and those that
    start from a VGG.
    """
    batch, every = 16, 136_106
    iterations = 40_000 if spec.kwargs.get("stages") == 4 else 395_000
    if spec.network == "cpm:CPMVGG":
        iterations = 320_000
    recipe = PublishedRecipe(
        **_frame(spec, turn=40.0, enlarge=(0.7, 1.3)),
        batch=batch,
        rate=8e-5,
        decay=5e-4,
        drop=0.333,
        drops=tuple(step / iterations for step in range(every, iterations, every)),
    )
    return Publication(recipe, views=iterations * batch)


def _mmpose(spec: ModelSpec) -> Publication:
    """OpenMMLab's mmpose, for MPII: its angles and zooms are normal, cut off at one deviation."""
    people, batch, epochs = 22_246, 512, 210
    recipe = PublishedRecipe(
        **_frame(spec, turn=60.0, rotated=0.6, widen=(0.75, 1.25)),
        method="adam",
        batch=batch,
        rate=5e-4,
        decay=0.0,
        drops=(170 / epochs, 200 / epochs),
        warm=500 / (-(-people // batch) * epochs),
    )
    return Publication(recipe, epochs=epochs)


def _structured(spec: ModelSpec) -> Publication:
    """Chu, Ouyang, Li, Wang, Structured Feature Learning, CVPR 2016, as released for LSP.

    The 80,000 views of its data are the 1000 people, mirrored and turned by every multiple of 9
    degrees. The weights that were released are those of iteration 3250 of 10,000.
    """
    iterations, every, batch = 10_000, 5000, 16
    recipe = PublishedRecipe(
        **_frame(spec, turn=180.0),
        batch=batch,
        rate=0.002,
        decay=5e-4,
        drops=(every / iterations,),
    )
    return Publication(recipe, views=iterations * batch)


def _adversarial(spec: ModelSpec) -> Publication:
    """Chen, Shen, Wei, Liu, Yang, Adversarial PoseNet, ICCV 2017; the batch is ours."""
    frame = _frame(spec, turn=30.0, widen=(0.75, 1.25), gain=0.4)
    recipe = AdversarialRecipe(**frame, batch=8, rate=2.5e-4)
    return Publication(recipe, epochs={"mpii16": 230, "lsp14": 250}[spec.skeleton])


def _pbn(spec: ModelSpec) -> Publication:
    """Tang and Wu, Does Learning Specific Features for Related Parts Help?, CVPR 2019."""
    epochs = 250
    recipe = PublishedRecipe(
        **_frame(spec) | {"augmentation": pbn_views()},
        method="rmsprop",
        batch=16,
        rate=2.5e-4,
        decay=0.0,
        drops=(170 / epochs, 220 / epochs),
    )
    return Publication(recipe, epochs=epochs)


def _hourglass(spec: ModelSpec) -> Publication:
    """Newell, Yang, Deng, Stacked Hourglass Networks, ECCV 2016, as the code's options stand.

    The paper lowers the rate once, to a fifth, when the accuracy no longer rises.
    """
    epochs, iterations, batch = 100, 4000, 6
    views = {"rotation": 30.0, "rotated": 0.4, "scale": 0.25 * math.log(2), "gain": 0.4}
    recipe = PublishedRecipe(
        **_frame(spec, **views), method="rmsprop", batch=batch, rate=2.5e-4, decay=0.0
    )
    return Publication(recipe, views=epochs * iterations * batch)


def _tompson(spec: ModelSpec) -> Publication:
    """Tompson et al., Efficient Object Localization, CVPR 2015: views, and the order of learning.

    Optimiser, rate, batch and length are ours: no source of the paper's was at hand.
    """
    recipe = PublishedRecipe(
        **_frame(spec, turn=20.0, enlarge=(0.5, 1.5)),
        method="rmsprop",
        batch=16,
        rate=1e-4,  # at 1e-3 the first steps throw the network off
        decay=0.0,
    )
    return Publication(recipe, epochs=60)


def _cpn(spec: ModelSpec) -> Publication:
    """Chen et al., Cascaded Pyramid Network, CVPR 2018, as its code was released.

    The paper itself names SGD, a rate that is halved every ten epochs, and narrower ranges. The
    code makes four views of a person: one plain, one mirrored and two turned.
    """
    views, every = 400 * 60_000, 60 * 60_000
    gain = 0.2 if spec.kwargs["style"] == "torch" else 0.0  # not of the authors' code
    recipe = PublishedRecipe(
        **_frame(spec, turn=45.0, rotated=0.5, widen=(0.7, 1.35), flip=0.25, gain=gain),
        method="adam",
        batch=24 if spec.size == (384, 288) else 32,
        rate=5e-4,
        decay=1e-5,
        drop=0.5,
        drops=tuple(done / views for done in range(every, views, every)),
    )
    return Publication(recipe, views=views)


# Of our views, what no publication has: shifts, half bodies, grey pictures; the rest if it says so.
PLAIN = Augmentation(
    rotation=0.0, rotated=1.0, scale=0.0, shift=0.0, half_body=0.0, gain=0.0, grey=0.0
)


def _frame(spec: ModelSpec, **views: Any) -> dict[str, Any]:
    """The fields that all of them have: a person is as large in training as in prediction."""
    x, y = spec.padding if isinstance(spec.padding, tuple) else (spec.padding, spec.padding)
    return {
        "name": "published",
        "schedule": (),
        "padding": (BODY * x, BODY * y),
        "augmentation": replace(PLAIN, **views),
    }
