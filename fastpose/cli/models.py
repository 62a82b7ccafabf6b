"""`fastpose models`: what there is, how right it is, and under which terms."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None beyond those of every verb."""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from fastpose.models import MODELS

    rows = [_row(name) for name in MODELS]
    if args.json:
        print(json.dumps({"models": rows}))
        return 0
    head = f"{'model':<14}{'input':>9}{'joints':>9}{'parameters':>12}  weights"
    print(head)
    for row in rows:
        size = f"{row['size'][0]}x{row['size'][1]}"
        millions = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "-"
        print(f"{row['name']:<14}{size:>9}{row['skeleton']:>9}{millions:>12}  {_weights(row)}")
        if row["terms"]:
            print(f"{'':<46}{row['terms']}")
    return 0


def _row(name: str) -> dict[str, Any]:
    from fastpose.models import DEFAULT_MODEL, MODELS
    from fastpose.models.trained import card, graph_path

    spec = MODELS[name]
    graph = graph_path(name)
    details = card(name) if graph else {}
    return {
        "name": name,
        "default": name == DEFAULT_MODEL,
        "size": list(spec.size),
        "skeleton": spec.skeleton,
        "parameters": spec.parameters,
        "trained": graph is not None,
        "megabytes": round(graph.stat().st_size / 1e6, 1) if graph else None,
        "accuracy": details.get("accuracy"),
        "terms": details.get("terms"),
        "paper": spec.paper,
    }


def _weights(row: dict[str, Any]) -> str:
    if not row["trained"]:
        return "none here: random, or your own"
    scores = [f"{key} {value:.1f}" for key, value in (row["accuracy"] or {}).items()]
    size = f"{row['megabytes']} MB"
    return ", ".join([size, *scores]) + (" (default)" if row["default"] else "")
