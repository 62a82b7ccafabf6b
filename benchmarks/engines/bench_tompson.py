"""Time of the Tompson cascade against its coarse network alone, at 4x, 8x and 16x pooling.

    python benchmarks/engines/bench_tompson.py --threads 1 --out FILE.json

The paper's own table, on a K40, could not be recovered: its columns stay empty. All networks of a
batch size run by turns in one process, eager in torch, float32, random weights, on noise of 256x256
pixels; coarse maps are compared before they are timed. Figures are medians of wall time for each
picture; on a busy machine the ratios hold, the times do not.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fastpose.models import create, model_spec
from fastpose.models.tompson import Cascade

MODELS = {"4x": "tompson-mpii", "8x": "tompson-mpii-8x", "16x": "tompson-mpii-16x"}
BATCHES, ROUNDS = (1, 4), 7


def coarse_and_cascade(network: Cascade, image: torch.Tensor) -> tuple[Callable, Callable]:
    """The two to be timed, after a comparison of what they share."""

    def coarse() -> torch.Tensor:
        network.coarse_only = True
        return network.predict(image)

    def cascade() -> torch.Tensor:
        network.coarse_only = False
        return network.predict(image)

    maps = coarse().flatten(2)
    assert torch.equal(cascade()[..., : maps.shape[2]], maps), "not the same coarse maps"
    return coarse, cascade


def by_turns(*functions: Callable, rounds: int) -> list[list[float]]:
    """Milliseconds of each call of each function."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, own in zip(functions, times, strict=True):
            begin = time.perf_counter()
            function()
            own.append(1000 * (time.perf_counter() - begin))
    return times


def measure(poolings: Iterable[str], batch: int, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Rows of the table: milliseconds a picture, median and quartiles."""
    pairs = []
    for pooling in poolings:
        network = create(MODELS[pooling])
        assert isinstance(network, Cascade)
        image = torch.rand(batch, 3, *model_spec(MODELS[pooling]).size)
        with torch.inference_mode():
            pairs.append(coarse_and_cascade(network, image))
    with torch.inference_mode():
        times = by_turns(*itertools.chain(*pairs), rounds=rounds)
    return [
        row(pooling, batch, *times[2 * index : 2 * index + 2])
        for index, pooling in enumerate(poolings)
    ]


def row(pooling: str, batch: int, coarse: list[float], cascade: list[float]) -> dict[str, Any]:
    """One row, from the milliseconds of every call."""
    figures: dict[str, Any] = {"pooling": pooling, "batch": batch}
    for name, own in (("coarse", coarse), ("cascade", cascade)):
        low, middle, high = (value / batch for value in statistics.quantiles(own, n=4))
        figures[f"{name}_ms"] = round(middle, 1)
        figures[f"{name}_quartiles_ms"] = [round(low, 1), round(high, 1)]
        figures[f"{name}_k40_paper_ms"] = None
    ratios = [after / before for before, after in zip(coarse, cascade, strict=True)]
    return {**figures, "ratio": round(statistics.median(ratios), 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        "|  | batch | coarse, ms | cascade, ms | ratio | "
        "coarse, K40 (paper) | cascade, K40 (paper) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in rows:
        figures = (each[key] for key in ("pooling", "batch", "coarse_ms", "cascade_ms", "ratio"))
        lines.append("| " + " | ".join(map(str, figures)) + " |  |  |")
    return "\n".join(lines)


def bench_fine_network_costs_less_than_the_coarse_one():
    (figures,) = measure(["4x"], 1, rounds=3)
    assert figures["ratio"] < 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--machine", default="", help="what is written down as the machine")
    parser.add_argument("--out", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    rows = [each for batch in BATCHES for each in measure(MODELS, batch, args.rounds)]
    print(table(rows))
    if args.out:
        figures = {
            "machine": args.machine,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "date": datetime.date.today().isoformat(),
            "command": "python benchmarks/engines/bench_tompson.py "
            f"--threads {args.threads} --rounds {args.rounds}",
            "check": "the coarse maps of the two are equal",
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "what": "milliseconds a picture of 256x256, wall time, medians and quartiles, all "
            "networks of a batch size by turns; ratio is of cascade to coarse; load is the "
            "machine's before and after",
            "rows": rows,
        }
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
