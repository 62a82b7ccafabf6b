"""Times, memory and launches on a CUDA device; to the host `fastpose.measure` is the same.

A call is timed inside a CUDA graph of many, between events of the device, over inputs and results
that together pass its L2 cache: what the host takes to launch it is no part of it, nor is a cache
that the next frame would not find filled. torch brings graphs and events, and is imported when it
is needed.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastpose.errors import BackendError
from fastpose.graph import StreamEngine, capture, host_tensor
from fastpose.machine import gpu_bytes
from fastpose.measure import Times

if TYPE_CHECKING:
    import torch

ROTATED = 100_000_000  # bytes, or twice the L2 cache if that is more
MOST_SETS = 1024
LONG_ENOUGH = 0.02  # seconds of launches to put into one graph, going by eager calls
LAUNCHES = (50, 500)  # that many at least, if calls are short; that many at most
SHORT = 4e-4  # seconds of an eager call, which is mostly the host's
ROUNDS = (5, 25)
PATIENCE = 0.3  # seconds to replay for
WARM_UP = 3
QUERIES = 50  # of `split`
MARK = "fastpose: what is counted"
LAUNCH = re.compile(r"cu(da)?(GraphLaunch|Launch(Cooperative)?Kernel)")
SYNC = re.compile(r"cu(da)?(Device|Stream|Event|Ctx)Synchronize|cudaMemcpy(2D)?(_v\d+)?$")
COPY = re.compile(r"Memcpy (HtoD|DtoH)")

SetCall = Callable[[int], object]
"""Enqueues the work on one of several sets of inputs, and returns the result."""


@dataclass
class Replay:
    """Work on a device that is ready to be repeated.

    Attributes:
        run: does it.
        launches: how many calls a run has.
        how: "graph"; "eager" where it could not be captured; "clock" where the host waits for it
            and times it.
        error: why it could not be captured.
    """

    run: Callable[[], object]
    launches: int = 1
    how: str = "graph"
    error: str = ""


def sets_past_cache(size: float) -> int:
    """How many sets of inputs and results of `size` bytes pass the L2 cache, at least two.

    Raises:
        BackendError: there is no CUDA device.
    """
    torch = _torch()
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(2, min(MOST_SETS, math.ceil(max(ROTATED, 2 * cache) / size)))


def in_graph(call: SetCall, sets: int) -> Replay:
    """Calls on all sets in one CUDA graph, as many as make its own start count for little.

    Args:
        call: enqueues on the current stream, without waiting.
        sets: each is given to it equally often.

    Returns:
        The graph; where the call cannot be captured, the calls one after another, with the reason.

    Raises:
        BackendError: there is no CUDA device.
        RuntimeError: the call fails.
    """
    torch = _torch()
    for i in range(sets):  # compiles, fills caches: nothing of that may come in a capture
        call(i)
    some = min(sets, 20)
    eager = Replay(lambda: [call(i) for i in range(some)], some, "eager")
    once = max(1e-6, _seconds(eager))
    launches = max(sets, min(LAUNCHES[1], math.ceil(LONG_ENOUGH / once)))
    if once < SHORT:
        launches = max(launches, LAUNCHES[0])
    launches = math.ceil(launches / sets) * sets
    kept: list[object] = [None] * sets  # as long as a graph lives, so do its results

    def run() -> None:
        for i in range(launches):
            kept[i % sets] = call(i % sets)

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind
        torch.cuda.synchronize()  # raises if the device is lost, too
        run()
        return Replay(run, launches, "eager", str(error).partition("\n")[0])

    def again() -> list[object]:
        graph.replay()
        return kept

    return Replay(again, launches)


def take_turns(replays: Mapping[str, Replay]) -> dict[str, Times]:
    """Time replays by turns, so that a change of the device's clocks meets all alike.

    All turns are queued before the first one is waited for: the host is never what is timed, but
    for those whose `how` is "clock", which come before, one by one.

    Returns:
        Seconds of one call, by name; all have the same number of turns.

    Raises:
        BackendError: there is no CUDA device.
    """
    torch = _torch()
    once = sum(_seconds(own) * own.launches for _ in range(2) for own in replays.values()) / 2
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(PATIENCE / max(1e-6, once))))
    seconds: dict[str, list[float]] = {
        name: [_seconds(own) for _ in range(rounds)] if own.how == "clock" else []
        for name, own in replays.items()
    }
    marks = []
    for _ in range(rounds):
        for name, own in replays.items():
            if own.how != "clock":
                begin, end = events()
                begin.record()
                own.run()
                end.record()
                marks.append((name, begin, end))
    torch.cuda.synchronize()
    for name, begin, end in marks:
        seconds[name].append(1e-3 * begin.elapsed_time(end) / replays[name].launches)
    return {name: Times(tuple(own)) for name, own in seconds.items()}


def events(count: int = 2) -> list[torch.cuda.Event]:
    """Marks of the device's clock."""
    import torch

    return [torch.cuda.Event(enable_timing=True) for _ in range(count)]


def warm_up_clocks(seconds: float = 0.3) -> None:
    """Work until the device's clocks have risen from their idle state.

    Raises:
        BackendError: there is no CUDA device.
    """
    torch = _torch()
    square = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        for _ in range(10):
            square @ square
        torch.cuda.synchronize()


def split(
    engine: StreamEngine, n: int, *, graph: bool = True, queries: int = QUERIES
) -> dict[str, float]:
    """Where the time of a batch goes, in trtexec's terms; its latency is the sum of the last three.

    Args:
        engine: of torch, or of TensorRT with torch's memory.
        n: windows of a batch, as many as the engine is compiled for.
        graph: replay a CUDA graph of it, as `fastpose.Pose` does, instead of enqueueing it anew.
        queries: batches to take the medians of.

    Returns:
        Milliseconds: "h2d_ms" of the windows, from page-locked memory; "compute_ms" of the device;
        "d2h_ms" of the results; "enqueue_ms", which the host takes to start the computation.

    Raises:
        BackendError: there is no CUDA device, or the engine works on none.
        ValueError: `n` or `queries` is out of range.
        EngineError: the engine is closed, fails, or cannot be captured.
    """
    torch = _torch()
    _check_split(engine, n, queries)
    held: list[Any] = []
    with torch.cuda.device(engine.device), torch.no_grad():
        given, windows = _windows(engine, n)
        host = host_tensor(tuple(windows.shape), engine.type, engine.device)
        host.copy_(torch.rand(host.shape, generator=torch.Generator().manual_seed(0)))

        def compute() -> None:
            held[:] = [engine.enqueue(given)]

        run = capture(compute, engine.device) if graph else compute
        for _ in range(WARM_UP):
            run()
        found = host_tensor(tuple(held[0].shape), held[0].dtype, engine.device)

        def query() -> tuple[Sequence[Any], float]:
            marks = events(4)
            marks[0].record()
            windows.copy_(host, non_blocking=True)
            marks[1].record()
            begin = time.perf_counter()
            run()
            enqueued = time.perf_counter() - begin
            marks[2].record()
            found.copy_(held[0], non_blocking=True)
            marks[3].record()
            return marks, enqueued

        # the host finds room for its work, as where each result is waited for
        enqueued = []
        for _ in range(queries):
            enqueued.append(query()[1])
            torch.cuda.synchronize()
        # the device finds its work waiting: no part of the host's is between two marks
        marked = [query()[0] for _ in range(queries)]
        torch.cuda.synchronize()
    parts = {"enqueue_ms": Times(tuple(enqueued))}
    for i, name in enumerate(("h2d_ms", "compute_ms", "d2h_ms")):
        spent = (1e-3 * marks[i].elapsed_time(marks[i + 1]) for marks in marked)
        parts[name] = Times(tuple(spent))
    return {name: float(f"{1e3 * times.median:.6g}") for name, times in parts.items()}


def _check_split(engine: StreamEngine, n: int, queries: int) -> None:
    place = getattr(engine, "device", None)
    if getattr(place, "type", None) != "cuda" or not hasattr(engine, "enqueue"):
        raise BackendError(
            "engine must be one of torch, or of TensorRT with torch's memory, on a CUDA device, "
            f"got {type(engine).__name__} on {place or 'the host'}"
        )
    largest = engine.manifest.buckets[-1]
    if not 1 <= n <= largest:
        raise ValueError(f"n must be 1 to {largest}, got {n}")
    if queries < 1:
        raise ValueError(f"queries must be at least 1, got {queries}")


def _windows(engine: StreamEngine, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for windows as the engine takes them [n, 3, h, w], and as it lies in memory."""
    import torch

    h, w = engine.manifest.spec.size
    nhwc = engine.layout == "nhwc"
    shape = (n, h, w, 3) if nhwc else (n, 3, h, w)
    room = torch.zeros(shape, dtype=engine.type, device=engine.device)
    return room.permute(0, 3, 1, 2) if nhwc else room, room


@dataclass(frozen=True)
class DeviceUse:
    """Memory of CUDA devices that is taken, in bytes.

    Attributes:
        allocated: by tensors of this process; None where torch has not used the device.
        peak: the most of that, since the process began or `forget_peak`.
        used: of all devices by all processes, as the driver says, with contexts, code and what is
            kept for later; None where it does not tell.
    """

    allocated: int | None
    peak: int | None
    used: int | None


def device_memory() -> DeviceUse:
    """What is taken now.

    Raises:
        BackendError: there is no CUDA device.
    """
    cuda = _torch().cuda
    used = gpu_bytes()
    if used is None:  # there is a driver, but not its program
        free, total = cuda.mem_get_info()
        used = total - free
    if not cuda.is_initialized():
        return DeviceUse(None, None, used)
    return DeviceUse(cuda.memory_allocated(), cuda.max_memory_allocated(), used)


def forget_peak() -> None:
    """Let the peak of `device_memory` begin anew.

    Raises:
        BackendError: there is no CUDA device.
    """
    _torch().cuda.reset_peak_memory_stats()


def count_launches(call: Callable[[], object]) -> dict[str, int]:
    """What a call asks of the device, counted by CUPTI through torch's profiler.

    Args:
        call: is made some times before, so that what happens only once does not count.

    Returns:
        "launches": how often the host starts kernels, a graph of many counting as one;
        "kernels": how many run on the device, those of graphs too;
        "syncs": how often the host waits;
        "copies": between host and device, those of graphs too.

    Raises:
        BackendError: there is no CUDA device, or CUPTI does not tell.
    """
    torch = _torch()
    from torch.profiler import ProfilerActivity, supported_activities

    if ProfilerActivity.CUDA not in supported_activities():
        raise BackendError("launches cannot be counted: this torch has no CUPTI")
    for _ in range(WARM_UP):
        call()
    known = _profiled(lambda: torch.ones(1, device="cuda").cpu())
    if not all(known.values()):
        blind = ", ".join(name for name, count in known.items() if not count)
        raise BackendError(f"launches cannot be counted: CUPTI does not see planted {blind}")
    return _profiled(call)


def _profiled(call: Callable[[], object]) -> dict[str, int]:
    torch = _torch()
    from torch.profiler import ProfilerActivity, profile, record_function

    torch.cuda.synchronize()  # whatever runs on the device from now on is the call's
    watched = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=watched) as profiler, record_function(MARK):
        call()
    return count_events(profiler.events())


def count_events(found: Sequence[Any]) -> dict[str, int]:
    """See `count_launches`.

    Args:
        found: events of a profile: name, device_type, time_range, is_user_annotation; one of the
            host is called `MARK` and lasts as long as what is counted. Behind it the profiler
            itself waits for the device.
    """
    host = [event for event in found if event.device_type.name == "CPU"]
    device = [
        event.name
        for event in found
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    (span,) = (event.time_range for event in host if event.name == MARK)
    calls = [e.name for e in host if span.start <= e.time_range.start <= span.end]
    moved = [name for name in device if name.startswith(("Memcpy", "Memset"))]
    return {
        "launches": sum(bool(LAUNCH.match(name)) for name in calls),
        "kernels": len(device) - len(moved),
        "syncs": sum(bool(SYNC.match(name)) for name in calls),
        "copies": sum(bool(COPY.match(name)) for name in moved),
    }


def _seconds(replay: Replay) -> float:
    """Of one call of a single run."""
    import torch

    if replay.how == "clock":
        torch.cuda.synchronize()
        start = time.perf_counter()
        replay.run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / replay.launches
    begin, end = events()
    begin.record()
    replay.run()
    end.record()
    end.synchronize()
    return 1e-3 * float(begin.elapsed_time(end)) / replay.launches


def _torch() -> Any:
    """torch, where it has a CUDA device.

    Raises:
        BackendError: it is not installed, or there is none.
    """
    try:
        import torch
    except ImportError:
        raise BackendError(
            "a CUDA device is measured with torch, which is not installed: "
            "the extra fastpose-inference[torch]"
        ) from None
    if not torch.cuda.is_available():
        raise BackendError("there is no CUDA device to measure on")
    return torch
