"""Six networks in torch on CUDA, as `fastpose bench` measures engines: time, memory, how right.

    python benchmarks/gpu/networks.py --out FILE.json

The rows are those of `fastpose.bench.engines`: each engine is compared with the network in f32 on
the CPU before it is timed, by joints where there are trained weights, else by results; a run is
timed from windows on the host to results there, and split by the device's clock, where the network
is in a CUDA graph as `fastpose.Pose` has it. `allocated_mb` is the most that tensors take while an
engine is opened and run. What is not installed stands there with its reason.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stand_in import read_safetensors
from timing import Bench

from fastpose.bench import cuda
from fastpose.bench.engines import available_cases, measure_engines, parse_case
from fastpose.bench.rows import Row
from fastpose.fixtures import windows
from fastpose.measure import Times, take_turns
from fastpose.models import model_spec

ROUNDS = 15
EAGER = ("torch:f16", "torch:f32", "torch:bf16")
LIGHT = "cpn-light"


@dataclass(frozen=True)
class Plan:
    """How a network is measured.

    Attributes:
        model: its name.
        cases: of engines.
        batches: windows of a run.
        limit: windows that are compared.
    """

    model: str
    cases: tuple[str, ...] = EAGER
    batches: tuple[int, ...] = (1, 8)
    limit: int = 2


PLANS = (
    Plan(LIGHT, EAGER, (1, 8, 32), 12),
    Plan("cpn50"),
    Plan("adversarial-mpii"),
    Plan("pbn-mpii"),
    Plan("cpm-lsp"),
    Plan("tompson-mpii"),
    Plan("structured-lsp"),
    # compiling takes long, so it comes last
    Plan(LIGHT, ("torch:f16:aot",), (1, 8, 32)),
    Plan(LIGHT, ("torch:f16:compile",), (1, 8, 32)),
)
SMALL = (Plan(LIGHT, ("torch:f32",), (1,), 1),)


class Watch:
    """Listens to `measure_engines`, and notes what memory each engine takes.

    Attributes:
        peaks: bytes, by the name of the case.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._before = 0

    def __call__(self, step: str) -> None:
        verb, _, case = step.partition(" ")
        if verb == "open":
            cuda.forget_peak()
            self._before = cuda.device_memory().allocated or 0
        elif verb == "compare":
            self.peaks[case] = (cuda.device_memory().peak or 0) - self._before


def engines_only(calls: Mapping[str, Any], **options: Any) -> dict[str, Times]:
    """`take_turns` without the module, which would run on the CPU."""
    return take_turns(
        {name: call for name, call in calls.items() if "module" not in name}, **options
    )


def checked_only(calls: Mapping[str, Callable[[], object]], **options: Any) -> dict[str, Times]:
    """In place of turns, for a dry run: each call once."""
    return engines_only(calls, **{**options, "rounds": 1, "repeats": 1, "warm_up": 0})


def measure(bench: Bench, plan: Plan) -> list[Row]:
    """The rows of a network."""
    cases = [parse_case(text, bench.device.type) for text in plan.cases]
    watch = Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random weights
        rows = measure_engines(
            plan.model,
            cases,
            batches=plan.batches,
            pictures=windows(model_spec(plan.model), limit=plan.limit),
            rounds=1 if bench.dry else ROUNDS,
            alone=False,
            take=checked_only if bench.dry else engines_only,
            tell=None if bench.dry else watch,
        )
    names = {tuple(case.key.items()): case.name for case in cases}
    return [_with_memory(row, watch.peaks.get(_case_name(row, names))) for row in rows]


def _case_name(row: Row, names: Mapping[tuple[tuple[str, Any], ...], str]) -> str:
    key = {name: value for name, value in row.case.items() if name != "batch"}
    return names[tuple(key.items())]


def _with_memory(row: Row, peak: int | None) -> Row:
    if not peak:
        return row
    return replace(row, figures={**row.figures, "allocated_mb": round(peak / 1e6, 1)})


def absent(device: str) -> list[Row]:
    """What else could run networks on CUDA, and why it does not here."""
    return [
        Row("engines", LIGHT, {"batch": 1, **case.key}, device=device, absent=case.absent)
        for case in available_cases(device)
        if case.absent
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every network, the most wanted first."""
    bench = Bench(__file__, arguments)
    read_safetensors()
    for plan in SMALL if bench.dry else PLANS:
        case = {"batch": plan.batches[0], **parse_case(plan.cases[0]).key}
        bench.collect("engines", plan.model, case, functools.partial(measure, bench, plan))
    if not bench.dry:
        bench.add(*absent("cuda"))
    bench.close()


if __name__ == "__main__":
    main()
