"""Documents of measurements that nobody took, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastpose.bench.rows import Document, Peer, Row

MACHINE = {
    "python": "3.11.7",
    "system": "Linux",
    "processor": "Zen 9",
    "instruction_sets": ["avx2"],
    "cores": 4,
    "memory_gib": 16.0,
    "gpus": [],
}


def time_of(median: float, spread: float = 0.01) -> dict[str, float | int]:
    """As `Times.to_dict`, in milliseconds."""
    return {
        "median_ms": median,
        "min_ms": 0.9 * median,
        "mean_ms": median,
        "p90_ms": 1.2 * median,
        "p99_ms": 1.5 * median,
        "spread": spread,
        "turns": 10,
    }


def engine_row(
    engine: str = "openvino",
    precision: str = "f32",
    batch: int = 1,
    median: float = 10.0,
    *,
    spread: float = 0.01,
    figures: Mapping[str, float] | None = None,
    **values: Any,
) -> Row:
    row = Row(
        "engines",
        "tiny",
        {"batch": batch, "engine": engine, "precision": precision},
        check="joints where they should be",
        threads=1,
        clock="wall",
        time=time_of(median, spread),
        figures={"windows_per_s": 1e3 * batch / median, **(figures or {})},
        load=0.5,
    )
    return replace(row, **values)


def people_row(people: int, median: float, precision: str = "f32", **values: Any) -> Row:
    case = {"people": people, "engine": "openvino", "precision": precision, "video": "a.mp4"}
    figures = {"fps": 1e3 / median, "read_ms": 0.5, "network_ms": median - 0.5}
    row = engine_row(median=median)
    return replace(row, group="pipeline", **{"case": case, "figures": figures, **values})


def beside(ratio: float | None, spread: float = 0.01, absent: str = "") -> dict[str, Peer]:
    return {"torch module f32": Peer(ratio, spread, absent=absent)}


def document(*rows: Row, machine: Mapping[str, Any] | None = None, **values: Any) -> Document:
    found = Document(
        rows=rows,
        machine={**MACHINE, **(machine or {})},
        versions={"numpy": "2.4.6"},
        commit="",
        date="2026-11-21",
        command="fastpose bench tiny",
    )
    return replace(found, **values)
