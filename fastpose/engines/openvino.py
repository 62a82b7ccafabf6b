"""OpenVINO: the default on CPUs. Precision is always stated; left to itself it picks bf16."""

from __future__ import annotations

import functools
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino.frontend import (
    FrontEndManager,
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)
from openvino.passes import ConstantFolding, Manager

from fastpose.engines import source
from fastpose.engines.engine import (
    RUN_COST,
    BufferedEngine,
    Job,
    Port,
    Request,
    cause,
    check_feeds,
    choose_precision,
    find_ports,
    split,
)
from fastpose.engines.manifest import Manifest, hash_files, versions_of
from fastpose.engines.options import Options
from fastpose.engines.quantize import calibration_windows, quantize_openvino
from fastpose.errors import BackendError, EngineError

VERSION = ov.__version__.partition("-")[0]
CAPABILITIES = {"FP32": "f32", "BF16": "bf16", "FP16": "f16", "INT8": "int8"}
INTEGERS = {"u8": "int8", "i8": "int8"}  # activations behind a ReLU have no sign
NUMBERED = re.compile(r"[A-Z]\w*_\d+(/.*)?")  # names that OpenVINO gives to nodes that have none
QUANTISED = ".xml"  # OpenVINO's own format, which has int8 models alone; weights lie in a .bin
FRONT_END_FAILURES = (  # none of which is a RuntimeError
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)
ARITHMETIC = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
# bytes of a graph: a larger one gains as little from the cache, 0.1 s, and has its own size there
# for every batch size
CACHED_GRAPH = 32 << 20
LATENCY = Options()


def capabilities() -> dict[str, list[str]]:
    """The precisions that each device of this machine lists for itself."""
    return {device: _offered(device) for device in _core().available_devices}


class OpenVINOGraph:
    """Any ONNX graph, or model of OpenVINO's own, as it is; see `engine.BuiltGraph`."""

    kind = "openvino"
    versions = versions_of(openvino=VERSION)

    def __init__(self, path: Path, device: str, precision: str, threads: int | None) -> None:
        model = _read(path)
        self.place = device = _device(device)
        quantised = path.suffix == QUANTISED
        if quantised != (precision == "int8") or precision not in _offered(device):
            raise BackendError(f"precision {precision!r} cannot run in openvino on {device}")
        self.inputs, self.outputs = _ports(path, model.inputs), _ports(path, model.outputs)
        self._path = path
        floats = _beside_int8(device) if quantised else precision
        compiled = _compile(path, model, device, floats, threads)
        self._request = compiled.create_infer_request()
        self.layers = count_layers(compiled)
        self.precision = most_of(self.layers, precision)

    def __call__(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See `engine.Graph`."""
        if self._request is None:
            raise EngineError(f"{self._path}: the graph is closed")
        check_feeds(self.inputs, feeds)
        try:
            results = self._request.infer(
                [np.ascontiguousarray(feeds[name]) for name in self.inputs], share_inputs=True
            )
        except RuntimeError as error:
            raise EngineError(f"{self._path}: openvino: {cause(error)}") from None
        return dict(zip(self.outputs, results.values(), strict=True))

    def close(self) -> None:
        """See `engine.Graph`."""
        self._request = None


class OpenVINOEngine(BufferedEngine):
    """A pose network compiled for one static batch size after the other, as they are first used.

    The runtime reads windows from the engine's buffer and writes results into it: no copies. In
    throughput mode a batch is cut into equal parts that run side by side, each on its share of the
    threads; `manifest.options.requests` is how many.

    What an int8 model leaves in float runs in bf16 where the device has it: the default network is
    1.4 times as fast as with f32 there, and 0.44 % of its joints move instead of 0.43 %.
    """

    def __init__(self, request: Request) -> None:
        assert request.file is not None, "a graph is needed"
        self._path, self._threads = request.file, request.threads
        self._model = _read(request.file)
        outputs = _ports(request.file, self._model.outputs)
        ports = find_ports(
            request.file, _ports(request.file, self._model.inputs), outputs, request.spec
        )
        self._indices = [list(outputs).index(name) for name in ports.outputs]
        self._spec, self._options = request.spec, request.options
        self._device = _device(request.device)
        self._asked = _float_precision(request, self._device)
        self._lock = threading.Lock()
        self._compiled: dict[int, ov.CompiledModel] = {}
        self._requests: dict[int, list[ov.InferRequest]] = {}
        compiled = self._compile(ports.batch or request.buckets[0])
        layers = count_layers(compiled)
        self._parallel, options = 1, request.options
        if options.mode == "throughput":
            optimal = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._parallel = options.requests or optimal
            options = replace(options, requests=self._parallel)
        super().__init__(
            Manifest(
                spec=request.spec,
                kind="openvino",
                precision=most_of(layers, request.precision),
                precision_asked=request.precision,
                buckets=request.buckets,
                device=self._device,
                versions=versions_of(openvino=VERSION),
                layers=layers,
                files=hash_files(_files(request.file)),
                options=options,
                weights_hash=request.weights_hash,
            ),
            ports.batch,
        )

    def _infer(self, count: int) -> None:
        start, used, running = 0, Counter[int](), []
        try:
            for size in self._parts(count):
                request = self._idle(size, used[size] if self._parallel > 1 else 0)
                self._run(request, slice(start, start + size))
                running.append(request)
                used[size] += 1
                start += size
        finally:
            failed = self._wait(running)
        if failed:
            raise EngineError(f"{self._path}: openvino: {cause(failed)}")

    def _run(self, request: ov.InferRequest, rows: slice) -> None:
        """Run these rows; in throughput mode only start."""
        request.set_input_tensor(ov.Tensor(self._images[rows], shared_memory=True))
        for index, output in zip(self._indices, self._outputs, strict=True):
            request.set_output_tensor(index, ov.Tensor(output[rows], shared_memory=True))
        try:
            if self._parallel > 1:
                request.start_async()
            else:
                request.infer()
        except RuntimeError as error:
            raise EngineError(f"{self._path}: openvino: {cause(error)}") from None

    def _parts(self, count: int) -> tuple[int, ...]:
        if self._parallel == 1:
            return split(count, self._sizes)
        return share(count, self._sizes, self._parallel, len(self._images))

    @staticmethod
    def _wait(running: Sequence[ov.InferRequest]) -> RuntimeError | None:
        """Wait for all, since they write into the engine's memory: the first error."""
        first = None
        for request in running:
            try:
                request.wait()
            except RuntimeError as error:
                first = first or error
        return first

    def _idle(self, size: int, index: int) -> ov.InferRequest:
        """One of the requests for a batch size, made when it is first needed."""
        with self._lock:  # another thread may warm the engine up
            requests = self._requests.setdefault(size, [])
            while len(requests) <= index:
                requests.append(self._compile(size).create_infer_request())
            return requests[index]

    def _compile(self, size: int) -> ov.CompiledModel:
        if size not in self._compiled:
            shape = ov.PartialShape([size, 3, *self._spec.size])
            if self._model.input(0).get_partial_shape() != shape:
                self._model.reshape(shape)
            compiled = _compile(
                self._path, self._model, self._device, self._asked, self._threads, self._options
            )
            self._check_outputs(compiled, size)
            self._compiled[size] = compiled
        return self._compiled[size]

    def _check_outputs(self, compiled: ov.CompiledModel, size: int) -> None:
        """Axes that the graph left open are known only now."""
        for index, wanted in zip(self._indices, self._spec.results, strict=True):
            port = compiled.output(index)
            found = port.get_partial_shape()
            if found != ov.PartialShape([size, *wanted]):
                raise EngineError(
                    f"{self._path}: {port.any_name} must be {[size, *wanted]} for an input of "
                    f"{self._spec.size}, got {found}"
                )

    def _free(self) -> None:
        self._requests.clear()
        self._compiled.clear()
        del self._model


def share(count: int, buckets: Sequence[int], parallel: int, rows: int) -> tuple[int, ...]:
    """The equal parts of a batch that are done soonest where several run side by side.

    Args:
        count: images.
        buckets: compiled batch sizes, rising.
        parallel: how many parts run at once, each on the same share of the processor.
        rows: that the parts may use together: the last may reach over the images' end.
    """
    costs = []
    for size in buckets:
        parts = math.ceil(count / size)
        if parts * size <= rows:
            costs.append((math.ceil(parts / parallel) * (size + RUN_COST), size, parts))
    _, size, parts = min(costs)
    return (size,) * parts


def count_layers(compiled: ov.CompiledModel) -> dict[str, int]:
    """How many layers with weights compute in which precision, as the runtime reports it."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ARITHMETIC:
            precision = info["runtimePrecision"].astype(str)
            found[INTEGERS.get(precision, precision)] += 1
    return dict(sorted(found.items()))


def most_of(layers: Mapping[str, int], asked: str) -> str:
    """The precision of most layers; `asked` where there are none, or just as many."""
    return max(layers, key=lambda name: (layers[name], name == asked)) if layers else asked


@functools.cache
def _core() -> ov.Core:
    return ov.Core()


def _read(path: Path) -> ov.Model:
    # The front end itself: `Core.read_model` tries all of them and prints what they think.
    quantised = path.suffix == QUANTISED
    frontend = FrontEndManager().load_by_framework("ir" if quantised else "onnx")
    try:
        # into memory: a file that is mapped and then cut short would end the process
        return frontend.convert(frontend.load(str(path), enable_mmap=False))
    except (RuntimeError, *FRONT_END_FAILURES) as error:
        what = "OpenVINO model" if quantised else "ONNX graph"
        raise EngineError(f"{path}: not a readable {what}: {cause(error)}") from None


def _files(path: Path) -> list[Path]:
    return [path, path.with_suffix(".bin")] if path.suffix == QUANTISED else [path]


def _compile(
    path: Path,
    model: ov.Model,
    device: str,
    precision: str,
    threads: int | None,
    options: Options = LATENCY,
) -> ov.CompiledModel:
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": options.mode.upper(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    if device == "CPU":
        # Pinned threads wait for their core when somebody else is on it, and two engines of one
        # process are pinned to the same cores.
        config["ENABLE_CPU_PINNING"] = False
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
    if options.requests is not None:
        config["NUM_STREAMS"] = options.requests
    cache = _cache(path, device)
    if cache is not None:
        # Processes that write the same entry at once may take its file from each other, which
        # ends the compilation of one of them: it then does without.
        with suppress(RuntimeError):
            return _core().compile_model(model, device, {**config, "CACHE_DIR": str(cache)})
    try:
        return _core().compile_model(model, device, config)
    except RuntimeError as error:
        raise EngineError(f"{path}: openvino on {device}: {cause(error)}") from None


def _cache(path: Path, device: str) -> Path | None:
    """Where compiled models are kept; None for those that are compiled again each time.

    The next start compiles a batch size of the default network in 40 ms instead of 115, in int8 in
    60 instead of 190. OpenVINO itself looks whether an entry is whole and of this version.
    """
    if device == "CPU" and _files(path)[-1].stat().st_size > CACHED_GRAPH:
        return None
    folder = source.cache_folder() / "openvino"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _float_precision(request: Request, device: str) -> str:
    """The precision of what is not quantised.

    Raises:
        BackendError: the device does not offer what was asked for.
    """
    offered = _offered(device)
    assert request.file is not None, "a graph is needed"
    if request.file.suffix != QUANTISED:
        return choose_precision(
            request, "openvino", device, [name for name in offered if name != "int8"]
        )
    if "int8" not in offered:
        raise BackendError(f"precision 'int8' cannot run in openvino on {device}")
    return _beside_int8(device)


def _beside_int8(device: str) -> str:
    """The precision of what a quantised model leaves in float."""
    return "bf16" if "bf16" in _offered(device) else "f32"


def _device(name: str) -> str:
    devices = _core().available_devices
    device = "CPU" if name == "auto" else name.upper()
    if device not in devices:
        raise BackendError(
            f"openvino has no device {name!r} on this machine; it has: {', '.join(devices)}"
        )
    return device


def _offered(device: str) -> list[str]:
    listed = _core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    return [precision for name, precision in CAPABILITIES.items() if name in listed]


def _ports(path: Path, ports: list[Any]) -> dict[str, Port]:
    found: dict[str, Port] = {}
    for port in ports:
        shape = port.get_partial_shape()
        if shape.rank.is_dynamic:
            raise EngineError(f"{path}: {port.any_name}: the number of axes is not fixed")
        axes = tuple(None if axis.is_dynamic else axis.get_length() for axis in shape)
        found[port.any_name] = (axes, np.dtype(port.get_element_type().to_dtype()))
    return found


def suffix(precision: str, options: Options) -> str:
    """Of the runtime's file."""
    return QUANTISED if precision == "int8" else ".onnx"


def build(job: Job, out: Path) -> list[Path]:
    """Write the network's graph, which OpenVINO compiles when it is opened.

    In int8 that is a model in OpenVINO's own format, with its weights in a file beside it.

    Raises:
        EngineError: int8 without windows to calibrate with, or NNCF cannot quantise the network.
        BackendError: NNCF, or torch for the export, is not installed.
    """
    windows = calibration_windows(job) if job.precision == "int8" else None
    job.tell("export")
    graph, _ = source.find_graph(job.spec, job.weights, options=job.options)
    if windows is None:
        copyfile(graph, out)
        return [out]
    job.tell("calibrate")
    return quantize_graph(graph, [windows[i : i + 1] for i in range(len(windows))], out)


def quantize_graph(
    graph: Path, samples: Sequence[npt.NDArray[np.float32]], out: Path, **depths: int
) -> list[Path]:
    """Write a graph of one input in int8; see `quantize_openvino`.

    Args:
        graph: ONNX, float32.
        samples: as there, like the errors.
        out: the file, ending in .xml.
        **depths: `stem` and `head` of there.

    Returns:
        `out` and the file of its weights.
    """
    model = _read(graph)
    fold = Manager()
    fold.register_pass(ConstantFolding())  # weights are stored in half with a Convert behind them
    fold.run_passes(model)
    quantised = quantize_openvino(model, samples, **depths)
    del quantised.rt_info["nncf"]
    for index, node in enumerate(quantised.get_ordered_ops()):
        if NUMBERED.fullmatch(node.get_friendly_name()):  # by all models that the process has seen
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
    try:
        ov.save_model(quantised, out, compress_to_fp16=False)
    except RuntimeError as error:
        raise EngineError(f"{out}: cannot be written: {cause(error)}") from None
    return _files(out)


def ties(options: Options, device: str, built: Mapping[str, str] | None = None) -> dict[str, str]:
    """The version whose successors may read the file otherwise."""
    return {"openvino": VERSION.partition(".")[0]}
