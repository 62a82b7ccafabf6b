"""One CUDA graph a batch: windows, network, joints. The only owner of capture.

Everything here also runs on the CPU, without graphs, so that it can be tested where no GPU is.
"""

from __future__ import annotations

import functools
import gc
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.crop import cut_windows
from fastpose.direct import (
    DeviceFrames,
    DirectFrames,
    Indices,
    Layout,
    PointerEngine,
    block_places,
    goes_direct,
    window_layout,
    write_windows,
)
from fastpose.engines import Engine, Manifest
from fastpose.errors import EngineError
from fastpose.geometry import Doubles
from fastpose.models.joints import find_peaks, has_single_maps
from fastpose.ops.choose import gpu_kernels
from fastpose.types import Floats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEAST_CAPABILITY = (8, 0)  # of a GPU, for which kernels are compiled
WARM_UP = 3  # runs before a capture: kernels are compiled, algorithms chosen, constants made
_CAPTURES = threading.Lock()  # CUDA can hold only one capture of a process at a time


class StreamEngine(Protocol):
    """An engine that only enqueues work on torch's current stream, as a graph must find it.

    Attributes:
        manifest: what runs, and how.
        device: where.
        type: of the windows it takes.
        layout: of the windows it takes in memory: "nchw" or "nhwc".
    """

    manifest: Manifest
    device: torch.device
    type: torch.dtype
    layout: str

    def enqueue(self, windows: Tensor) -> Tensor:
        """The results [N, K, ...] of windows [N, 3, h, w], without waiting for them.

        Raises:
            EngineError: the engine is closed, or the runtime failed.
        """

    def close(self) -> None:
        """Free the runtime's memory; further use raises EngineError."""


class FrameGraphs(DeviceFrames):
    """`DeviceFrames` with torch: a CUDA graph for each batch size.

    A replay takes one small block up (which windows of which frames), cuts the windows straight
    into the network's input, runs it, finds the peaks, and brings N x K x 3 numbers down. Frames
    are read where they lie, by address, so frames of any size share the graphs. All are captured
    here and none later. Networks whose joints are not peaks of single maps (several views, part
    trees, cascades, SimCC) bring their results down instead, to be read on the host.

    Args:
        engine: the network; its manifest names the batch sizes. It is closed with this.

    Raises:
        EngineError: the network cannot be captured.
    """

    tensors = True

    def __init__(self, engine: StreamEngine) -> None:
        self.manifest = engine.manifest
        self.device = engine.device
        self._engine: StreamEngine | None = engine
        self._frames = FrameMemory(engine.device)
        self.finds_joints = has_single_maps(engine.manifest.spec)
        sizes = sorted(engine.manifest.buckets, reverse=True)  # the largest one sizes the pool
        pool = memory_pool(engine.device)
        self._steps = {size: _Step(engine, size, self.finds_joints, pool) for size in sizes}

    def upload(self, frames: Sequence[npt.NDArray[np.uint8] | Tensor]) -> list[Tensor]:
        """Frames [H, W, 3] uint8 on the device, valid until the next upload; see `FrameMemory`."""
        return self._frames.upload(frames)

    def close(self) -> None:
        """See `DeviceFrames.close`."""
        if self._engine is not None:
            self._steps = {}
            self._engine.close()
            self._engine = None

    def _find(self, frames: Sequence[Tensor], source: Indices, affines: Doubles) -> list[Floats]:
        if self._engine is None:
            raise EngineError(f"{self.manifest.name}: the engine is closed")
        # rows of nothing cost a GPU less than a second run
        size = min(size for size in self._steps if size >= len(source))
        return self._steps[size](frames, source, affines)


class _Step:
    """Windows -> network -> joints, or results, of one batch size."""

    def __init__(self, engine: StreamEngine, size: int, finds_joints: bool, pool: Any) -> None:
        import torch

        spec, device = engine.manifest.spec, engine.device
        self._engine, self._finds_joints = engine, finds_joints
        self._given = Block(window_layout(size), device)
        self._set_windows([], np.empty(0, np.int64), np.empty((0, 2, 3)))
        h, w = spec.size
        shape = (size, h, w, 3) if engine.layout == "nhwc" else (size, 3, h, w)
        with torch.inference_mode(False):
            self._windows = torch.empty(shape, dtype=engine.type, device=device)
        self._found: list[Tensor] = []
        self._replay = capture(self._run, device, pool)

    def __call__(
        self, frames: Sequence[Tensor], source: Indices, affines: Doubles
    ) -> list[npt.NDArray[np.float32]]:
        """Points and scores, or the results, of the first N windows, valid until the next call."""
        self._set_windows(frames, source, affines)
        self._replay()
        wait(self._engine.device)
        return [found[: len(source)].numpy() for found in self._found]

    def _set_windows(self, frames: Sequence[Tensor], source: Indices, affines: Doubles) -> None:
        given, spec = self._given.host, self._engine.manifest.spec
        used = write_windows(given, source, affines, spec, cells=self._finds_joints)
        if len(used):
            given["frames"][: len(used)] = ops.frame_rows([frames[i] for i in used])

    def _run(self) -> None:
        """What is captured: everything is enqueued, nothing waited for."""
        spec = self._engine.manifest.spec
        self._given.upload()
        given = self._given.device
        cut_windows(
            ops.FrameTable(given["frames"]),
            given["affines"],
            given["areas"],
            spec.window,
            source=given["source"],
            out=self._windows,
            out_layout=self._engine.layout,
        )
        nhwc = self._engine.layout == "nhwc"
        results = self._engine.enqueue(self._windows.permute(0, 3, 1, 2) if nhwc else self._windows)
        if self._finds_joints:
            self._download(*find_peaks(results, given["cells"], spec))
        else:
            self._download(results.float())

    def _download(self, *results: Tensor) -> None:
        if not self._found:  # in the first run of the warm-up
            self._found = [host_tensor(tuple(r.shape), r.dtype, r.device) for r in results]
        for host, result in zip(self._found, results, strict=True):
            host.copy_(result, non_blocking=True)


class Block:
    """Named arrays side by side in host memory, and once more on the device: one copy moves all.

    Attributes:
        host: numpy arrays, page-locked where the device is CUDA.
        device: tensors of the same shapes and types.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        import torch

        self.host: dict[str, npt.NDArray[Any]] = {}
        self.device: dict[str, Tensor] = {}
        places, end = block_places(layout)
        self._host = host_tensor((end,), torch.uint8, device)
        self._host.numpy()[:] = 0
        with torch.inference_mode(False):
            self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        for name, (shape, dtype) in layout.items():
            self.host[name] = self._host.numpy()[places[name]].view(dtype).reshape(shape)
            kind = torch.from_numpy(self.host[name]).dtype
            self.device[name] = self._device[places[name]].view(kind).view(shape)

    def upload(self) -> None:
        """Enqueue the copy of all arrays to the device."""
        self._device.copy_(self._host, non_blocking=True)


class FrameMemory:
    """Room for frames on a device, kept from one upload to the next.

    Frames go through page-locked memory, so that the copy runs beside the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: dict[int, tuple[Tensor, Tensor]] = {}

    def upload(self, frames: Sequence[npt.NDArray[np.uint8] | Tensor]) -> list[Tensor]:
        """Frames [H, W, 3] uint8, numpy or on any device, as tensors on this one.

        One that is there already, dense along its rows, is returned as it is. The others are valid
        until the next upload.
        """
        import torch

        placed = []
        for slot, frame in enumerate(frames):
            if isinstance(frame, torch.Tensor):
                there = frame.to(self._device)
                dense = there.stride()[1:] == (3, 1)
                placed.append(there if dense else there.contiguous())
            else:
                placed.append(self._place(slot, frame))
        return placed

    def _place(self, slot: int, frame: npt.NDArray[np.uint8]) -> Tensor:
        host, device = self._room(slot, frame.size)
        np.copyto(host.numpy().reshape(frame.shape), frame)
        device.copy_(host, non_blocking=True)
        return device.view(frame.shape)

    def _room(self, slot: int, size: int) -> tuple[Tensor, Tensor]:
        import torch

        room = self._slots.get(slot)
        if room is None or len(room[0]) < size:
            host = host_tensor((size,), torch.uint8, self._device)
            with torch.inference_mode(False):
                room = host, torch.empty(size, dtype=torch.uint8, device=self._device)
            self._slots[slot] = room
        return room[0][:size], room[1][:size]


def in_graphs(engine: Engine) -> Engine | DeviceFrames:
    """The engine itself, or in graphs where it `goes_in_graphs`; without torch where `goes_direct`.

    Raises:
        EngineError: it cannot be captured, or its decoding kernel does not fit.
    """
    if goes_direct(engine):
        return DirectFrames(cast(PointerEngine, engine))
    return FrameGraphs(cast(StreamEngine, engine)) if goes_in_graphs(engine) else engine


def goes_in_graphs(network: object) -> bool:
    """Whether it enqueues work on CUDA, and the kernels are there for what goes round it.

    Where some are missing, a warning says why: all but the network then stays on the host.
    """
    place = getattr(network, "device", None)
    if place is None or place.type != "cuda":
        return False
    reasons = [reason for reason in (*gpu_kernels().values(), _too_old(place)) if reason]
    if reasons:
        text = "; ".join(reasons)
        warnings.warn(f"only the network runs on CUDA: {text}", stacklevel=4)
    return not reasons


def _too_old(device: torch.device) -> str:
    """Why the device is none that the kernels are compiled for; "" if it is."""
    import torch

    found = torch.cuda.get_device_capability(device)
    if found >= LEAST_CAPABILITY:
        return ""
    return f"{device} is of compute capability {found[0]}.{found[1]}, the kernels need 8.0"


def capture(run: Callable[[], None], device: torch.device, pool: Any = None) -> Callable[[], None]:
    """Run some times, then capture, what enqueues work on the device's current stream.

    One thread captures at a time; others may use the device meanwhile, but none may wait for all of
    it (`torch.cuda.synchronize`) or free graphs, whose memory asks the stream whether it is idle.
    Graphs that one thread has captured share a workspace of cuBLAS, so that they must not be
    replayed at once on different streams.

    Args:
        run: reads and writes the same memory each time; it neither waits nor reads back.
        device: on CUDA the graph's; on any other nothing is captured.
        pool: of `memory_pool`, for graphs that never run at once.

    Returns:
        Replays the graph on the current stream; on other devices `run` itself.

    Raises:
        EngineError: something in it fails, or cannot be captured. After that torch's own random
            numbers on CUDA may be out of order for the rest of the process.
    """
    import torch

    if device.type != "cuda":
        run()
        return run
    current = torch.cuda.current_stream(device)
    try:
        # A capture that fails leaves its stream the current one: `current` is put back here.
        with _CAPTURES, torch.cuda.device(device), torch.cuda.stream(current), _plain(device):
            return _capture(run, device, pool)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise EngineError(f"the work cannot be captured as a CUDA graph: {reason}") from None


def _capture(run: Callable[[], None], device: torch.device, pool: Any) -> Callable[[], None]:
    import torch

    side = _side_stream(device, threading.get_ident())
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    # other threads may use the device meanwhile: their calls are not ours to forbid
    mode = "thread_local"
    with _no_garbage(), torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode=mode):
        run()
    return graph.replay


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Nothing is collected: it might be another graph, which must not be freed in a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """Whatever modes the caller is in: a graph would keep them for good."""
    import torch

    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@functools.lru_cache(maxsize=16)  # libraries keep a workspace for every stream they meet
def _side_stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """A thread's own: page-locked memory that was copied on a stream asks it when it is freed."""
    import torch

    return torch.cuda.Stream(device)


def memory_pool(device: torch.device) -> Any:
    """Memory that graphs may share which never run at once; None on other devices than CUDA."""
    import torch

    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of the host that `device` can copy from and to while the host goes on."""
    import torch

    with torch.inference_mode(False):  # it is written outside of that, too
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


def wait(device: torch.device) -> None:
    """Until what the current stream holds is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
