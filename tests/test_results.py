"""Committed figures say on what, with what, when and how they were made and checked."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpose.bench.rows import Document, Peer, Row, read_document
from fastpose.measure import CLOCKS, SPREAD

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results"
DOCUMENTS = sorted(FOLDER.glob("*/*.json"))
STUDIES = sorted(FOLDER.glob("*.json"))  # in forms of their own
TIMES = ("median_ms", "min_ms", "mean_ms", "p90_ms", "p99_ms", "spread", "turns")
PLACES = re.compile(r"(?<![\w.])/(home|root|work|opt|tmp|mnt|media|usr|var|srv|data|Users)/")
CUDA = "cuda"  # a clock of the GPU's own


def programs(command: str) -> list[str]:
    """What of benchmarks/ a command runs."""
    return re.findall(r"benchmarks/[\w/.]+\.(?:py|sh)", command)


def faults_of_command(command: str) -> list[str]:
    found = [f"no {name}" for name in programs(command) if not (ROOT / name).is_file()]
    return found if programs(command) else ["no command of benchmarks/"]


def faults_of_row(row: Row) -> list[str]:
    found = faults_of_command(row.command)
    if row.load is None:
        found.append("no load")
    if (row.refused or row.absent) and row.time:
        found.append("refused or absent, and timed")
    if row.refused and any(peer.ratio is not None for peer in row.peers.values()):
        found.append("refused, with a ratio")
    if row.time:
        found += faults_of_time(row)
    for name, peer in row.peers.items():
        if (peer.ratio is None) != bool(peer.absent or row.refused):
            found.append(f"{name}: neither a ratio nor a reason, or both")
        if peer.spread is not None and peer.spread > SPREAD:
            found.append(f"{name}: ratios spread {peer.spread}")
    for name, least in row.limits.items():
        ratio = row.peers[name].ratio if name in row.peers else None
        if ratio is not None and ratio < least:
            found.append(f"{name}: {ratio} is below the limit of {least}")
    return found


def faults_of_time(row: Row) -> list[str]:
    found = [f"no {name}" for name in TIMES if name not in (row.time or {})]
    if not row.check:
        found.append("no check")
    if row.clock not in (*CLOCKS, CUDA):
        found.append(f"clock {row.clock!r}")
    if row.clock == "thread" and row.threads != 1:
        found.append(f"{row.threads} threads by the clock of one")
    if not found and row.time["spread"] > SPREAD:
        found.append(f"times spread {row.time['spread']}")
    return found


def faults(document: Document) -> list[str]:
    """What is missing in a file of results, or wrong, in words."""
    found = [f"no {name}" for name in ("versions", "commit") if not getattr(document, name)]
    needed = ("python", "processor", "cores")
    found += [f"no {name} of the machine" for name in needed if not document.machine.get(name)]
    try:
        datetime.date.fromisoformat(document.date)
    except ValueError as error:
        found.append(f"date: {error}")
    if not document.rows:
        found.append("no rows")
    keys = [row.key for row in document.rows]
    found += [f"{key}: twice" for key in {key for key in keys if keys.count(key) > 1}]
    if place := PLACES.search(json.dumps(document.to_dict())):
        found.append(f"a path of a machine: {place[0]}")
    return found + [f"{row.key}: {one}" for row in document.rows for one in faults_of_row(row)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_measurements_are_described(path):
    document = read_document(path)
    assert not faults(document)
    assert path.stem == f"{document.date}-{document.commit}"


SOUND = Row(
    "ops",
    "warp",
    {"people": 8},
    check="within 0.01 grey levels",
    threads=1,
    clock="thread",
    time={**dict.fromkeys(TIMES, 1.0), "spread": 0.1, "turns": 40},
    peers={"OpenCV": Peer(7.5, 0.1), "CV-CUDA": Peer(absent="is not installed")},
    limits={"OpenCV": 5.0},
    load=0.5,
    command="pytest benchmarks/ops/bench_warp.py",
)
COMPLETE = Document(
    (SOUND,),
    {"python": "3.11", "processor": "a processor", "cores": 4},
    {"numpy": "2.4"},
    "0123abc",
    "2026-11-21",
    "pytest benchmarks",
)


def changed(**fields: Any) -> Document:
    return replace(COMPLETE, rows=(replace(SOUND, **fields),))


def test_a_sound_document_has_no_fault():
    refused = replace(SOUND, time=None, peers={"OpenCV": Peer(absent="wide")}, refused="wide")
    both = (SOUND, replace(refused, case={"people": 1}))
    assert faults(replace(COMPLETE, rows=both)) == []


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (replace(COMPLETE, versions={}), "no versions"),
        (replace(COMPLETE, commit=""), "no commit"),
        (replace(COMPLETE, machine={"python": "3.11", "cores": 4}), "no processor of the machine"),
        (replace(COMPLETE, date="yesterday"), "date: "),
        (replace(COMPLETE, rows=()), "no rows"),
        (replace(COMPLETE, rows=(SOUND, SOUND)), ": twice"),
        (replace(COMPLETE, command="/home/me/bin/pytest"), "a path of a machine: /home/"),
        (changed(command="pytest"), "no command of benchmarks/"),
        (changed(command="pytest benchmarks/ops/bench_no.py"), "no benchmarks/ops/bench_no.py"),
        (changed(load=None), "no load"),
        (changed(clock=""), "clock ''"),
        (changed(threads=4), "4 threads by the clock of one"),
        (changed(time={**SOUND.time, "spread": 0.3}), "times spread 0.3"),
        (changed(time={"median_ms": 1.0}), "no p99_ms"),
        (changed(refused="wide"), "refused or absent, and timed"),
        (changed(refused="wide", time=None), "refused, with a ratio"),
        (changed(peers={"OpenCV": Peer()}), "OpenCV: neither a ratio nor a reason"),
        (changed(peers={"OpenCV": Peer(7.5, 0.3)}), "OpenCV: ratios spread 0.3"),
        (changed(limits={"OpenCV": 8.0}), "OpenCV: 7.5 is below the limit of 8.0"),
    ],
)
def test_a_fault_is_found(document, fault):
    assert any(fault in found for found in faults(document))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_decode_of_half_the_speed_would_fall_below_a_limit(path):
    """In each way of refining a peak; what reads it alone is held by its count of instructions."""
    caught: dict[str, bool] = {}
    for row in read_document(path).rows:
        if (row.group, row.name) == ("ops", "decode") and row.case["method"] != "argmax":
            method = str(row.case["method"])
            for name, least in row.limits.items():
                ratio = row.peers[name].ratio
                below = ratio is not None and ratio / 2 < least
                caught[method] = caught.get(method, False) or below
    assert [method for method, found in caught.items() if not found] == []


# Studies, each in a form of its own


def measurements(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What has a command and a check of its own, by name."""
    if "rows" in document:
        return {"the file": document}
    about = ("machine", "versions", "date")
    parts = {name: part for name, part in document.items() if name not in about}
    return {name: part for name, part in parts.items() if isinstance(part, dict)}


def faults_of_study(document: dict[str, Any]) -> list[str]:
    found = [f"no {name}" for name in ("machine", "versions", "date") if not document.get(name)]
    parts = measurements(document)
    if not parts:
        found.append("no measurement")
    for name, part in parts.items():
        found += [f"{name}: {fault}" for fault in faults_of_command(part.get("command", ""))]
        if not part.get("check"):
            found.append(f"{name}: no check")
    return found


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_are_described(path):
    assert not faults_of_study(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"machine": None}, "no machine"),
        ({"versions": {}}, "no versions"),
        ({"date": ""}, "no date"),
        ({"rows": []}, "the file: no command"),
        ({"command": "python benchmarks/no.py", "rows": []}, "the file: no benchmarks/no.py"),
        ({"command": "python benchmarks/page.py", "rows": []}, "the file: no check"),
    ],
)
def test_a_fault_of_a_study_is_found(change, fault):
    document = {"machine": "a", "versions": {"python": "3.11"}, "date": "2026-11-21"}
    complete = document | {"study": {"command": "python benchmarks/page.py", "check": "compared"}}
    assert not faults_of_study(complete)
    assert any(fault in each for each in faults_of_study(complete | change))
