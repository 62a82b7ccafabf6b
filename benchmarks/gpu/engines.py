"""Engines on CUDA without torch: a kernel by the driver alone, memory, frames by addresses.

    python benchmarks/gpu/engines.py --out FILE.json

"decode" that was compiled ahead of time, launched by the driver, beside Triton's own launch of the
same kernel, which it must equal bit for bit.
"upload" of a frame through the page-locked memory of pycuda or cuda-bindings, which torch must see
at the same address, and the other way round.
"frame": its joints by addresses in that memory, each step enqueued anew, beside the same network in
torch's CUDA graphs, whose joints it must find. Times are the host's clock, a call that waits.

In a dry run the device is the host's memory (tests/device_fakes.py), and nothing is compiled but
one decode.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from report import first_line
from timing import Bench, Found, Peer, Work, WrongResultError, agree, node_limits

from fastpose import ops
from fastpose.crop import person_affines
from fastpose.direct import DirectFrames
from fastpose.engines.engine import Request
from fastpose.engines.memory import DeviceArray, DeviceMemory, open_memory
from fastpose.engines.torch import TorchEngine
from fastpose.errors import BackendError
from fastpose.geometry import Doubles
from fastpose.graph import FrameGraphs, wait
from fastpose.measure import Times, take_turns
from fastpose.models import model_spec
from fastpose.models.joints import compile_peaks, locate_joints
from fastpose.ops.cubin import pack

MODEL = "cpn-light"
FRAME, TALL = (1080, 1920), (200, 900)
PEOPLE = 8
CALLS = 50
GRAPHS = "torch's CUDA graphs"
LIBRARIES = {"pycuda": "pycuda", "cuda": "cuda-bindings"}


def make_boxes(people: int, frame: tuple[int, int], tall: tuple[int, int]) -> Doubles:
    """[people, 4] upright boxes inside the frame."""
    random = np.random.default_rng(people)
    height = random.uniform(*tall, people)
    width = 0.6 * height
    x, y = random.uniform(0, frame[1] - width), random.uniform(0, frame[0] - height)
    return np.stack((x, y, x + width, y + height), axis=1)


def clock(bench: Bench, calls: dict[str, Callable[[], object]]) -> dict[str, Times]:
    """Times of calls that wait for their results, by the host's clock; none in a dry run."""
    if not bench.dry:
        return take_turns(calls, rounds=CALLS, repeats=1)
    for call in calls.values():
        call()
    return {}


# A kernel by the driver


def compiled_elsewhere(maps: tuple[int, int, int], dtype: str) -> ops.DecodeBinary:
    """For a dry run, whose own process interprets kernels."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import sys, pathlib; from fastpose.ops import compile_decode; "
            f"compile_decode({maps}, {dtype!r}, (9, 0)).save(pathlib.Path(sys.argv[1], 'a'))"
        )
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        command = [sys.executable, "-c", code, folder]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        binary = ops.DecodeBinary.load(Path(folder, "a"))
    assert binary is not None
    return binary


def measure_cubin(bench: Bench, dtype: str, people: int) -> None:
    """One row: decode by the driver and by Triton, in graphs."""
    maps = (3, 16, 12) if bench.dry else (17, 64, 48)
    kind = getattr(torch, dtype)
    joints, cells = maps[0], maps[1] * maps[2]
    size = people * joints * cells * kind.itemsize
    sets = bench.sets(size)
    given = bench.random(sets, people, *maps).to(kind)
    affines = bench.normal(people, 2, 3).double()
    points = torch.full((sets, people, joints, 2), torch.nan, device=bench.device)
    scores = torch.full((sets, people, joints), torch.nan, device=bench.device)

    def expected(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.decode(given[i], affines=affines)

    if bench.dry:
        binary, kernel = compiled_elsewhere(maps, dtype), None
    else:
        capability = torch.cuda.get_device_capability()
        binary = ops.compile_decode(maps, dtype, capability)
        kernel = ops.DecodeKernel(binary, capability)
    taps = torch.from_numpy(binary.taps.copy()).to(bench.device)

    def ours(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        addresses = {
            "maps": given[i].data_ptr(),
            "affines": affines.data_ptr(),
            "taps": taps.data_ptr(),
            "points": points[i].data_ptr(),
            "scores": scores[i].data_ptr(),
        }
        if kernel is not None:
            kernel.launch(people, addresses, torch.cuda.current_stream().cuda_stream)
        else:
            pack(binary, dict.fromkeys(addresses, 16))
            for out, found in zip((points[i], scores[i]), expected(i), strict=True):
                out.copy_(found)
        return points[i], scores[i]

    def check() -> float:
        pairs = zip(ours(0), expected(0), strict=True)
        return max(agree(here, there, absolute=0.0) for here, there in pairs)

    bench.measure(
        "decode",
        {"people": people, "method": "dark", "dtype": dtype, "launch": "driver"},
        ours,
        sets=sets,
        work=Work(bytes=size + 12 * people * joints),
        check=check,
        peers=[Peer("Triton's launch", expected)],
        limits=node_limits(people),
    )


# Memory without torch


@contextmanager
def memory_of(bench: Bench, kind: str) -> Iterator[DeviceMemory]:
    """A library's memory; in a dry run the host's, with the kernels for the CPU."""
    if not bench.dry:
        memory = open_memory(kind)
        try:
            yield memory
        finally:
            memory.close()
        return
    with mock.patch.object(sys, "path", [*sys.path, str(Path(__file__).parents[2] / "tests")]):
        import device_fakes as fakes
    compiled = SimpleNamespace(warp_frames=fakes.warp_frames, device_count=lambda: 1)
    with mock.patch.dict(sys.modules):
        sys.modules.setdefault("fastpose._C_cuda", compiled)
        import fastpose.ops.cuda as cuda

        warp = sys.modules["fastpose.ops.warp"]
        with (
            mock.patch.object(cuda, "_C_cuda", compiled),
            mock.patch.object(warp, "gpu_kernels", return_value={"warp": ""}),
        ):
            memory = fakes.HostMemory()
            yield memory
            memory.close()


def as_tensor(bench: Bench, array: DeviceArray) -> torch.Tensor:
    """The same memory as torch sees it."""
    if not bench.dry:
        return torch.as_tensor(array, device=bench.device)
    import device_fakes as fakes

    return torch.from_numpy(fakes.at(array.address, array.shape, array.dtype))


def share_memory(bench: Bench, kind: str) -> Found:
    """One row: a frame up, seen by torch, changed by torch, and down again."""
    shape = (*((48, 64) if bench.dry else FRAME), 3)
    with memory_of(bench, kind) as memory:
        array, frame = memory.empty(shape, "uint8"), memory.host(shape, "uint8")
        frame[:] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        wanted = torch.from_numpy(frame.copy())

        def upload() -> None:
            memory.upload(frame, array)
            memory.synchronize()

        upload()
        tensor = as_tensor(bench, array)
        if tensor.data_ptr() != array.address:
            raise WrongResultError("torch has made a copy")
        difference = agree(tensor.float(), wanted.float())
        tensor.bitwise_not_()
        wait(bench.device)
        back = memory.host(shape, "uint8")
        memory.download(array, back)
        memory.synchronize()
        agree(torch.from_numpy(back.copy()).float(), 255 - wanted.float())
        times = clock(bench, {"ours": upload})
        name = "host" if bench.dry else memory.gpu
    figures = {"gb_s": round(wanted.numel() / times["ours"].median / 1e9, 1)} if times else {}
    return Found(f"{difference:.3g} from the frame, on {name}", times, figures, clock="wall")


class OnMemory:
    """A torch engine in place of one that works on addresses: see `direct.PointerEngine`."""

    def __init__(self, bench: Bench, engine: TorchEngine, memory: DeviceMemory) -> None:
        self.manifest, self.memory, self.layout = engine.manifest, memory, engine.layout
        self.window_type = str(engine.type).removeprefix("torch.")
        self._bench, self._engine = bench, engine
        self._kept = {
            size: memory.empty((size, *engine.manifest.spec.results[0]), "float32")
            for size in engine.manifest.buckets
        }
        self.decoder = (
            None if bench.dry else compile_peaks(engine.manifest.spec, "float32", memory.capability)
        )

    def enqueue_at(self, count: int, windows: int, stream: int) -> list[DeviceArray]:
        bench, kept = self._bench, self._kept[count]
        given = DeviceArray(windows, (count, *self.manifest.spec.size, 3), self.window_type, None)
        images = as_tensor(bench, given).permute(0, 3, 1, 2)
        if bench.dry:
            as_tensor(bench, kept).copy_(self._engine.enqueue(images))
        else:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                as_tensor(bench, kept).copy_(self._engine.enqueue(images))
        return [kept]

    def close(self) -> None:
        self._kept = {}


def frames_without_torch(bench: Bench, kind: str) -> Found:
    """One row: a frame's joints by addresses, and by graphs."""
    people, tall = (2, (20, 40)) if bench.dry else (PEOPLE, TALL)
    shape = (96, 128) if bench.dry else FRAME
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    engine = open_network(bench, people)
    graphs = FrameGraphs(engine)
    affines = person_affines(make_boxes(people, shape, tall), engine.manifest.spec.window)
    source = np.zeros(people, np.int64)
    try:
        with memory_of(bench, kind) as memory:
            direct = DirectFrames(OnMemory(bench, engine, memory))

            def joints(frames: DirectFrames | FrameGraphs) -> tuple[Any, Any]:
                uploaded = frames.upload([image])
                if frames.finds_joints:
                    return frames.joints(uploaded, source, affines)
                results = frames.results(uploaded, source, affines)
                return locate_joints(results, affines, frames.manifest.spec)

            found, wanted = joints(direct), joints(graphs)
            if not np.isfinite(wanted[0]).any():
                raise WrongResultError("there are no joints to compare")
            difference = max(
                agree(torch.from_numpy(here), torch.from_numpy(there), absolute=limit)
                for here, there, limit in zip(found, wanted, (0.5, 5e-3), strict=True)
            )
            times = clock(bench, {"ours": lambda: joints(direct), GRAPHS: lambda: joints(graphs)})
            same = all(
                np.array_equal(a, b, equal_nan=True) for a, b in zip(found, wanted, strict=True)
            )
            direct.close()
    finally:
        graphs.close()
    bits = "bit for bit" if same else "not bit for bit"
    return Found(f"joints {difference:.3g} px from those of graphs, {bits}", times, clock="wall")


def open_network(bench: Bench, people: int) -> TorchEngine:
    """A network with random weights, for one number of people."""
    return TorchEngine(
        Request(
            spec=model_spec(MODEL),
            file=None,
            weights_hash="",
            device=str(bench.device),
            precision="f32" if bench.dry else "f16",
            passed=(),
            buckets=(people,),
            threads=None,
        )
    )


def libraries(bench: Bench) -> dict[str, str]:
    """Those that work here; why the others do not is written down."""
    if bench.dry:
        return {"cuda": "memory of the host"}
    found, missing = {}, {}
    for kind, name in LIBRARIES.items():
        try:
            open_memory(kind).close()
            found[kind] = name
        except (BackendError, RuntimeError) as error:
            missing[name] = first_line(error)
            print(f"{name}: {missing[name]}", flush=True)
    bench.report.set(without=missing)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all that the time allows, what needs no compiler first."""
    bench = Bench(__file__, arguments)
    for dtype in ("float16", "float32"):
        for people in (2,) if bench.dry else (8, 128):
            if not (bench.dry and dtype == "float32"):
                measure_cubin(bench, dtype, people)
    for kind, name in libraries(bench).items():
        bench.record(
            "ops",
            "upload",
            {"memory": name, "frame": "1920x1080"},
            functools.partial(share_memory, bench, kind),
        )
        bench.record(
            "pipeline",
            "frame",
            {"people": PEOPLE, "model": MODEL, "engine": "torch", "memory": name},
            functools.partial(frames_without_torch, bench, kind),
        )
    bench.close()


if __name__ == "__main__":
    main()
