"""Engines: one protocol over every runtime. Importing this loads none of them."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

import numpy as np

from fastpose.engines import source
from fastpose.engines.engine import Engine, Graph, Request, check_threads
from fastpose.engines.manifest import Manifest, check_buckets, file_hash, replaced
from fastpose.engines.wrap import FAMILIES, Statement, check_used, describe, input_size
from fastpose.errors import BackendError, EngineError
from fastpose.models import model_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastpose.models.spec import DetectorSpec, ModelSpec

__all__ = [
    "FAMILIES",
    "Engine",
    "Graph",
    "Manifest",
    "Statement",
    "build_engine",
    "load_engine",
    "open_engine",
    "open_graph",
    "open_halves",
    "open_network",
    "wrap_network",
]

BUCKETS = (1, 2, 4, 8, 16, 32)
GRAPH_KINDS = ("openvino", "onnxruntime")  # run ONNX graphs; fastest first
KINDS = (*GRAPH_KINDS, "torch")
INSTALL = {
    "openvino": "the package openvino",
    "onnxruntime": "the extra fastpose-inference[onnxruntime]",
    "torch": "the extra fastpose-inference[torch]",
}


def open_graph(
    path: str | Path,
    *,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "f32",
    threads: int | None = None,
) -> Graph:
    """Open any ONNX file, such as a detector or somebody else's network.

    Args:
        path: the file.
        kind: "openvino", "onnxruntime", or "auto", the first of these that is installed.
        device: "auto" or the runtime's name of a device.
        precision: "f32", or another that the runtime lists for the device.
        threads: of the runtime; None leaves the number to it.

    Raises:
        BackendError: the runtime, the device or the precision is not there.
        EngineError: the file is missing or no ONNX graph.
        ValueError: `threads` is no positive whole number.
    """
    check_threads(threads)
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path}: no such file")
    match _choose(kind, GRAPH_KINDS):
        case "openvino":
            from fastpose.engines.openvino import OpenVINOGraph

            return OpenVINOGraph(path, device, precision, threads)
        case _:
            from fastpose.engines.onnxruntime import ONNXRuntimeGraph

            return ONNXRuntimeGraph(path, device, precision, threads)


def open_halves(
    spec: DetectorSpec,
    *,
    weights: str | Path | None = None,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> tuple[Graph, Graph]:
    """Open the two graphs of a registered detector: proposals, and the head.

    Args:
        spec: of the detector; without trained weights it has random ones, and a UserWarning.
        weights: a weight file instead of the trained weights.
        kind: as in `open_engine`, like the rest and the errors.
        device: as there.
        precision: as there.
        threads: as there.
    """
    check_threads(threads)
    if kind == "auto" and device.startswith("cuda"):
        kind = "torch"
    kind = _choose(kind, KINDS)
    if weights is None and not source.is_trained(spec):
        _warn_of_random_weights(spec)
    file = None if weights is None else Path(weights)
    low = sorted(source.passed(spec)) if file is None else []
    for choice in [*low, "f32"] if precision == "auto" else [precision]:
        try:
            return _open_halves(kind, spec, file, device, choice, threads)
        except BackendError:
            if choice in ("f32", precision):
                raise  # nothing else is left to try
    raise AssertionError("f32 returns or raises")


def _open_halves(
    kind: str,
    spec: DetectorSpec,
    weights: Path | None,
    device: str,
    precision: str,
    threads: int | None,
) -> tuple[Graph, Graph]:
    if kind == "torch":
        from fastpose.engines.torch import open_torch_halves

        weights = weights or source.find_weights(spec)
        return open_torch_halves(spec, weights, device, precision, threads)
    proposer, head = source.find_halves(spec, weights)
    first = open_graph(proposer, kind=kind, device=device, precision=precision, threads=threads)
    try:
        return first, open_graph(
            head, kind=kind, device=device, precision=precision, threads=threads
        )
    except BaseException:
        first.close()
        raise


def open_engine(
    model: str | Path = "default",
    *,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    buckets: Sequence[int] = BUCKETS,
    threads: int | None = None,
    single_view: bool = False,
) -> Engine:
    """Open a pose network in a runtime.

    Args:
        model: a registered name, with its trained weights or else with random ones and a
            UserWarning; or a .safetensors file of weights, whose card beside it names the model;
            or a bundle: its manifest or the runtime's file beside it.
        kind: "openvino", "onnxruntime", "torch", or "auto": the first of these that is installed,
            torch for the device "cuda", a bundle's own.
        device: "auto" (the CPU) or the runtime's name of a device.
        precision: "f32", "bf16", "f16", or "auto": a low precision where the runtime lists it for
            the device and the model's card records that it is accurate enough, else "f32".
        buckets: batch sizes to compile for, each when it is first needed; a bundle has its own.
        threads: of the runtime; None leaves the number to it.
        single_view: look at each person once, where the published procedure joins several views:
            a fraction of the time, and less accurate.

    Raises:
        ModelError: no model has that name.
        BackendError: the runtime, the device or the precision is not there.
        WeightsError: weights or card are damaged or of another network.
        EngineError: a bundle is damaged or does not fit this machine; the text names the field.
        ValueError: `buckets` or `threads` are not positive whole numbers.
    """
    weights = Path(model) if str(model).endswith(".safetensors") else None
    if weights is None and _names_file(model):
        return _open_bundle(Path(model), kind, device, precision, threads, single_view)
    spec = source.read_spec(weights) if weights else model_spec(str(model))
    if kind == "auto" and device.startswith("cuda"):
        kind = "torch"
    kind = _choose(kind, KINDS)
    if kind == "torch":
        file = weights or source.find_weights(spec)
        weights_hash = file_hash(file) if file else ""
    else:
        file, weights_hash = source.find_graph(spec, weights)
    if weights is None and not source.is_trained(spec):
        _warn_of_random_weights(spec)
    request = Request(
        spec=spec.single_view() if single_view else spec,
        file=file,
        weights_hash=weights_hash,
        device=device,
        precision=precision,
        passed=frozenset() if weights else source.passed(spec),
        buckets=check_buckets(buckets),
        threads=threads,
    )
    return _open(kind, request)


def open_network(
    path: Path,
    spec: ModelSpec,
    *,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "f32",
    buckets: Sequence[int] = BUCKETS,
    threads: int | None = None,
) -> Engine:
    """Open a network that `spec` describes.

    Args:
        path: an ONNX graph or, for the kind "torch", a weight file.
        spec: of the network.
        kind: as in `open_engine`, like the rest, and the errors too.
        device: as there.
        precision: as there.
        buckets: as there.
        threads: as there.
    """
    request = Request(
        spec=spec,
        file=path,
        weights_hash="",
        device=device,
        precision=precision,
        passed=frozenset(),
        buckets=check_buckets(buckets),
        threads=threads,
    )
    return _open(_choose(kind, KINDS), request)


def load_engine(path: str | Path, *, device: str = "auto", threads: int | None = None) -> Engine:
    """Open a bundle that `build_engine` wrote, as it was built.

    Args:
        path: its manifest, or the runtime's file beside it.
        device: "auto", the device that it was built for, or the runtime's name of another.
        threads: of the runtime; None leaves the number to it.

    Raises:
        BackendError: its runtime, device or precision is not there.
        EngineError: it is damaged or does not fit this machine; the text names the field.
        ValueError: `threads` is no positive whole number.
    """
    return _open_bundle(Path(path), "auto", device, "auto", threads, single_view=False)


def build_engine(
    model: str = "default",
    *,
    engine: str = "openvino",
    precision: str = "f32",
    buckets: Sequence[int] = BUCKETS,
    weights: str | Path | None = None,
    out: str | Path,
) -> Path:
    """Write a bundle: the runtime's file, then the manifest that makes it one.

    Args:
        model: a registered name.
        engine: "openvino" or "onnxruntime"; the runtime's file of both is an ONNX graph.
        precision: as in `open_engine`.
        buckets: as in `open_engine`.
        weights: a weight file; None takes the trained weights, else random ones with a warning.
        out: the runtime's file, ending in .onnx; the manifest beside it ends in .json.

    Returns:
        The path of the manifest.

    Raises:
        ModelError: no model has that name.
        BackendError: the runtime or the precision is not there.
        WeightsError: the weights are damaged or of another network.
        EngineError: the runtime has no file to build, or `out` cannot be written.
        ValueError: `buckets` are not positive whole numbers.
    """
    out = _bundle_file(out)
    kind = _choose(engine, GRAPH_KINDS)
    spec = model_spec(model)
    if weights is None and not source.is_trained(spec):
        _warn_of_random_weights(spec)
    graph, weights_hash = source.find_graph(spec, Path(weights) if weights else None)
    return _write_bundle(
        kind,
        out,
        Request(
            spec=spec,
            file=graph,
            weights_hash=weights_hash,
            device="auto",
            precision=precision,
            passed=frozenset() if weights else source.passed(spec),
            buckets=check_buckets(buckets),
            threads=None,
        ),
    )


def wrap_network(
    graph: str | Path,
    stated: Statement | None = None,
    *,
    like: str | None = None,
    engine: str = "auto",
    precision: str = "f32",
    buckets: Sequence[int] = BUCKETS,
    out: str | Path,
) -> Path:
    """Write a bundle of a top-down network from elsewhere, which then runs like our own.

    Args:
        graph: an ONNX file: one input [N, 3, h, w]; heat maps [N, K, h / s, w / s], or SimCC
            vectors [N, K, w * s] and [N, K, h * s]. N may be fixed.
        stated: what the graph does not tell, and what it is to be checked against.
        like: a name of `FAMILIES`, for what is not stated.
        engine: as in `build_engine`, like the rest.
        precision: as there, "auto" being "f32": nobody has measured the network in less.
        buckets: as there.
        out: as there.

    Returns:
        The path of the manifest.

    Raises:
        ModelError: something is neither told nor stated, or the graph contradicts; the text names
            the flag of `fastpose wrap` and the choices.
        BackendError: the runtime or the precision is not there.
        EngineError: the graph is damaged or fails, or `out` cannot be written.
        ValueError: `buckets` are not positive whole numbers.
    """
    graph, out = Path(graph), _bundle_file(out)
    stated = stated or Statement()
    said = stated.filled(like)
    kind = _choose(engine, GRAPH_KINDS)
    opened = open_graph(graph, kind=kind)
    try:
        size = input_size(graph, opened.inputs, said.size)
        ((name, (axes, _)),) = opened.inputs.items()
        results = opened({name: np.zeros((axes[0] or 1, 3, *size), np.float32)})
    finally:
        opened.close()
    spec = describe(graph, results, size, said)
    check_used(graph, stated, spec.output)
    return _write_bundle(
        kind,
        out,
        Request(
            spec=spec,
            file=graph,
            weights_hash="",
            device="auto",
            precision=precision,
            passed=frozenset(),
            buckets=check_buckets(buckets),
            threads=None,
        ),
    )


def _bundle_file(out: str | Path) -> Path:
    """Where a bundle is to be written, and what lies there may be replaced.

    Raises:
        EngineError: the name is no bundle's, or its manifest would replace another sort of file,
            which may be all that somebody has of a skeleton or of annotations.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise EngineError(f"{out}: the file of an engine must end in .onnx")
    path = out.with_suffix(".json")
    if path.exists():
        try:
            Manifest.load(path)
        except EngineError:
            raise EngineError(
                f"{path}: is there already and is no manifest of an engine; "
                "give the bundle another name"
            ) from None
    return out


def _write_bundle(kind: str, out: Path, request: Request) -> Path:
    """Copy the request's file to `out` and describe what it is there, after it has run once."""
    assert request.file is not None, "a graph is needed"
    path = out.with_suffix(".json")
    with replaced(path) as description, replaced(out) as temporary:
        copyfile(request.file, temporary)
        try:
            opened = _open(kind, replace(request, file=temporary))
            opened.run(1)
        except EngineError as error:
            reason = str(error).removeprefix(f"{temporary}: ")
            name, whole = request.file.name, f"{request.file.stem}-whole.onnx"
            raise EngineError(
                f"{request.file}: its copy cannot run: {reason}; weights in a file beside it are "
                f"not copied: save both as one file, onnx.save(onnx.load({name!r}), {whole!r})"
            ) from None
        opened.close()
        replace(opened.manifest, file=out.name).save(description)
    return path


def _open_bundle(
    path: Path, kind: str, device: str, precision: str, threads: int | None, single_view: bool
) -> Engine:
    graph, path = path, path.with_suffix(".json")
    if graph.suffix == ".onnx" and graph.is_file() and not path.exists():
        raise EngineError(
            f"{graph}: a graph without {path.name}, which says how to feed and to read it; "
            f"`fastpose wrap {graph} --out BUNDLE.onnx` makes both"
        )
    manifest = _manifest(path)
    asked = {"kind": kind, "precision": precision}
    for field, value in asked.items():
        if value not in ("auto", getattr(manifest, field)):
            raise EngineError(
                f"{path}: {field}: the engine has {getattr(manifest, field)}, asked was {value}"
            )
    kind = _choose(manifest.kind, GRAPH_KINDS)
    manifest.check(path, version=import_module(kind).__version__)
    request = Request(
        spec=manifest.spec.single_view() if single_view else manifest.spec,
        file=path.parent / manifest.file,
        weights_hash=manifest.weights_hash,
        device=manifest.device if device == "auto" else device,
        precision=manifest.precision,
        passed=frozenset(),
        buckets=manifest.buckets,
        threads=threads,
    )
    engine = _open(kind, request)
    if engine.manifest.precision != manifest.precision:
        raise EngineError(
            f"{path}: precision: the engine was built in {manifest.precision}, "
            f"this machine runs it in {engine.manifest.precision}"
        )
    return engine


def _manifest(path: Path) -> Manifest:
    """What the file says, which is no card of weights that lie beside it."""
    try:
        return Manifest.load(path)
    except EngineError as error:
        weights = path.with_suffix(".safetensors")
        if not weights.is_file():
            raise
        raise EngineError(f"{error}; is it the card of {weights}? Then give that") from None


def _names_file(model: str | Path) -> bool:
    return isinstance(model, Path) or "/" in model or model.endswith((".json", ".onnx"))


def _warn_of_random_weights(spec: ModelSpec | DetectorSpec) -> None:
    text = f"{spec.name} has no trained weights here: random ones are used"
    warnings.warn(text, UserWarning, stacklevel=3)


def _open(kind: str, request: Request) -> Engine:
    match kind:
        case "openvino":
            from fastpose.engines.openvino import OpenVINOEngine

            return OpenVINOEngine(request)
        case "onnxruntime":
            from fastpose.engines.onnxruntime import ONNXRuntimeEngine

            return ONNXRuntimeEngine(request)
        case _:
            from fastpose.engines.torch import TorchEngine

            return TorchEngine(request)


def _choose(kind: str, kinds: tuple[str, ...]) -> str:
    """The runtime to use: `kind` if it can be imported, or for "auto" the first that can.

    Raises:
        BackendError: none can; the text says what to install.
    """
    if kind == "auto":
        usable = next((name for name in kinds if _importable(name)), None)
        if usable is None:
            options = " or ".join(INSTALL[name] for name in kinds)
            raise BackendError(f"no runtime is installed; install {options}")
        return usable
    if kind == "tensorrt":
        missing = "" if find_spec("tensorrt") else "the TensorRT libraries are not installed and "
        raise BackendError(
            f"engine 'tensorrt' cannot run: {missing}this release has no TensorRT engine yet"
        )
    if kind not in kinds:
        raise BackendError(f"engine {kind!r} cannot be used here; choose from: {', '.join(kinds)}")
    if not _importable(kind):
        raise BackendError(f"engine {kind!r} cannot run; install {INSTALL[kind]}")
    return kind


def _importable(name: str) -> bool:
    try:
        with without_telemetry():
            import_module(name)
    except ImportError:
        return False
    return True


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep OpenVINO from reporting to its makers, over the network, that it was imported.

    It does so through a package of its own, from a thread and a child process that a program may
    wait for when it ends, and does without where that package is missing. A program that imports
    OpenVINO by itself decides for itself.
    """
    reporter = "openvino_telemetry"
    if reporter in sys.modules:
        yield
        return
    sys.modules[reporter] = None  # type: ignore[assignment]  # Python's own sign for "missing"
    try:
        yield
    finally:
        del sys.modules[reporter]
