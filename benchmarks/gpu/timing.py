"""The one timer of the GPU programs: check a result, then replay its graph between events.

    python benchmarks/gpu/PROGRAM.py --out FILE.json     on a CUDA device
    python benchmarks/gpu/PROGRAM.py --dry-run           without one: small, checked, not timed

A figure is the median time of one call in a CUDA graph of many, over inputs and results that
together pass the L2 cache, while the graphs of ours and of its peers are replayed by turns. It is
held against the time in which the device copies the bytes that must move, or multiplies as many
numbers, both measured on the same device. The technique is that of `fastpose.bench.cuda`. A dry run
goes the same way on the CPU, kernels in Triton's interpreter, each called once and never timed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from report import MESSAGE, Report, describe, first_line

from fastpose.bench import cuda
from fastpose.bench.cuda import Replay, SetCall
from fastpose.bench.rows import Peer as PeerRow
from fastpose.bench.rows import Row, load
from fastpose.bench.rows import timed as figures_of
from fastpose.machine import gpu_bytes, gpus
from fastpose.measure import Times, steady

NODE_S = 5e-6  # seconds at most, for one launch in a graph, where the bytes count for nothing
FEW = 8  # people, up to where that is so

Case = Mapping[str, str | int | float | bool]


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
    call: SetCall
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


@dataclass(frozen=True)
class Found:
    """What is found out for a row.

    Attributes:
        check: how far the answer was from the truth.
        times: ours first, then those of the peers; {} where nothing is timed.
        figures: what else.
        absent: peers that have no times, and why.
        notes: peers whose times decide nothing, and why.
        clock: of the times.
    """

    check: str
    times: Mapping[str, Times] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    clock: str = "cuda"


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
        parser.add_argument(
            "--seed", type=int, help="of all random numbers; else another each time"
        )
        args = parser.parse_args(arguments)
        self.dry: bool = args.dry_run
        if self.dry:
            os.environ["TRITON_INTERPRET"] = "1"  # before an op imports triton
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            raise SystemExit(f"{parser.prog}: there is no CUDA device; --dry-run needs none")
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.report = Report(args.out)
        seed = args.seed if args.seed is not None else 0 if self.dry else time.time_ns() % 2**31
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._program = f"python benchmarks/gpu/{Path(file).name}"
        how = " --dry-run" if self.dry else f" --seed {seed}"
        self.command = f"{self._program}{how}"
        self._restart = [sys.executable, file, "--out", str(args.out), "--resume"]
        known = self.report.read().rows if args.resume else ()
        self._known = {row.key for row in known}
        mine = (row for row in known if row.command.startswith(self._program))
        self.failed = any(row.absent for row in mine)
        self.report.describe(*describe_machine())
        self._idle = gpu_bytes() or 0  # what others have in use, before anything of ours is
        if not self.dry:
            gc.freeze()  # what is imported stays: no search through it after every row
            cuda.warm_up_clocks()

    def kernel(self, name: str) -> str:
        """The backend to ask for: in a dry run that which stands for CUDA's on the CPU."""
        return "cpp" if self.dry and name == "cuda" else name

    def sets(self, size: float) -> int:
        """How many sets of inputs and results of `size` bytes pass the L2 cache."""
        return 2 if self.dry else cuda.sets_past_cache(size)

    def device_bytes(self) -> int:
        """What this program has in use on the device: tensors, code, and what is kept for later."""
        return (cuda.device_memory().used or 0) - self._idle

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
        name: str,
        case: Case,
        ours: SetCall,
        *,
        sets: int,
        work: Work,
        check: Callable[[], float],
        peers: Sequence[Peer] = (),
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """Check, time and write a row of the group "ops". What fails is written and ends nothing.

        Args:
            name: of the op.
            case: on what.
            ours: takes the number of a set, 0 to `sets` - 1.
            sets: of inputs and results.
            work: of one call.
            check: returns how far the result of set 0 is from the reference, and raises
                `WrongResultError` if that is too far.
            peers: what else gives the same result.
            limits: figures, at least: "floor_share", "matmul_share", "calls_per_s".
        """

        def compute() -> Found:
            words = f"{check():.3g} from the reference"
            return self._time(words, ours, sets, work, peers)

        wanted = {peer.name: peer.at_least for peer in peers if peer.at_least}
        self.record("ops", name, case, compute, limits={**(limits or {}), **wanted})

    def record(
        self,
        group: str,
        name: str,
        case: Case,
        compute: Callable[[], Found],
        *,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """Write one row, of what `compute` finds or of why it failed; the rest is as in `measure`.

        A limit for the time is that of the figure "calls_per_s".
        """
        row = Row(group, name, case, device=self.device.type)
        if row.key in self._known:
            return
        try:
            row = _filled(row, compute(), limits or {})
        except WrongResultError as error:
            row = replace(row, absent=f"wrong: {error}"[:MESSAGE])
        except Exception as error:
            row = replace(row, absent=first_line(error))
        self.failed |= bool(row.absent)
        self.add(row)

    def collect(
        self, group: str, name: str, case: Case, compute: Callable[[], Sequence[Row]]
    ) -> None:
        """Write the rows of `compute`, or the one that is named here with why there are none.

        Of a run that is taken up again, rows are left out whose first one is written.
        """
        row = Row(group, name, case, device=self.device.type)
        if any(key.startswith(row.key) for key in self._known):
            return
        try:
            rows = compute()
        except Exception as error:
            rows = [replace(row, absent=first_line(error))]
        self.failed |= any(row.absent for row in rows)
        self.add(*rows)

    def add(self, *rows: Row) -> None:
        """Write rows that are complete; those of a dry run lose what must not be told of it."""
        for row in rows:
            self.report.add(self._told(row))
            print(describe(self._told(row)), flush=True)
        gc.collect()  # graphs and their results go before the next ones come
        if not self.dry:
            self._start_again_if_broken()

    def _told(self, row: Row) -> Row:
        """With the command that makes it again; of a dry run without any figure."""
        row = replace(row, command=self.command, load=load())
        if not self.dry:
            return row
        peers = {name: PeerRow(absent="not timed in a dry run") for name in row.peers}
        return replace(
            row, clock="", time=None, figures={}, peers=peers, limits={}, refused="", load=None
        )

    def close(self) -> None:
        """End the process: with status 1 if anything failed."""
        if self.failed:
            raise SystemExit(1)

    def _time(
        self, check: str, ours: SetCall, sets: int, work: Work, peers: Sequence[Peer]
    ) -> Found:
        if self.dry:
            for call in (ours, *(peer.call for peer in peers)):
                call(0)
            for peer in peers:
                if peer.check is not None:
                    peer.check()
            return Found(check, absent={peer.name: "not timed in a dry run" for peer in peers})
        mine = cuda.in_graph(ours, sets)
        if mine.error:  # a launcher that cannot be captured is of no use to a graph
            raise WrongResultError(f"it cannot be captured: {mine.error}")
        prepared = {peer.name: _prepare(peer, sets) for peer in peers}
        replays = {name: peer for name, peer in prepared.items() if isinstance(peer, Replay)}
        times = self.take_turns({"ours": mine, **replays})
        return Found(
            check,
            times,
            self._against_ceilings(work, times["ours"].median),
            absent={name: peer for name, peer in prepared.items() if isinstance(peer, str)},
            notes={
                name: f"launched one by one: {peer.error}"
                for name, peer in replays.items()
                if peer.error
            },
        )

    def take_turns(self, replays: Mapping[str, Replay]) -> dict[str, Times]:
        """As `cuda.take_turns`, again where they are unsteady; in a dry run each once, untimed."""
        if self.dry:
            for replay in replays.values():
                replay.run()
            return {}
        return steady(lambda: cuda.take_turns(replays))

    def _against_ceilings(self, work: Work, seconds: float) -> dict[str, float]:
        ceilings = self.report.read().extra.get("ceilings") or {}
        found: dict[str, float] = {}
        if work.bytes:
            found["gb_s"] = work.bytes / seconds / 1e9
            if "copy_gb_s" in ceilings:
                found["floor_share"] = found["gb_s"] / ceilings["copy_gb_s"]
        if work.flops:
            found["tflop_s"] = work.flops / seconds / 1e12
            kind = f"matmul_tflop_s_{str(work.dtype).removeprefix('torch.')}"
            if kind in ceilings:
                found["matmul_share"] = found["tflop_s"] / ceilings[kind]
        return {name: float(f"{value:.4g}") for name, value in found.items()}

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


def describe_machine() -> tuple[dict[str, Any], dict[str, str]]:
    """What torch knows of this machine and of its own parts, beside what every document says."""
    machine: dict[str, Any] = {}
    if torch.cuda.is_available() and not gpus():  # a driver without its program
        machine["gpus"] = [{"name": torch.cuda.get_device_name()}]
    versions = {"torch": str(torch.__version__)}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return machine, versions


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
    return {"calls_per_s": 1 / NODE_S} if people <= FEW else limits


def of_floor(most: float) -> dict[str, float]:
    """The limit of the floor's share for a time that is at most so many times the floor."""
    return {"floor_share": round(1 / most, 3)}


def _filled(row: Row, found: Found, limits: Mapping[str, float]) -> Row:
    """The row with what was found; nothing is held against a peer that decides nothing."""
    time_, ratios, refused = figures_of(found.times) if found.times else (None, {}, "")
    names = [*list(found.times)[1:], *found.absent]
    peers = {
        name: replace(
            ratios.get(name) or PeerRow(absent=found.absent.get(name) or refused),
            difference=found.notes.get(name, ""),
        )
        for name in names
    }
    figures = dict(found.figures) if time_ or not found.times else {}
    if time_ and "calls_per_s" in limits:
        figures["calls_per_s"] = float(f"{1e3 / time_['median_ms']:.4g}")
    return replace(
        row,
        check=found.check,
        clock=found.clock if found.times else "",
        time=time_,
        figures=figures,
        peers=peers,
        limits={
            name: limit
            for name, limit in limits.items()
            if name not in found.notes and name not in found.absent
        },
        refused=refused,
    )


def _prepare(peer: Peer, sets: int) -> Replay | str:
    """A peer that fails costs the row nothing else: its error stands in its place."""
    try:
        if peer.check is not None:
            peer.check()
        if peer.on_host:
            return Replay(lambda: peer.call(0), how="clock")
        return cuda.in_graph(peer.call, sets)
    except Exception as error:
        return first_line(error)
