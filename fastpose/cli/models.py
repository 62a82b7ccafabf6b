"""`fastpose models`: what there is, how right it is, and under which terms."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpose.models.spec import DetectorSpec, ModelSpec


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
    return 0


def _pose_row(name: str) -> dict[str, Any]:
    from fastpose.models import DEFAULT_MODEL, MODELS
    from fastpose.models.trained import graph_path

    spec = MODELS[name]
    row = _row(spec, name == DEFAULT_MODEL, [graph_path(name)])
    return {**row, "skeleton": spec.skeleton}


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
    from fastpose.models.trained import card

    kept = [graph.stat().st_size for graph in graphs if graph is not None]
    details = card(spec.name) if kept else {}
    return {
        "name": spec.name,
        "default": default,
        "size": list(spec.size),
        "parameters": spec.parameters,
        "trained": bool(kept),
        "megabytes": round(sum(kept) / 1e6, 1) if kept else None,
        "accuracy": details.get("accuracy"),
        "terms": details.get("terms"),
        "paper": spec.paper,
    }


def _print_table(what: str, finds: str, rows: list[dict[str, Any]]) -> None:
    print(f"{what:<14}{'input':>10}{finds:>9}{'parameters':>12}  weights")
    for row in rows:
        size = f"{row['size'][0]}x{row['size'][1]}"
        millions = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "-"
        found = row.get("skeleton") or len(row["classes"])
        print(f"{row['name']:<14}{size:>10}{found:>9}{millions:>12}  {_weights(row)}")
        if row["terms"]:
            print(f"{'':<47}{row['terms']}")


def _weights(row: dict[str, Any]) -> str:
    if not row["trained"]:
        return "none here: random, or your own"
    scores = [f"{key} {value:.3g}" for key, value in (row["accuracy"] or {}).items()]
    size = f"{row['megabytes']} MB"
    return ", ".join([size, *scores]) + (" (default)" if row["default"] else "")
