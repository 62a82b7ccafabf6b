"""Engines: one protocol over every runtime. Importing this loads none of them."""

from __future__ import annotations

import fcntl
import os
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpose.engines import source
from fastpose.engines.bundle import (
    check_bundle_name,
    find_built,
    folder_lock,
    write_bundle,
)
from fastpose.engines.engine import BuiltGraph, Engine, Graph, Request, check_threads
from fastpose.engines.manifest import (
    DetectorManifest,
    Manifest,
    check_buckets,
    file_hash,
    read_manifest,
)
from fastpose.engines.options import Options
from fastpose.engines.wrap import FAMILIES, Statement, check_used, describe, input_size
from fastpose.errors import BackendError, EngineError, UnbuiltError
from fastpose.models import model_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastpose.models.spec import DetectorSpec, ModelSpec

__all__ = [
    "FAMILIES",
    "DetectorManifest",
    "Engine",
    "Graph",
    "Manifest",
    "Options",
    "Statement",
    "choose_runtime",
    "joint_precision",
    "load_engine",
    "open_detector_bundle",
    "open_engine",
    "open_graph",
    "open_halves",
    "open_network",
    "open_pair",
    "open_request",
    "runtime_module",
    "wrap_network",
]

BUCKETS = (1, 2, 4, 8, 16, 32)
GRAPH_KINDS = ("openvino", "onnxruntime")  # run ONNX graphs; fastest first
HALF_KINDS = (*GRAPH_KINDS, "torch")  # run the halves of a detector
KINDS = (*HALF_KINDS, "tensorrt")
INSTALL = {
    "openvino": "the package openvino",
    "onnxruntime": "the extra fastpose-inference[onnxruntime]",
    "torch": "the extra fastpose-inference[torch]",
    "tensorrt": "the extra fastpose-inference[tensorrt], from NVIDIA's own package index",
}
SUFFIXES = (".json", ".onnx", ".xml", ".plan", ".pt2")  # of the files of a bundle
AUTO_PRECISIONS = ("bf16", "f16", "f32")  # in which "auto" looks for a built engine


def open_graph(
    path: str | Path,
    *,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "f32",
    threads: int | None = None,
) -> BuiltGraph:
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
    match choose_runtime(kind, GRAPH_KINDS):
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
        precision: as there; "int8" is taken from the user's cache.
        threads: as there.
    """
    check_threads(threads)
    kind = choose_runtime(likely_kind(kind, device), HALF_KINDS)
    if precision == "int8":
        path = _find_bundle(spec, Path(weights) if weights else None, kind, device, precision)
        return open_detector_bundle(path, device=device, threads=threads)[1:]
    if weights is None and not source.is_trained(spec):
        warn_of_random_weights(spec)
    file = None if weights is None else Path(weights)
    low = sorted(source.passed(spec)) if file is None else []
    for choice in [*low, "f32"] if precision == "auto" else [precision]:
        try:
            return _open_halves(kind, spec, file, device, choice, threads)
        except BackendError:
            if choice in ("f32", precision):
                raise  # nothing else is left to try
    raise AssertionError("f32 returns or raises")


def open_detector_bundle(
    path: str | Path,
    *,
    kind: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> tuple[DetectorManifest, BuiltGraph, BuiltGraph]:
    """Open what `fastpose.build_detector` wrote.

    Args:
        path: its manifest.
        kind: "auto" or its own; as in `open_engine`, like the rest and the errors.
        device: as there.
        precision: "auto" or its own.
        threads: as there.

    Returns:
        What it says of itself, and its graphs as `open_halves` gives them.
    """
    check_threads(threads)
    manifest, path = read_bundle(Path(path))
    if not isinstance(manifest, DetectorManifest):
        raise EngineError(f"{path}: the bundle of a pose network, which `--engine {path}` takes")
    place = _checked_place(manifest, path, kind, device, precision)
    files = (path.parent / manifest.graphs[0], path.parent / manifest.graphs[1])
    first, second = open_pair(files, manifest.kind, place, manifest.precision_asked, threads)
    found = joint_precision(first, second)
    if found != manifest.precision:
        first.close()
        second.close()
        raise EngineError(
            f"{path}: precision: the engine was built in {manifest.precision}, "
            f"this machine runs it in {found}"
        )
    return manifest, first, second


def joint_precision(*graphs: Graph) -> str:
    """In which graphs compute; of several that differ, each once, with "/" between."""
    return "/".join(dict.fromkeys(graph.precision for graph in graphs))


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
    return open_pair(source.find_halves(spec, weights), kind, device, precision, threads)


def open_pair(
    files: tuple[Path, Path], kind: str, device: str, precision: str, threads: int | None
) -> tuple[BuiltGraph, BuiltGraph]:
    """Open two graphs, or none; the rest is as in `open_graph`."""
    proposer, head = files
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
    options: Options | None = None,
) -> Engine:
    """Open a pose network in a runtime.

    What a runtime can only run from a file that was built for this machine (every engine of
    TensorRT, "aot" of torch, and "int8") is taken from the user's cache, where
    `fastpose.build_engine` puts it; nothing is built here.

    Args:
        model: a registered name, with its trained weights or else with random ones and a
            UserWarning; or a .safetensors file of weights, whose card beside it names the model;
            or a bundle: its manifest or the runtime's file beside it.
        kind: "openvino", "onnxruntime", "torch", "tensorrt", or "auto": the first of openvino,
            onnxruntime and torch that is installed, torch for the device "cuda", a bundle's own.
        device: "auto" (the CPU) or the runtime's name of a device.
        precision: "f32", "bf16", "f16", "int8", or "auto": a low precision where the runtime lists
            it for the device and the model's card records that it is accurate enough, else "f32".
        buckets: batch sizes to compile for, each when it is first needed; a bundle, one of the
            cache too, has its own.
        threads: of the runtime; None leaves the number to it.
        single_view: look at each person once, where the published procedure joins several views:
            a fraction of the time, and less accurate.
        options: how it is run, and what the graph does; of a bundle only how it is run.

    Raises:
        ModelError: no model has that name.
        BackendError: the runtime, the device, the precision or what has to be built is not there.
        WeightsError: weights or card are damaged or of another network.
        EngineError: a bundle is damaged or does not fit this machine; the text names the field.
        ValueError: `buckets` or `threads` are not positive whole numbers.
    """
    weights = Path(model) if str(model).endswith(".safetensors") else None
    if weights is None and names_file(model):
        return _open_bundle(Path(model), kind, device, precision, threads, single_view, options)
    spec = source.read_spec(weights) if weights else model_spec(str(model))
    kind = choose_runtime(likely_kind(kind, device), KINDS)
    options = options or Options()
    options.check(kind)
    if kind == "tensorrt" or precision == "int8" or options.compile == "aot":
        path = _find_bundle(spec, weights, kind, device, precision, options)
        return _open_bundle(path, kind, device, "auto", threads, single_view, options)
    if kind == "torch":
        file = weights or source.find_weights(spec)
        weights_hash = file_hash(file) if file else ""
    else:
        # of these, only onnxruntime on CUDA computes in f16, and it keeps to a graph's own types
        types = "f16" if (kind, precision) == ("onnxruntime", "f16") else "f32"
        file, weights_hash = source.find_graph(spec, weights, options, types)
    if weights is None and not source.is_trained(spec):
        warn_of_random_weights(spec)
    spec = changed_spec(spec, options)
    request = Request(
        spec=spec.single_view() if single_view else spec,
        file=file,
        weights_hash=weights_hash,
        device=device,
        precision=precision,
        passed=frozenset() if weights else source.passed(spec),
        buckets=check_buckets(buckets),
        threads=threads,
        options=options,
    )
    return open_request(kind, request)


def likely_kind(kind: str, device: str) -> str:
    """The runtime that is asked for; on CUDA "auto" is torch."""
    return "torch" if kind == "auto" and device.startswith("cuda") else kind


def changed_spec(spec: ModelSpec, options: Options) -> ModelSpec:
    """The network as the graph options change it.

    Raises:
        ModelError: it cannot be changed so.
        BackendError: it can, but only with torch, which is not installed.
    """
    if not options.changes_graph:
        return spec
    source.need_torch(spec.name)
    from fastpose.engines.build import graph_spec

    return graph_spec(spec, options)


def _find_bundle(
    spec: ModelSpec | DetectorSpec,
    weights: Path | None,
    kind: str,
    device: str,
    precision: str,
    options: Options | None = None,
) -> Path:
    """The manifest of what was built into the user's cache.

    Raises:
        UnbuiltError: nothing was; the text says how.
    """
    options = options or Options()
    ties = runtime_module(kind).ties(options, device)
    weights_hash = source.hash_of_weights(spec, weights)
    for choice in AUTO_PRECISIONS if precision == "auto" else (precision,):
        path = find_built(spec, kind, choice, weights_hash, options, ties, device)
        if path and (precision != "auto" or (read_manifest(path).report or {}).get("passed")):
            return path
    asked = "" if precision == "auto" else f" --precision {precision}"
    asked += " --calibration DIR" if precision == "int8" else ""
    given = f" --weights {weights}" if weights else ""
    which = "" if precision == "auto" else f"{precision} "
    raise UnbuiltError(
        f"{spec.name}: no {which}engine of {kind} has been built for this machine; "
        f"`fastpose build {spec.name} --engine {kind}{asked}{given}` makes one"
    )


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
    return open_request(choose_runtime(kind, KINDS), request)


def load_engine(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    options: Options | None = None,
) -> Engine:
    """Open a bundle that `fastpose.build_engine` or `wrap_network` wrote, as it was built.

    Files of torch (.pt2) and TensorRT (.plan) hold code for this machine, which runs: open only
    those whose source is trusted.

    Args:
        path: its manifest, or the runtime's file beside it.
        device: "auto", the device that it was built for, or the runtime's name of another.
        threads: of the runtime; None leaves the number to it.
        options: how it is run; None runs it as it was built.

    Raises:
        BackendError: its runtime, device or precision is not there.
        EngineError: it is damaged or does not fit this machine; the text names the field.
        ValueError: `threads` is no positive whole number.
    """
    return _open_bundle(
        Path(path), "auto", device, "auto", threads, single_view=False, options=options
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
        engine: "openvino", "onnxruntime", or "auto", the first that is installed.
        precision: as in `open_engine`, "auto" being "f32": nobody has measured the network in less.
        buckets: as there.
        out: the runtime's file, ending in .onnx; the manifest beside it ends in .json.

    Returns:
        The path of the manifest.

    Raises:
        ModelError: something is neither told nor stated, or the graph contradicts; the text names
            the flag of `fastpose wrap` and the choices.
        BackendError: the runtime or the precision is not there.
        EngineError: the graph is damaged or fails, or `out` cannot be written.
        ValueError: `buckets` are not positive whole numbers.
    """
    graph, out = Path(graph), Path(out)
    check_bundle_name(out, ".onnx")
    stated = stated or Statement()
    said = stated.filled(like)
    kind = choose_runtime(engine, GRAPH_KINDS)
    opened = open_graph(graph, kind=kind)
    try:
        size = input_size(graph, opened.inputs, said.size)
        ((name, (axes, _)),) = opened.inputs.items()
        results = opened({name: np.zeros((axes[0] or 1, 3, *size), np.float32)})
    finally:
        opened.close()
    spec = describe(graph, results, size, said)
    check_used(graph, stated, spec.output)
    request = Request(
        spec=spec,
        file=graph,
        weights_hash="",
        device="auto",
        precision=precision,
        passed=frozenset(),
        buckets=check_buckets(buckets),
        threads=None,
    )

    def copy(target: Path) -> list[Path]:
        copyfile(graph, target)
        return [target]

    try:
        return write_bundle(
            out,
            copy,
            lambda file: open_request(kind, replace(request, file=file)),
            runtime_module(kind).ties(Options(), "auto"),
        )
    except EngineError as error:
        if str(error).startswith(str(out)):  # the folder, and no fault of the graph
            raise
        reason = str(error).rpartition(f"{out.name}: ")[2]
        whole = f"{graph.stem}-whole.onnx"
        raise EngineError(
            f"{graph}: its copy cannot run: {reason}; weights in a file beside it are not copied: "
            f"save both as one file, onnx.save(onnx.load({graph.name!r}), {whole!r})"
        ) from None


def _open_bundle(
    path: Path,
    kind: str,
    device: str,
    precision: str,
    threads: int | None,
    single_view: bool,
    options: Options | None,
) -> Engine:
    manifest, path = read_bundle(path)
    if not isinstance(manifest, Manifest):
        raise EngineError(
            f"{path}: the bundle of a detector: give it as `--detector {path}`, or to "
            f"`fastpose eval {path} --data boxes:DIR`"
        )
    place = _checked_place(manifest, path, kind, device, precision)
    kind = manifest.kind
    if options:
        options.check(kind)
    request = Request(
        spec=manifest.spec.single_view() if single_view else manifest.spec,
        file=path.parent / manifest.file,
        weights_hash=manifest.weights_hash,
        device=place,
        precision=asked_precision(manifest),
        passed=frozenset(),
        buckets=manifest.buckets,
        threads=threads,
        options=manifest.options.with_run(options),
    )
    _warn_of_failed(manifest, path)
    engine = open_request(kind, request)
    if engine.manifest.precision != manifest.precision:
        engine.close()
        raise EngineError(
            f"{path}: precision: the engine was built in {manifest.precision}, "
            f"this machine runs it in {engine.manifest.precision}"
        )
    return engine


def asked_precision(manifest: Manifest) -> str:
    """What a bundle was to compute in; where that was left open, what it does."""
    asked = manifest.precision_asked
    return manifest.precision if asked == "auto" else asked


def _warn_of_failed(manifest: Manifest | DetectorManifest, path: Path) -> None:
    report = manifest.report
    if report and not report.get("passed"):
        reasons = "; ".join(map(str, report.get("reasons", ())))
        warnings.warn(f"{path}: was kept though it did not pass: {reasons}", stacklevel=4)


def _checked_place(
    manifest: Manifest | DetectorManifest, path: Path, kind: str, device: str, precision: str
) -> str:
    """The device to open a bundle on, which is what was asked for, whole, and fits this machine.

    Raises:
        BackendError: its runtime is not there.
        EngineError: something differs; the text names the field.
    """
    asked = {"kind": kind, "precision": precision}
    for field, value in asked.items():
        if value not in ("auto", getattr(manifest, field), getattr(manifest, f"{field}_asked", "")):
            raise EngineError(
                f"{path}: {field}: the engine has {getattr(manifest, field)}, asked was {value}"
            )
    place = manifest.device if device == "auto" else device
    runtime = runtime_module(choose_runtime(manifest.kind, KINDS))
    manifest.check_ties(path, runtime.ties(manifest.options, place, manifest.ties))
    with folder_lock(path.parent, fcntl.LOCK_SH):
        manifest.check_files(path)
    return place


def read_bundle(path: Path) -> tuple[Manifest | DetectorManifest, Path]:
    """A bundle's manifest and where it lies, given that or the runtime's file beside it.

    Raises:
        EngineError: there is none; the text says what the file may be instead.
    """
    file, path = path, path.with_suffix(".json")
    if not file.exists() and not path.exists():
        raise EngineError(
            f"{file}: no such file; `fastpose build` and `fastpose wrap` make bundles"
        )
    if file != path and file.is_file() and not path.exists():
        wrap = f"; of a network from elsewhere `fastpose wrap {file} --out BUNDLE.onnx` makes one"
        raise EngineError(
            f"{file}: without {path.name}, which says how to feed and to read it: it belongs "
            "beside it, under the name that it was built with"
            + (wrap if file.suffix == ".onnx" else "")
        )
    return _manifest(path), path


def _manifest(path: Path) -> Manifest | DetectorManifest:
    """What the file says, which is no card of weights that lie beside it."""
    try:
        return read_manifest(path)
    except EngineError as error:
        weights = path.with_suffix(".safetensors")
        if not weights.is_file():
            raise
        raise EngineError(f"{error}; is it the card of {weights}? Then give that") from None


def names_file(model: str | Path) -> bool:
    """Whether a model is given as a bundle, and not by its name."""
    return isinstance(model, Path) or "/" in model or model.endswith(SUFFIXES)


def warn_of_random_weights(spec: ModelSpec | DetectorSpec) -> None:
    text = f"{spec.name} has no trained weights here: random ones are used"
    warnings.warn(text, UserWarning, stacklevel=3)


def runtime_module(kind: str) -> Any:
    """The module of a runtime that can be imported: its engine, `suffix`, `build` and `ties`."""
    return import_module(f"fastpose.engines.{kind}")


def open_request(kind: str, request: Request) -> Engine:
    """Open what was looked up; errors as in `open_engine`."""
    match kind:
        case "openvino":
            from fastpose.engines.openvino import OpenVINOEngine

            return OpenVINOEngine(request)
        case "onnxruntime":
            from fastpose.engines.onnxruntime import ONNXRuntimeEngine

            return ONNXRuntimeEngine(request)
        case "tensorrt":
            from fastpose.engines.tensorrt import TensorRTEngine

            return TensorRTEngine(request)
        case _:
            from fastpose.engines.torch import TorchEngine

            return TorchEngine(request)


def choose_runtime(kind: str, kinds: tuple[str, ...]) -> str:
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
    """Keep the runtimes from reporting to their makers, over the network, that they were imported.

    OpenVINO does so through a package of its own, from a thread and a child process that a program
    may wait for when it ends, and does without where that package is missing. ONNX Runtime reads
    this variable once, when it is imported. A program that imports them by itself decides for
    itself.
    """
    reporter, variable = "openvino_telemetry", "ORT_DISABLE_TELEMETRY"
    absent, unset = reporter not in sys.modules, variable not in os.environ
    if absent:
        sys.modules[reporter] = None  # type: ignore[assignment]  # Python's own sign for "missing"
    if unset:
        os.environ[variable] = "1"
    try:
        yield
    finally:
        if absent:
            del sys.modules[reporter]
        if unset:
            del os.environ[variable]
