"""What every runtime's engine offers, and what all of them share: buffers, splitting, checks."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fastpose.engines.manifest import Manifest
from fastpose.engines.options import Options
from fastpose.errors import BackendError, EngineError
from fastpose.models.spec import ModelSpec

Floats: TypeAlias = npt.NDArray[np.float32]
Port: TypeAlias = tuple[tuple[int | None, ...], np.dtype[Any]]
"""Shape and type of a graph's input or output; None is an axis of any length."""

PRECISIONS = ("f32", "bf16", "f16", "int8")
ALIGNMENT = 64  # bytes: a cache line and an AVX-512 register
RUN_COST = 0.3  # a run's own cost in images: 2.2 ms beside 7.1 ms each (ResNet-50, bf16, 2 cores)


class Graph(Protocol):
    """Any ONNX graph in a runtime; for one thread at a time.

    Attributes:
        kind: the runtime, as in `Manifest`.
        precision: in which it computes, as in `Manifest`.
        inputs, outputs: shape and type by name, in the graph's order.
    """

    kind: str
    precision: str
    inputs: dict[str, Port]
    outputs: dict[str, Port]

    def __call__(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Every output by name, owned by the caller.

        Raises:
            ValueError: the arrays are not the graph's inputs; the text names the one that differs.
            EngineError: the runtime failed.
        """

    def close(self) -> None:
        """Free the runtime's memory."""


class BuiltGraph(Graph, Protocol):
    """A graph that also tells what the manifest of a bundle says.

    Attributes:
        place: the device in the runtime's own words.
        versions, layers: as in `Description`.
    """

    place: str
    versions: dict[str, str]
    layers: dict[str, int]


class Engine(Protocol):
    """A pose network in a runtime: windows in, results out.

    A result is one array whatever the network: heat maps [N, K, h / stride, w / stride], or
    SimCC vectors [N, K, bins], those of x before those of y. So whoever keeps, copies or cuts
    results need not know which; `fastpose.models.joints.locate_joints` reads both.

    Attributes:
        manifest: what runs, and how.
        shareable: several threads may use it at once. If not: one engine a thread.
    """

    manifest: Manifest
    shareable: bool

    def buffer(self, count: int) -> Floats:
        """The engine's own input, to be filled in place before `run`.

        Args:
            count: windows, 1 to `manifest.buckets[-1]`.

        Returns:
            [count, 3, h, w] float32, C-contiguous. `run` leaves it as it is.

        Raises:
            ValueError: `count` is out of that range.
            EngineError: the engine is closed.
        """

    def run(self, count: int) -> Floats:
        """The results for the first `count` windows of the buffer.

        Returns:
            [count, K, ...] float32, the engine's own memory: valid until the next run.

        Raises:
            ValueError: `count` is not from 1 to `manifest.buckets[-1]`.
            EngineError: the engine is closed, or the runtime failed.
        """

    def __call__(self, batch: Floats) -> Floats:
        """The results for windows that lie elsewhere, any number of them.

        Args:
            batch: [N, 3, h, w] float32, strided or not.

        Returns:
            [N, K, ...] float32, owned by the caller.

        Raises:
            ValueError: another type or shape.
            EngineError: the engine is closed, or the runtime failed.
        """

    def close(self) -> None:
        """Free the runtime's memory; further use raises EngineError."""


@dataclass(frozen=True)
class Request:
    """What an engine is opened with.

    Attributes:
        spec: the network.
        file: the runtime's file; None only for a torch module with random weights.
        weights_hash: as in `Manifest`.
        device: "auto" or the runtime's name of a device.
        precision: "auto" or one of `PRECISIONS`.
        passed: low precisions that are recorded as accurate enough for these very weights.
        buckets: batch sizes, rising.
        threads: of the runtime; None leaves the number to it.
        options: see there.
    """

    spec: ModelSpec
    file: Path | None
    weights_hash: str
    device: str
    precision: str
    passed: Collection[str]
    buckets: tuple[int, ...]
    threads: int | None
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        check_threads(self.threads)


@dataclass(frozen=True)
class Job:
    """What a runtime's file is built from.

    Attributes:
        spec: the network, as the graph options change it.
        weights: a weight file; None takes the trained weights, else random ones.
        precision: one of `PRECISIONS`.
        device: "auto" or the runtime's name of a device.
        buckets: batch sizes, rising.
        options: see there.
        threads: of the runtime; None leaves the number to it.
        calibration: [N, 3, h, w] windows of real pictures, for "int8".
        timing_cache: a file that is read, where it exists, and written (tensorrt).
        tell: called with the name of each stage that begins.
    """

    spec: ModelSpec
    weights: Path | None
    precision: str
    device: str
    buckets: tuple[int, ...]
    options: Options
    threads: int | None
    calibration: Floats | None
    timing_cache: Path | None
    tell: Callable[[str], None]


class BufferedEngine(ABC):
    """The host side of an engine: one aligned input, aligned outputs, and how N is split.

    A runtime adds `_infer` and `_free`.

    Args:
        manifest: what runs, and how.
        batch: the one batch size that the network takes; None where it takes any.
    """

    shareable = False  # the buffer is one

    def __init__(self, manifest: Manifest, batch: int | None = None) -> None:
        self.manifest = manifest
        self._sizes = (batch,) if batch else manifest.buckets
        spec, rows = manifest.spec, sum(split(manifest.buckets[-1], self._sizes))
        self._images = aligned_zeros((rows, 3, *spec.size))
        self._outputs = [aligned_zeros((rows, *shape)) for shape in spec.results]
        # A single output is the result; several are joined along their last axis after each run.
        self._result = self._outputs[0]
        if len(spec.results) > 1:
            joints, bins = spec.results[0][0], sum(shape[-1] for shape in spec.results)
            self._result = aligned_zeros((rows, joints, bins))
        self._closed = False

    def buffer(self, count: int) -> Floats:
        """See `Engine.buffer`."""
        return self._images[: self._checked(count)]

    def run(self, count: int) -> Floats:
        """See `Engine.run`."""
        self._infer(self._checked(count))
        if len(self._outputs) > 1:
            parts = [output[:count] for output in self._outputs]
            np.concatenate(parts, axis=-1, out=self._result[:count])
        return self._result[:count]

    def __call__(self, batch: Floats) -> Floats:
        """See `Engine.__call__`."""
        shape = self._images.shape[1:]
        if not isinstance(batch, np.ndarray):
            raise ValueError(f"batch must be a numpy array, got {type(batch).__name__}")
        if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1:] != shape:
            raise ValueError(
                f"batch must be float32 [N, {', '.join(map(str, shape))}], "
                f"got {batch.dtype} {list(batch.shape)}"
            )
        results = np.empty((len(batch), *self._result.shape[1:]), np.float32)
        step = self.manifest.buckets[-1]
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            self.buffer(len(part))[...] = part
            results[start : start + step] = self.run(len(part))
        return results

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._closed:
            self._closed = True
            self._free()

    def _checked(self, count: int) -> int:
        if self._closed:
            raise EngineError(f"{self.manifest.name}: the engine is closed")
        if not 1 <= count <= self.manifest.buckets[-1]:
            raise ValueError(f"count must be 1 to {self.manifest.buckets[-1]}, got {count}")
        return count

    @abstractmethod
    def _infer(self, count: int) -> None:
        """Fill the first `count` rows of each of `_outputs` from those of `_images`.

        Rows behind them may be run too, where the network's batch size is fixed.
        """

    @abstractmethod
    def _free(self) -> None:
        """Let go of what the runtime holds."""


def aligned_zeros(shape: tuple[int, ...]) -> Floats:
    """Zeros that start on a cache line, as runtimes want memory that they are to use in place."""
    size = 4 * int(np.prod(shape))
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


@functools.cache
def split(count: int, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The compiled batch sizes that hold `count` images at the least cost, largest first.

    An image costs a CPU the same in any batch and a run little of its own, so 5 images are better
    run as 4 + 1 than as a bucket of 8 with 3 rows of nothing.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for images in range(1, count + 1):
        options = []
        for size in buckets:
            cost, rest = best[max(0, images - size)]
            options.append((cost + size + RUN_COST, (size, *rest)))
        best.append(min(options))
    return tuple(sorted(best[count][1], reverse=True))


def check_threads(threads: int | None) -> None:
    """Raise ValueError unless it is None or at least 1: runtimes read 0 in ways of their own."""
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads must be a whole number from 1, or None, got {threads!r}")


def choose_precision(request: Request, kind: str, device: str, offered: Collection[str]) -> str:
    """The precision to compile for.

    Args:
        request: "auto" takes the first low precision that is offered and recorded as passed.
        kind: the runtime, for the error.
        device: where it will run, for the error.
        offered: what the runtime lists for that device.

    Raises:
        BackendError: the precision was named and is not offered.
    """
    if request.precision == "auto":
        good = [p for p in ("bf16", "f16") if p in offered and p in request.passed]
        return good[0] if good else "f32"
    if request.precision not in offered:
        raise BackendError(
            f"precision {request.precision!r} cannot run in {kind} on {device}; "
            f"it offers: {', '.join(p for p in PRECISIONS if p in offered)}"
        )
    return request.precision


@dataclass(frozen=True)
class Ports:
    """Where a network's graph is connected.

    Attributes:
        input: name.
        outputs: names, in the order of `ModelSpec.results`.
        batch: the one batch size that the graph takes; None where it takes any.
    """

    input: str
    outputs: tuple[str, ...]
    batch: int | None


def find_ports(
    graph: Path, inputs: Mapping[str, Port], outputs: Mapping[str, Port], spec: ModelSpec
) -> Ports:
    """Where to connect a network's graph.

    Raises:
        EngineError: the graph does not take and give what the spec says.
    """
    _check_ports(graph, "input", inputs, tuple(inputs), [(3, *spec.size)])
    names = spec.ports or tuple(outputs)
    missing = [name for name in names if name not in outputs]
    if missing:
        raise EngineError(f"{graph}: there is no output {missing[0]!r}; it has: {list(outputs)}")
    _check_ports(graph, "output", outputs, names, spec.results)
    (name,) = inputs
    axes, _ = inputs[name]
    return Ports(name, names, axes[0])


def _check_ports(
    graph: Path,
    side: str,
    ports: Mapping[str, Port],
    names: tuple[str, ...],
    shapes: Sequence[tuple[int, ...]],
) -> None:
    """Raise EngineError unless the named ports have these shapes behind a batch of their own."""
    found = [ports[name] for name in names]
    fits = len(found) == len(shapes) and all(
        dtype == np.float32
        and len(axes) == 1 + len(shape)
        and all(a in (None, b) for a, b in zip(axes[1:], shape, strict=True))
        for (axes, dtype), shape in zip(found, shapes, strict=True)
    )
    if not fits:
        wanted = " and ".join(f"one float32 {axes_text((None, *shape))}" for shape in shapes)
        raise EngineError(
            f"{graph}: the {side} must be {wanted}, got "
            + "; ".join(f"{dtype} {axes_text(axes)}" for axes, dtype in found)
        )


def check_feeds(inputs: Mapping[str, Port], feeds: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise ValueError unless every input is given an array of its shape and type."""
    if feeds.keys() != inputs.keys():
        raise ValueError(f"feeds must be {sorted(inputs)}, got {sorted(feeds)}")
    for name, (shape, dtype) in inputs.items():
        array = feeds[name]
        fits = array.ndim == len(shape) and all(
            axis in (None, length) for axis, length in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != dtype:
            raise ValueError(
                f"{name} must be {dtype} {axes_text(shape)}, got {array.dtype} {list(array.shape)}"
            )


def cause(error: Exception) -> str:
    """The last line of a runtime's error: above it stand places in its own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def axes_text(shape: tuple[int | None, ...]) -> str:
    """The axes of a port, for errors."""
    return "[" + ", ".join("any" if axis is None else str(axis) for axis in shape) + "]"
