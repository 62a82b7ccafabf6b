"""The device's own limits, which every other figure is held against.

    python benchmarks/gpu/ceilings.py --out FILE.json

The copy rate counts bytes read and written; the matmul rate is that of a large square on random
data (on zeros a device may run faster); a node is the smallest kernel, many times in one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timing import Bench

from fastpose.bench import cuda
from fastpose.measure import Times

COPY = 1 << 30  # bytes
SIDE = 8192
CALLS = 20


def copy_rate() -> float:
    """GB/s of a copy on the device, read and write counted."""
    source = torch.randint(0, 256, (COPY,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY / seconds(lambda: target.copy_(source)) / 1e9


def matmul_rate(dtype: torch.dtype) -> float:
    """TFLOP/s of a square matrix product."""
    left, right = (torch.randn(SIDE, SIDE, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * SIDE**3 / seconds(lambda: torch.matmul(left, right, out=out)) / 1e12


def seconds(call: Callable[[], object]) -> float:
    """Median between events round each of some calls, after as many to warm up."""
    for _ in range(CALLS):
        call()
    marks = [cuda.events() for _ in range(CALLS)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return Times(tuple(1e-3 * begin.elapsed_time(end) for begin, end in marks)).median


def node_us() -> float:
    """Microseconds that a kernel of one element takes in a graph of many."""
    one = torch.ones(1, device="cuda")
    replay = cuda.in_graph(lambda _: one.add_(1), 1)
    return 1e6 * cuda.take_turns({"node": replay})["node"].median


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all and write them."""
    bench = Bench(__file__, arguments)
    if bench.dry:
        bench.report.set(ceilings=None)
        print("ceilings: skipped in a dry run")
        return
    bench.report.set(
        ceilings={
            "copy_gb_s": round(copy_rate(), 1),
            "matmul_tflop_s_bfloat16": round(matmul_rate(torch.bfloat16), 1),
            "matmul_tflop_s_float16": round(matmul_rate(torch.float16), 1),
            "node_us": round(node_us(), 3),
        }
    )
    print(bench.report.read().extra["ceilings"])


if __name__ == "__main__":
    main()
