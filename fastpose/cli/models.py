"""`fastpose models`: what there is, how right it is, and under which terms."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpose.models.spec import DetectorSpec, ModelSpec

WIDTH = 100  # columns
LINE = "{:<17}{:>10}{:>8}{:>11}{:>9}{:>7}  {}"
LEGEND = (
    "GMAC: 10^9 multiply-adds of convolutions and matrix products, of each view of a person or of\n"
    "a detector's frame with all its boxes. Field: pixels on each axis that a cell can see; in an\n"
    "input that is no larger, all of it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None beyond those of every verb."""


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    from fastpose.models import DETECTORS, MODELS

    poses = [_pose_row(name) for name in MODELS]
    detectors = [_detector_row(name) for name in DETECTORS]
    if args.json:
        print(json.dumps({"models": poses, "detectors": detectors}))
        return 0
    _print_table("model", "joints", poses)
    print()
    _print_table("detector", "classes", detectors)
    print()
    print(LEGEND)
    return 0


def _pose_row(name: str) -> dict[str, Any]:
    from fastpose.models import DEFAULT_MODEL, MODELS
    from fastpose.models.trained import graph_path

    spec = MODELS[name]
    row = _row(spec, name == DEFAULT_MODEL, [graph_path(name)])
    return {**row, "skeleton": spec.skeleton, "views": len(spec.views)}


def _detector_row(name: str) -> dict[str, Any]:
    from fastpose.engines.source import HALVES
    from fastpose.models import DEFAULT_DETECTOR, DETECTORS
    from fastpose.models.trained import graph_path

    spec = DETECTORS[name]
    halves = [graph_path(f"{name}.{half}") for half in HALVES]
    return {**_row(spec, name == DEFAULT_DETECTOR, halves), "classes": list(spec.classes)}


def _row(
    spec: ModelSpec | DetectorSpec, default: bool, graphs: Sequence[Path | None]
) -> dict[str, Any]:
    from fastpose.models.costs import COSTS
    from fastpose.models.trained import card

    cost = COSTS.get(spec.name)
    kept = [graph.stat().st_size for graph in graphs if graph is not None]
    details = card(spec.name) if kept else {}
    return {
        "name": spec.name,
        "default": default,
        "size": list(spec.size),
        "parameters": spec.parameters,
        "gmacs": cost and cost.gmacs,
        "receptive_field": cost and cost.receptive_field,
        "trained": bool(kept),
        "megabytes": round(sum(kept) / 1e6, 1) if kept else None,
        "accuracy": details.get("accuracy"),
        "terms": details.get("terms"),
        "paper": spec.paper,
    }


def _print_table(what: str, finds: str, rows: list[dict[str, Any]]) -> None:
    print(LINE.format(what, "input", finds, "parameters", "GMAC", "field", "weights"))
    for row in rows:
        size = f"{row['size'][0]}x{row['size'][1]}"
        millions = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "-"
        found = row.get("skeleton") or len(row["classes"])
        print(LINE.format(row["name"], size, found, millions, *_cost(row), _weights(row)))
        for text in (_accuracy(row), row["terms"]):
            if text:
                print(textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    "))


def _cost(row: dict[str, Any]) -> tuple[str, str]:
    """Multiply-adds, by views where a person is seen several times, and the receptive field."""
    if row["gmacs"] is None:
        return "-", "-"
    views = row.get("views", 1)
    field = row["receptive_field"]
    return f"{views}x" * (views > 1) + f"{row['gmacs']:.1f}", "all" if field is None else str(field)


def _weights(row: dict[str, Any]) -> str:
    if not row["trained"]:
        return "none here: random, or your own"
    return f"{row['megabytes']} MB" + (" (default)" if row["default"] else "")


def _accuracy(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.3g}" for key, value in (row["accuracy"] or {}).items())
