"""Six networks in every runtime and precision: latency, accuracy, memory, size, start.

One row holds how fast an engine is and how right: of `cpn-light`, which has trained weights, the
accuracy on the people of LSP where --data-dir has it, and the shift of its joints; of the others,
whose weights are random, how far their results are from those of the module in f32. That is looked
at before anything is timed, in the very engine that is. Then all engines of a network and its
module, as PyTorch runs it, take turns on all processors. What `fastpose eval` reports of a whole
set belongs to no engine, and is not here.

By default the two CPNs run; with --full all networks do, the CPNs in all cases
at 1, 8 and 32 windows. Exporting, opening and running the large ones takes long.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from suite import Timed, WrongAnswerError, assert_limits

from fastpose.bench.engines import (
    MODULE,
    EngineCase,
    available_cases,
    measure_engines,
    parse_case,
)
from fastpose.bench.rows import Row
from fastpose.engines.manifest import file_hash
from fastpose.fixtures import PICTURES, windows
from fastpose.models import model_spec

torch = pytest.importorskip("torch", reason="torch is not installed here")
from fastpose.engines.build import random_network  # noqa: E402 - needs torch
from fastpose.models.weights import save_weights  # noqa: E402 - needs torch

TRAINED = "cpn-light"
LSP = 100  # people; with --full all 700
BATCHES = (1, 8, 32)  # of the CPNs, with --full
LARGE = ("openvino:f32", "openvino:bf16", "onnxruntime:f32", "torch:f32", "torch:bf16")


@dataclass(frozen=True)
class Plan:
    """How a network is measured by default.

    Attributes:
        batches: windows of a run.
        rounds: turns of each engine.
        cases: as `parse_case` takes them; with --full the CPNs run in all, the others in `LARGE`.
        limit: windows that the engines are compared on; None takes the built-in ones.
        limits: ratios to the module that `openvino f32` must have, by batch size: half of those
            that it has, or less.
    """

    batches: tuple[int, ...]
    rounds: int
    cases: tuple[str, ...] = LARGE
    limit: int | None = 1
    limits: Mapping[int, float] = field(default_factory=dict)


# The module that all stand beside is torch in f32 already.
LIGHT = ("openvino:f32", "openvino:bf16", "openvino:int8", "onnxruntime:f32")
PLANS = {
    "cpn-light": Plan((1, 8), 8, LIGHT, None, {1: 1.0, 8: 0.75}),
    "cpn50": Plan((1,), 8, ("openvino:f32", "openvino:bf16", "onnxruntime:f32"), 8, {1: 0.8}),
    "cpm-lsp": Plan((1,), 4, LARGE[:1]),
    "structured-lsp": Plan((1,), 4),
    "adversarial-mpii": Plan((1,), 4),
    "pbn-mpii": Plan((1,), 4),
    "tompson-mpii": Plan((1,), 4),
}
DEFAULT = ("cpn-light", "cpn50")


@pytest.mark.threads
@pytest.mark.parametrize("name", PLANS)
def bench_engines(timed: Timed, request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    options = request.config.option
    if name not in DEFAULT and not options.full:
        pytest.skip("with --full")
    plan = PLANS[name]
    spec = model_spec(name)
    lsp = Path(options.data_dir, "lsp") if options.data_dir and name == TRAINED else None
    rows = measure_engines(
        with_loud_maps(name, tmp_path) if name == "adversarial-mpii" else name,
        cases(name, options.device, full=options.full),
        batches=BATCHES if options.full and name in DEFAULT else plan.batches,
        pictures=windows(
            spec,
            f"lsp:{lsp}" if lsp else None,
            limit=(None if options.full else LSP) if lsp else plan.limit,
        ),
        rounds=plan.rounds,
        threads=len(os.sched_getaffinity(0)),
        calibration=calibration(options.data_dir),
        alone=not timed.checks_only,
        take=timed.take,
    )
    kept = [timed.keep(row, limits(plan, row)) for row in rows]
    for row in kept:
        assert_right(row)
        assert_limits(row)


def cases(name: str, device: str, *, full: bool) -> list[EngineCase]:
    """What is run on a device: on CUDA everything."""
    if device != "cpu" or (full and name in DEFAULT):
        return available_cases(device)
    return [parse_case(text) for text in (LARGE if full else PLANS[name].cases)]


def calibration(data_dir: str | None) -> str | Path:
    """Pictures for int8: people of LSP that it is not measured on, or the built-in ones."""
    return f"lsp:{Path(data_dir, 'lsp')}" if data_dir else PICTURES


def limits(plan: Plan, row: Row) -> dict[str, float]:
    """What a row is held against."""
    gated = (row.case["engine"], row.case["precision"]) == ("openvino", "f32")
    least = plan.limits.get(int(row.case["batch"])) if gated and row.time else None
    return {MODULE: least} if least else {}


def assert_right(row: Row) -> None:
    """In f32 every engine is the network: what is refused there, but for its times, is a fault."""
    fault = row.refused and not row.unsteady
    if fault and row.case["precision"] == "f32":
        raise WrongAnswerError(f"{row.key}: {row.refused}")


def with_loud_maps(name: str, folder: Path) -> Path:
    """Random weights also where the network begins at 0: its maps would be empty."""
    network = random_network(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any():
                layer.reset_parameters()
    path = folder / f"{name}.safetensors"
    state = network.state_dict()
    save_weights(state, path)
    card = {"name": name, "weights_sha256": file_hash(path), "random": len(state)}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path
