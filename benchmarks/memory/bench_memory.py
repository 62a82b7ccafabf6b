"""Memory: flat over a long video, and its peak in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from soak import growth_percent
from suite import ROOT, Suite, WrongAnswerError

from fastpose.bench.alone import alone
from fastpose.bench.engines import available_cases, parse_case
from fastpose.bench.rows import Row, load
from fastpose.fixtures import PICTURES

FRAMES = 10_000
MOST = 1.0  # percent that memory may grow after the first 500 frames
COMMAND = "pytest benchmarks/memory/bench_memory.py"


@pytest.mark.parametrize("model", [None, "default"], ids=["small", "default"])
def bench_long_video(suite: Suite, model: str | None, request: pytest.FixtureRequest) -> None:
    """10,000 frames through reader, network, tracks, filters and files."""
    if model and not request.config.getoption("--full"):
        pytest.skip("10,000 frames of the default model and detector take minutes: --full")
    asked: dict[str, Any] = {"frames": FRAMES, "model": model, "threads": 1}
    done = _child(asked)
    if done["frames"] != FRAMES:
        raise WrongAnswerError(f"expected {FRAMES} frames, got {done['frames']}")
    grown = growth_percent(done["samples"])
    row = Row(
        "memory",
        "long video",
        {"frames": FRAMES, "model": model or "one convolution", "detector": model or "none"},
        check=f"{done['frames']} frames, {done['people']} people",
        threads=1,
        figures={
            "growth_percent": round(grown, 3),
            "rss_mb": round(done["samples"][-1] / 1e6, 1),
        },
        load=load(),
        command=COMMAND,
    )
    suite.add(row)
    assert grown < MOST, f"memory grew by {grown:.2f} %, less than {MOST} expected"


@pytest.mark.parametrize("case", ["openvino:bf16", "openvino:f32", "onnxruntime:f32"])
def bench_whole_pose(suite: Suite, case: str) -> None:
    """Default model and detector on one picture: the peak of a process that does nothing else."""
    parsed = parse_case(case)
    known = {one.name: one.absent for one in available_cases()}
    if absent := known[parsed.name]:
        pytest.skip(absent)
    figures = alone("default", parsed, threads=1, picture=PICTURES / "astronaut.jpg")
    row = Row(
        "memory",
        "whole pose",
        {"model": "default", "engine": parsed.engine, "precision": parsed.precision},
        check="the process looked at a picture and ended without a fault",
        threads=1,
        figures=figures,
        load=load(),
        command=COMMAND,
    )
    suite.add(row)


def _child(asked: dict[str, Any]) -> dict[str, Any]:
    words = [sys.executable, "-m", "memory.soak", json.dumps(asked)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, cwd=ROOT / "benchmarks"
    )
    return dict(json.loads(done.stdout))
