"""TensorRT 10.13 to 11: plans built from our ONNX graphs, one optimisation profile a batch size.

Precision is in the graph alone: networks are strongly typed, as all are from version 11 on, so that
one path serves both major versions and nothing is called that the later one removed.

The bindings are checked against the stubs of both versions (`scripts/tensorrt_stubs.py`), and the
order of the calls against a double. No machine of this project has had the libraries: the code is
not known to run until `fastpose doctor --engine tensorrt --full` has passed on one that has them.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import tensorrt as trt

from fastpose import ops
from fastpose.engines import source
from fastpose.engines.decoder import check_decoder
from fastpose.engines.engine import BufferedEngine, Job, Port, Ports, Request, cause, find_ports
from fastpose.engines.manifest import Manifest, hash_files, replaced, versions_of
from fastpose.engines.memory import DeviceArray, DeviceMemory, open_memory
from fastpose.engines.options import Options
from fastpose.errors import BackendError, EngineError
from fastpose.models.joints import compile_peaks, has_single_maps

if TYPE_CHECKING:
    import torch

OLDEST, NEWEST = (10, 13), 11  # version, and major version
LEVELS = {"ampere": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
AMPERE = (8, 0)  # compute capability
LEAST_CAPABILITY = {"f32": (0, 0), "bf16": AMPERE, "f16": (5, 3), "int8": (6, 1)}
FLOATS = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8"}
WINDOW_TYPES = ("float32", "float16", "bfloat16")
ARITHMETIC = ("conv", "gemm", "matrixmultiply", "matmul", "fullyconnected")
FUSED = ("kgen", "fusion", "myelin", "foreignnode")  # several layers in one kernel
FUSED_ARITHMETIC = re.compile(r"[Cc]onv(?!ert)|[Gg]emm|[Mm]at[Mm]ul|Fc(?![a-z])|mha")
TACTIC_TYPES = re.compile(r"_(tf32|bf16|f16|f32|i8|e4m3)(?=[a-z0-9]*(?:_|$))")
TACTICS = {"i8": "int8", "e4m3": "fp8"}  # the others are called as here
MIB = 1 << 20
KEPT_LINES = 50  # of the log; a runtime that warns at each run must not fill the memory
LOG = logging.getLogger(__name__)

Tensor: TypeAlias = tuple[tuple[int | None, ...], str]
"""Shape and type of an input or output; None is an axis of any length."""
P = ParamSpec("P")
T = TypeVar("T")


def suffix(precision: str, options: Options) -> str:
    """Of the runtime's file."""
    return ".plan"


def ties(options: Options, device: str, built: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a plan is tied to, with the values of this machine.

    Args:
        options: how it is, or was, built.
        device: "auto", "cuda" or "cuda:N".
        built: the ties of a plan that is there, so that "this or later" repeats its value.

    Raises:
        BackendError: this TensorRT is not supported, or there is no such device.
    """
    version = _version()
    memory = open_memory(options.memory, device)
    try:
        return _ties(options, version, memory, built)
    finally:
        memory.close()


def _ties(
    options: Options,
    version: str,
    memory: DeviceMemory,
    built: Mapping[str, str] | None = None,
) -> dict[str, str]:
    values = {
        "tensorrt": version,
        "platform": f"{platform.system()} {platform.machine()}",
        "compute capability": _dotted(memory.capability),
    }
    first = (built or {}).get("tensorrt", "")
    if options.version_compatible and first and _numbers(version) >= _numbers(first):
        values["tensorrt"] = first
    if options.hardware_compatible == "none":
        values["gpu"] = memory.gpu
    elif options.hardware_compatible == "ampere" and memory.capability >= AMPERE:
        values["compute capability"] = f"{_dotted(AMPERE)} or later"
    return values


def build(job: Job, out: Path) -> list[Path]:
    """Write the plan of a network.

    Args:
        job: what is built; its timing cache is a name in front of the GPU's and the versions'.
        out: the plan.

    Returns:
        The files that are written.

    Raises:
        BackendError: TensorRT, the device or something that is asked is not there.
        EngineError: the graph cannot be parsed, the build fails, or `out` cannot be written.
    """
    version = _version()
    memory = open_memory(job.options.memory, job.device)
    try:
        _check_possible(job, memory)
        graph = _graph(job, out)
        job.tell("compile")
        cache = job.timing_cache and _timing_file(job.timing_cache, memory, version)
        with memory.current():
            plan = _compile(job, graph, cache)
        kernel = _decoder(job, memory)
    finally:
        memory.close()
    with replaced(out) as temporary:
        temporary.write_bytes(plan)
    return [out, *(kernel.save(out.with_suffix("")) if kernel else [])]


def refit(file: Path, weights: Path, *, device: str = "auto") -> bytes:
    """A plan with other weights of the same network, in seconds.

    Args:
        file: a plan that was built with `Options.refit`, its manifest beside it.
        weights: a weight file.
        device: "auto", "cuda" or "cuda:N".

    Returns:
        The new plan.

    Raises:
        BackendError: it was not built for that, or TensorRT or the device is not there.
        WeightsError: the weights are damaged or of another network.
        EngineError: the plan cannot be read, or some of its weights are not in the file.
    """
    manifest = Manifest.load(file.with_suffix(".json"))
    if not manifest.options.refit:
        raise BackendError(f"{file}: refit: the engine was built without this option")
    if manifest.precision_asked == "int8":
        raise BackendError(f"{file}: the scales of int8 belong to its weights; build it again")
    _version()
    graph, _ = source.find_graph(
        manifest.spec, weights, options=manifest.options, precision=manifest.precision_asked
    )
    memory = open_memory(manifest.options.memory, device)
    try:
        with memory.current():
            return _refitted(_Plan(file, manifest.options), graph)
    finally:
        memory.close()


class TensorRTEngine(BufferedEngine):
    """A plan, with a context for each batch size, all in one scratch memory.

    Runs of one engine must follow each other: on one stream, or on streams that wait for each
    other. With torch's memory it is also a `fastpose.graph.StreamEngine`; with any, `enqueue_at`
    does the same with addresses.

    Attributes:
        memory: of the device.
        window_type: of the windows it takes on the device, "float32", "float16" or "bfloat16"; on
            the host they are float32.
        layout: of the windows it takes.
        decoder: the kernel that decodes its heat maps; None where none was compiled with it.
        device, type: those of the windows in torch's words; missing where the memory is another's.
    """

    layout = "nchw"

    def __init__(self, request: Request) -> None:
        assert request.file is not None, "a plan is needed"
        version = _version()
        stem = request.file.with_suffix("")
        self.decoder = ops.DecodeBinary.load(stem)
        self._last: int | None = None  # stream that was given work
        self.memory = open_memory(request.options.memory, request.device)
        try:
            with self.memory.current():
                layers = self._open(request.file, request)
            super().__init__(
                Manifest(
                    spec=request.spec,
                    kind="tensorrt",
                    precision=max(layers, key=lambda name: layers[name], default=request.precision),
                    precision_asked=request.precision,
                    buckets=request.buckets,
                    device=self.memory.device,
                    versions=versions_of(tensorrt=version),
                    weights_hash=request.weights_hash,
                    layers=layers,
                    ties=_ties(request.options, version, self.memory),
                    # a permission is its caller's, and nothing that a bundle may say of itself
                    options=replace(request.options, host_code=False),
                    files=hash_files(
                        [request.file, *sorted(stem.parent.glob(f"{stem.name}.decode.*"))]
                    ),
                )
            )
            self._take_host_memory()
        except BaseException:
            self.memory.close()
            raise
        if self.memory.kind == "torch":
            import torch

            self.device = torch.device(self.memory.device)
            self.type: torch.dtype = getattr(torch, self.window_type)
            self._side: torch.cuda.Stream | None = None
            self._tensors: dict[int, list[torch.Tensor]] = {}

    def _open(self, path: Path, request: Request) -> dict[str, int]:
        """Everything on the device: plan, memory and contexts; the layers by precision."""
        spec, buckets = request.spec, request.buckets
        self._plan = _Plan(path, request.options)
        ports, self.window_type = self._plan.ports(request)
        scratch = self._plan.engine.device_memory_size_v2
        self._scratch = self.memory.empty((scratch,), "uint8") if scratch else None
        self._windows = self.memory.empty((buckets[-1], 3, *spec.size), self.window_type)
        self._found = [
            self.memory.empty((buckets[-1], *shape), "float32") for shape in spec.results
        ]
        self._runs = {
            size: _Run(self._plan, index, self.memory, self._scratch, ports, self._rows(size))
            for index, size in enumerate(buckets)
        }
        return _count_layers(self._plan, self._runs[buckets[0]].context)

    def _rows(self, count: int) -> tuple[DeviceArray, ...]:
        """The first rows of each result."""
        return tuple(found.part(0, (count, *found.shape[1:]), "float32") for found in self._found)

    def _take_host_memory(self) -> None:
        """Move what the host fills and reads into memory that the device copies by itself."""
        self._images = self.memory.host(self._images.shape, "float32")
        self._images[...] = 0
        self._rounded = (
            None
            if self.window_type == "float32"
            else self.memory.host(self._images.shape, self.window_type)
        )
        single = len(self._outputs) == 1
        self._outputs = [self.memory.host(found.shape, "float32") for found in self._found]
        if single:
            self._result = self._outputs[0]

    def enqueue(self, windows: torch.Tensor) -> torch.Tensor:
        """See `fastpose.graph.StreamEngine`; the results stay until the next run.

        Args:
            windows: [N, 3, h, w] of `type` on `device`, strided or not; N is one of
                `manifest.buckets`.

        Raises:
            ValueError: another type, shape or device.
            BackendError: the engine's memory is not torch's.
            EngineError: the engine is closed, or TensorRT failed.
        """
        import torch

        size = self._checked_windows(windows)
        with self._stream() as stream:
            given = windows.contiguous()
            found = self.enqueue_at(size, given.data_ptr(), stream)
            if size not in self._tensors:
                self._tensors[size] = [torch.as_tensor(f, device=self.device) for f in found]
        # joined on the caller's stream: what another allocates, it may give away too soon
        results = self._tensors[size]
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)

    def enqueue_at(self, count: int, windows: int, stream: int) -> tuple[DeviceArray, ...]:
        """Enqueue a run on a stream, without waiting for it.

        The first run of a batch size must be an ordinary one: only later ones can be captured.

        Args:
            count: one of `manifest.buckets`.
            windows: address of [count, 3, h, w] `window_type` on the device, C-contiguous.
            stream: handle of a CUDA stream, which stays until the engine is closed; on the default
                one, 0, TensorRT waits for all others.

        Returns:
            The results in the order of `ModelSpec.results`, [count, ...] float32, at the same
            addresses each time; valid until the next run.

        Raises:
            ValueError: `count` is no batch size of the plan.
            EngineError: the engine is closed, or TensorRT failed.
        """
        self._checked(count)
        if count not in self._runs:
            sizes = ", ".join(map(str, self._runs))
            raise ValueError(f"count must be one of the batch sizes {sizes}, got {count}")
        run = self._runs[count]
        self._last = stream
        with self.memory.current():
            run(windows, stream)
        return run.results

    def _infer(self, count: int) -> None:
        # rows of nothing cost a GPU less than a second run
        size = min(size for size in self._runs if size >= count)
        windows = self._windows.part(0, (size, *self._windows.shape[1:]), self.window_type)
        given: npt.NDArray[Any] = self._images[:size]
        if self._rounded is not None:
            given = self._rounded[:size]
            _round(self._images[:size], given)
        with self._stream() as stream:
            self.memory.upload(given, windows)
            found = self.enqueue_at(size, windows.address, stream)
            for there, output in zip(found, self._outputs, strict=True):
                self.memory.download(there, output[:size])
            self.memory.synchronize()

    @contextmanager
    def _stream(self) -> Iterator[int]:
        """The stream of the memory; where that is torch's default stream, another beside it.

        On the default stream TensorRT waits for the whole device.
        """
        stream = self.memory.stream
        if self.memory.kind != "torch" or stream:
            yield stream
            return
        import torch

        current = torch.cuda.current_stream(self.device)
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            yield int(self._side.cuda_stream)
        current.wait_stream(self._side)

    def _checked_windows(self, windows: torch.Tensor) -> int:
        """How many they are."""
        self._checked(1)
        if self.memory.kind != "torch":
            raise BackendError(
                f"windows of torch need torch's memory, this is {self.memory.kind}'s"
            )
        shape = self._images.shape[1:]
        if windows.dtype != self.type or windows.shape[1:] != shape:
            raise ValueError(
                f"windows must be {self.window_type} [N, {', '.join(map(str, shape))}], "
                f"got {windows.dtype} {list(windows.shape)}"
            )
        if windows.device != self.device:
            raise ValueError(f"windows must be on {self.device}, got {windows.device}")
        return len(windows)

    def _free(self) -> None:
        if self._last is not None:  # its work reads and writes what is freed here
            with suppress(EngineError, RuntimeError):  # what fails there is its caller's to hear
                self.memory.wait_for(self._last)
        with self.memory.current():
            self._tensors = {}
            self._runs.clear()  # contexts before their plan, and both before the memory
            self._plan.close()
            self._found.clear()  # in the context, without which some memories do not free it
            del self._scratch, self._windows
            self._images = self._images[:0].copy()
            self._result = self._result[:0].copy()
            self._outputs, self._rounded = [], None
        self.memory.close()


class _Run:
    """A batch size: a context whose profile, shapes and addresses of results are set for good.

    Attributes:
        results: where they will be, in the order of the ports.
    """

    def __init__(
        self,
        plan: _Plan,
        index: int,
        memory: DeviceMemory,
        scratch: DeviceArray | None,
        ports: Ports,
        results: tuple[DeviceArray, ...],
    ) -> None:
        self._plan, self._input, self.results = plan, ports.input, results
        self._size = results[0].shape[0]
        self._windows = 0  # no address yet
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = plan.engine.create_execution_context(strategy)
        if context is None:
            raise self._failed("there is no context for it")
        self.context: trt.IExecutionContext = context
        if not context.set_optimization_profile_async(index, memory.stream):
            raise self._failed(f"profile {index} cannot be set")
        memory.synchronize()
        if scratch is not None:
            context.set_device_memory(scratch.address, scratch.nbytes)
        _, _, most = plan.engine.get_tensor_profile_shape(ports.input, index)
        shape = tuple(most)  # as least
        if not context.set_input_shape(ports.input, shape):
            raise self._failed(f"{ports.input} cannot be {list(shape)}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:
            raise self._failed(f"no shapes: {cause(error)}") from None
        if unknown:
            raise self._failed(f"the shape of {', '.join(unknown)} is not known")
        for name, result in zip(ports.outputs, results, strict=True):
            self._check_output(name, result.shape)
            self._set_address(name, result.address)

    def __call__(self, windows: int, stream: int) -> None:
        """Enqueue a run that reads windows at this address."""
        if windows != self._windows:
            self._set_address(self._input, windows)
            self._windows = windows
        if not self.context.execute_async_v3(stream):
            raise self._failed("it was not enqueued")

    def _check_output(self, name: str, wanted: tuple[int, ...]) -> None:
        """Raise EngineError unless the shape follows from the input's, and is this one."""
        found = tuple(self.context.get_tensor_shape(name))
        if any(side < 0 for side in found):
            raise self._failed(f"{name}: its shape {list(found)} depends on the data")
        if found != wanted:
            raise self._failed(f"{name} must be {list(wanted)}, got {list(found)}")

    def _set_address(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise self._failed(f"{name} cannot lie at {address:#x}")

    def _failed(self, what: str) -> EngineError:
        return self._plan.failed(f"batch of {self._size}: {what}")


class _Plan:
    """A plan on the device, and what TensorRT says of it."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path = path
        self.log = _Log()
        self._runtime: trt.Runtime | None = _made(self.log, trt.Runtime, LOGGER)
        # code that a plan carries would run with our rights
        self._runtime.engine_host_code_allowed = options.host_code
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror}") from None
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            what = "not a plan that this TensorRT can read"
            if options.version_compatible and not options.host_code:
                what += " without host_code, as it carries code of its own"
            raise self.failed(what)
        self._engine: trt.ICudaEngine | None = engine

    @property
    def engine(self) -> trt.ICudaEngine:
        if self._engine is None:
            raise EngineError(f"{self._path}: the engine is closed")
        return self._engine

    def failed(self, what: str) -> EngineError:
        """An error that names the file, what failed, and why as far as the log says."""
        text = f"{self._path}: tensorrt {trt.__version__}: {what}{self.log.reasons()}"
        return EngineError(text)

    def ports(self, request: Request) -> tuple[Ports, str]:
        """Where the plan is connected, and the type of its input.

        Raises:
            EngineError: it does not take and give what the spec says, in batches of these sizes.
        """
        given = self._tensors(trt.TensorIOMode.INPUT, WINDOW_TYPES)
        found = self._tensors(trt.TensorIOMode.OUTPUT, ("float32",))
        ports = find_ports(self._path, _as_ports(given), _as_ports(found), request.spec)
        profiles = range(self.engine.num_optimization_profiles)
        ranges = [self.engine.get_tensor_profile_shape(ports.input, i) for i in profiles]
        spans = [(tuple(least), tuple(most)) for least, _, most in ranges]
        wanted = [(size, 3, *request.spec.size) for size in request.buckets]
        if spans != [(shape, shape) for shape in wanted]:
            text = ", ".join(
                f"{list(a)} to {list(b)}" if a != b else f"{list(a)}" for a, b in spans
            )
            raise EngineError(
                f"{self._path}: buckets: asked are {list(request.buckets)}, "
                f"the plan has profiles for {text}"
            )
        return ports, given[ports.input][1]

    def _tensors(self, mode: trt.TensorIOMode, types: tuple[str, ...]) -> dict[str, Tensor]:
        """Shape and type of the inputs or outputs, all of which must be of one of the types."""
        engine, found = self.engine, {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) != mode:
                continue
            kind = _type_name(engine.get_tensor_dtype(name))
            if kind not in types:  # TensorRT would read the bytes as they are
                wanted = " or ".join(types)
                raise EngineError(f"{self._path}: {name} must be {wanted}, got {kind}")
            axes = tuple(engine.get_tensor_shape(name))
            found[name] = (tuple(side if side >= 0 else None for side in axes), kind)
        return found

    def close(self) -> None:
        self._engine = self._runtime = None


class _Logger(trt.ILogger):
    """Hands what TensorRT says to all that listen.

    TensorRT takes the first logger of a process for all that it does, ignores others, and goes on
    calling it: there is one, and it stays.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)  # the bindings want this very call
        # of the thread that holds it: collecting garbage may free what logs its end
        self._lock = threading.RLock()
        self._listeners: weakref.WeakSet[_Log] = weakref.WeakSet()

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        line = " ".join(msg.split())
        LOG.debug("%s", line)
        if severity not in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
            return
        with self._lock:
            for listener in tuple(self._listeners):
                listener.add(line, warning=severity == trt.ILogger.WARNING)

    def listen(self, listener: _Log) -> None:
        """Let it hear, as long as somebody has it."""
        with self._lock:
            self._listeners.add(listener)


class _Log:
    """Keeps what goes wrong while a plan is built or is open, for the text of an error.

    What another plan says meanwhile is in it too: TensorRT does not tell which one it is.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # as that of the logger
        self._errors: deque[str] = deque(maxlen=KEPT_LINES)
        self._warnings: deque[str] = deque(maxlen=KEPT_LINES)
        LOGGER.listen(self)

    def add(self, line: str, warning: bool) -> None:
        """A line, from any thread."""
        with self._lock:
            (self._warnings if warning else self._errors).append(line)

    def reasons(self) -> str:
        """The errors, or else the warnings, behind a colon and on one line; forgets them."""
        with self._lock:
            lines = list(dict.fromkeys(self._errors or self._warnings))
            self._errors.clear()
            self._warnings.clear()
        return f": {'; '.join(lines)}" if lines else ""


LOGGER = _Logger()


def _made(log: _Log, kind: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """An object of TensorRT, whose constructors raise where the library gives null.

    Raises:
        EngineError: it does; the text has what the log says.
    """
    try:
        return kind(*given, **named)
    except (TypeError, RuntimeError) as error:
        name = getattr(kind, "__name__", kind)
        reasons = log.reasons() or f": {cause(error)}"
        raise EngineError(f"tensorrt {trt.__version__}: no {name}{reasons}") from None


class _Progress(trt.IProgressMonitor):
    """Tells the stages of a build; what goes wrong in that stops it.

    TensorRT calls this from its own code, where an exception, such as that of Ctrl-C, would end the
    process.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._tell = tell
        self.error: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
        """A phase begins; those inside of another one are not told."""
        if parent_phase or self.error:
            return
        try:
            self._tell(f"compile: {phase_name}")
        except BaseException as error:  # see above
            self.error = error

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends."""

    def step_complete(self, phase_name: str, step: Any) -> bool:
        """Whether to go on."""
        return self.error is None


def _check_possible(job: Job, memory: DeviceMemory) -> None:
    options = job.options
    if memory.capability < LEAST_CAPABILITY[job.precision]:
        raise BackendError(
            f"precision {job.precision!r} cannot run in tensorrt on {memory.gpu}: it has compute "
            f"capability {_dotted(memory.capability)}, "
            f"{_dotted(LEAST_CAPABILITY[job.precision])} is needed"
        )
    if options.hardware_compatible == "ampere" and memory.capability < AMPERE:
        raise BackendError(
            f"hardware_compatible 'ampere' needs compute capability {_dotted(AMPERE)}, "
            f"{memory.gpu} has {_dotted(memory.capability)}"
        )
    if options.version_compatible and options.refit:
        raise BackendError(
            "refit and version_compatible exclude each other: the runtime that such a plan carries "
            "cannot put other weights in"
        )


def _graph(job: Job, out: Path) -> Path:
    """The typed ONNX graph of a network, for int8 with its scales in it."""
    job.tell("export")
    precision = "f32" if job.precision == "int8" else job.precision
    graph, _ = source.find_graph(job.spec, job.weights, options=job.options, precision=precision)
    if job.precision == "f32":
        # a refit finds weights by their names, and the parser wants those of a convolution as such
        return source.float_graph(graph, out.with_suffix(".f32.onnx"))
    if job.precision != "int8":
        return graph
    from fastpose.engines.quantize import modelopt_onnx

    job.tell("calibrate")
    return modelopt_onnx(job, graph, out.with_suffix(".qdq.onnx"))


def _decoder(job: Job, memory: DeviceMemory) -> ops.DecodeBinary | None:
    """The kernel that finds the peaks, for where triton and torch are missing.

    There is none for a network without single maps, for a plan of several architectures, since a
    kernel is for one, where triton is not there, and where the kernel does not find on the device
    what the host finds: results are then decoded on the host.
    """
    if job.options.hardware_compatible == "ampere" or not has_single_maps(job.spec):
        return None
    try:
        binary = compile_peaks(job.spec, "float32", memory.capability)
        check_decoder(binary, job.spec, memory)
    except (BackendError, EngineError) as error:
        name = job.spec.name
        LOG.warning("%s: without torch, joints will be found on the host: %s", name, error)
        return None
    return binary


def _compile(job: Job, graph: Path, cache: Path | None) -> bytes:
    """The plan of a graph, on the current device."""
    log = _Log()
    progress = _Progress(job.tell)
    builder = _made(log, trt.Builder, LOGGER)
    if job.threads is not None:
        builder.max_threads = job.threads
    network = _parsed(builder, graph, log)
    config = builder.create_builder_config()
    if config is None:
        raise EngineError(f"{graph}: no builder configuration{log.reasons()}")
    _configure(config, job.options)
    config.progress_monitor = progress
    _add_profiles(builder, config, network, job, log)
    if cache is not None:
        _use_timings(config, cache)
    plan = builder.build_serialized_network(network, config)
    if progress.error is not None:
        raise progress.error
    if plan is None:
        raise EngineError(f"{graph}: tensorrt {trt.__version__}: not built{log.reasons()}")
    if cache is not None:
        _keep_timings(config, cache)
    return bytes(memoryview(plan))


def _parsed(builder: trt.Builder, graph: Path, log: _Log) -> trt.INetworkDefinition:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    if network is None:
        raise EngineError(f"{graph}: no network definition{log.reasons()}")
    parser = _made(log, trt.OnnxParser, network, LOGGER)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise EngineError(f"{graph}: not parsed: {_told(errors) or log.reasons()[2:]}")
    return network


def _told(errors: list[trt.ParserError]) -> str:
    """All errors of a parser on one line."""
    lines = []
    for error in errors:
        node = f" (node {error.node_name()}, {error.node_operator()})" if error.node_name() else ""
        lines.append(" ".join(error.desc().split()) + node)
    return "; ".join(lines)


def _configure(config: trt.IBuilderConfig, options: Options) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that layers can be counted
    config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa are no f32
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * MIB)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.hardware_compatible != "none":
        name = LEVELS[options.hardware_compatible]
        level = getattr(trt.HardwareCompatibilityLevel, name, None)
        if level is None:
            raise BackendError(
                f"hardware_compatible {options.hardware_compatible!r}: tensorrt {trt.__version__} "
                f"has no level {name}"
            )
        config.hardware_compatibility_level = level


def _add_profiles(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    job: Job,
    log: _Log,
) -> None:
    """A profile for each batch size and for nothing between, in their order."""
    if network.num_inputs != 1:
        raise EngineError(f"{job.spec.name}: the graph must have one input")
    given = network.get_input(0)
    axes = tuple(given.shape)
    if axes != (-1, 3, *job.spec.size):
        raise EngineError(
            f"{job.spec.name}: the input must be {[-1, 3, *job.spec.size]}, got {list(axes)}"
        )
    for index, size in enumerate(job.buckets):
        profile = builder.create_optimization_profile()
        if profile is None:
            raise EngineError(f"{job.spec.name}: no optimisation profile{log.reasons()}")
        shape = (size, *axes[1:])
        profile.set_shape(given.name, shape, shape, shape)
        if config.add_optimization_profile(profile) != index:
            raise EngineError(f"{job.spec.name}: no profile for {list(shape)}{log.reasons()}")


def _timing_file(path: Path, memory: DeviceMemory, version: str) -> Path:
    """Where the timings of this GPU, TensorRT and driver are."""
    key = f"{memory.gpu}-{version}-{memory.driver}"
    return path.with_name(f"{path.name}-{re.sub(r'[^A-Za-z0-9.]+', '-', key)}.cache")


def _use_timings(config: trt.IBuilderConfig, path: Path) -> None:
    """Let the builder use the timings of earlier builds, where there are any that fit."""
    kept = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    if kept is not None and config.set_timing_cache(kept, ignore_mismatch=False):
        return
    fresh = config.create_timing_cache(b"")
    if fresh is None or not config.set_timing_cache(fresh, ignore_mismatch=False):
        LOG.warning("%s: tensorrt takes no timing cache: this build times everything", path)


def _keep_timings(config: trt.IBuilderConfig, path: Path) -> None:
    """Write them down, with those that another build has written meanwhile."""
    timings = config.get_timing_cache()
    if timings is None:
        return
    if path.is_file():
        others = config.create_timing_cache(path.read_bytes())
        if others is None or not timings.combine(others, ignore_mismatch=False):
            LOG.warning("%s: timings that do not fit are replaced", path)
    data = timings.serialize()
    if data is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            temporary.write_bytes(memoryview(data))
    except (OSError, EngineError) as error:  # the plan is worth more
        LOG.warning("%s: timings are not kept: %s", path, error)


def _refitted(plan: _Plan, graph: Path) -> bytes:
    refitter = _made(plan.log, trt.Refitter, plan.engine, LOGGER)
    parser = _made(plan.log, trt.OnnxParserRefitter, refitter, LOGGER)
    if not parser.refit_from_file(str(graph)):
        errors = _told([parser.get_error(index) for index in range(parser.num_errors)])
        raise plan.failed(f"{graph} does not fit: {errors}")
    missing = refitter.get_missing_weights()
    if missing:
        raise plan.failed(f"{graph} lacks the weights {', '.join(missing)}")
    if not refitter.refit_cuda_engine():
        raise plan.failed("the weights were not taken")
    data = plan.engine.serialize()
    if data is None:
        raise plan.failed("the new plan cannot be written")
    return bytes(memoryview(data))


def _count_layers(plan: _Plan, context: trt.IExecutionContext) -> dict[str, int]:
    """How many layers of arithmetic compute in which precision; {} where it is not told."""
    inspector = plan.engine.create_engine_inspector()
    if inspector is None:
        return {}
    inspector.execution_context = context  # types depend on the shapes
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    found = Counter(
        precision
        for layer in layers
        if isinstance(layer, dict)  # names alone, where the plan was built without details
        and (precision := _precision(layer))
    )
    return dict(found.most_common())


def _precision(layer: dict[str, Any]) -> str:
    """In which a layer computes; "" where it is no arithmetic, or that is not told.

    That is what it reads; where several layers are fused, the kernel's name tells of both, and
    comes first: what a kernel of many layers reads may be of another type than what it multiplies.
    """
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    tactic = str(layer.get("TacticName", ""))
    if not any(name in kind for name in ARITHMETIC):
        if not any(name in kind for name in FUSED):
            return ""
        if not FUSED_ARITHMETIC.search(f"{layer.get('Name', '')} {tactic}"):
            return ""
        named = TACTIC_TYPES.search(tactic.lower())
        if named:
            return TACTICS.get(named[1], named[1])
    inputs = layer.get("Inputs") or [{}]
    keys = ("Format/Datatype", "Datatype", "DataType", "Format")
    words = [str(inputs[0].get(key, "")) for key in keys]
    words.append(str((layer.get("Weights") or {}).get("Type", "")))
    return next((found for found in map(_precision_named, words) if found), "")


def _precision_named(text: str) -> str:
    """Of a type as the inspector writes it: "Half", "Row major linear FP16 format"."""
    text = text.lower()
    names = {
        "int8": ("int8",),
        "fp8": ("fp8", "float8"),
        "bf16": ("bf16", "bfloat"),
        "f16": ("fp16", "half", "float16"),
        "f32": ("fp32", "float"),
    }
    return next((name for name, marks in names.items() if any(m in text for m in marks)), "")


def _as_ports(tensors: Mapping[str, Tensor]) -> dict[str, Port]:
    """Their shapes, as the host sees them: float32."""
    return {name: (shape, np.dtype(np.float32)) for name, (shape, _) in tensors.items()}


def _round(values: npt.NDArray[np.float32], out: npt.NDArray[Any]) -> None:
    """Round float32 to half precision: float16, or bfloat16 in the int16 of the same bits."""
    if out.dtype == np.float16:
        np.copyto(out, values, casting="same_kind")
        return
    bits = values.view(np.uint32)  # bfloat16 is the upper half; to the nearest, ties to even
    np.copyto(out.view(np.uint16), (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, casting="unsafe")


def _type_name(kind: trt.DataType) -> str:
    """As numpy and torch write it; those that neither has in small letters."""
    return FLOATS.get(kind.name, kind.name.lower())


def _version() -> str:
    """Of TensorRT, if it is one that this is written for.

    Raises:
        BackendError: it is older or of a later major version.
    """
    version = str(trt.__version__)
    numbers = _numbers(version)
    if numbers[:2] < OLDEST or numbers[0] > NEWEST:
        raise BackendError(
            f"tensorrt {version} cannot be used: {_dotted(OLDEST)} to {NEWEST} can; older ones "
            "lack calls or have known faults, later ones may have removed some"
        )
    return version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:4])


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))
