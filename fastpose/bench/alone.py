"""An engine, or a whole pose pipeline, in a process of its own: its start and its memory.

A process that has opened others has their memory, and what they have imported: only one that does
nothing else tells what a runtime costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose.errors import EngineError, FastposeError
from fastpose.machine import gpu_bytes

if TYPE_CHECKING:
    from fastpose.bench.engines import EngineCase

RUNS = 10  # after the first, at most
ENOUGH = 1.0  # seconds of them
PATIENCE = 600.0  # seconds for the child
MARK = "fastpose alone: "  # before the figures: runtimes print, too, some when they end
# The clock starts before anything of ours is imported.
CHILD = """
import sys, time
start = time.perf_counter()
import fastpose
imported = time.perf_counter() - start
from fastpose.bench.alone import answer
answer(imported, sys.argv[1])
"""


def alone(
    model: str | Path,
    case: EngineCase,
    *,
    batch: int = 1,
    threads: int | None = None,
    picture: str | Path | None = None,
    detector: str = "default",
    runs: int = RUNS,
    patience: float = PATIENCE,
) -> dict[str, float]:
    """Import fastpose, open an engine and run it, in a process that does nothing else.

    Args:
        model: as in `fastpose.engines.open_engine`, or a bundle that was built for the case.
        case: how it is run.
        batch: windows of a run.
        threads: of the runtime; None leaves the number to it.
        picture: open a whole `fastpose.Pose` instead, and run it on this picture.
        detector: of the pose, as there.
        runs: how many follow the first, at most: after a second there are no more.
        patience: seconds after which the process is ended.

    Returns:
        import_ms, of fastpose alone; open_ms, with the import of the runtime; first_ms, of the
        first run, in which runtimes still compile and allocate; peak_rss_mb, the most memory that
        the process had in RAM, in 10^6 bytes; and on CUDA device_mb, how much more the devices had
        in use after the last run than before anything was opened.

    Raises:
        EngineError: the process failed or took too long; the text has its reason, in one line.
    """
    asked = {
        "model": str(model),
        "engine": case.engine,
        "precision": case.precision,
        "compile": case.compile,
        "device": case.device,
        "batch": batch,
        "threads": threads,
        "picture": str(picture or ""),
        "detector": detector,
        "runs": runs,
    }
    command = [sys.executable, "-c", CHILD, json.dumps(asked)]
    where = f"{case.name} of {Path(model).name} in a process of its own"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{where}: did not end within {patience:g} s") from None
    if done.returncode:
        raise EngineError(f"{where}: {_reason(done)}")
    said = done.stdout.rpartition(MARK)[2].partition("\n")[0]
    return {name: float(value) for name, value in json.loads(said).items()}


def answer(imported: float, text: str) -> None:
    """What the child does: print the figures behind `MARK`, or the error and exit with 1.

    Args:
        imported: seconds that importing fastpose took.
        text: what was asked, as JSON.
    """
    warnings.simplefilter("ignore")  # of random weights; the parent has looked at the bounds
    try:
        figures = _measure(json.loads(text))
    except (FastposeError, ValueError) as error:
        sys.exit(str(error))
    found = {"import_ms": round(1e3 * imported, 2), **figures}
    sys.stdout.write(f"\n{MARK}{json.dumps(found)}\n")


def _measure(asked: dict[str, Any]) -> dict[str, float]:
    before = gpu_bytes() if asked["device"].startswith("cuda") else None
    start = time.perf_counter()
    opened = _pose(asked) if asked["picture"] else _engine(asked)
    ready = time.perf_counter()
    with closing(opened):
        run = _run_of(opened, asked)
        begin = time.perf_counter()
        run()
        first = time.perf_counter()
        for _ in range(asked["runs"]):
            if time.perf_counter() - first > ENOUGH:
                break
            run()
        after = gpu_bytes() if before is not None else None
    figures = {
        "open_ms": round(1e3 * (ready - start), 2),
        "first_ms": round(1e3 * (first - begin), 3),
        "peak_rss_mb": round(_peak_bytes() / 1e6, 1),
    }
    if before is not None and after is not None:
        figures["device_mb"] = round((after - before) / 1e6, 1)
    return figures


def _engine(asked: dict[str, Any]) -> Any:
    # imported here and below, since that is part of opening
    from fastpose.engines import Options, load_engine, names_file, open_engine

    given = {"device": asked["device"], "threads": asked["threads"]}
    if names_file(asked["model"]) and not asked["model"].endswith(".safetensors"):
        return load_engine(asked["model"], **given)
    return open_engine(
        asked["model"],
        kind=asked["engine"],
        precision=asked["precision"],
        buckets=(asked["batch"],),
        options=Options(compile=asked["compile"]),
        **given,
    )


def _pose(asked: dict[str, Any]) -> Any:
    from fastpose.engines import Options
    from fastpose.pose import Pose

    return Pose(
        asked["model"],
        detector=asked["detector"],
        engine=asked["engine"],
        device=asked["device"],
        precision=asked["precision"],
        threads=asked["threads"],
        options=Options(compile=asked["compile"]),
    )


def _run_of(opened: Any, asked: dict[str, Any]) -> Callable[[], object]:
    if not asked["picture"]:
        return lambda: opened.run(asked["batch"])
    from fastpose.frames import read_picture

    frame = read_picture(Path(asked["picture"]))
    return lambda: opened(frame)


def _peak_bytes() -> int:
    """The most of this process's own memory that was in RAM.

    getrusage would tell of its parent's, too, from before the new program began.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise EngineError("the system does not tell how much memory was in use")


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    return _last(done.stderr) or f"ended with {done.returncode}"


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
