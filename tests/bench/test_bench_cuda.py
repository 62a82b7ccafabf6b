"""Times, memory and launches of a CUDA device that is a double: a clock that kernels move on."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from fastpose.bench import cuda  # noqa: E402 - behind the skip
from fastpose.errors import BackendError  # noqa: E402

LAUNCH = 20e-6  # seconds that a launch costs outside of a graph


class Device:
    """torch.cuda's names for a clock in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.capturing = False
        self.streams: list[str] = []

    def kernel(self, seconds: float) -> None:
        self.now += seconds if self.capturing else seconds + LAUNCH

    def event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event

    @contextmanager
    def graph(self, graph, capture_error_mode):
        begin, self.capturing = self.now, True
        try:
            yield
        finally:
            cost, self.now, self.capturing = self.now - begin, begin, False
        graph.replay = lambda: setattr(self, "now", self.now + cost)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    doubles = {
        "is_available": lambda: True,
        "Event": device.event,
        "CUDAGraph": SimpleNamespace,
        "graph": device.graph,
        "synchronize": lambda: None,
        "current_stream": lambda: "the caller's",
        "set_stream": device.streams.append,
        "current_device": lambda: 0,
        "device": lambda place: nullcontext(),
        "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=60e6),
    }
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    return device


def test_inputs_and_results_pass_the_cache_together(device):
    assert cuda.sets_past_cache(1e6) == 120
    assert cuda.sets_past_cache(1e9) == 2
    assert cuda.sets_past_cache(1.0) == cuda.MOST_SETS


def test_a_graph_is_timed_without_its_launches(device):
    replay = cuda.in_graph(lambda i: device.kernel(5e-6), sets=7)
    assert (replay.how, replay.launches % 7) == ("graph", 0)
    assert replay.launches >= cuda.LAUNCHES[0]
    times = cuda.take_turns({"ours": replay})["ours"]
    assert times.median == pytest.approx(5e-6)
    assert cuda.ROUNDS[0] <= len(times.seconds) <= cuda.ROUNDS[1]


def test_every_set_is_launched_equally_often(device):
    seen = [0] * 7

    def call(i: int) -> None:
        seen[i] += device.capturing
        device.kernel(3e-6)

    cuda.in_graph(call, sets=7)
    assert len(set(seen)) == 1


def test_what_cannot_be_captured_is_launched_one_by_one(device):
    def call(i: int) -> None:
        if device.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nsome place")
        device.kernel(5e-6)

    replay = cuda.in_graph(call, sets=2)
    assert (replay.how, replay.error) == (
        "eager",
        "operation not permitted when stream is capturing",
    )
    assert device.streams == ["the caller's"]
    times = cuda.take_turns({"ours": replay})["ours"]
    assert times.median == pytest.approx(5e-6 + LAUNCH)


def test_ratios_are_of_turns_and_a_slow_drift_cancels(device):
    speed = iter([1.0 + 0.1 * i for i in range(1000)])
    state = {"factor": 1.0}

    def ours() -> None:
        state["factor"] = next(speed)
        device.now += 1e-3 * state["factor"]

    def theirs() -> None:
        device.now += 3e-3 * state["factor"]

    times = cuda.take_turns({"ours": cuda.Replay(ours), "theirs": cuda.Replay(theirs)})
    ratio, spread = times["ours"].ratio_to(times["theirs"])
    assert ratio == pytest.approx(3.0)
    assert spread == pytest.approx(0.0)
    assert times["ours"].spread > 0.1


def test_what_the_host_waits_for_is_timed_by_its_clock(device, monkeypatch):
    monkeypatch.setattr(cuda.time, "perf_counter", lambda: device.now)
    slow = cuda.Replay(lambda: setattr(device, "now", device.now + 0.25), how="clock")
    times = cuda.take_turns({"ours": cuda.Replay(lambda: device.kernel(1e-3)), "numpy": slow})
    assert times["numpy"].median == pytest.approx(0.25)
    assert len(times["numpy"].seconds) == len(times["ours"].seconds)


class Engine:
    """Windows of 2 x 1, the results 10 ms after them."""

    layout, type = "nhwc", torch.float32

    def __init__(self, clock: Device) -> None:
        self.device = SimpleNamespace(type="cuda")
        self.clock, self.seen = clock, []
        spec = SimpleNamespace(size=(2, 1))
        self.manifest = SimpleNamespace(name="tiny", buckets=(1, 4), spec=spec)

    def enqueue(self, windows):
        self.seen.append(tuple(windows.shape))
        self.clock.now += 10e-3
        return torch.zeros(len(windows), 17)


class Slow:
    """A tensor of torch whose copies take time on the device."""

    def __init__(self, clock: Device, tensor, seconds: float) -> None:
        self.clock, self.tensor, self.seconds = clock, tensor, seconds
        self.shape, self.dtype = tensor.shape, tensor.dtype

    def copy_(self, other, non_blocking=False):
        self.clock.now += self.seconds if non_blocking else 0.0


def test_a_split_tells_the_copies_from_the_computation(device, monkeypatch):
    engine = Engine(device)
    room = torch.zeros(4, 2, 1, 3)

    def host(shape, dtype, place):
        return Slow(device, torch.zeros(shape), 1e-3)

    def windows(engine, n):
        return room[:n].permute(0, 3, 1, 2), Slow(device, room[:n], 2e-3)

    monkeypatch.setattr(cuda, "host_tensor", host)
    monkeypatch.setattr(cuda, "_windows", windows)
    monkeypatch.setattr(cuda, "capture", lambda run, place: run)
    monkeypatch.setattr(cuda.time, "perf_counter", lambda: device.now)
    found = cuda.split(engine, 4)
    assert found == {"enqueue_ms": 10.0, "h2d_ms": 2.0, "compute_ms": 10.0, "d2h_ms": 1.0}
    assert set(engine.seen) == {(4, 3, 2, 1)}


def test_windows_lie_as_the_engine_takes_them(device):
    engine = Engine(device)
    engine.device = torch.device("cpu")
    given, room = cuda._windows(engine, 2)
    assert given.shape == (2, 3, 2, 1)
    assert room.shape == (2, 2, 1, 3)
    assert given.data_ptr() == room.data_ptr()
    engine.layout = "nchw"
    given, room = cuda._windows(engine, 2)
    assert given is room


@pytest.mark.parametrize(
    ("change", "n", "queries", "error", "said"),
    [
        ({}, 5, 1, ValueError, "n must be 1 to 4, got 5"),
        ({}, 0, 1, ValueError, "n must be 1 to 4, got 0"),
        ({}, 4, 0, ValueError, "queries must be at least 1, got 0"),
        ({"device": torch.device("cpu")}, 4, 1, BackendError, "got Engine on cpu"),
        ({"device": None}, 4, 1, BackendError, "got Engine on the host"),
    ],
)
def test_a_split_is_refused_in_one_line(device, change, n, queries, error, said):
    engine = Engine(device)
    vars(engine).update(change)
    with pytest.raises(error, match=said):
        cuda.split(engine, n, queries=queries)


def test_memory_is_torchs_and_the_drivers(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70, 100))
    monkeypatch.setattr(cuda, "gpu_bytes", lambda: 50)
    assert cuda.device_memory() == cuda.DeviceUse(10, 20, 50)
    monkeypatch.setattr(cuda, "gpu_bytes", lambda: None)
    assert cuda.device_memory() == cuda.DeviceUse(10, 20, 30)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert cuda.device_memory() == cuda.DeviceUse(None, None, 30)


def event(name: str, start: float, kind: str = "CPU", end: float | None = None, user=False):
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=kind),
        time_range=SimpleNamespace(start=start, end=start if end is None else end),
        is_user_annotation=user,
    )


def test_calls_of_the_host_and_work_of_the_device_are_counted():
    found = [
        event("cudaDeviceSynchronize", 1.0),  # before
        event(cuda.MARK, 10.0, end=50.0, user=True),
        event("aten::add", 11.0),
        event("cudaLaunchKernel", 12.0),
        event("cuLaunchKernelEx", 13.0),
        event("cudaGraphLaunch", 14.0),
        event("cudaLaunchHostFunc", 15.0),
        event("cudaMemcpyAsync", 16.0),
        event("cudaStreamWaitEvent", 17.0),
        event("cudaStreamSynchronize", 18.0),
        event("cudaDeviceSynchronize", 60.0),  # the profiler's
        event(cuda.MARK, 12.0, "CUDA", 49.0, user=True),
        *(event(f"kernel_{i}", 20.0 + i, "CUDA") for i in range(5)),
        event("Memcpy HtoD (Pinned -> Device)", 21.0, "CUDA"),
        event("Memcpy DtoH (Device -> Pinned)", 22.0, "CUDA"),
        event("Memcpy DtoD (Device -> Device)", 23.0, "CUDA"),
        event("Memset (Device)", 24.0, "CUDA"),
    ]
    assert cuda.count_events(found) == {"launches": 3, "kernels": 5, "syncs": 1, "copies": 2}


def test_a_call_is_counted_after_what_happens_only_once(device, monkeypatch):
    made = []

    def profiled(call):
        call()
        return {"launches": len(made), "kernels": 1, "syncs": 1, "copies": 1}

    monkeypatch.setattr(cuda, "_profiled", profiled)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: SimpleNamespace(cpu=lambda: 0))
    monkeypatch.setattr(
        torch.profiler, "supported_activities", lambda: {torch.profiler.ProfilerActivity.CUDA}
    )
    assert cuda.count_launches(lambda: made.append(1))["launches"] == cuda.WARM_UP + 1


def test_a_profiler_that_is_blind_counts_nothing(device, monkeypatch):
    monkeypatch.setattr(torch.profiler, "supported_activities", lambda: set())
    with pytest.raises(BackendError, match="this torch has no CUPTI"):
        cuda.count_launches(lambda: None)
    monkeypatch.setattr(
        torch.profiler, "supported_activities", lambda: {torch.profiler.ProfilerActivity.CUDA}
    )
    blind = {"launches": 1, "kernels": 0, "syncs": 1, "copies": 0}
    monkeypatch.setattr(cuda, "_profiled", lambda call: blind)
    with pytest.raises(BackendError, match="does not see planted kernels, copies"):
        cuda.count_launches(lambda: None)


def test_a_profile_marks_what_is_counted(monkeypatch):
    """On this host's profiler: its events have the fields that are read."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = cuda._profiled(lambda: torch.ones(3).add_(1))
    assert found == {"launches": 0, "kernels": 0, "syncs": 0, "copies": 0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "call",
    [
        lambda: cuda.split(SimpleNamespace(), 1),
        cuda.device_memory,
        cuda.forget_peak,
        cuda.warm_up_clocks,
        lambda: cuda.count_launches(lambda: None),
        lambda: cuda.sets_past_cache(1.0),
        lambda: cuda.in_graph(lambda i: None, 1),
        lambda: cuda.take_turns({"ours": cuda.Replay(lambda: None)}),
    ],
)
def test_without_a_device_nothing_is_measured(call):
    with pytest.raises(BackendError, match=r"^there is no CUDA device to measure on$"):
        call()


@pytest.mark.gpu
def test_on_a_device_kernels_are_timed_and_counted():
    numbers = torch.zeros(1 << 20, device="cuda")
    replay = cuda.in_graph(lambda i: numbers.add_(1), 2)
    assert replay.how == "graph"
    assert cuda.take_turns({"ours": replay})["ours"].median > 0
    found = cuda.count_launches(lambda: numbers.add_(1))
    assert found == {"launches": 1, "kernels": 1, "syncs": 0, "copies": 0}
    found = cuda.count_launches(numbers.cpu)
    assert (found["launches"], found["copies"], found["syncs"] > 0) == (0, 1, True)
    replayed = cuda.count_launches(replay.run)
    assert (replayed["launches"], replayed["kernels"]) == (1, replay.launches)


@pytest.mark.gpu
def test_on_a_device_a_batch_is_split_and_its_memory_told():
    from fastpose.engines import open_engine

    cuda.forget_peak()
    engine = open_engine("cpn-light", kind="torch", device="cuda", precision="f16", buckets=(2,))
    try:
        found = cuda.split(engine, 2, queries=5)
        eager = cuda.split(engine, 2, graph=False, queries=5)
        use = cuda.device_memory()
    finally:
        engine.close()
    assert list(found) == ["enqueue_ms", "h2d_ms", "compute_ms", "d2h_ms"]
    assert min(*found.values(), *eager.values()) > 0
    assert use.peak >= use.allocated > 0
    assert use.used >= use.peak
