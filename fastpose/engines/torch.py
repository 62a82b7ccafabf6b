"""torch: the network itself, batch norm folded, channels last; for CUDA without TensorRT.

Three forms of it, by `Options.compile`: the module run as it is ("eager"), compiled when it is
opened ("compile"), or compiled ahead of time into a package that needs none of the network's code
("aot"). On CUDA each only enqueues on the current stream, so that `fastpose.graph` can capture it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastpose.engines import inductor
from fastpose.engines.build import (
    detector_halves,
    input_type,
    predictor,
    random_detector,
    random_network,
)
from fastpose.engines.engine import (
    BufferedEngine,
    Job,
    Port,
    Request,
    cause,
    check_feeds,
    choose_precision,
)
from fastpose.engines.manifest import Manifest, hash_files, versions_of
from fastpose.engines.options import Options
from fastpose.engines.source import find_weights
from fastpose.engines.typed import TYPES
from fastpose.errors import BackendError, EngineError
from fastpose.models import create, create_detector
from fastpose.models.spec import DetectorSpec, ModelSpec

_SETTINGS = threading.RLock()  # of cuDNN, which are the process's


class TorchEngine(BufferedEngine):
    """A pose network as a module, a compiled one, or a package: `request.file` is a .pt2 then.

    `threads` sets the one count that torch has a process; another count later makes a compiled
    module compile again. A package keeps to whatever the count is.

    It is also a `fastpose.graph.StreamEngine`.

    Attributes:
        device, type, layout: where its windows must lie, and how.

    Raises:
        BackendError: torch has no such device, or does not compute in that precision there, or
            there is nothing to compile with.
        WeightsError: the weights are damaged or of another network.
        EngineError: the network cannot be compiled, or the package is damaged or another one's.
    """

    layout = "nhwc"  # as tensor cores want it

    def __init__(self, request: Request) -> None:
        if request.threads is not None:
            torch.set_num_threads(request.threads)
        open_form = _open_package if request.options.compile == "aot" else _open_module
        opened = open_form(request)
        self.device, self.type = opened.device, opened.type
        self._network: Callable[[torch.Tensor], Any] | None = opened.run
        super().__init__(
            Manifest(
                spec=request.spec,
                kind="torch",
                precision=_most(opened.layers),
                precision_asked=request.precision,
                buckets=request.buckets,
                device=str(self.device),
                versions=versions_of(torch=torch.__version__),
                weights_hash=request.weights_hash,
                layers=opened.layers,
                options=request.options,
                files=hash_files([request.file] if request.file else []),
            )
        )

    def enqueue(self, windows: torch.Tensor) -> torch.Tensor:
        """See `fastpose.graph.StreamEngine`."""
        if self._network is None:
            raise EngineError(f"{self.manifest.name}: the engine is closed")
        given = windows.contiguous(memory_format=torch.channels_last)
        largest, (h, w) = self.manifest.buckets[-1], self.manifest.spec.size
        wanted = (self.device, self.type, (3, h, w))
        fits = (given.device, given.dtype, tuple(given.shape[1:])) == wanted
        if not fits or not 1 <= len(given) <= largest:  # compiled code would not look
            raise EngineError(
                f"{self.manifest.name}: windows must be [1 to {largest}, 3, {h}, {w}] {self.type} "
                f"on {self.device}, got {list(given.shape)} {given.dtype} on {given.device}"
            )
        return run_module(self.manifest.name, self._network, given)

    def _infer(self, count: int) -> None:
        with torch.inference_mode(False):  # a caller's mode makes tensors of another kind
            images = torch.from_numpy(self._images[:count]).to(
                self.device, self.type, memory_format=torch.channels_last
            )
        torch.from_numpy(self._result[:count]).copy_(self.enqueue(images))

    def _free(self) -> None:
        self._network = None


@dataclass(frozen=True)
class _Opened:
    """A network that can be run: windows [N, 3, h, w] of `type`, channels last, on `device`."""

    run: Callable[[torch.Tensor], Any]
    device: torch.device
    type: torch.dtype
    layers: dict[str, int]


def suffix(precision: str, options: Options) -> str:
    """Of the file that `build` writes: only what is compiled ahead of time has one."""
    return ".pt2" if options.compile == "aot" else ""


def build(job: Job, out: Path) -> list[Path]:
    """Compile a network ahead of time into a package that needs none of its code.

    Raises:
        BackendError: torch has no such device, or does not compute in that precision there, or
            there is nothing to compile with.
        WeightsError: the weights are damaged or of another network.
        EngineError: the options make no file, or the network cannot be compiled.
    """
    if not suffix(job.precision, job.options):
        raise EngineError(f"compile {job.options.compile!r} of torch makes no file; 'aot' does")
    device = _device(job.device)
    _check_precision(job.precision, device)
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    job.tell("export")
    weights = job.weights or find_weights(job.spec)
    module, kind = _module(job.spec, job.options, weights, job.precision, device)
    largest = job.buckets[-1]
    note = {
        "precision": job.precision,
        "input": _name(kind),
        "size": job.spec.size,
        "results": job.spec.results,
        "largest": largest,
        "layers": _count_layers(module),
    }
    job.tell("compile")
    image = _example(job.spec, largest, kind, device)
    with computing(device):
        inductor.write_package(module, image, largest, note, out)
    return [out]


def ties(options: Options, device: str, built: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a package is tied to: torch to the letter, the CPU, and on CUDA the kind of GPU.

    Raises:
        BackendError: torch has no such device.
    """
    if not suffix("", options):
        return {}
    place = _device(device)
    found = {"torch": str(torch.__version__), "processor": inductor.processor()}
    if place.type == "cuda":
        major, minor = torch.cuda.get_device_capability(place)
        found["compute capability"] = f"{major}.{minor}"
    return found


def _open_module(request: Request) -> _Opened:
    device = _device(request.device)
    precision = choose_precision(request, "torch", str(device), _offered(device))
    module, kind = _module(request.spec, request.options, request.file, precision, device)
    run: Callable[[torch.Tensor], Any] = module
    if request.options.compile == "compile":
        largest = request.buckets[-1]
        run = _compile(
            request.spec.name, module, _example(request.spec, largest, kind, device), largest
        )
    return _Opened(run, device, kind, _count_layers(module))


def _compile(
    name: str, module: torch.nn.Module, image: torch.Tensor, largest: int
) -> Callable[[torch.Tensor], Any]:
    """A compiled module that has run with one window and then with two: no later run compiles."""
    run = inductor.compile_module(module, image, largest)
    with inductor.compiling(name), computing(image.device):
        for size in range(1, len(image) + 1):
            run(image[:size])
    return run


def _open_package(request: Request) -> _Opened:
    path, spec = request.file, request.spec
    assert path is not None, "a package is needed"
    kind, note = inductor.read_note(path)
    device = _device(kind if request.device == "auto" else request.device)
    fields = {
        "device": (kind, device.type),
        "size": (tuple(note["size"]), spec.size),
        "results": (tuple(map(tuple, note["results"])), spec.results),
    }
    if request.precision != "auto":
        fields["precision"] = (note["precision"], request.precision)
    for name, (found, asked) in fields.items():
        if found != asked:
            raise EngineError(f"{path}: {name}: the package has {found}, asked was {asked}")
    if request.buckets[-1] > note["largest"]:
        raise EngineError(
            f"{path}: buckets: the package takes up to {note['largest']} windows, "
            f"asked was {request.buckets[-1]}"
        )
    _check_precision(note["precision"], device)
    run = inductor.load_package(path, device)
    return _Opened(run, device, TYPES[note["input"]], note["layers"])


def _module(
    spec: ModelSpec,
    options: Options,
    weights: Path | None,
    precision: str,
    device: torch.device,
) -> tuple[torch.nn.Module, torch.dtype]:
    """The network as it is to run, and the type of the windows it takes."""
    network = random_network(spec.name) if weights is None else create(spec.name, weights=weights)
    kind = input_type(network, precision)
    module = predictor(network, spec, options, precision)
    return module.to(device, memory_format=torch.channels_last), kind


def _example(
    spec: ModelSpec, largest: int, kind: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Windows for a compiler: two, which stand for any number, or the only one there will be."""
    image = torch.zeros(min(2, largest), 3, *spec.size, dtype=kind, device=device)
    return image.contiguous(memory_format=torch.channels_last)


class TorchGraph:
    """A module in place of an ONNX graph; see `engine.Graph`.

    Attributes:
        device, type: where it computes, and in which type.
    """

    kind = "torch"

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        inputs: dict[str, Port],
        outputs: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._name, self.device, self.type = name, device, dtype
        self._module: torch.nn.Module | None = module.to(
            device, dtype, memory_format=torch.channels_last
        )
        self.precision = _most(_count_layers(self._module))
        ((self._input, (shape, _)),) = inputs.items()
        self.inputs = inputs
        example = np.zeros([side or 1 for side in shape], np.float32)
        results = self._run(example)
        self.outputs = {
            key: (tuple(value.shape), np.dtype(np.float32))
            for key, value in zip(outputs, results, strict=True)
        }

    def __call__(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See `engine.Graph`."""
        if self._module is None:
            raise EngineError(f"{self._name}: the graph is closed")
        check_feeds(self.inputs, feeds)
        return dict(zip(self.outputs, self._run(feeds[self._input]), strict=True))

    def enqueue(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs for an input of `type` on `device`, without waiting for them.

        Raises:
            EngineError: the graph is closed, or torch failed.
        """
        if self._module is None:
            raise EngineError(f"{self._name}: the graph is closed")
        return tuple(run_module(self._name, self._module, given))

    def close(self) -> None:
        """See `engine.Graph`."""
        self._module = None

    def _run(self, array: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        given = torch.from_numpy(np.ascontiguousarray(array)).to(
            self.device, self.type, memory_format=torch.channels_last
        )
        return [result.float().cpu().contiguous().numpy() for result in self.enqueue(given)]


def open_torch_halves(
    spec: DetectorSpec, weights: Path | None, device: str, precision: str, threads: int | None
) -> tuple[TorchGraph, TorchGraph]:
    """The two halves of a detector as modules, with random weights for None.

    Raises:
        BackendError: torch has no such device, or does not compute in `precision` there.
        WeightsError: the file is missing, damaged, or of another network.
    """
    place = _device(device)
    _check_precision(precision, place)
    if threads is not None:
        torch.set_num_threads(threads)
    network = random_detector(spec.name) if weights is None else create_detector(spec.name, weights)
    first, second = detector_halves(network, spec)
    image: Port = ((1, 3, *spec.size), np.dtype(np.float32))
    windows: Port = ((spec.batch, spec.width, spec.pool, spec.pool), np.dtype(np.float32))
    levels = (f"p{level}" for level in range(spec.pooled))
    kind = TYPES[precision]
    return (
        TorchGraph(
            spec.name, first, {"image": image}, (*levels, "objectness", "deltas"), place, kind
        ),
        TorchGraph(spec.name, second, {"windows": windows}, ("logits", "deltas"), place, kind),
    )


def run_module(name: str, module: Callable[[torch.Tensor], Any], given: torch.Tensor) -> Any:
    """What a module, compiled or not, returns; on CUDA with the fastest exact algorithms.

    They are looked for when a shape comes for the first time, so that goes before any capture.

    Raises:
        EngineError: torch failed; the text has its reason.
    """
    try:
        with computing(given.device):
            return module(given)
    except RuntimeError as error:
        raise EngineError(f"{name}: torch: {cause(error)}") from None


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """As the engine says, whatever modes of torch its caller is in."""
    no_autocast = torch.autocast(device.type, enabled=False)
    # a package asks for the current stream of the current device
    there = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with there, torch.inference_mode(), no_autocast, _algorithms(device):
        yield


@contextmanager
def _algorithms(device: torch.device) -> Iterator[None]:
    """Algorithms of cuDNN that were tried, and none with tf32: 10 bits of mantissa are no f32."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    with _SETTINGS:
        setting: tuple[Any, str, Any] = cudnn, "allow_tf32", False
        try:
            allowed = cudnn.allow_tf32
        except RuntimeError:  # somebody has used what replaces it since torch 2.9
            setting = cudnn.conv, "fp32_precision", "ieee"
            allowed = cudnn.conv.fp32_precision
        owner, name, exact = setting
        benchmark = cudnn.benchmark
        try:
            cudnn.benchmark = True
            setattr(owner, name, exact)
            if hasattr(cudnn, "conv"):  # the old setting leaves it to what the new one says of all
                cudnn.conv.fp32_precision = "ieee"
            yield
        finally:
            cudnn.benchmark = benchmark
            setattr(owner, name, allowed)


def _count_layers(module: torch.nn.Module) -> dict[str, int]:
    """Layers that have weights, by the type of these."""
    weights = (next(part.parameters(recurse=False), None) for part in module.modules())
    return dict(Counter(_name(weight.dtype) for weight in weights if weight is not None))


def _name(kind: torch.dtype) -> str:
    return next(name for name, dtype in TYPES.items() if dtype == kind)


def _most(layers: dict[str, int]) -> str:
    """The precision of most layers."""
    return max(layers, key=lambda name: layers[name])


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in _offered(device):
        raise BackendError(
            f"precision {precision!r} cannot run in torch on {device}; "
            f"it offers: {', '.join(_offered(device))}"
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        raise BackendError(f"torch has no device {name!r}; it has: cpu, cuda") from None
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise BackendError("torch has no device 'cuda' on this machine; it has: cpu")
    # a device without a number is whichever is current each time
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise BackendError(f"torch has no device {name!r}; it has: cpu, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def _offered(device: torch.device) -> tuple[str, ...]:
    return ("f32", "bf16", "f16") if device.type == "cuda" else ("f32", "bf16")
