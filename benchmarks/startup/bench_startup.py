"""How long a user waits for the first result, each time in a process of its own."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from peers import PEERS
from suite import Beside, Timed, WrongAnswerError

from fastpose.fixtures import PICTURES

PICTURE = PICTURES / "astronaut.jpg"
RUNTIMES = ("torch", "openvino", "onnxruntime", "cv2", "triton", "av", "onnx", "scipy", "pyarrow")
LOADED = f"import sys, fastpose; print([m for m in {RUNTIMES} if m in sys.modules])"
IMPORT = "import time; t = time.perf_counter(); import fastpose; print(time.perf_counter() - t)"
FIRST = """
import sys
from pathlib import Path
import fastpose
from fastpose.frames import read_picture
with fastpose.Pose(threads=1) as pose:
    print(len(pose(read_picture(Path(sys.argv[1])))))
"""


def bench_import(timed: Timed) -> None:
    """The start of Python and `import fastpose`, which loads no runtime."""

    def check() -> str:
        loaded = _python("-c", LOADED).strip()
        if loaded != "[]":
            raise WrongAnswerError(f"import fastpose loads {loaded}")
        return f"none of {', '.join(RUNTIMES)} is loaded"

    inside = statistics.median(float(_python("-c", IMPORT)) for _ in range(5))
    timed(
        "startup",
        "import fastpose",
        {},
        lambda: _python("-c", "import fastpose"),
        check=check,
        beside={"Python alone": Beside(lambda: _python("-c", "pass")), "rtmlib": _rtmlib()},
        figures={"import_ms": round(1e3 * inside, 2)},
        rounds=8,
        clock="wall",
        repeats=1,
        warm_up=1,
    )


def bench_help(timed: Timed) -> None:
    def check() -> str:
        text = _python("-m", "fastpose", "--help")
        if "usage: fastpose" not in text:
            raise WrongAnswerError(f"the help says {text[:60]!r}")
        return f"{len(text.splitlines())} lines of help"

    timed(
        "startup",
        "fastpose --help",
        {},
        lambda: _python("-m", "fastpose", "--help"),
        check=check,
        rounds=8,
        clock="wall",
        repeats=1,
        warm_up=1,
    )


@pytest.mark.parametrize("cache", ["fresh", "warm"])
def bench_first_result(timed: Timed, tmp_path: Path, cache: str) -> None:
    """From the start of Python to the people of one picture, default model and detector.

    A fresh cache has nothing that the runtime compiled in a run before.
    """
    numbers = itertools.count()

    def first() -> str:
        folder = tmp_path / (str(next(numbers)) if cache == "fresh" else "kept")
        return _python("-c", FIRST, str(PICTURE), environment={"XDG_CACHE_HOME": str(folder)})

    def check() -> str:
        people = int(first())
        if people < 1:
            raise WrongAnswerError(f"nobody is found in {PICTURE.name}")
        return f"{people} people in {PICTURE.name}"

    timed(
        "startup",
        "first result",
        {"model": "default", "detector": "default", "cache": cache},
        first,
        check=check,
        rounds=4,
        clock="wall",
        repeats=1,
        warm_up=1,
    )


def _rtmlib() -> Beside:
    peer = PEERS["rtmlib"]
    if not peer.ready():
        return Beside(absent="not installed: python benchmarks/peers/install.py rtmlib")
    return Beside(lambda: _python("-c", "import rtmlib", python=peer.python))


def _python(
    *words: str, python: Path | str = sys.executable, environment: Mapping[str, str] | None = None
) -> str:
    """What a Python of its own prints; it sees our sources as this one does."""
    done = subprocess.run(
        [python, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **(environment or {})},
    )
    return done.stdout
