"""One network in every runtime and precision: time, memory, size, and how right each is.

Every engine is compared with the network in f32 before it is timed; what is not the same network
any more has no time. Then all take turns in one process over the same windows.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from fastpose.bench.alone import alone as run_alone
from fastpose.bench.rows import Peer, Row, load, without_folders
from fastpose.bench.rows import timed as figures_of
from fastpose.bundles import build_engine
from fastpose.engines import (
    KINDS,
    Engine,
    Manifest,
    Options,
    choose_runtime,
    load_engine,
    names_file,
    open_engine,
    read_bundle,
    runtime_module,
    source,
)
from fastpose.engines.engine import PRECISIONS
from fastpose.engines.options import CHOICES
from fastpose.engines.verify import (
    BATCH,
    Verification,
    other_precision,
    reference_engine,
    verify,
)
from fastpose.errors import BackendError, EngineError, FastposeError
from fastpose.fixtures import Fixtures
from fastpose.measure import TRIES, Times, take_turns
from fastpose.models import create, model_spec, trained
from fastpose.models.spec import ModelSpec

if TYPE_CHECKING:
    from fastpose.graph import StreamEngine

Floats = npt.NDArray[np.float32]
Turns = Callable[..., dict[str, Times]]
Tell = Callable[[str], None]

MODULE = "torch module f32"  # the peer: the network as PyTorch runs it, batch norm and all
SETTLE = 0.02  # seconds: the threads of the runtime before go on spinning for a while
LONG = 0.5  # seconds of a run, of which such a start is nothing
OFFERED = {  # by device; the precisions of each runtime, int8 where there are pictures for it
    "cpu": {
        "openvino": ("f32", "bf16", "int8"),
        "onnxruntime": ("f32",),
        "torch": ("f32", "bf16"),
    },
    "cuda": {
        "tensorrt": ("f32", "bf16", "f16", "int8"),
        "onnxruntime": ("f32", "f16"),
        "torch": ("f32", "bf16", "f16"),
    },
}
# Of random weights, whose maps are flat: no joint of them means anything, so the results themselves
# are compared, and how far they may be is a share of how much they vary.
FAITHFUL = {"f32": 1e-3, "f16": 2e-2, "bf16": 0.1, "int8": 0.3}
UNTIMED = ("read pictures", "verify")  # stages of a build that make nothing


@dataclass(frozen=True)
class EngineCase:
    """How a network is run.

    Attributes:
        engine: the runtime, one of `fastpose.engines.KINDS`.
        precision: that is asked for.
        compile: of torch: "eager", "compile" or "aot", as in `Options`.
        device: "cpu" or "cuda", or the runtime's name of a device.
        absent: why it cannot run here; "" where nothing speaks against it.

    Raises:
        ValueError: a word is none of theirs.
    """

    engine: str
    precision: str
    compile: str = "eager"
    device: str = "cpu"
    absent: str = ""

    def __post_init__(self) -> None:
        for name, choices in (("engine", KINDS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.compile not in _forms(self.engine):
            raise ValueError(
                f"compile of {self.engine} must be one of {', '.join(_forms(self.engine))}, "
                f"got {self.compile!r}"
            )

    @property
    def name(self) -> str:
        """For tables: "openvino bf16", "torch aot f32"."""
        how = f" {self.compile}" if self.engine == "torch" else ""
        return f"{self.engine}{how} {self.precision}"

    @property
    def built(self) -> bool:
        """It runs from a file that is made for this machine."""
        return self.engine == "tensorrt" or self.precision == "int8" or self.compile == "aot"

    @property
    def key(self) -> dict[str, str]:
        """In the case of a row."""
        how = {"compile": self.compile} if self.engine == "torch" else {}
        return {"engine": self.engine, "precision": self.precision, **how}


def _forms(engine: str) -> tuple[str, ...]:
    """What `EngineCase.compile` may be."""
    return CHOICES["compile"] if engine == "torch" else ("eager",)


def parse_case(text: str, device: str = "cpu") -> EngineCase:
    """The case of "ENGINE:PRECISION", or of "torch:PRECISION:COMPILE", such as "openvino:bf16".

    Raises:
        ValueError: it is none.
    """
    engine, *words = text.split(":")
    if len(words) not in (1, 2):
        raise ValueError(f"expected ENGINE:PRECISION or torch:PRECISION:COMPILE, got {text!r}")
    return EngineCase(engine, words[0], words[1] if words[1:] else "eager", device)


def available_cases(device: str = "cpu") -> list[EngineCase]:
    """Every runtime in each precision that it has on a device, fastest runtimes first.

    Those that cannot run here are among them and say why; what only shows when an engine is opened,
    such as a compiler that is missing, `measure_engines` tells.

    Raises:
        ValueError: no such device.
    """
    if device not in OFFERED:
        raise ValueError(f"device must be one of {', '.join(OFFERED)}, got {device!r}")
    cases = [
        EngineCase(engine, precision, how, device)
        for engine, precisions in OFFERED[device].items()
        for how in _forms(engine)
        for precision in precisions
    ]
    return [replace(case, absent=_absent(case)) for case in cases]


def case_of_bundle(path: str | Path) -> EngineCase:
    """How a bundle of a pose network runs.

    Raises:
        EngineError: there is none, or it is a detector's.
    """
    manifest, path = read_bundle(Path(path))
    if not isinstance(manifest, Manifest):
        raise EngineError(f"{path}: the bundle of a detector, and not of a pose network")
    device = "cuda" if "cuda" in manifest.device.lower() else "cpu"
    return EngineCase(manifest.kind, manifest.precision, manifest.options.compile, device)


def measure_engines(
    model: str | Path,
    cases: Sequence[EngineCase],
    *,
    batches: Sequence[int] = (1, 8),
    pictures: Fixtures,
    rounds: int = 20,
    threads: int | None = None,
    calibration: str | Path | None = None,
    alone: bool = True,
    allow: bool = False,
    take: Turns = take_turns,
    tell: Tell | None = None,
) -> list[Row]:
    """Time a network in each case, by turns, after a comparison with the network in f32.

    Trained networks are compared by their joints and scores, as `fastpose.engines.verify` does, and
    on annotated pictures by the set's first metric: the bounds are those of `fastpose verify`.
    Networks with random weights are compared by their results, within `FAITHFUL`.

    The figures of a row: windows_per_s; pck or pckh (ap of COCO) and its loss in points, shift_px
    and shift_p95_px in pixels of the network's input, moved_percent; layers_<precision>;
    compile_s, the seconds of building, where the case needs a file, and of opening, until each
    batch size has run once, the export of an ONNX graph not counted; file_mb; those of `alone`;
    on CUDA enqueue_ms, h2d_ms, compute_ms and d2h_ms. The time is a whole run on the host: windows
    in its memory, results in its memory.

    Args:
        model: a registered name, a weight file, or a bundle, whose one case is `case_of_bundle`.
        cases: what is measured; those with a reason against them become rows that say so.
        batches: numbers of windows in a run.
        pictures: windows that the engines are compared on; the first of them are the ones timed.
        rounds: turns of each.
        threads: of every runtime alike; None leaves the number to them.
        calibration: pictures for int8, as in `fastpose.build_engine`.
        alone: also start each case in a process of its own, for its memory and its start; what
            fails there alone is a UserWarning.
        allow: time an engine that is over the bounds, too; its row's check says so.
        take: `take_turns`, or something that does the same.
        tell: called with what begins.

    Returns:
        A row for each batch size and case. One that cannot run is absent, one that is over the
        bounds or stays unsteady is refused; each says why.

    Raises:
        ModelError: no model has that name.
        WeightsError, EngineError: weights or bundle are damaged, or the reference cannot run.
        ValueError: an argument is out of range.
    """
    _check_batches(batches)
    asked = _Asked(model, tuple(batches), threads, calibration, alone, allow, tell or _silent)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        judge = stack.enter_context(closing(_Judge(asked, pictures)))
        sides = [_prepared(asked, case, folder, judge, stack) for case in cases]
        images = _windows(pictures, max(batches))
        rows: list[Row] = []
        for size in batches:
            asked.tell(f"time batches of {size}")
            rows += _rows(asked, sides, images[:size], rounds, take)
        return rows


@dataclass(frozen=True)
class _Asked:
    """The arguments of `measure_engines` that all its parts need."""

    model: str | Path
    batches: tuple[int, ...]
    threads: int | None
    calibration: str | Path | None
    alone: bool
    allow: bool
    tell: Tell

    @property
    def weights(self) -> Path | None:
        return Path(self.model) if str(self.model).endswith(".safetensors") else None

    @property
    def bundle(self) -> Path | None:
        return Path(self.model) if names_file(self.model) and not self.weights else None

    @cached_property  # a weight file is read whole to see that its card is its own
    def spec(self) -> ModelSpec:
        if self.bundle:
            manifest, _ = read_bundle(self.bundle)
            assert isinstance(manifest, Manifest), "opened as one before"
            return manifest.spec
        return source.read_spec(self.weights) if self.weights else model_spec(str(self.model))


@dataclass
class _Side:
    """A case on its way to rows.

    Attributes:
        engine: None where it is absent.
        file: that it was built into; None where it is opened by the model.
        check, figures, reference: what the comparison found, the last of the network in f32.
        absent, refused: as in `Row`.
    """

    case: EngineCase
    engine: Engine | None = None
    file: Path | None = None
    check: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)
    absent: str = ""
    refused: str = ""

    def absent_at(self, size: int) -> str:
        """Why there is nothing of a batch size: a bundle may be built for smaller ones."""
        if self.engine is None:
            return self.absent
        largest = self.engine.manifest.buckets[-1]
        return f"the engine takes at most {largest} windows" if size > largest else ""


def _silent(text: str) -> None:
    """Tell nobody."""


def _check_batches(batches: Sequence[int]) -> None:
    if not batches or any(type(size) is not int or size < 1 for size in batches):
        raise ValueError(f"batches must be whole numbers from 1, got {list(batches)}")


def _absent(case: EngineCase) -> str:
    """What speaks against a case before it is opened."""
    try:
        choose_runtime(case.engine, KINDS)
    except BackendError as error:
        return str(error)
    if case.engine == "openvino":
        offered = runtime_module("openvino").capabilities().get(case.device.upper(), [])
        if case.precision not in offered:
            return f"openvino offers {', '.join(offered)} on {case.device.upper()}"
    return ""


def _windows(pictures: Fixtures, count: int) -> Floats:
    """The first windows, from the start again where they are too few."""
    first = next(iter(pictures.batches(count)))
    return np.resize(first, (count, *first.shape[1:]))


def _prepared(
    asked: _Asked, case: EngineCase, folder: Path, judge: _Judge, stack: ExitStack
) -> _Side:
    """A case that is opened and compared, or says why not."""
    side = _Side(case, absent=case.absent)
    if side.absent:
        return side
    asked.tell(f"open {case.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # random weights; bounds are looked at
            side.engine, side.file, seconds = _opened(asked, case, folder)
    except FastposeError as error:
        side.absent = without_folders(str(error))
        return side
    stack.enter_context(closing(side.engine))
    manifest = side.engine.manifest
    side.figures |= {f"layers_{name}": float(n) for name, n in manifest.layers.items()}
    side.figures["compile_s"] = round(seconds, 3)
    size = _file_bytes(asked, case, side.file)
    if size:
        side.figures["file_mb"] = round(size / 1e6, 2)
    asked.tell(f"compare {case.name}")
    judge(side)
    return side


def _opened(asked: _Asked, case: EngineCase, folder: Path) -> tuple[Engine, Path | None, float]:
    """An engine that has run once at each batch size, its own file, and the seconds of it all."""
    choose_runtime(case.engine, KINDS)
    options = Options(compile=case.compile)
    given: dict[str, Any] = {"device": case.device, "threads": asked.threads}
    if asked.bundle:
        file, built = asked.bundle, 0.0
    elif case.built:
        file, built = _build(asked, case, folder, options)
    else:
        file, built = None, 0.0
        if case.engine != "torch":  # once for all: it is no part of opening
            source.find_graph(asked.spec, asked.weights, precision=_graph_type(case))
    start = time.perf_counter()
    if file:
        engine = load_engine(file, **given)
    else:
        engine = open_engine(
            asked.model,
            kind=case.engine,
            precision=case.precision,
            buckets=sorted(set(asked.batches)),
            options=options,
            **given,
        )
    try:
        for size in asked.batches:
            if size <= engine.manifest.buckets[-1]:
                engine.run(size)
    except BaseException:
        engine.close()
        raise
    return engine, file, built + time.perf_counter() - start


def _build(asked: _Asked, case: EngineCase, folder: Path, options: Options) -> tuple[Path, float]:
    """The bundle of a case, and the seconds that making it took."""
    marks: list[tuple[str, float]] = []
    suffix = runtime_module(case.engine).suffix(case.precision, options)
    path = build_engine(
        asked.spec.name,
        engine=case.engine,
        precision=case.precision,
        device=case.device,
        buckets=sorted(set(asked.batches)),
        weights=asked.weights,
        options=options,
        calibration=asked.calibration if case.precision == "int8" else None,
        allow=True,  # it is compared again, on the pictures of the rows
        out=folder / f"{case.name.replace(' ', '-')}{suffix}",
        threads=asked.threads,
        progress=lambda stage: marks.append((stage, time.perf_counter())),
    )
    ends = [begin for _, begin in marks[1:]] + [time.perf_counter()]
    spent = ((name, end - begin) for (name, begin), end in zip(marks, ends, strict=True))
    return path, sum(seconds for name, seconds in spent if name not in UNTIMED)


def _graph_type(case: EngineCase) -> str:
    """Of the ONNX graph that a case is opened from, as in `open_engine`."""
    return "f16" if (case.engine, case.precision) == ("onnxruntime", "f16") else "f32"


def _file_bytes(asked: _Asked, case: EngineCase, file: Path | None) -> int:
    """Of what the engine is opened from; 0 for a module with random weights."""
    if file:
        manifest, path = read_bundle(file)
        return sum(path.with_name(name).stat().st_size for name in manifest.files)
    if case.engine == "torch":
        weights = asked.weights or source.find_weights(asked.spec)
        return weights.stat().st_size if weights else 0
    graph, _ = source.find_graph(asked.spec, asked.weights, precision=_graph_type(case))
    return graph.stat().st_size


class _Judge:
    """Compares engines with the network in f32, which runs each batch of windows once.

    Args:
        asked: weights, threads, and whether an engine over the bounds is timed.
        pictures: the windows.
    """

    def __init__(self, asked: _Asked, pictures: Fixtures) -> None:
        self._asked, self._pictures = asked, pictures
        self._references: dict[str, _Remembering] = {}

    def __call__(self, side: _Side) -> None:
        """Write down how right an engine is, or why it is not timed."""
        assert side.engine is not None, "only what is open can be compared"
        reference = self._reference(side.engine.manifest)
        try:
            untaught = _is_random(side.engine.manifest, self._asked.weights)
            judge = _judge_random if untaught else _judge_joints
            reasons = judge(side, reference, self._pictures)
        except (FastposeError, ValueError) as error:
            side.refused = without_folders(str(error))
            return
        if reasons and self._asked.allow:
            side.check += f"; over the bounds: {'; '.join(reasons)}"
        elif reasons:
            side.refused = "; ".join(reasons)

    def close(self) -> None:
        """Close the references."""
        for reference in self._references.values():
            reference.close()

    def _reference(self, manifest: Manifest) -> _Remembering:
        # the module serves all; without torch it is a graph, in another runtime than the engine's
        shared = manifest.spec.network and find_spec("torch") is not None
        key = "torch" if shared else manifest.kind
        if key not in self._references:
            asked = self._asked
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # random weights
                opened = reference_engine(
                    manifest,
                    folder=asked.bundle.parent if asked.bundle else None,
                    weights=asked.weights,
                    threads=asked.threads,
                )
            self._references[key] = _Remembering(opened)
        return self._references[key]


class _Remembering:
    """An engine that runs a batch once, however often it is asked."""

    shareable = False

    def __init__(self, engine: Engine) -> None:
        self.manifest = engine.manifest
        self._engine = engine
        self._known: dict[bytes, Floats] = {}

    def __call__(self, batch: Floats) -> Floats:
        key = hashlib.sha256(np.ascontiguousarray(batch).data).digest()
        if key not in self._known:
            self._known[key] = self._engine(batch)
        return self._known[key]

    def buffer(self, count: int) -> Floats:
        return self._engine.buffer(count)

    def run(self, count: int) -> Floats:
        return self._engine.run(count)

    def close(self) -> None:
        self._engine.close()


def _is_random(manifest: Manifest, weights: Path | None) -> bool:
    """Of a registered network, that it has no trained weights, or not all of them."""
    if weights:
        return bool(trained.read_card(weights.with_suffix(".json")).get("random"))
    return bool(manifest.spec.network) and not manifest.weights_hash


def _judge_joints(side: _Side, reference: Engine, pictures: Fixtures) -> tuple[str, ...]:
    """By pixels, scores and accuracy; returns what is over its bound."""
    assert side.engine is not None, "as in _Judge"
    found = verify(
        reference,
        side.engine,
        pictures.batches(BATCH),
        source=pictures.name,
        truth=pictures.truth,
    )
    side.check = _in_words(found)
    shift, metric = found.shift, found.metric
    side.figures["moved_percent"] = round(100 * shift.moved, 3)
    for name, pixels in (("shift_px", shift.median), ("shift_p95_px", shift.p95)):
        if np.isfinite(pixels):
            side.figures[name] = round(pixels, 4)
    if metric:
        name = metric.name.partition("@")[0]
        side.figures |= {name: round(metric.after, 3), f"{name}_loss": round(metric.loss, 3)}
        side.reference = {name: round(metric.before, 3)}
    return found.reasons


def _in_words(found: Verification) -> str:
    """What was compared, and how far it was."""
    shift, change, metric = found.shift, found.score_change, found.metric
    text = (
        f"joints on {found.windows} windows of {found.source}, beside {found.reference}: median "
        f"shift {shift.median:.3g} px, {100 * shift.moved:.3g} % moved by more than 2 px, scores "
        f"changed by {change.median:.2g}"
    )
    return f"{text}; {metric.name} fell by {metric.loss:.2g} points" if metric else text


def _judge_random(side: _Side, reference: Engine, pictures: Fixtures) -> tuple[str, ...]:
    """By the results; returns what is over its bound."""
    assert side.engine is not None, "as in _Judge"
    manifest = side.engine.manifest
    precision, bound = manifest.precision_asked, FAITHFUL[manifest.precision_asked]
    off = difference(reference, side.engine, pictures.batches(BATCH))
    side.check = (
        f"results of random weights on {len(pictures)} windows of {pictures.name}, beside "
        f"{reference.manifest.kind} {reference.manifest.precision}: {off:.2g} of how much they "
        f"vary, at most {bound:g}"
    )
    reasons = list(other_precision(precision, manifest.precision, manifest.layers, manifest.kind))
    if not off <= bound:
        reasons.insert(0, f"the results differ by {off:.2g} of how much they vary, over {bound:g}")
    return tuple(reasons)


def difference(reference: Engine, engine: Engine, batches: Iterable[Floats]) -> float:
    """How far the results of two engines are apart, as a share of how much they vary.

    That is the root of the squares' sum of the differences, over that of the reference's results
    about the mean of each map or vector: a level that all cells share tells no joint.

    Args:
        reference: in f32.
        engine: the other.
        batches: windows, [N, 3, h, w] each.

    Raises:
        EngineError: the results have another shape.
        ValueError: there is no window.
    """
    apart = varies = 0.0
    for batch in batches:
        expected, found = reference(batch).astype(np.float64), engine(batch)
        if expected.shape != found.shape:
            raise EngineError(
                f"{engine.manifest.name}: the results for {len(batch)} windows must be "
                f"{list(expected.shape)}, got {list(found.shape)}"
            )
        cells = expected.reshape(*expected.shape[:2], -1)
        apart += float(((found - expected) ** 2).sum())
        varies += float(((cells - cells.mean(axis=2, keepdims=True)) ** 2).sum())
    if not varies:
        raise ValueError("the reference's results are the same everywhere: nothing can be compared")
    return float(np.sqrt(apart / varies))


def _rows(
    asked: _Asked, sides: Sequence[_Side], images: Floats, rounds: int, take: Turns
) -> Iterator[Row]:
    """A row for each case, of one batch size."""
    size = len(images)
    ready = {
        side.case.name: side for side in sides if not side.refused and not side.absent_at(size)
    }
    calls: dict[str, Callable[[], object]] = {
        name: _engine_call(side.engine, images) for name, side in ready.items() if side.engine
    }
    module = _module_call(asked, images, _torch_device(ready.values())) if calls else ""
    if not isinstance(module, str):
        calls[MODULE] = module
    times = _take(calls, ready, rounds, take) if calls else {}
    for side in sides:
        name, absent = side.case.name, side.absent_at(size)
        time_, peers, refused = None, dict[str, Peer](), "" if absent else side.refused
        if name in times:
            time_, peers, refused = figures_of(times[name])
            if isinstance(module, str):
                peers[MODULE] = Peer(absent=module)
            elif MODULE in peers:
                peers[MODULE] = replace(peers[MODULE], figures=side.reference)
        yield Row(
            "engines",
            asked.spec.name,
            {"batch": size, **side.case.key},
            check="" if absent else side.check,
            threads=asked.threads or 0,
            device="cuda" if side.case.device.startswith("cuda") else "cpu",
            clock="wall" if time_ else "",
            time=time_,
            figures={} if absent else _figures(asked, side, size, time_),
            peers=peers,
            refused=refused,
            absent=absent,
            load=load(),
        )


def _figures(
    asked: _Asked, side: _Side, size: int, time_: Mapping[str, float | int] | None
) -> dict[str, float]:
    """All that a row of an engine says beside its time."""
    found = dict(side.figures)
    if time_:
        found["windows_per_s"] = round(1e3 * size / time_["median_ms"], 2)
    if side.case.device.startswith("cuda"):
        found |= _split(side.engine, size)
    if asked.alone and not side.refused:
        asked.tell(f"{side.case.name} alone, batches of {size}")
        found |= _start(asked, side, size)
    return found


def _start(asked: _Asked, side: _Side, size: int) -> dict[str, float]:
    """What a process of its own tells; a warning where it fails, since the row has its time."""
    try:
        model = side.file or asked.model
        return run_alone(model, side.case, batch=size, threads=asked.threads)
    except EngineError as error:
        warnings.warn(str(error), UserWarning, stacklevel=2)
        return {}


def _split(engine: Engine | None, size: int) -> dict[str, float]:
    """Where the time goes on CUDA; nothing of an engine that works on the host's memory alone."""
    if not hasattr(engine, "enqueue"):
        return {}
    from fastpose.bench.cuda import split

    return split(cast("StreamEngine", engine), size)


def _engine_call(engine: Engine, images: Floats) -> Callable[[], object]:
    """A run of the windows in the engine's own buffer."""
    count = len(images)
    engine.buffer(count)[...] = images
    return lambda: engine.run(count)


def _torch_device(sides: Iterable[_Side]) -> str:
    """Where the module is to run: where the engines do."""
    devices = (side.case.device for side in sides)
    return next((device for device in devices if device.startswith("cuda")), "cpu")


def _module_call(asked: _Asked, images: Floats, device: str) -> Callable[[], object] | str:
    """The network as PyTorch runs it, from the host's memory into it; or why there is none."""
    if not asked.spec.network:
        return "a network from elsewhere has no module"
    if find_spec("torch") is None:
        return "torch is not installed"
    import torch

    from fastpose.engines.build import random_network

    if asked.threads:
        torch.set_num_threads(asked.threads)
    name = asked.spec.name
    weights = asked.weights or source.find_weights(asked.spec)
    network = create(name, weights=weights) if weights else random_network(name)
    network.eval().to(device)
    batch = torch.from_numpy(images)

    def run() -> object:
        with torch.inference_mode():
            return network.predict(batch.to(device)).cpu()

    return run


def _seconds(call: Callable[[], object]) -> float:
    """Of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _take(
    calls: Mapping[str, Callable[[], object]], names: Iterable[str], rounds: int, take: Turns
) -> dict[str, dict[str, Times]]:
    """Times of each engine and of the module that took turns with it, ours first.

    Engines whose times stay unsteady take turns again, with the module, and without the others.
    """
    waiting, pairs = list(names), dict[str, dict[str, Times]]()
    settle = SETTLE if _seconds(calls[waiting[0]]) < LONG else 0.0
    for _ in range(TRIES):
        found = take(
            {name: call for name, call in calls.items() if name in (*waiting, MODULE)},
            rounds=rounds,
            repeats=1,
            settle=settle,
            warm_up=1,
        )
        for name in waiting:
            pairs[name] = {key: found[key] for key in (name, MODULE) if key in found}
        waiting = [name for name in waiting if figures_of(pairs[name])[2]]
        if not waiting:
            break
    return pairs
