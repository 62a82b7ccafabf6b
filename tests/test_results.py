"""Committed figures say on what, with what, when and how they were made and checked."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
ABOUT = ("machine", "versions", "date")


def described(document: dict[str, Any]) -> dict[str, Any]:
    """Machine, versions and date; a run of benchmarks/gpu.sh has them all in `about`."""
    if "about" not in document:
        return document
    about = document["about"]
    versions = {name: about.get(name) for name in ("torch", "triton", "cuda")}
    return {"machine": about.get("device"), "versions": versions, "date": about.get("date")}


def measurements(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What has a command and a check of its own, by name."""
    if "about" in document:
        timed = [row for row in document["rows"] if row.get("us")]
        return {f"{row['op']} {row['case']}": row | {"check": "difference"} for row in timed}
    if "rows" in document:
        return {"the file": document}
    return {
        name: part
        for name, part in document.items()
        if isinstance(part, dict) and name not in ABOUT
    }


def faults(document: dict[str, Any]) -> list[str]:
    """What is missing in a file of results, in words."""
    found = [f"no {field}" for field in ABOUT if not described(document).get(field)]
    if not found:
        try:
            datetime.datetime.fromisoformat(described(document)["date"])
        except ValueError as error:
            found.append(f"date: {error}")
    parts = measurements(document)
    if not parts:
        found.append("no measurement")
    for name, part in parts.items():
        programs = re.findall(r"benchmarks/\S+\.py", part.get("command", ""))
        if not programs:
            found.append(f"{name}: no command of benchmarks/")
        found += [f"{name}: no {file}" for file in programs if not (ROOT / file).is_file()]
        check = part.get("check")
        if not check or (check == "difference" and part.get("difference") is None):
            found.append(f"{name}: no check")
        found += [f"{name}: {fault}" for row in part.get("rows", ()) for fault in wrong(row)]
    return found


def wrong(row: dict[str, Any]) -> list[str]:
    """A ratio that is not that of its two times."""
    if not {"peer_us", "ours_us", "ratio"} <= row.keys():
        return []
    ratio = row["peer_us"] / row["ours_us"]
    off = abs(ratio - row["ratio"])
    return [f"ratio {row['ratio']} of {ratio:.2f}"] if off > 0.05 + 0.03 * ratio else []


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_figures_are_described(file):
    assert not faults(json.loads(file.read_text()))


def test_there_are_figures():
    assert RESULTS


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"machine": None}, "no machine"),
        ({"versions": {}}, "no versions"),
        ({"date": "yesterday"}, "date: "),
        ({"warp": {"rows": []}}, "warp: no command"),
        ({"warp": {"command": "python benchmarks/ops/bench_no.py"}}, "warp: no benchmarks/"),
        ({"warp": {"command": "python benchmarks/ops/bench_warp.py"}}, "warp: no check"),
        ({"warp": {"rows": [{"peer_us": 30, "ours_us": 10, "ratio": 4.0}]}}, "warp: ratio 4.0"),
    ],
)
def test_a_missing_field_is_found(change, fault):
    document = {"machine": {"cpu": "a"}, "versions": {"python": "3.11"}, "date": "2026-11-21"}
    complete = document | {
        "warp": {"command": "python benchmarks/ops/bench_warp.py", "check": "compared"}
    }
    assert not faults(complete)
    assert any(fault in each for each in faults(complete | change))


def test_a_run_on_a_gpu_is_described():
    row = {"op": "warp", "case": "8", "us": 3.0, "command": "python benchmarks/gpu/warp.py"}
    about = {"device": "a GPU", "torch": "2.11", "date": "2026-11-21T10:00:00+00:00"}
    document = {"about": about, "rows": [row | {"difference": 0.0}]}
    assert not faults(document)
    assert faults(document | {"rows": [row]}) == ["warp 8: no check"]
