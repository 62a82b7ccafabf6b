"""Counts that were committed, and how a count is held against them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastpose.bench.rows import Peer, Row, load

FILE = Path(__file__).with_name("baseline.json")
SAME, OTHER = 1.05, 1.5  # what a count may be of its baseline, made with the same tools or others
BASELINE = "baseline"  # how it is called among the peers of a row


@dataclass(frozen=True)
class Baseline:
    """The committed counts of one kind.

    Attributes:
        kind: of counts, "instructions" or "allocated_bytes".
        tools: what decides them here, such as "GCC 12".
        update: what is counted now becomes the baseline.
        path: the file.
    """

    kind: str
    tools: str
    update: bool = False
    path: Path = FILE

    def hold(self, row: Row, key: str, exact: Mapping[str, int] | None = None) -> Row:
        """The row with its baseline as a peer: what that counted divided by what ours did.

        Args:
            row: with the figure `kind`.
            key: of the case in the file.
            exact: figures of the row to keep beside it; they are told, and not held to.
        """
        now = int(row.figures[self.kind])
        if self.update:
            self._write(key, {self.kind: now, **(exact or {})})
        part = self._read().get(self.kind, {})
        before = part.get("cases", {}).get(key)
        if before is None:
            peer = Peer(absent="no such case in the baseline: --update-counts takes it in")
            return replace(row, peers={BASELINE: peer}, load=load())
        known = int(before[self.kind])
        allowed = SAME if part["tools"] == self.tools else OTHER
        peer = Peer(
            round(known / max(now, 1), 4),
            difference=f"{now - known:+d}",
            figures={name: float(value) for name, value in before.items()},
            version=part["tools"],
        )
        limits = {BASELINE: round(1 / allowed, 4)}
        return replace(row, peers={BASELINE: peer}, limits=limits, load=load())

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def _write(self, key: str, counts: dict[str, int]) -> None:
        known = self._read()
        part = known.get(self.kind, {})
        # Counts made with other tools are none to stand beside these.
        cases = part.get("cases", {}) if part.get("tools") == self.tools else {}
        known[self.kind] = {"tools": self.tools, "cases": {**cases, key: counts}}
        self.path.write_text(json.dumps(known, indent=1) + "\n")
