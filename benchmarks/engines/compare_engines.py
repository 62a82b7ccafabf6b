"""One network in every runtime and precision of this machine: time, accuracy, size, in one table.

    python benchmarks/engines/compare_engines.py default --calibration DIR --data lsp:DIR --out FILE

Each engine is compared with the torch module in f32 before it is timed, in pixels of the network's
input and, on annotated data, in points of its metric. Then all run the same windows by turns in one
process: ratios are to the module as PyTorch runs it by itself, batch norm and all. Wall time, since
the runtimes bring threads of their own: keep the machine quiet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastpose import build_engine, create, load_engine
from fastpose.engines import Engine, Options, open_engine
from fastpose.engines.build import random_network
from fastpose.engines.source import find_weights
from fastpose.engines.verify import Verification, verify_pictures
from fastpose.errors import FastposeError
from fastpose.fixtures import Fixtures, windows
from fastpose.machine import machine, versions
from fastpose.models import model_spec

BASE = "torch module f32"
BATCHES = (1, 8)
SETTLE = 0.02  # seconds


@dataclass(frozen=True)
class Row:
    """One engine of the table.

    Attributes:
        engine: the runtime.
        precision: that is asked for.
        compile: as in `Options`.
    """

    engine: str
    precision: str
    compile: str = "eager"

    @property
    def name(self) -> str:
        """As the table calls it."""
        how = f" {self.compile}" if self.engine == "torch" else ""
        return f"{self.engine}{how} {self.precision}"

    @property
    def suffix(self) -> str:
        """Of its file; "" where it has none."""
        if self.engine == "torch":
            return ".pt2" if self.compile == "aot" else ""
        return ".xml" if self.precision == "int8" else ".onnx"


ROWS = (
    Row("torch", "f32"),
    Row("torch", "bf16"),
    Row("torch", "f32", "compile"),
    Row("torch", "bf16", "compile"),
    Row("torch", "f32", "aot"),
    Row("torch", "bf16", "aot"),
    Row("onnxruntime", "f32"),
    Row("openvino", "f32"),
    Row("openvino", "bf16"),
    Row("openvino", "int8"),
)


def open_row(row: Row, args: argparse.Namespace, folder: Path) -> tuple[Engine, int | None]:
    """The engine of a row and the bytes of its files, None where it has none."""
    if not row.suffix:
        options = Options(compile=row.compile)
        shared: dict[str, Any] = {"buckets": BATCHES, "threads": args.threads, "options": options}
        return open_engine(args.model, kind="torch", precision=row.precision, **shared), None
    path = build_engine(
        args.model,
        engine=row.engine,
        precision=row.precision,
        buckets=BATCHES,
        calibration=args.calibration if row.precision == "int8" else None,
        allow=True,
        out=folder / f"{row.name.replace(' ', '-')}{row.suffix}",
        threads=args.threads,
    )
    engine = load_engine(path, threads=args.threads)
    return engine, sum((folder / name).stat().st_size for name in engine.manifest.files)


def figures(found: Verification) -> dict[str, Any]:
    """What of a verification goes into the table."""
    report = found.to_dict()
    keys = ("windows", "shift", "score_change", "metric", "layers", "passed", "reasons")
    return {key: report[key] for key in keys}


def module_run(args: argparse.Namespace, images: np.ndarray) -> Callable[[], object]:
    """The network as PyTorch runs it."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    spec = model_spec(args.model)
    weights = find_weights(spec)
    network = (create(spec.name, weights=weights) if weights else random_network(spec.name)).eval()
    batch = torch.from_numpy(images)

    def run() -> object:
        with torch.inference_mode():
            return network.predict(batch)

    return run


def engine_run(engine: Engine, images: np.ndarray) -> Callable[[], object]:
    """An engine on windows in its own buffer."""
    engine.buffer(len(images))[...] = images
    return lambda: engine.run(len(images))


def by_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run, in each round after one of its own that is not counted.

    The threads of the runtime before it go on spinning for a while, and the caches are full of
    its weights: without the pause and the first run, whoever follows ONNX Runtime is slow.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(SETTLE)
            run()
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def summary(times: dict[str, list[float]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Median, quartiles and the ratio to the module, of each run."""
    base = statistics.median(times[BASE])
    for name, own in times.items():
        low, middle, high = statistics.quantiles(own, n=4)
        yield (
            name,
            {
                "median_ms": round(middle, 2),
                "quartiles_ms": [round(low, 2), round(high, 2)],
                "ratio": round(base / middle, 2),
            },
        )


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Batches, shift and metric of each row, for people."""
    head = f"{'engine':22}" + "".join(f"{f'b={size} ms':>10}{'ratio':>7}" for size in BATCHES)
    print(f"{head}{'median px':>11}{'moved %':>9}{'metric':>8}{'loss':>7}{'MB':>8}  within bounds")
    for name, row in rows.items():
        if "skipped" in row:
            print(f"{name:22}  {row['skipped']}")
            continue
        times = [row["batches"][str(size)] for size in BATCHES]
        line = f"{name:22}" + "".join(f"{t['median_ms']:10.2f}{t['ratio']:7.2f}" for t in times)
        if "shift" in row:
            shift, metric = row["shift"], row["metric"]
            moved = 100 * shift["moved"]
            line += f"{shift['median']:11.3f}{moved:9.2f}"
            line += (
                f"{metric['after']:8.2f}{metric['loss']:7.2f}" if metric else f"{'-':>8}{'-':>7}"
            )
            line += f"{row['bytes'] / 1e6:8.1f}" if row["bytes"] else f"{'-':>8}"
            line += "  yes" if row["passed"] else f"  no: {'; '.join(row['reasons'])}"
        print(line)


def chosen(args: argparse.Namespace) -> list[Row]:
    """The rows that were asked for."""
    rows = [row for row in ROWS if not args.only or row.name in args.only]
    if args.calibration is None:
        rows = [row for row in rows if row.precision != "int8"]
    return rows


def open_rows(
    args: argparse.Namespace, pictures: Fixtures, folder: Path, stack: ExitStack
) -> tuple[dict[str, Engine], dict[str, dict[str, Any]]]:
    """The engines that run here, verified, and what is known of each row so far."""
    engines: dict[str, Engine] = {}
    rows: dict[str, dict[str, Any]] = {BASE: {}}
    for row in chosen(args):
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        try:
            engine, size = open_row(row, args, folder)
        except FastposeError as error:
            rows[row.name] = {"skipped": str(error)}
            continue
        engines[row.name] = stack.enter_context(closing(engine))
        found = verify_pictures(engine, pictures, threads=args.threads)
        rows[row.name] = {"bytes": size, **figures(found)}
    return engines, rows


def main() -> None:
    """Build, verify, time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--calibration", metavar="FOLDER", help="pictures for int8")
    parser.add_argument("--data", metavar="KIND:PATH", help="verify there, not on our pictures")
    parser.add_argument("--limit", type=int, help="most windows to verify on")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of random weights
    spec = model_spec(args.model)
    args.model = spec.name
    pictures = windows(spec, args.data, limit=args.limit)
    images = np.resize(next(iter(pictures.batches(BATCHES[-1]))), (BATCHES[-1], 3, *spec.size))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        engines, rows = open_rows(args, pictures, Path(folder), stack)
        load = []
        for size in BATCHES:
            runs = {BASE: module_run(args, images[:size])}
            runs |= {name: engine_run(engine, images[:size]) for name, engine in engines.items()}
            for name, timed in summary(by_turns(runs, args.rounds)):
                rows[name].setdefault("batches", {})[str(size)] = timed
            load.append(round(os.getloadavg()[0], 2))
    print_table(rows)
    if args.out:
        document = {
            "machine": machine(),
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
            "command": command(args),
            "check": "joints beside those of the torch module in f32, before anything was timed",
            "model": spec.name,
            "data": pictures.name,
            "windows": len(pictures),
            "threads": args.threads,
            "rounds": args.rounds,
            "load": load,
            "rows": [{"name": name, **row} for name, row in rows.items()],
        }
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def command(args: argparse.Namespace) -> str:
    """How the file was made, folders by their last name."""

    def short(text: str) -> str:
        kind, colon, path = text.rpartition(":")
        return f"{kind}{colon}{Path(path).name}"

    words = ["python benchmarks/engines/compare_engines.py", args.model]
    words += [f"--calibration {short(args.calibration)}"] if args.calibration else []
    words += [f"--data {short(args.data)}"] if args.data else []
    words += [f"--limit {args.limit}"] if args.limit else []
    words += [f"--threads {args.threads}"] if args.threads else []
    words += ["--only " + " ".join(f'"{name}"' for name in args.only)] if args.only else []
    return " ".join(words)


if __name__ == "__main__":
    main()
