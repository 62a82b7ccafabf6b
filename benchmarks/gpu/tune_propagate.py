"""Which tiles `ops.propagate` should use on this device, for `TILES` of ops/triton/propagate.py.

    python benchmarks/gpu/tune_propagate.py [--out FILE.json] [--seconds 240]
    python benchmarks/gpu/tune_propagate.py --dry-run           without a GPU: checked, not timed

Every candidate makes single levels of the messages of the released and of the published form of
`Structured`: checked against another tile's result, then timed in a CUDA graph. Printed are the
times, and the three tiles that lose least if each level takes the best of them, to be pasted into
`TILES`, with what `best_tile` loses for several values of `READ`. Whether they spill in another
Triton, tests/compiled tells.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timing import WrongResultError, agree, describe_machine

from fastpose.bench.cuda import events, warm_up_clocks
from fastpose.machine import machine, versions
from fastpose.models.parts import part_tree

if TYPE_CHECKING:
    from fastpose.ops.triton.propagate import Tile

TREE = part_tree("lsp26").parents
DTYPE = torch.bfloat16
SIDE = 7
TOLERANCE = 1e-2  # relative; both results are rounded to 16 bits, and summed in another order
LAUNCHES, ROUNDS = 20, 7
READS = (0, 32, 64, 128, 256)


@dataclass(frozen=True)
class Case:
    """One convolution of one level.

    Attributes:
        c_in, c_out: channels.
        own: what of the raw map is added; see `_convolve`.
        cells: side of the maps.
        batch: images.
        level: of the tree.
        jobs: of the level, each of one edge.
    """

    c_in: int
    c_out: int
    own: str
    cells: int
    batch: int
    level: int
    jobs: int

    @property
    def name(self) -> str:
        return (
            f"{self.c_in} to {self.c_out} {self.own}, {self.jobs} jobs, "
            f"{self.cells}x{self.cells}, batch {self.batch}"
        )


CONVOLUTIONS = ((128, 64, "none"), (64, 128, "after"), (128, 128, "none"), (128, 128, "before"))
LEVELS = ((3, 8), (0, 3))  # of the 9 the widest and the narrowest: level, jobs
SIZES = ((42, 4), (42, 1), (42, 8), (56, 1), (56, 4))
TINY = (Case(16, 16, "none", 5, 1, 3, 8), Case(16, 32, "after", 5, 1, 0, 3))


def cases() -> Iterator[Case]:
    """All that are timed; those of the released form at its own size first."""
    for (cells, batch), (level, jobs), conv in itertools.product(SIZES, LEVELS, CONVOLUTIONS):
        yield Case(*conv, cells, batch, level, jobs)


def candidates(shared: int) -> list[Tile]:
    """Tiles whose sums fit the registers and whose stages fit `shared` bytes of shared memory."""
    from fastpose.ops.triton.propagate import Tile

    found = []
    for depth, channels, pixels, warps in itertools.product(
        (64, 128, 32), (128, 64), (256, 128, 64), (8, 4)
    ):
        sums = channels * pixels // (32 * warps)
        stages = min(5, shared // ((channels + pixels) * depth * DTYPE.itemsize))
        if 32 <= sums <= 128 and stages >= 2:
            found += [Tile(channels, pixels, depth, warps, stages)]
            if stages == 5:  # room for several programs on a multiprocessor
                found += [Tile(channels, pixels, depth, warps, 3)]
    return found


class Inputs:
    """Tensors of all cases of one size, and what one launch needs of them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, case: Case) -> None:
        from fastpose.ops.triton.propagate import _plan

        torch.manual_seed(0)
        plan = _plan(TREE, "both", device)
        n, cells = case.batch, case.cells
        fan = case.c_in * SIDE**2
        first = case.own == "none"

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        maps = 2 * len(TREE)
        edges = 2 * (len(TREE) - 1)
        level = plan.levels[case.level]
        if first:  # the refined maps, which lie between each other; else maps between convolutions
            self.source = normal(n, cells, cells, maps, case.c_in).movedim(3, 0)
        else:
            self.source = normal(len(level.messages), n, cells, cells, case.c_in)
        self.raw = normal(n, cells, cells, maps, case.c_out).movedim(3, 0)
        self.kernel = normal(edges, case.c_out, SIDE, SIDE, case.c_in) * fan**-0.5
        self.bias = normal(edges, case.c_out)
        self.jobs = level.messages if first else level.targets
        self.edges = level.sources if first else level.passed_on
        self.target = torch.empty_like(self.raw)
        self.own = case.own

    def launch(self, tile: Tile) -> torch.Tensor:
        """The convolution into `target`, which is NaN where it writes nothing."""
        from fastpose.ops.triton.propagate import convolve

        convolve(
            self.source, self.kernel, self.bias, self.raw, self.target, self.jobs, self.edges,
            self.own, "ieee", tile,
        )  # fmt: skip
        return self.target


def microseconds(inputs: Inputs, tile: Tile) -> float:
    """The median time of one launch."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(LAUNCHES):
            inputs.launch(tile)
    times = []
    for _ in range(ROUNDS):
        begin, end = events()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / LAUNCHES)
    return statistics.median(times)


def measure(
    inputs: Inputs, tiles: Sequence[Tile], known: Tile, until: float
) -> dict[Tile, float | None]:
    """Times of a case, None for a tile that is wrong, does not fit, or is not timed here."""
    from triton import OutOfResources

    inputs.target.fill_(math.nan)
    expected = inputs.launch(known).clone()
    found: dict[Tile, float | None] = {}
    for tile in tiles:
        if time.monotonic() > until:
            break
        found[tile] = None
        inputs.target.fill_(math.nan)
        try:
            agree(inputs.launch(tile), expected, relative=TOLERANCE)
        except OutOfResources:
            continue
        except WrongResultError as error:
            print(f"{tile}: {error}")
            continue
        if inputs.target.is_cuda:
            found[tile] = microseconds(inputs, tile)
    return found


def best_three(times: dict[Case, dict[Tile, float]]) -> tuple[Tile, ...]:
    """The tiles that lose least, small ones first, where each case takes the best of the three."""

    def loss(tiles: Sequence[Tile]) -> float:
        best = (min(found.get(t, math.inf) for t in tiles) / min(found.values()) for found in rows)
        return sum(math.log(ratio) for ratio in best)

    rows = list(times.values())
    known = set.intersection(*(set(found) for found in rows))
    chosen = min(itertools.combinations(sorted(known), min(3, len(known))), key=loss)
    return tuple(sorted(chosen, key=lambda tile: tile.channels * tile.pixels))


def conclude(times: dict[Case, dict[Tile, float]], processors: int) -> None:
    """Print the fastest tiles of every case, and what to paste."""
    from fastpose.ops.triton import propagate

    for case, found in times.items():
        products = case.c_in * case.c_out * SIDE**2 * case.batch * case.cells**2
        print(case.name)
        for tile, us in sorted(found.items(), key=lambda item: item[1])[:4]:
            print(
                f"    {us:8.1f} us {2e-6 * products * case.jobs / us:6.0f} TFLOP/s  {tuple(tile)}"
            )
    tiles = best_three(times)
    print("\n16-bit: (" + ", ".join(f"Tile{tuple(tile)}" for tile in tiles) + ")")
    for read in READS:
        propagate.READ = read
        propagate.best_tile.cache_clear()
        ratios = []
        for case, found in times.items():
            pixels = case.batch * case.cells**2
            tile = propagate.best_tile(tiles, case.c_out, pixels, case.jobs, processors)
            ratios.append(found[tile] / min(found.values()))
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"READ = {read}: {mean:.3f} of the best time, at most {max(ratios):.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all candidates on all cases until the time is up, then print what to paste."""
    parser = argparse.ArgumentParser(prog=Path(__file__).name)
    parser.add_argument("--out", type=Path, help="a JSON file for all times")
    parser.add_argument("--seconds", type=float, default=240.0, help="when to stop measuring")
    parser.add_argument("--dry-run", action="store_true", help="check small cases on the CPU")
    args = parser.parse_args(arguments)
    until = time.monotonic() + args.seconds
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before an op imports triton
        device, dtype, shared, processors = torch.device("cpu"), torch.float16, 40_000, 1
    else:
        device, dtype = torch.device("cuda"), DTYPE
        properties = torch.cuda.get_device_properties(device)
        shared = properties.shared_memory_per_block_optin
        processors = properties.multi_processor_count
        warm_up_clocks()
    tiles = candidates(shared)[: 2 if args.dry_run else None]
    times: dict[Case, dict[Tile, float]] = {}
    with torch.inference_mode():
        for case in TINY if args.dry_run else cases():
            if time.monotonic() > until:
                break
            found = measure(Inputs(device, dtype, case), tiles, tiles[0], until)
            print(f"{case.name}: {len(found)} tiles", flush=True)
            timed = {tile: us for tile, us in found.items() if us is not None}
            times |= {case: timed} if timed else {}
    if args.out is not None:
        rows = [
            {"case": case.name, "tile": tile._asdict(), "us": us}
            for case, found in times.items()
            for tile, us in found.items()
        ]
        here, packages = describe_machine()
        about = {"machine": machine() | here, "versions": versions() | packages}
        args.out.write_text(json.dumps(about | {"tiles": rows}, indent=1))
    if times:
        conclude(times, processors)


if __name__ == "__main__":
    main()
