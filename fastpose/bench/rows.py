"""Rows of measurements, and the document they stand in: one form for the suite and the command."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastpose.errors import FastposeError
from fastpose.machine import machine, versions
from fastpose.measure import SPREAD, Times

SCHEMA = 2
HEAD = ("machine", "versions", "commit", "date", "command")  # of a document
NAMES = {*HEAD, "schema", "spread_bound", "rows"}
UNSTEADY = "the median"  # how a refusal for the spread begins
GROUPS = ("ops", "engines", "pipeline", "accuracy", "startup", "memory", "counts")


class ResultsError(FastposeError):
    """A file is no document of measurements."""


@dataclass(frozen=True)
class Peer:
    """What another project's way of doing the same took, beside ours.

    Attributes:
        ratio: its time divided by ours, the median of the turns; None where it is absent.
        spread: of the ratios.
        difference: how far its answer was from ours, in words with its unit.
        time: its times, as `Times.to_dict`.
        figures: what else was measured of it, such as its accuracy.
        version: of it.
        absent: why there is nothing of it, in one line.
    """

    ratio: float | None = None
    spread: float | None = None
    difference: str = ""
    time: Mapping[str, float | int] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    absent: str = ""

    @property
    def unsteady(self) -> bool:
        """Whether it is absent for the spread of its ratios."""
        return self.absent.startswith(UNSTEADY)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        group: one of `GROUPS`.
        name: what was measured, such as "warp" or "cpn50".
        case: on what, such as {"people": 8, "engine": "openvino", "precision": "bf16"}; with group,
            name, device and threads the key of the row.
        check: what the answer was compared with before it was timed, and how far it was from it.
        threads: that ours worked with; 0 where the runtime chose.
        device: "cpu" or "cuda".
        clock: "wall", "thread" or "cuda"; "" where nothing was timed.
        time: as `Times.to_dict`; None where nothing was timed.
        figures: what else is known, by name and unit: "fps", "pck", "shift_px", "moved_percent",
            "peak_rss_mb", "device_mb", "compile_s", "file_mb", "instructions", ...
        peers: by name.
        limits: what the row is held against: peer or figure -> at least.
        refused: why the times are not given; then there are none.
        absent: why there is nothing at all.
        load: of the machine, over the last minute.
        command: that makes the row again.
    """

    group: str
    name: str
    case: Mapping[str, str | int | float | bool]
    check: str = ""
    threads: int = 0
    device: str = "cpu"
    clock: str = ""
    time: Mapping[str, float | int] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    peers: Mapping[str, Peer] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""
    absent: str = ""
    load: float | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {self.group!r}")
        if self.time is not None and not self.check:
            raise ValueError(f"{self.name}: what was timed must have been checked")

    @property
    def key(self) -> str:
        """What makes the row another one, in a form for people too."""
        case = " ".join(f"{name}={value}" for name, value in self.case.items())
        where = f"{self.device}" + (f" {self.threads} threads" if self.threads else "")
        return f"{self.group} {self.name} {case} ({where})"

    @property
    def median_ms(self) -> float | None:
        """None where nothing was timed."""
        return None if self.time is None else float(self.time["median_ms"])

    @property
    def unsteady(self) -> bool:
        """Whether it is refused for the spread of its times, and not for its answer."""
        return self.refused.startswith(UNSTEADY)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is empty is left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found["peers"] = {
            name: {
                k: getattr(peer, k) for k in peer.__dataclass_fields__ if _told(getattr(peer, k))
            }
            for name, peer in self.peers.items()
        }
        found["case"] = dict(self.case)
        kept = ("group", "name", "case", "threads", "device")
        return {name: value for name, value in found.items() if name in kept or _told(value)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Row:
        """The row of such a dict.

        Raises:
            ResultsError: it is none.
        """
        try:
            peers = {name: Peer(**peer) for name, peer in entry.get("peers", {}).items()}
            row = cls(**{**entry, "peers": peers})
            _check_types(row)
        except (TypeError, ValueError, AttributeError) as error:
            raise ResultsError(f"not a row of measurements: {error}") from error
        return row


def _check_types(row: Row) -> None:
    """Of what is computed with.

    Raises:
        TypeError: one is another.
    """
    for name in ("case", "figures", "limits"):
        if not isinstance(getattr(row, name), Mapping):
            raise TypeError(f"{name} must be an object, got {getattr(row, name)!r}")
    numbers: dict[str, object] = dict(row.figures)
    if row.time is not None:
        numbers |= {"median_ms": None, "spread": None, **row.time}
    for name, peer in row.peers.items():
        if peer.ratio is not None:
            numbers |= {f"ratio to {name}": peer.ratio or None}
    for name, value in numbers.items():
        if type(value) not in (int, float):
            raise TypeError(f"{name} must be a number, got {value!r}")


def _told(value: object) -> bool:
    return value is not None and value != "" and value != {}


def timed(
    times: Mapping[str, Times], *, bound: float = SPREAD
) -> tuple[dict[str, float | int] | None, dict[str, Peer], str]:
    """What a row says of calls that took turns, the first of them ours.

    Returns:
        Our time; each peer, with the ratio alone; and why the row is refused, or "". A row is
        refused if our times spread over the bound; a peer is absent if its ratios do.
    """
    (_, ours), *others = times.items()
    peers = {}
    for name, theirs in others:
        ratio, wide = ours.ratio_to(theirs)
        if wide > bound:
            why = f"{UNSTEADY} of its ratio may be {100 * wide:.0f} % off, over {100 * bound:.0f}"
            peers[name] = Peer(absent=why)
            continue
        peers[name] = Peer(float(f"{ratio:.4g}"), round(wide, 4), time=theirs.to_dict())
    if ours.spread > bound:
        why = f"{UNSTEADY} may be {100 * ours.spread:.0f} % off, over {100 * bound:.0f}"
        return None, {}, why
    return ours.to_dict(), peers, ""


@dataclass(frozen=True)
class Document:
    """Rows of one machine and state of the sources.

    Attributes:
        rows: in the order they were measured.
        machine: as `fastpose.machine.machine`.
        versions: of packages.
        commit: of the sources, "" where they are in no repository.
        date: of the first row.
        command: that made them, folders by their last name.
        extra: what else a program has to say of the run, by names of its own, which stand beside
            the others in the file.
    """

    rows: tuple[Row, ...]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str
    date: str
    command: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted(NAMES & set(self.extra))
        if taken:
            raise ValueError(f"extra must have names of its own, got {', '.join(taken)}")

    def with_rows(self, rows: Iterable[Row]) -> Document:
        """These rows too; one of the same key takes the other's place."""
        merged = {row.key: row for row in self.rows} | {row.key: row for row in rows}
        return replace(self, rows=tuple(merged.values()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in HEAD},
            "spread_bound": SPREAD,
            **self.extra,
            "rows": [row.to_dict() for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all.

        Raises:
            ResultsError: the file cannot be written.
        """
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error


def new_document(rows: Sequence[Row], command: str, folder: Path | None = None) -> Document:
    """A document of this machine and moment.

    Args:
        rows: may be none yet.
        command: that makes them.
        folder: in whose repository the sources are.
    """
    return Document(
        tuple(rows),
        machine(),
        versions(),
        commit_of(folder) if folder else "",
        datetime.date.today().isoformat(),
        command,
    )


def read_document(path: Path) -> Document:
    """A document as it was written.

    Raises:
        ResultsError: there is no such file, or it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ResultsError(f"{path}: expected measurements of fastpose with schema {SCHEMA}")
    try:
        rows = tuple(Row.from_dict(row) for row in found["rows"])
        extra = {name: value for name, value in found.items() if name not in NAMES}
        for name in ("machine", "versions"):
            if not isinstance(found[name], dict):
                raise TypeError(f"{name} must be an object, got {found[name]!r}")
        return Document(rows=rows, extra=extra, **{name: found[name] for name in HEAD})
    except (KeyError, TypeError, ResultsError) as error:
        raise ResultsError(f"{path}: {error}") from error


def commit_of(folder: Path) -> str:
    """Hash of the commit, "-dirty" behind it where files differ from it; "" outside one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def without_folders(text: str) -> str:
    """Files by their last name alone: rows are read elsewhere, and tell nothing of this machine."""
    return re.sub(r"(?<![^\s'\"])(?:/[^\s/:]+)+/(?=[^\s/:])", "", text)


def machine_name(found: Mapping[str, Any]) -> str:
    """A name for a folder: processor, cores and GPU, such as "amd-epyc-4-cores"."""
    gpus = [gpu.get("name", "") for gpu in found.get("gpus", [])][:1]
    words = [*gpus, str(found.get("processor", "")), f"{found.get('cores')} cores"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def load() -> float:
    """Of the machine, over the last minute."""
    return round(os.getloadavg()[0], 2)
