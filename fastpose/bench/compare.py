"""Two documents of measurements, row by row: what has become slower, faster or less accurate.

Times that did not take turns in one run are only comparable where they were taken on one machine,
and even there a change smaller than the spread of either median is none. Ratios to peers and counts
outlive a change of machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastpose.bench.rows import Document, ResultsError, Row

FAIL_OVER = 0.05  # share of the figure before
BUSY = 1.5  # load of a core from which others than the run are at work
FAILING = ("slower", "worse", "wrong", "missing")
TIME = "median ms"
RATIO = "ratio to "


@dataclass(frozen=True)
class Change:
    """One figure of one row, before and after.

    Attributes:
        row: its key.
        what: "median ms", "ratio to PEER", or the name of a figure; "" of a row as a whole.
        before: in that figure's unit; None where there is none, as are the next two.
        after: likewise.
        change: share of the figure before; over 0 is worse, infinite if there was nothing before.
        noise: the wider of both spreads, a share as well: what a change has to be over.
        verdict: "slower", "faster" (of times and ratios), "worse", "better" (of other figures),
            "same"; "unclear": over the bound, but not over the noise; "refused": one of the two is
            too unsteady to have the figure, or was wrong before; "wrong": its answer is not right
            any more; "missing": it is not there any more; "new".
        note: why, where the verdict does not say it.
    """

    row: str
    what: str
    before: float | None = None
    after: float | None = None
    change: float | None = None
    noise: float = 0.0
    verdict: str = "same"
    note: str = ""

    @property
    def timed(self) -> bool:
        """Whether it is of a time, or a ratio of two."""
        return self.what == TIME or self.what.startswith(RATIO)

    @property
    def failing(self) -> bool:
        """Whether it fails a gate. What has vanished does: an engine that crashes is not fast."""
        return self.verdict in FAILING

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity: such a change is null."""
        found = asdict(self)
        if self.change is not None and math.isinf(self.change):
            found["change"] = None
        return found


@dataclass(frozen=True)
class _Rule:
    """How a figure is judged.

    Attributes:
        sign: 1 where less is better, -1 where more is.
        least: the smallest change that counts, whatever the bound: in the figure's own unit.
        least_share: likewise, as a share.
        anywhere: it does not depend on the machine.
        bounded: the bound of the comparison applies; else `least` alone does.
    """

    sign: int = 1
    least: float = 0.0
    least_share: float = 0.0
    anywhere: bool = True
    bounded: bool = True


_COUNT = _Rule()
_MEMORY = _Rule(least=1.0, least_share=0.05, anywhere=False)
_ACCURACY = _Rule(sign=-1, least=0.5, bounded=False)
RULES = {
    "pck": _ACCURACY,
    "pckh": _ACCURACY,
    "ap": _ACCURACY,
    "shift_px": _Rule(least=0.05, bounded=False),
    "moved_percent": _Rule(least=0.5, bounded=False),
    "instructions": _COUNT,
    "allocations": _COUNT,
    "allocated_bytes": _COUNT,
    "launches": _COUNT,
    "kernels": _COUNT,
    "copies": _COUNT,
    "syncs": _COUNT,
    "registers": _COUNT,
    "spills": _COUNT,
    "spill_bytes": _COUNT,
    "stack_bytes": _COUNT,
    "file_mb": _Rule(least=0.1),
    "peak_rss_mb": _MEMORY,
    "rss_mb": _MEMORY,
    "device_mb": _MEMORY,
}


def compare(
    before: Document, after: Document, fail_over: float = FAIL_OVER, *, anyway: bool = False
) -> list[Change]:
    """What has changed, in the order of the first document, then what is new.

    Args:
        before: the earlier one.
        after: the later one.
        fail_over: the bound, a share: a time or a ratio has changed if it did by more than this,
            and by more than the spread of either.
        anyway: compare times and memory of machines that differ, too.

    Raises:
        ResultsError: they have no row in common.
        ValueError: `fail_over` is negative or no number.
    """
    if not (fail_over >= 0 and math.isfinite(fail_over)):
        raise ValueError(f"fail_over must be a share from 0, got {fail_over}")
    earlier = {row.key: row for row in before.rows}
    later = {row.key: row for row in after.rows}
    if not earlier.keys() & later.keys():
        text = f"no row in common: {len(earlier)} rows before, {len(later)} after"
        raise ResultsError(f"{text}; they must be of the same model, engines and number of threads")
    here = anyway or not machine_differences(before, after)
    changes = [
        change
        for key, row in earlier.items()
        for change in _changes_of_row(row, later.get(key), fail_over, here)
    ]
    new = [
        Change(key, "", verdict="new")
        for key, row in later.items()
        if key not in earlier and not row.absent
    ]
    return changes + new


def machine_differences(before: Document, after: Document) -> list[str]:
    """In what the two machines differ, so that their times cannot be compared."""
    names = ("processor", "instruction_sets", "cores", "gpus")
    return _unlike(before.machine, after.machine, names)


def other_differences(before: Document, after: Document) -> list[str]:
    """In what else they differ: versions of packages, the system, threads, and who was busy."""
    names = sorted({*before.versions, *after.versions})
    threads = ({"threads": _threads(before)}, {"threads": _threads(after)})
    return [
        *_unlike(before.versions, after.versions, names),
        *_unlike(before.machine, after.machine, ("python", "system")),
        *_unlike(*threads, ("threads",)),
        *_busy(before, after),
    ]


def _busy(before: Document, after: Document) -> list[str]:
    """Loads that others must have been part of, since no run has more threads than cores."""
    loads = [max((row.load or 0.0 for row in one.rows), default=0.0) for one in (before, after)]
    cores = int(before.machine.get("cores") or 0)
    if not cores or max(loads) <= BUSY * cores:
        return []
    return [
        f"load: up to {loads[0]:g} before, {loads[1]:g} after, on {cores} cores: others were at "
        "work, and times may have changed by that"
    ]


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return [
        f"{name}: {_short(before.get(name))} before, {_short(after.get(name))} after"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _threads(document: Document) -> str:
    """Of all rows that were timed; 0 is the choice of the runtime."""
    return ", ".join(map(str, sorted({row.threads for row in document.rows if row.time})))


def _short(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value)) or "none"
    if isinstance(value, Mapping):
        return str(value.get("name", value))
    return "none" if value is None else str(value)


def _changes_of_row(row: Row, now: Row | None, bound: float, here: bool) -> Iterator[Change]:
    if row.absent:
        if now is not None and not now.absent:
            yield Change(row.key, "", verdict="new", note=f"before: {row.absent}")
        return
    if now is None or now.absent:
        yield Change(row.key, "", verdict="missing", note=now.absent if now else "")
        return
    if _wrong(now) and not _wrong(row):
        yield Change(row.key, "", verdict="wrong", note=now.refused)
    elif row.refused or now.refused:
        yield Change(
            row.key,
            TIME,
            row.median_ms,
            now.median_ms,
            verdict="refused",
            note=f"after: {now.refused}" if now.refused else f"before: {row.refused}",
        )
    elif row.time and now.time and here:
        yield _judged(
            row.key,
            TIME,
            (float(row.time["median_ms"]), float(now.time["median_ms"])),
            _Rule(),
            bound,
            max(float(row.time["spread"]), float(now.time["spread"])),
        )
    if not now.refused and not row.refused:
        yield from _changes_of_peers(row, now, bound)
    yield from _changes_of_figures(row, now, bound, here)


def _wrong(row: Row) -> bool:
    """Whether it is refused for its answer: unlike one that is unsteady, the next run is as bad."""
    return bool(row.refused) and not row.unsteady


def _changes_of_peers(row: Row, now: Row, bound: float) -> Iterator[Change]:
    for name, peer in row.peers.items():
        if peer.ratio is None:
            continue
        other = now.peers.get(name)
        if other is None or other.ratio is None:
            # that a peer is not there is no fault of ours: it does not fail
            note = other.absent if other else "the peer is not in the second document"
            yield Change(row.key, f"{RATIO}{name}", peer.ratio, verdict="refused", note=note)
            continue
        noise = max(peer.spread or 0.0, other.spread or 0.0)
        # the peer's time by ours: the inverse is ours in units of the peer's, which less is better
        shares = (1 / peer.ratio, 1 / other.ratio)
        judged = _judged(row.key, f"{RATIO}{name}", shares, _Rule(), bound, noise)
        yield replace(judged, before=peer.ratio, after=other.ratio)


def _changes_of_figures(row: Row, now: Row, bound: float, here: bool) -> Iterator[Change]:
    for name, rule in RULES.items():
        if name not in row.figures or not (rule.anywhere or here):
            continue
        if name not in now.figures:
            yield Change(row.key, name, row.figures[name], verdict="missing")
            continue
        values = (float(row.figures[name]), float(now.figures[name]))
        yield _judged(row.key, name, values, rule, bound, 0.0)


def _judged(
    key: str, what: str, values: tuple[float, float], rule: _Rule, bound: float, noise: float
) -> Change:
    """A change is one if it is over every bound, and sure if it is over the noise as well."""
    before, after = values
    worse = rule.sign * (after - before)
    change = worse / abs(before) if before else math.copysign(math.inf, worse) if worse else 0.0
    shares = max(rule.least_share, bound if rule.bounded else 0.0)
    small = abs(change) <= shares or abs(worse) <= rule.least
    found = Change(key, what, before, after, change, noise)
    if small:
        verdict = "same"
    elif abs(change) <= noise:
        verdict = "unclear"
    elif change > 0:
        verdict = "slower" if found.timed else "worse"
    else:
        verdict = "faster" if found.timed else "better"
    return replace(found, verdict=verdict)
