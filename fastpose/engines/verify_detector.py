"""How far a detector's engine moves the boxes of its reference, by their overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastpose.engines.verify import (
    BOUNDS,
    Change,
    Metric,
    beyond_loss,
    change_of,
    number,
    other_precision,
    plain_numbers,
)
from fastpose.errors import EngineError
from fastpose.models.anchors import overlaps
from fastpose.types import Boxes, Floats

SURE = 0.5  # score from which a box counts
SAME = 0.9  # intersection over union from which two boxes are one
TOUCHING = 1e-6  # and from which they have anything in common


@dataclass(frozen=True)
class BoxBounds:
    """What a detector may differ by, at most.

    Attributes:
        median: least intersection over union of half of the boxes with their counterparts.
        same: least share of the boxes that have one, in both directions.
        loss: what the average precision may fall, in points.
        scores: median change of the scores, in both directions.
    """

    median: float
    same: float
    loss: float
    scores: float


# Of 268 boxes of fpn-light in 150 photographs, bf16 has a median of 0.998 and 99.6 % that are the
# same, int8 0.992 and 97.0 %. Half of the scores change by 0.0002 at most in int8.
_FLOAT = BoxBounds(0.99, 0.95, BOUNDS["bf16"].loss, BOUNDS["bf16"].scores)
BOX_BOUNDS = {"f32": _FLOAT, "bf16": _FLOAT, "f16": _FLOAT} | {
    # as much wider as for joints
    "int8": BoxBounds(0.95, 0.9, BOUNDS["int8"].loss, BOUNDS["int8"].scores)
}


class BoxTruth(Protocol):
    """What is true of the frames that a detector is verified on."""

    def __call__(self, found: Sequence[Boxes]) -> tuple[str, float]:
        """A metric's name and value, in percent, of the boxes of all frames."""
        ...


class RunsFrames(Protocol):
    """A detector that tells what runs it; `fastpose.detect.TwoStageDetector` is one."""

    @property
    def kind(self) -> str:
        """The runtime."""
        ...

    @property
    def precision(self) -> str:
        """In which it computes."""
        ...

    def __call__(self, frames: Sequence[Any]) -> list[Boxes]:
        """The people of each frame [H, W, 3] uint8 BGR."""
        ...


@dataclass(frozen=True)
class Overlap:
    """Intersections over union of the reference's sure boxes with their counterparts.

    Attributes:
        boxes: how many.
        median, p5: of them; 5 % of the boxes overlap by less than the latter.
        found: share of them that overlap by 0.9 or more.
        own: share of the engine's own sure boxes that overlap one of the reference as much.
    """

    boxes: int
    median: float
    p5: float
    found: float
    own: float


@dataclass(frozen=True)
class BoxVerification:
    """A detector beside its reference.

    Attributes:
        reference: runtime and precision of the reference, such as "torch f32".
        source: "built-in", or the name of the pictures' folder or set.
        frames: how many were looked at.
        overlap: of the boxes that the reference is sure of.
        score_change: of the same boxes.
        metric: where there is a ground truth.
        layers: arithmetic layers by precision, {} where the runtime does not tell.
        precision_asked: the one that was to be present.
        precision_found: the one that is.
        reasons: what is beyond its bound, each with figure and bound.
    """

    reference: str
    source: str
    frames: int
    overlap: Overlap
    score_change: Change
    metric: Metric | None
    layers: dict[str, int]
    precision_asked: str
    precision_found: str
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Nothing is beyond its bound."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a manifest keeps them."""
        return {
            "passed": self.passed,
            **asdict(self),
            "overlap": plain_numbers(asdict(self.overlap), 4),
            "score_change": plain_numbers(asdict(self.score_change), 4),
            "metric": self.metric and self.metric.to_dict(),
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BoxVerification:
        """Read what `to_dict` gave.

        Raises:
            EngineError: it is something else.
        """
        try:
            change = (values["score_change"][field.name] for field in fields(Change))
            metric = values["metric"]
            return cls(
                **{
                    **{name: value for name, value in values.items() if name != "passed"},
                    "overlap": Overlap(**values["overlap"]),
                    "score_change": Change(*map(number, change)),
                    "metric": None if metric is None else Metric.from_dict(metric),
                    "reasons": tuple(values["reasons"]),
                }
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise EngineError(f"not the report of a verification: {error}") from None


def verify_detector(
    reference: RunsFrames,
    detector: RunsFrames,
    frames: Iterable[npt.NDArray[np.uint8]],
    *,
    source: str,
    precision: str = "auto",
    layers: Mapping[str, int] | None = None,
    truth: BoxTruth | None = None,
) -> BoxVerification:
    """Run two engines of one detector over the same frames, and hold the second to its bounds.

    A box that the reference is sure of, with a score of 0.5, goes with the surest of the other's
    boxes that overlap it by 0.9, or else with the one that overlaps it most. Low scores change
    nothing here: where people stand close, Soft-NMS makes them of small differences.

    Args:
        reference: in f32.
        detector: the one that is looked at.
        frames: [H, W, 3] uint8 BGR each; read once, one at a time.
        source: what they are, for the report.
        precision: that the second was asked for, which decides the bounds; "auto" is its own.
        layers: arithmetic layers of it by precision.
        truth: tells how good the boxes of all frames are.

    Raises:
        ValueError: there is no frame, or the reference is sure of no box in all of them.
    """
    pairs = [(reference([frame])[0], detector([frame])[0]) for frame in frames]
    if not pairs:
        raise ValueError(f"{source}: there is no frame to compare the detectors on")
    expected, actual = ([pair[side] for pair in pairs] for side in (0, 1))
    matches = [_counterparts(a, b) for a, b in pairs]
    shared, scores, others = (np.concatenate([m[k] for m in matches]) for k in range(3))
    if not len(shared):
        raise ValueError(
            f"{source}: the reference is sure of nobody in {len(pairs)} frames: "
            "nothing can be compared"
        )
    back = [_counterparts(b, a) for a, b in pairs]
    own, own_scores, known = (np.concatenate([m[k] for m in back]) for k in range(3))
    change = change_of(others - scores)
    own_change = change_of(own_scores - known).median if len(own) else 0.0
    overlap = Overlap(
        len(shared),
        float(np.median(shared)),
        float(np.quantile(shared, 0.05, method="lower")),
        float((shared >= SAME).mean()),
        float((own >= SAME).mean()) if len(own) else 0.0,
    )
    asked = detector.precision if precision == "auto" else precision
    layers, metric = dict(layers or {}), _metric(truth, expected, actual)
    bounds = BOX_BOUNDS.get(asked, _FLOAT)  # halves of two precisions are of floats
    return BoxVerification(
        reference=f"{reference.kind} {reference.precision}",
        source=source,
        frames=len(pairs),
        overlap=overlap,
        score_change=change,
        metric=metric,
        layers=layers,
        precision_asked=asked,
        precision_found=detector.precision,
        reasons=(
            *_beyond(bounds, overlap),
            *_other_scores(bounds.scores, change.median, own_change),
            *beyond_loss(metric, bounds.loss),
            *other_precision(asked, detector.precision, layers, detector.kind),
        ),
    )


def _counterparts(boxes: Boxes, others: Boxes) -> tuple[Floats, Floats, Floats]:
    """For each sure box, surest first, of those of another detector: the one that is it.

    Returns:
        overlaps with it [N], the scores [N], and its scores [N]; 0 where there is none left.
    """
    sure = np.argsort(-boxes.scores, kind="stable")
    sure = sure[boxes.scores[sure] >= SURE]
    table, _ = overlaps(boxes.boxes[sure], others.boxes)
    shared, scores = np.zeros(len(sure), np.float32), np.zeros(len(sure), np.float32)
    # those that are the same first, so that who was lost takes nobody else's
    for least, ranks in ((SAME, np.broadcast_to(others.scores, table.shape)), (TOUCHING, table)):
        for row in np.flatnonzero(shared == 0):
            free = np.flatnonzero(table[row] >= least)
            if len(free):
                best = free[ranks[row, free].argmax()]
                shared[row], scores[row] = table[row, best], others.scores[best]
                table[:, best] = -1  # it goes with one alone
    return shared, boxes.scores[sure], scores


def _metric(
    truth: BoxTruth | None, expected: Sequence[Boxes], actual: Sequence[Boxes]
) -> Metric | None:
    if truth is None:
        return None
    name, before = truth(expected)
    _, after = truth(actual)
    return None if np.isnan(before) else Metric(name, before, after)


def _beyond(bounds: BoxBounds, overlap: Overlap) -> Iterator[str]:
    if overlap.median < bounds.median:
        yield f"median overlap {overlap.median:.4g}, at least {bounds.median:g}"
    for share, what in (
        (overlap.found, f"of {overlap.boxes} boxes are found"),
        (overlap.own, "of the engine's own boxes are the reference's"),
    ):
        if share < bounds.same:
            yield (
                f"{100 * share:.4g} % {what} with an overlap of {SAME:g}, "
                f"at least {100 * bounds.same:g} %"
            )


def _other_scores(bound: float, found: float, own: float) -> Iterator[str]:
    for change, what in ((found, "the boxes'"), (own, "the engine's own boxes'")):
        if not change <= bound:
            yield f"median change of {what} scores {change:.4g}, at most {bound:g}"
