"""Frames on a CUDA device to joints on the host, by addresses: nothing here needs torch.

`fastpose.graph` does the same with torch, and captures it as CUDA graphs; without torch the same
work is enqueued anew for each batch.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.crop import cut_windows_at, sample_counts
from fastpose.engines import Manifest
from fastpose.engines.memory import DeviceArray, DeviceMemory, HostArray, host_type
from fastpose.errors import EngineError
from fastpose.geometry import Doubles, cells_to_frame
from fastpose.models.joints import as_joints, has_single_maps
from fastpose.models.spec import ModelSpec
from fastpose.ops.choose import gpu_kernels
from fastpose.types import Floats

Indices = npt.NDArray[np.int64]
Layout = Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]

ALIGNMENT = 16  # bytes, of each array of a block
NOBODY = -1  # source of a window that no frame has


class PointerEngine(Protocol):
    """An engine that only enqueues work on a stream, on memory that is given by its address.

    Attributes:
        manifest: what runs, and how.
        memory: of the device; closed with the engine.
        window_type: of the windows it takes: "float32", "float16" or "bfloat16".
        layout: of the windows it takes in memory: "nchw" or "nhwc".
        decoder: the kernel that decodes its heat maps; None where it has none.
    """

    manifest: Manifest
    memory: DeviceMemory
    window_type: str
    layout: str
    decoder: ops.DecodeBinary | None

    def enqueue_at(self, count: int, windows: int, stream: int) -> Sequence[DeviceArray]:
        """Enqueue a run, without waiting for it.

        Args:
            count: one of `manifest.buckets`.
            windows: address of [count, 3, h, w] or [count, h, w, 3], dense.
            stream: handle.

        Returns:
            The results [count, ...] in the order of `ModelSpec.results`, dense, in the engine's own
            memory, at the same addresses each time; valid until the next run.

        Raises:
            EngineError: the engine is closed, or the runtime failed.
        """

    def close(self) -> None:
        """Free the runtime's memory; further use raises EngineError."""


class DeviceFrames(ABC):
    """From frames on a device to joints on the host.

    Attributes:
        manifest: of the network.
        finds_joints: the peaks are found on the device too; else only `results` can be asked for.
        tensors: `upload` gives torch's, which a detector on the device can read.
    """

    manifest: Manifest
    finds_joints: bool
    tensors = False

    @abstractmethod
    def upload(self, frames: Sequence[Any]) -> list[Any]:
        """Frames [H, W, 3] uint8 on the device, valid until the next upload."""

    def joints(
        self, frames: Sequence[Any], source: Indices, affines: Doubles
    ) -> tuple[Floats, Floats]:
        """Cut windows out of frames, and find a joint in each map.

        Args:
            frames: [H, W, 3] uint8 each, as `upload` gave them; sizes may differ.
            source: [N] the frame of each window; N at most the largest batch size.
            affines: [N, 2, 3] window -> frame pixel.

        Returns:
            As `fastpose.models.joints.locate_joints`.

        Raises:
            EngineError: this is closed.
        """
        points, scores = self._find(frames, source, affines)
        return as_joints(points.copy(), scores.copy(), self.manifest.spec)

    def results(self, frames: Sequence[Any], source: Indices, affines: Doubles) -> Floats:
        """Cut windows out of frames, and return what the network says of them.

        Args, raises: as `joints`.

        Returns:
            [N, K, ...] float32, valid until the next call.
        """
        return self._find(frames, source, affines)[0]

    @abstractmethod
    def close(self) -> None:
        """Free the network and what goes round it; further use raises EngineError."""

    @abstractmethod
    def _find(self, frames: Sequence[Any], source: Indices, affines: Doubles) -> list[Floats]:
        """Points and scores where it `finds_joints`, else the results, valid until the next call.

        Raises:
            EngineError: this is closed.
        """


class DirectFrames(DeviceFrames):
    """`DeviceFrames` of an engine that works on addresses.

    A batch takes one small block up (which windows of which frames), cuts the windows straight into
    the network's own input, runs it, finds the peaks where a kernel for that was compiled with the
    network, and brings joints or results down.

    Args:
        engine: the network; its manifest names the batch sizes. It is closed with this.

    Raises:
        EngineError: the decoding kernel is for another device or network.
    """

    def __init__(self, engine: PointerEngine) -> None:
        self.manifest = engine.manifest
        self._engine: PointerEngine | None = engine
        self._frames: _FrameRooms | None = _FrameRooms(engine.memory)
        self._decoder: _Decoder | None = None
        if engine.decoder is not None and has_single_maps(engine.manifest.spec):
            self._decoder = _Decoder(engine.memory, engine.decoder)
        self.finds_joints = self._decoder is not None
        sizes = self.manifest.buckets
        (h, w), most = self.manifest.spec.size, sizes[-1]
        shape = (most, h, w, 3) if engine.layout == "nhwc" else (most, 3, h, w)
        windows = engine.memory.empty(shape, engine.window_type)
        self._steps = {size: _Step(engine, size, windows, self._decoder) for size in sizes}

    def upload(self, frames: Sequence[Any]) -> list[DeviceArray]:
        """Frames on the device, valid until the next upload.

        Args:
            frames: [H, W, 3] uint8 each, of numpy, or with `__cuda_array_interface__`: such a one
                is read in place, so that it must be dense along its rows and ready.

        Raises:
            EngineError: this is closed.
            ValueError: an array of the device is not as above.
        """
        if self._frames is None:
            raise self._closed()
        return self._frames.upload(frames)

    def close(self) -> None:
        """See `DeviceFrames.close`."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        with engine.memory.current():  # where some memories free what is dropped
            if self._decoder is not None:
                self._decoder.close()
            self._steps, self._frames, self._decoder = {}, None, None
        engine.close()

    def _find(self, frames: Sequence[Any], source: Indices, affines: Doubles) -> list[Floats]:
        if self._engine is None:
            raise self._closed()
        size = min(size for size in self._steps if size >= len(source))
        return self._steps[size](frames, source, affines)

    def _closed(self) -> EngineError:
        return EngineError(f"{self.manifest.name}: the engine is closed")


def goes_direct(engine: object) -> bool:
    """Whether it works on addresses in memory that is not torch's, and windows can be cut there.

    Where they cannot, a warning says why: all but the network then stays on the host.
    """
    memory = getattr(engine, "memory", None)
    if not isinstance(memory, DeviceMemory) or memory.kind == "torch":
        return False
    reason = gpu_kernels()["warp"]
    if reason:
        warnings.warn(f"only the network runs on CUDA: {reason}", stacklevel=4)
    return not reason


class _Step:
    """Windows -> network -> joints, or results, of one batch size."""

    def __init__(
        self, engine: PointerEngine, size: int, windows: DeviceArray, decoder: _Decoder | None
    ) -> None:
        memory, spec = engine.memory, engine.manifest.spec
        self._engine, self._size, self._windows, self._decoder = engine, size, windows, decoder
        self._given = _Block(window_layout(size), memory)
        with memory.current():  # the first run, which also tells where the results are
            self._results = list(engine.enqueue_at(size, windows.address, memory.stream))
            memory.synchronize()
        self._types = [result.dtype for result in self._results]
        layout: Layout = {
            str(i): (result.shape, host_type(result.dtype))
            for i, result in enumerate(self._results)
        }
        if decoder is not None:
            self._room = decoder.room(self._results[0], spec)
            layout, self._types = decoder.layout(size), ["float32", "float32"]
        self._found = _Block(layout, memory)

    def __call__(
        self, frames: Sequence[DeviceArray], source: Indices, affines: Doubles
    ) -> list[Floats]:
        """Points and scores, or the results, of the first N windows, valid until the next call."""
        engine, memory, given = self._engine, self._engine.memory, self._given
        spec, count = engine.manifest.spec, len(source)
        used = write_windows(given.host, source, affines, spec, cells=self._decoder is not None)
        given.host["frames"][: len(used)] = [_row(frames[i]) for i in used]
        with memory.current():
            given.upload()
            self._cut()
            engine.enqueue_at(self._size, self._windows.address, memory.stream)
            if self._decoder is not None:
                self._decoder.enqueue(self._results[0], given, self._found, self._room)
                self._found.download()
            else:
                for result, host in zip(self._results, self._found.host.values(), strict=True):
                    memory.download(result, host)
            memory.synchronize()
        parts = [
            as_float32(host[:count], dtype)
            for host, dtype in zip(self._found.host.values(), self._types, strict=True)
        ]
        joined = self._decoder is None and len(parts) > 1
        return [np.concatenate(parts, axis=-1)] if joined else parts

    def _cut(self) -> None:
        given = self._given.device
        cut_windows_at(
            ops.WindowAddresses(
                rows=given["frames"].address,
                affines=given["affines"].address,
                areas=given["areas"].address,
                source=given["source"].address,
                out=self._windows.address,
                count=self._size,
            ),
            self._engine.manifest.spec.window,
            dtype=self._engine.window_type,
            out_layout=self._engine.layout,
            stream=self._engine.memory.stream,
        )


class _Decoder:
    """The kernel that finds the peaks, and what it needs on the device."""

    def __init__(self, memory: DeviceMemory, binary: ops.DecodeBinary) -> None:
        self._memory, self._binary = memory, binary
        with memory.current():
            self._kernel = ops.DecodeKernel(binary, memory.capability)
        self._taps = _Block({"taps": (binary.taps.shape, np.float64)}, memory)
        self._taps.host["taps"][:] = binary.taps
        self._taps.upload()
        memory.synchronize()

    def layout(self, size: int) -> Layout:
        """What it writes."""
        k, peaks = self._binary.maps[0], self._binary.peaks
        axes = (size, k, peaks) if peaks > 1 else (size, k)
        return {"points": ((*axes, 2), np.float32), "scores": (axes, np.float32)}

    def room(self, maps: DeviceArray, spec: ModelSpec) -> DeviceArray | None:
        """Its scratch memory for maps [N, C, h, w], which are checked.

        Raises:
            EngineError: it was compiled for other maps.
        """
        binary = self._binary
        k, h, w = binary.maps
        compiled = f"{binary.dtype} {[k + spec.background, h, w]}"
        found = f"{maps.dtype} {list(maps.shape[1:])}"
        if found != compiled:
            raise EngineError(
                f"maps of the decoding kernel: it was compiled for {compiled}, the engine gives "
                f"{found}; build it again"
            )
        shape = (maps.shape[0], k, h, w)
        return self._memory.empty(shape, "float32") if binary.peaks > 1 else None

    def enqueue(
        self, maps: DeviceArray, given: _Block, found: _Block, room: DeviceArray | None
    ) -> None:
        """Enqueue it for all maps [N, C, h, w]."""
        addresses = {
            "maps": maps.address,
            "affines": given.device["cells"].address,
            "taps": self._taps.device["taps"].address,
            "points": found.device["points"].address,
            "scores": found.device["scores"].address,
        }
        if room is not None:
            addresses["candidates"] = room.address
        self._kernel.launch(maps.shape[0], addresses, self._memory.stream)

    def close(self) -> None:
        self._kernel.close()


class _Block:
    """Named arrays side by side in host memory, and once more on the device: one copy moves all.

    Attributes:
        host: numpy arrays, page-locked.
        device: arrays of the same shapes and types.
    """

    def __init__(self, layout: Layout, memory: DeviceMemory) -> None:
        places, size = block_places(layout)
        self._memory = memory
        self._host, self._device = memory.host((size,), "uint8"), memory.empty((size,), "uint8")
        self._host[:] = 0
        self.host: dict[str, HostArray] = {}
        self.device: dict[str, DeviceArray] = {}
        for name, (shape, dtype) in layout.items():
            start, kind = places[name].start, np.dtype(dtype)
            self.host[name] = self._host[places[name]].view(kind).reshape(shape)
            self.device[name] = self._device.part(start, shape, kind.name)

    def upload(self) -> None:
        """Enqueue the copy of all arrays to the device."""
        self._memory.upload(self._host, self._device)

    def download(self) -> None:
        """Enqueue the copy of all arrays to the host."""
        self._memory.download(self._device, self._host)


class _FrameRooms:
    """Room for frames on a device, kept from one upload to the next."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._slots: dict[int, tuple[HostArray, DeviceArray]] = {}

    def upload(self, frames: Sequence[Any]) -> list[DeviceArray]:
        """See `DirectFrames.upload`."""
        self._memory.synchronize()  # the last copies may still read the host's memory
        return [self._place(slot, frame) for slot, frame in enumerate(frames)]

    def _place(self, slot: int, frame: Any) -> DeviceArray:
        if isinstance(frame, DeviceArray):
            return frame
        if hasattr(frame, "__cuda_array_interface__"):
            return _in_place(frame)
        pixels = np.asarray(frame)
        room = self._slots.get(slot)
        if room is None or room[0].size < pixels.size:
            shape = (pixels.size,)
            room = self._memory.host(shape, "uint8"), self._memory.empty(shape, "uint8")
            self._slots[slot] = room
        host, device = room[0][: pixels.size], room[1].part(0, pixels.shape, "uint8")
        np.copyto(host.reshape(pixels.shape), pixels)
        self._memory.upload(host, device)
        return device


def _in_place(frame: Any) -> DeviceArray:
    """A frame that lies on the device.

    Raises:
        ValueError: it is not dense uint8 [H, W, 3].
    """
    found = frame.__cuda_array_interface__
    shape, strides = tuple(found["shape"]), found.get("strides")
    dense = len(shape) == 3 and strides in (None, (3 * shape[1], 3, 1))
    if found["typestr"] != "|u1" or not dense or shape[2] != 3:
        raise ValueError(
            f"a frame on the device must be dense uint8 [H, W, 3], got {found['typestr']} "
            f"{list(shape)}, strides {strides}"
        )
    return DeviceArray(found["data"][0], shape, "uint8", frame)


def window_layout(size: int) -> Layout:
    """What a batch of `size` windows is told: which windows of which frames, for `write_windows`.

    frames: rows of a FrameTable; cells: affines of the heat maps; affines and areas: of the
    windows; source: row of the frame of each.
    """
    return {
        "frames": ((size, 4), np.int64),
        "cells": ((size, 2, 3), np.float64),
        "affines": ((size, 2, 3), np.float32),
        "source": ((size,), np.int32),
        "areas": ((size,), np.int32),
    }


def write_windows(
    given: Mapping[str, HostArray],
    source: Indices,
    affines: Doubles,
    spec: ModelSpec,
    *,
    cells: bool,
) -> Indices:
    """Write down which windows of which frames; those behind them belong to nobody.

    Args:
        given: arrays of `window_layout`; "frames" is left to the caller.
        source: [N] the frame of each window, N at most as `given`.
        affines: [N, 2, 3] window -> frame pixel.
        spec: the network.
        cells: the affines of the heat maps are needed.

    Returns:
        The frames that are used, in the order of the rows that "frames" is to have.
    """
    count = len(source)
    used, given["source"][:count] = np.unique(source, return_inverse=True)
    given["source"][count:] = NOBODY
    given["affines"][:count] = affines
    given["areas"][:count] = sample_counts(affines)
    given["areas"][count:] = 1
    if cells:
        given["cells"][:count] = cells_to_frame(affines, spec.convention, spec.size, spec.cells)
    return used


def _row(frame: DeviceArray) -> tuple[int, int, int, int]:
    """Of a `fastpose.ops.FrameTable`."""
    height, width, _ = frame.shape
    return frame.address, 3 * width, height, width


def block_places(layout: Layout) -> tuple[dict[str, slice], int]:
    """The bytes of each array of a block, and those of all."""
    places, end = {}, 0
    for name, (shape, dtype) in layout.items():
        start = -(-end // ALIGNMENT) * ALIGNMENT
        end = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
        places[name] = slice(start, end)
    return places, end


def as_float32(array: HostArray, dtype: str) -> Floats:
    """Values of a device's type as float32, without a copy where they are."""
    if dtype == "bfloat16":  # its bits are the upper half of a float32
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)
