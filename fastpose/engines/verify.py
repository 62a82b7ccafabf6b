"""How far an engine moves the joints of its reference, in pixels of the network's input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastpose.engines import (
    GRAPH_KINDS,
    changed_spec,
    choose_runtime,
    open_halves,
    open_request,
    source,
)
from fastpose.engines.engine import Engine, Graph, Request
from fastpose.engines.manifest import Manifest
from fastpose.engines.options import Options
from fastpose.errors import BackendError, EngineError
from fastpose.models import model_spec
from fastpose.models.joints import locate_joints
from fastpose.models.spec import DetectorSpec, ModelSpec
from fastpose.skeleton import Skeleton

Floats = npt.NDArray[np.float32]

CONFIDENT = 0.3  # score from which a joint counts
FAR = 2.0  # input pixels
RESCORED = 0.1  # change of a score that precision does not explain; the largest is 0.08, of int8
UNSAID = ("name", "paper", "parameters")  # fields of a spec that feed and read nothing
COUNTING = ("openvino", "tensorrt")  # runtimes that tell the precision of each layer
FAINT = 2.0**-20  # of a peak that was taught: one that counts where nothing was taught
BATCH = 8  # windows that the engines see, and memory holds, at once


@dataclass(frozen=True)
class Bounds:
    """What an engine may differ by, at most.

    Attributes:
        median: of the shifts, in input pixels.
        moved: share of the joints that moved by more than 2 pixels or were lost.
        loss: what the data set's first metric may fall, in points.
        scores: median change of the joints' scores, in parts of `_unit`.
        rescored: share of all joints whose score changed by more than 0.1 of `_unit`.
    """

    median: float
    moved: float
    loss: float
    scores: float
    rescored: float


# Of cpn-light, on 2800 joints of LSP and on the built-in pictures, the scores change by 0.0014 in
# bf16 and up to 0.0048 in int8 of four calibrations (median), and by 0.009 and 0.078 at most.
_FLOAT = Bounds(median=0.1, moved=0.005, loss=0.3, scores=0.01, rescored=0.005)
_INT8 = Bounds(median=0.5, moved=0.005, loss=1.0, scores=0.05, rescored=0.005)
BOUNDS = {"f32": _FLOAT, "bf16": _FLOAT, "f16": _FLOAT, "int8": _INT8}


class Truth(Protocol):
    """What is true of the windows that an engine is verified on."""

    def __call__(self, points: Floats, scores: Floats) -> tuple[str, float]:
        """A metric's name and value, in percent.

        Args:
            points: [N, K, 2] joints in all windows, in window pixels; NaN where not found.
            scores: [N, K].
        """
        ...


class Pictures(Protocol):
    """Windows to verify an engine on; `fastpose.fixtures.Fixtures` is one."""

    @property
    def name(self) -> str:
        """Where they come from."""
        ...

    @property
    def truth(self) -> Truth | None:
        """What is known of them."""
        ...

    def batches(self, size: int) -> Iterator[Floats]:
        """All of them, [N, 3, h, w] each, at most `size` at once."""
        ...


@dataclass(frozen=True)
class Shift:
    """Distances between the joints of two engines.

    Attributes:
        joints: how many.
        median, p95, largest: in pixels of the network's input; infinite for one that was lost.
        moved: share of them that moved by more than 2 pixels, or were lost.
    """

    joints: int
    median: float
    p95: float
    largest: float
    moved: float


@dataclass(frozen=True)
class Change:
    """Absolute differences of scores: the median and the largest."""

    median: float
    largest: float


@dataclass(frozen=True)
class Metric:
    """What a change of engine does to a figure of accuracy, in percent.

    Attributes:
        name: of the figure.
        before: with the reference.
        after: with the engine.
    """

    name: str
    before: float
    after: float

    @property
    def loss(self) -> float:
        """How many points it fell."""
        return self.before - self.after

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return plain_numbers({**asdict(self), "loss": self.loss}, 3)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Metric:
        """What `to_dict` gave."""
        return cls(str(values["name"]), number(values["before"]), number(values["after"]))


@dataclass(frozen=True)
class Verification:
    """An engine beside its reference.

    Attributes:
        reference: runtime and precision of the reference, such as "torch f32".
        source: "built-in", or the name of the pictures' folder or set.
        windows: how many were looked at.
        random: the weights are: every joint with a peak counts, not those alone that the reference
            is sure of.
        shift: of the joints that count.
        score_change: of the same joints.
        rescored: share of all joints, also of those that the reference is not sure of, whose score
            changed by more than 0.1.
        metric: where there is a ground truth; of single views.
        layers: arithmetic layers by precision, as in `Manifest`.
        precision_asked: the one that was to be present.
        precision_found: the one that is.
        reasons: what is beyond its bound, each with figure and bound.
    """

    reference: str
    source: str
    windows: int
    random: bool
    shift: Shift
    score_change: Change
    rescored: float
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
        """Plain values, as a manifest keeps them; None for a distance that is infinite."""
        return {
            "passed": self.passed,
            **asdict(self),
            "shift": plain_numbers(asdict(self.shift), 3) | {"moved": round(self.shift.moved, 4)},
            "score_change": plain_numbers(asdict(self.score_change), 4),
            "rescored": round(self.rescored, 4),
            "metric": self.metric and self.metric.to_dict(),
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verification:
        """Read what `to_dict` gave.

        Raises:
            EngineError: it is something else.
        """
        try:
            joints, *distances = (values["shift"][field.name] for field in fields(Shift))
            change = (values["score_change"][field.name] for field in fields(Change))
            metric = values["metric"]
            return cls(
                **{
                    **{name: value for name, value in values.items() if name != "passed"},
                    "shift": Shift(joints, *map(number, distances)),
                    "score_change": Change(*map(number, change)),
                    "rescored": float(values["rescored"]),
                    "metric": None if metric is None else Metric.from_dict(metric),
                    "reasons": tuple(values["reasons"]),
                }
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise EngineError(f"not the report of a verification: {error}") from None


def verify_pictures(
    engine: Engine,
    pictures: Pictures,
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    threads: int | None = None,
) -> Verification:
    """Open the reference of an engine and compare both on pictures.

    Args:
        engine: stays open.
        pictures: windows as the engine takes them.
        folder: as in `reference_engine`, like the rest and the errors.
        weights: as there.
        threads: as there.

    Raises:
        EngineError, ValueError: as `verify`; or the manifest says of a registered network what is
            not so, as `reference_spec`.
    """
    manifest = engine.manifest
    reference = reference_engine(manifest, folder=folder, weights=weights, threads=threads)
    try:
        return verify(
            reference,
            engine,
            pictures.batches(BATCH),
            source=pictures.name,
            random=bool(manifest.spec.network) and not manifest.weights_hash,
            truth=pictures.truth,
        )
    finally:
        reference.close()


def verify(
    reference: Engine,
    engine: Engine,
    batches: Iterable[Floats],
    *,
    source: str,
    random: bool = False,
    truth: Truth | None = None,
) -> Verification:
    """Run two engines of one network over the same windows, and hold the second to its bounds.

    A person is seen once, also by a network whose procedure joins several views. Each engine's
    results are decoded as its own spec says, so that one with decoding inside its graph is
    compared with one without.

    Args:
        reference: in f32.
        engine: the one that is looked at; its precision decides the bounds.
        batches: windows, [N, 3, h, w] each.
        source: what the windows are, for the report.
        random: the weights are random; see `Verification`.
        truth: tells how accurate the joints in all windows are.

    Raises:
        EngineError: the results do not have the shape that the spec says, or the reference's are
            not finite.
        ValueError: the networks differ, there is no window, or the reference is sure of no joint
            in all of them.
    """
    check_same_network(reference.manifest.spec, engine.manifest.spec)
    sides = (reference, engine)
    untaught = random and all(side.manifest.spec.output != "joints" for side in sides)
    pairs = [[_locate(side, batch, untaught) for side in sides] for batch in batches]
    if not pairs:
        raise ValueError(f"{source}: there is no window to compare the engines on")
    expected, actual = (_Located.join([pair[side] for pair in pairs]) for side in (0, 1))
    if expected.broken:
        raise EngineError(
            f"the reference, {_title(reference)}, gives values that are not finite for "
            f"{expected.broken} of {len(expected.points)} windows"
        )
    counted = np.isfinite(expected.points).all(axis=2) & (random | (expected.scores > CONFIDENT))
    if not counted.any():
        raise ValueError(
            f"{source}: the reference is sure of no joint in {len(counted)} windows: "
            "nothing can be compared"
        )
    manifest = engine.manifest
    asked = manifest.precision_asked
    asked = manifest.precision if asked == "auto" else asked
    bounds = BOUNDS[asked]
    shift = _shift(actual.points[counted] - expected.points[counted])
    change = actual.scores - expected.scores
    score_change, unit = change_of(change[counted]), _unit(expected, counted, random)
    rescored = float((~(np.abs(change) <= RESCORED * unit)).mean())
    metric = _metric(truth, expected, actual)
    reasons = (
        *_broken_windows(actual),
        *_beyond(bounds, shift),
        *_other_scores(bounds, score_change, rescored, change.size, unit),
        *beyond_loss(metric, bounds.loss),
        *other_precision(asked, manifest.precision, manifest.layers, manifest.kind),
    )
    return Verification(
        reference=_title(reference),
        source=source,
        windows=len(counted),
        random=random,
        shift=shift,
        score_change=score_change,
        rescored=rescored,
        metric=metric,
        layers=dict(manifest.layers),
        precision_asked=asked,
        precision_found=manifest.precision,
        reasons=reasons,
    )


def check_same_network(reference: ModelSpec, spec: ModelSpec) -> None:
    """Raise ValueError unless both take the same windows and find the same joints."""
    for name in ("size", "joints"):
        wanted, found = getattr(reference, name), getattr(spec, name)
        if wanted != found:
            texts = (getattr(wanted, "name", wanted), getattr(found, "name", found))
            raise ValueError(f"the engines differ: {name} {texts[0]} in the reference, {texts[1]}")


@dataclass(frozen=True)
class _Located:
    """Joints in window pixels.

    Attributes:
        points: [N, K, 2].
        scores: [N, K].
        broken: how many windows have a result that is not finite.
    """

    points: Floats
    scores: Floats
    broken: int

    @classmethod
    def join(cls, parts: Sequence[_Located]) -> _Located:
        return cls(
            np.concatenate([part.points for part in parts]),
            np.concatenate([part.scores for part in parts]),
            sum(part.broken for part in parts),
        )


def _locate(engine: Engine, batch: Floats, untaught: bool) -> _Located:
    """Joints of windows; `untaught` maps may lie below 0, and have faint peaks."""
    spec = engine.manifest.spec.single_view()
    results = engine(batch)
    first, *others = spec.results
    shape = (len(batch), *first[:-1], sum(s[-1] for s in (first, *others)))
    if results.shape != shape:
        raise EngineError(
            f"{_title(engine)} of {spec.name}: the results for {len(batch)} windows must be "
            f"{list(shape)}, got {list(results.shape)}"
        )
    affines = np.tile(np.eye(2, 3), (len(batch), 1, 1))
    finite = np.isfinite(results).reshape(len(batch), -1).all(axis=1)
    unit = FAINT if untaught else 1.0
    if untaught and spec.output == "heatmap":
        results = results - results.min(axis=(2, 3), keepdims=True)
    faint = replace(spec, peak_value=unit * spec.peak_value)
    points, scores = locate_joints(results, affines, faint)
    return _Located(points, scores * np.float32(unit), int((~finite).sum()))


def _shift(difference: Floats) -> Shift:
    """Of joints that differ by [N, 2]; one that was lost moved as far as can be."""
    moves = np.nan_to_num(np.linalg.norm(difference, axis=1), nan=np.inf)
    return Shift(
        len(moves),
        float(np.quantile(moves, 0.5, method="higher")),  # interpolating, inf - inf is NaN
        float(np.quantile(moves, 0.95, method="higher")),
        float(moves.max()),
        float((moves > FAR).mean()),
    )


def change_of(difference: Floats) -> Change:
    """Of scores that differ by [N]."""
    sizes = np.abs(np.nan_to_num(difference, nan=np.inf))
    return Change(float(np.quantile(sizes, 0.5, method="higher")), float(sizes.max()))


def _unit(expected: _Located, counted: npt.NDArray[np.bool_], random: bool) -> float:
    """What a score is measured by: 1, or the largest where nobody taught it or it is above."""
    largest = float(expected.scores[counted].max())
    return largest if random else max(1.0, largest)


def _metric(truth: Truth | None, expected: _Located, actual: _Located) -> Metric | None:
    """None also where the set has nothing that the metric counts."""
    if truth is None:
        return None
    name, before = truth(expected.points, expected.scores)
    _, after = truth(actual.points, actual.scores)
    return None if np.isnan(before) else Metric(name, before, after)


def _broken_windows(found: _Located) -> Iterator[str]:
    if found.broken:
        yield (
            f"values that are not finite in the results for {found.broken} of "
            f"{len(found.points)} windows, at most 0"
        )


def _beyond(bounds: Bounds, shift: Shift) -> Iterator[str]:
    if not shift.median <= bounds.median:
        yield f"median shift {shift.median:.4g} px, at most {bounds.median:g}"
    if shift.moved > bounds.moved:
        yield (
            f"{100 * shift.moved:.4g} % of {shift.joints} joints moved by more than {FAR:g} px, "
            f"at most {100 * bounds.moved:g} %"
        )


def _other_scores(
    bounds: Bounds, change: Change, rescored: float, joints: int, unit: float
) -> Iterator[str]:
    if not change.median <= bounds.scores * unit:
        yield f"median change of the scores {change.median:.4g}, at most {bounds.scores * unit:.4g}"
    if rescored > bounds.rescored:
        yield (
            f"the scores of {100 * rescored:.4g} % of {joints} joints changed by more than "
            f"{RESCORED * unit:.4g}, at most {100 * bounds.rescored:g} %"
        )


def beyond_loss(metric: Metric | None, bound: float) -> Iterator[str]:
    """What to say of a figure of accuracy that fell by more than `bound` points."""
    if metric and not metric.loss <= bound:
        yield f"{metric.name} fell by {metric.loss:.4g} points, at most {bound:g}"


def other_precision(asked: str, found: str, layers: Mapping[str, int], kind: str) -> Iterator[str]:
    """What to say where most layers, if the runtime can tell, compute in another precision."""
    total, present = sum(layers.values()), layers.get(asked, 0)
    if total and 2 * present <= total:
        counts = ", ".join(f"{name} {count}" for name, count in layers.items())
        yield (
            f"{asked} was asked for, {present} of {total} layers compute in it, "
            f"at least {total // 2 + 1} ({counts})"
        )
    elif not total and kind in COUNTING:
        yield f"{asked} was asked for, its layers could not be counted"
    elif not total and found != asked:
        yield f"{asked} was asked for, the engine computes in {found}"


def reference_spec(manifest: Manifest) -> ModelSpec:
    """How the network of an engine is fed and read, before any joints are found in the graph.

    A registered network's is what it is registered with, as the graph options change it: what the
    bundle says of itself is compared with that. Of one from elsewhere there is nothing else.

    Raises:
        EngineError: the manifest has another; the text names the field and both values.
        ModelError: the model is not known.
        BackendError: the options need torch, which is not installed.
    """
    if not manifest.spec.network:
        return manifest.spec
    spec = changed_spec(model_spec(manifest.name), _outside(manifest.options))
    found, wanted = manifest.spec, spec
    if manifest.options.joints:
        wanted = replace(wanted, output="joints")
    if found.views == spec.single_view().views:
        wanted = wanted.single_view()
    for field in fields(ModelSpec):
        has, registered = (_plain(getattr(side, field.name)) for side in (found, wanted))
        if has != registered and field.name not in UNSAID:
            raise EngineError(
                f"spec: {field.name}: the engine's description has {has!r}, {spec.name} is "
                f"registered with {registered!r}"
            )
    return spec


def _outside(options: Options) -> Options:
    """Of the graph options those that the reference has, too."""
    return Options(flip=options.flip, stages=options.stages)


def _plain(value: Any) -> Any:
    """What is left of it after a trip through JSON."""
    return json.loads(json.dumps(asdict(value) if isinstance(value, Skeleton) else value))


def reference_engine(
    manifest: Manifest,
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    threads: int | None = None,
) -> Engine:
    """The network of an engine in f32 on the CPU, with the same weights, to compare it with.

    It is the torch module; without torch its f32 graph, in another runtime than the engine's where
    one is installed. Of a network from elsewhere there is only its graph.

    Args:
        manifest: of the engine.
        folder: where the engine's files are, for a network from elsewhere.
        weights: the file that it was built from; None takes the trained weights, or random ones if
            it was built from these.
        threads: of the runtime; None leaves the number to it.

    Raises:
        EngineError: the weights are not those of the engine, or there is no graph; or as in
            `reference_spec`.
        BackendError: no runtime can run it.
        ModelError: the model is not known.
    """
    if not manifest.spec.network:
        return _graph_of_bundle(manifest, folder, threads)
    spec, options = reference_spec(manifest), _outside(manifest.options)
    check_weights(manifest.weights_hash, spec, weights)
    if find_spec("torch") is not None:
        kind, file = "torch", weights or source.find_weights(spec)
    else:
        kind = _other_runtime(manifest.kind)
        file, _ = source.find_graph(spec, weights, options)
    return _open_reference(kind, spec, file, manifest, options, threads)


def reference_halves(
    spec: DetectorSpec,
    weights_hash: str,
    *,
    kind: str,
    weights: Path | None = None,
    threads: int | None = None,
) -> tuple[Graph, Graph]:
    """A detector's two networks in f32 on the CPU, to compare an engine of them with.

    Args:
        spec: of the detector.
        weights_hash: of the weights in the engine.
        kind: the engine's runtime.
        weights: as in `reference_engine`, like the rest and the errors.
        threads: as there.
    """
    check_weights(weights_hash, spec, weights)
    runtime = "torch" if find_spec("torch") is not None else _other_runtime(kind)
    return open_halves(spec, weights=weights, kind=runtime, precision="f32", threads=threads)


def check_weights(weights_hash: str, spec: ModelSpec | DetectorSpec, weights: Path | None) -> None:
    """Raise EngineError unless the weights are those that an engine was built from."""
    found = source.hash_of_weights(spec, weights)
    if found != weights_hash:
        built, here = (value[:12] or "random ones" for value in (weights_hash, found))
        whose = weights or f"those of {spec.name} here"
        raise EngineError(
            f"weights_hash: the engine was built from {built}, {whose} are {here}; "
            "give the weight file that it was built from"
        )


def _graph_of_bundle(manifest: Manifest, folder: Path | None, threads: int | None) -> Engine:
    if folder is None or not manifest.file.endswith(".onnx"):
        raise EngineError(
            f"{manifest.name}: a network from elsewhere is compared with its own ONNX graph, "
            f"got {manifest.file or 'no file'}"
        )
    kind = _other_runtime(manifest.kind)
    path = folder / manifest.file
    return _open_reference(kind, manifest.spec, path, manifest, Options(), threads)


def _other_runtime(kind: str) -> str:
    """Of the runtimes of graphs that are installed, rather not this one."""
    for choice in sorted(GRAPH_KINDS, key=lambda name: name == kind):
        try:
            return choose_runtime(choice, GRAPH_KINDS)
        except BackendError:
            continue
    return choose_runtime("auto", GRAPH_KINDS)


def _open_reference(
    kind: str,
    spec: ModelSpec,
    file: Path | None,
    manifest: Manifest,
    options: Options,
    threads: int | None,
) -> Engine:
    return open_request(
        kind,
        Request(
            spec=spec,
            file=file,
            weights_hash=manifest.weights_hash,
            device="cpu" if kind == "torch" else "auto",
            precision="f32",
            passed=frozenset(),
            buckets=(1, BATCH),
            threads=threads,
            options=options,
        ),
    )


def _title(engine: Engine) -> str:
    return f"{engine.manifest.kind} {engine.manifest.precision}"


def plain_numbers(values: dict[str, Any], digits: int) -> dict[str, Any]:
    """A report's floats rounded; None for what JSON has no number for."""
    return {
        name: (round(value, digits) if np.isfinite(value) else None)
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }


def number(value: Any) -> float:
    """A distance that `plain_numbers` wrote."""
    return float("inf") if value is None else float(value)
