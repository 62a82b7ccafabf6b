"""The one timer of the GPU programs: check a result, then replay its graph between events.

    python benchmarks/gpu/PROGRAM.py --out FILE.json     on a CUDA device
    python benchmarks/gpu/PROGRAM.py --dry-run           without one: small, checked, not timed

A figure is the median time of one call in a CUDA graph of many, over inputs and results that
together pass the L2 cache, while the graphs of ours and of its peers are replayed by turns. It is
held against the time in which the device copies the bytes that must move, or multiplies as many
numbers, both measured on the same device. A dry run goes the same way on the CPU, kernels in
Triton's interpreter, with one call in place of the replays; its figures are dropped.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from report import MESSAGE, Report, describe, first_line

ROTATED = 100_000_000  # bytes, or twice the L2 cache if that is more
MOST_SETS = 1024
LONG_ENOUGH = 20_000.0  # microseconds of launches to put into one graph, going by eager calls
LAUNCHES = (50, 500)  # that many at least, if calls are short; that many at most
SHORT = 400.0  # microseconds of an eager call, which is mostly the host's
ROUNDS = (5, 25)
PATIENCE = 0.3e6  # microseconds to replay for
NODE_US = 5.0  # at most, for one launch in a graph, where the bytes count for nothing
FEW = 8  # people, up to where that is so

Call = Callable[[int], object]
"""Enqueues the work on one of several sets of inputs, and returns the result."""


class WrongResultError(Exception):
    """What was to be timed does not agree with its reference."""


@dataclass(frozen=True)
class Peer:
    """Another way to the same result.

    Attributes:
        name: what the tables call it.
        call: as ours.
        check: raises if its result is another one; not called for None.
        at_least: how many times its time ours should be.
        on_host: it works on the host, so it is timed by the clock, once, copies included.
    """

    name: str
    call: Call
    check: Callable[[], object] | None = None
    at_least: float | None = None
    on_host: bool = False


@dataclass(frozen=True)
class Work:
    """What one call must do at least.

    Attributes:
        bytes: read or written, each once.
        flops: floating-point operations, with the type whose matmul rate is the measure.
    """

    bytes: float = 0.0
    flops: float = 0.0
    dtype: torch.dtype = torch.float16


@dataclass
class Replay:
    """Work that is ready to be repeated, and its times so far, in microseconds of one call."""

    run: Callable[[], object]
    launches: int
    how: str = "graph"
    error: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def us(self) -> float:
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """From the tenth to the ninetieth percentile, relative to the median."""
        ordered = sorted(self.times)
        tenth = len(ordered) // 10
        return (ordered[-1 - tenth] - ordered[tenth]) / self.us


class Bench:
    """A program's run: its device, what it measures, and where that is written.

    Args:
        file: of the program.
        arguments: of its command line; None takes the process's.

    Attributes:
        dry: small, on the CPU, nothing timed.
        device: of every tensor.
        generator: of every random number on it.
        report: the document.
    """

    def __init__(self, file: str, arguments: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(prog=Path(file).name)
        parser.add_argument("--out", type=Path, help="the JSON document to write into")
        parser.add_argument("--dry-run", action="store_true", help="check small cases on the CPU")
        parser.add_argument("--resume", action="store_true", help="leave out what is written there")
        args = parser.parse_args(arguments)
        self.dry: bool = args.dry_run
        if self.dry:
            os.environ["TRITON_INTERPRET"] = "1"  # before an op imports triton
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            raise SystemExit(f"{parser.prog}: there is no CUDA device; --dry-run needs none")
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.report = Report(args.out)
        self._about = describe_machine(f"python benchmarks/gpu/{Path(file).name}", self.dry)
        seed = 0 if self.dry else time.time_ns() % 2**31
        self._about["seed"] = seed
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._restart = [sys.executable, file, "--out", str(args.out), "--resume"]
        self._known: set[tuple[str, str]] = set()
        self.failed = False
        if args.resume:
            rows = self.report.read()["rows"]
            self._known = {(row["op"], row["case"]) for row in rows}
            mine = (row for row in rows if row["command"] == self._about["command"])
            self.failed = any(row["status"] != "ok" for row in mine)
        self.report.set(about={k: v for k, v in self._about.items() if k != "command"})
        if not self.dry:
            gc.freeze()  # what is imported stays: no search through it after every row
            warm_up_clocks()

    def kernel(self, name: str) -> str:
        """The backend to ask for: in a dry run that which stands for CUDA's on the CPU."""
        return "cpp" if self.dry and name == "cuda" else name

    def sets(self, size: float) -> int:
        """How many sets of inputs and results of `size` bytes pass the L2 cache."""
        if self.dry:
            return 2
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(2, min(MOST_SETS, math.ceil(max(ROTATED, 2 * cache) / size)))

    def random(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Fresh uniform float32 numbers, other ones in each run; rows carry the seed."""
        values = torch.empty(shape, device=self.device)
        return values.uniform_(low, high, generator=self.generator)

    def normal(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        """Fresh normal float32 numbers."""
        values = torch.empty(shape, device=self.device)
        return values.normal_(0.0, std, generator=self.generator)

    def measure(
        self,
        op: str,
        case: str,
        ours: Call,
        *,
        sets: int,
        work: Work,
        check: Callable[[], float],
        peers: Sequence[Peer] = (),
        limits: Mapping[str, float] | None = None,
        **details: Any,
    ) -> None:
        """Check, time and write one row. What fails is written, too, and ends nothing.

        Args:
            op: what is timed.
            case: on what: with `op` the name of the row.
            ours: takes the number of a set, 0 to `sets` - 1.
            sets: of inputs and results.
            work: of one call.
            check: returns how far the result of set 0 is from the reference, and raises
                `WrongResultError` if that is too far.
            peers: what else gives the same result.
            limits: targets: "us", "ratio_to_floor" (at most), "share_of_matmul" (at least).
            details: what else belongs into the row.
        """

        def compute() -> dict[str, Any]:
            difference = check()
            return {"difference": difference} | self._time(ours, sets, work, peers)

        wanted = {peer.name: peer.at_least for peer in peers if peer.at_least}
        self.record(op, case, compute, limits={**(limits or {}), **wanted}, **details)

    def record(
        self,
        op: str,
        case: str,
        compute: Callable[[], Mapping[str, Any]],
        *,
        limits: Mapping[str, float],
        **details: Any,
    ) -> None:
        """Write one row, of what `compute` finds or of why it failed.

        `compute` returns "us" and what else belongs into the row; the rest is as in `measure`.
        """
        if (op, case) in self._known:
            return
        row: dict[str, Any] = {"op": op, "case": case, "status": "ok", **details, "limits": limits}
        try:
            row |= compute()
            row["met"] = {key: meets(key, row, limit) for key, limit in limits.items()}
        except WrongResultError as error:
            row |= {"status": "wrong", "error": str(error)[:MESSAGE], "us": None}
        except Exception as error:
            row |= {"status": "failed", "error": first_line(error), "us": None}
        if self.dry:
            row = _without_figures(row)
        self.failed |= row["status"] != "ok"
        self.report.append("rows", row | self._about)
        print(describe(row), flush=True)
        gc.collect()  # graphs and their results go before the next ones come
        if not self.dry:
            self._start_again_if_broken()

    def close(self) -> None:
        """End the process: with status 1 if anything failed."""
        if self.failed:
            raise SystemExit(1)

    def _time(self, ours: Call, sets: int, work: Work, peers: Sequence[Peer]) -> dict[str, Any]:
        mine = self.replay(ours, sets)
        others = {peer.name: self._prepare(peer, sets) for peer in peers}
        self.take_turns([mine, *(other for other in others.values() if isinstance(other, Replay))])
        row = {
            "us": round(mine.us, 3),
            "spread": round(mine.spread, 3),
            "launches": mine.launches,
            "sets": sets,
            "timed": mine.how,
        }
        if mine.error:  # a launcher that cannot be captured is of no use to a graph
            row |= {"status": "failed", "error": f"not captured: {mine.error}"}
        row |= self._against_ceilings(work, mine.us)
        row["peers"] = {name: describe_peer(other, mine.us) for name, other in others.items()}
        return row

    def _against_ceilings(self, work: Work, us: float) -> dict[str, float | None]:
        ceilings = self.report.read().get("ceilings") or {}
        if self.dry:  # any number does: what comes of it is dropped
            ceilings = {"copy_gb_s": 1.0, "matmul_tflop_s_float16": 1.0}
        found: dict[str, float | None] = {}
        if work.bytes:
            rate = ceilings.get("copy_gb_s")
            floor = work.bytes / rate / 1e3 if rate else None
            found |= {
                "bytes": round(work.bytes),
                "gb_s": round(work.bytes / us / 1e3, 1),
                "floor_us": floor and round(floor, 3),
                "ratio_to_floor": floor and round(us / floor, 3),
            }
        if work.flops:
            kind = str(work.dtype).removeprefix("torch.")
            rate = ceilings.get(f"matmul_tflop_s_{kind}")
            reached = work.flops / us / 1e6
            found |= {
                "flops": work.flops,
                "tflop_s": round(reached, 2),
                "share_of_matmul": rate and round(reached / rate, 4),
            }
        return found

    def _prepare(self, peer: Peer, sets: int) -> Replay | str:
        """A peer that fails costs the row nothing else: its error stands in its place."""
        try:
            if peer.check is not None:
                peer.check()
            if peer.on_host:
                return Replay(lambda: peer.call(0), 1, "clock")
            return self.replay(peer.call, sets)
        except Exception as error:
            if self.dry:  # a slip of this program, then
                raise
            return first_line(error)

    def replay(self, call: Call, sets: int) -> Replay:
        """Launches over all sets in one graph, as many as make its own start count for little."""
        if self.dry:
            return Replay(lambda: call(0), 1)
        for i in range(sets):  # compiles, fills caches: nothing of that may come in a capture
            call(i)
        begin, end = events()
        begin.record()
        for i in range(min(sets, 20)):
            call(i)
        end.record()
        end.synchronize()
        once = max(1.0, 1e3 * begin.elapsed_time(end) / min(sets, 20))
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
            return Replay(run, launches, "eager", first_line(error))

        def again() -> list[object]:
            graph.replay()
            return kept

        return Replay(again, launches)

    def take_turns(self, replays: Sequence[Replay]) -> None:
        """Repeat all by turns, so that a change of clocks meets all, and note their times."""
        if self.dry:
            for replay in replays:
                begin = time.perf_counter()
                replay.run()
                replay.times.append(1e6 * (time.perf_counter() - begin))
            return
        queued = [replay for replay in replays if replay.how != "clock"]
        for replay in replays:
            if replay.how == "clock":
                _time_on_host(replay)
        once = sum(_elapsed_us(replay) for replay in queued for _ in range(2)) / 2
        rounds = max(ROUNDS[0], min(ROUNDS[1], int(PATIENCE / max(1.0, once))))
        marks = []
        for _ in range(rounds):
            for replay in queued:
                begin, end = events()
                begin.record()
                replay.run()
                end.record()
                marks.append((replay, begin, end))
        torch.cuda.synchronize()
        for replay, begin, end in marks:
            replay.times.append(1e3 * begin.elapsed_time(end) / replay.launches)

    def _start_again_if_broken(self) -> None:
        """An illegal access ends all work of a process, so the rest is left to a new one."""
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"the device is lost to this process ({first_line(error)})", flush=True)
            if self.report.path is None:
                raise SystemExit(1) from None
            # The new process knows of the failure by the stage's rows alone.
            os.execv(self._restart[0], self._restart)


def describe_machine(command: str, dry: bool) -> dict[str, Any]:
    """What every row says of where, when and how it was made."""
    return {
        "device": "none: dry run" if dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "driver": None if dry else _driver(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command + (" --dry-run" if dry else ""),
    }


def agree(
    actual: torch.Tensor, expected: torch.Tensor, *, absolute: float = 0.0, relative: float = 0.0
) -> float:
    """How far two results are apart, NaN being equal to NaN alone.

    Args:
        actual: any floating type.
        expected: of the same shape, on any device.
        absolute: the largest difference allowed.
        relative: the largest allowed ratio of the norms of difference and expectation.

    Raises:
        WrongResultError: they are farther apart, or of different shapes.
    """
    if actual.shape != expected.shape:
        raise WrongResultError(f"shape {list(actual.shape)} instead of {list(expected.shape)}")
    actual, expected = actual.detach().double(), expected.detach().to(actual.device).double()
    if not torch.equal(actual.isnan(), expected.isnan()):
        raise WrongResultError("NaN in other places than in the reference")
    apart = torch.nan_to_num(actual - expected)
    if relative:
        scale = torch.nan_to_num(expected).norm().clamp(min=1e-30)
        found, limit = float(apart.norm() / scale), relative
    else:
        found, limit = float(apart.abs().max()) if apart.numel() else 0.0, absolute
    if not found <= limit:
        raise WrongResultError(f"differs from the reference by {found:.3g}, allowed {limit:.3g}")
    return found


def node_limits(people: int, **limits: float) -> dict[str, float]:
    """Targets by the number of people: a launch in a graph for a few, else `limits`."""
    return {"us": NODE_US} if people <= FEW else limits


def describe_peer(peer: Replay | str, us: float) -> dict[str, Any]:
    """Its time, held against ours, and how that was taken; only "error" if there is none.

    "graph" is as ours; "clock" is the host's, copies included; "eager" is one launch after another,
    with "error" that tells why no graph could be captured.
    """
    if isinstance(peer, str):
        return {"error": peer}
    found = {"us": round(peer.us, 2), "ratio": round(peer.us / us, 2), "timed": peer.how}
    return found | ({"error": peer.error} if peer.error else {})


def meets(key: str, row: Mapping[str, Any], limit: float) -> bool | None:
    """Whether a row meets a target; None where nothing can be said.

    So it is of a peer in eager mode, most of whose time may be the host's.
    """
    if key in row.get("peers", ()):
        peer = row["peers"][key]
        return peer["ratio"] >= limit if peer.get("timed") in ("graph", "clock") else None
    value = row.get(key)
    if value is None:
        return None
    return value >= limit if key == "share_of_matmul" else value <= limit


def events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Two marks of the device's clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    return begin, end


def warm_up_clocks(seconds: float = 0.3) -> None:
    """Work until the clocks have risen from their idle state."""
    square = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        for _ in range(10):
            square @ square
        torch.cuda.synchronize()


def _elapsed_us(replay: Replay) -> float:
    begin, end = events()
    begin.record()
    replay.run()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)


def _time_on_host(replay: Replay) -> None:
    for _ in range(ROUNDS[0]):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        replay.run()
        torch.cuda.synchronize()
        replay.times.append(1e6 * (time.perf_counter() - begin))


def _without_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a dry run may say: that everything was computed, and how far off it was."""
    measured = (
        "us", "spread", "gb_s", "floor_us", "ratio_to_floor", "tflop_s", "share_of_matmul",
        "overhead", "network_us", "host_us", "eager_us", "from_host_us", "open_s",
    )  # fmt: skip
    kept = {key: None if key in measured else value for key, value in row.items()}
    kept["us"] = None
    if "peers" in row:
        kept["peers"] = {name: {"us": None, "ratio": None, "timed": None} for name in row["peers"]}
    if "met" in row:
        kept["met"] = dict.fromkeys(row["met"])
    return kept


def _version(module: str) -> str | None:
    try:
        import importlib.metadata

        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None
