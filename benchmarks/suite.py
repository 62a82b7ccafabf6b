"""What the benchmarks share: rows that are checked, timed by turns, kept, and held to limits."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fastpose.bench.rows import (
    Document,
    Peer,
    Row,
    load,
    machine_name,
    new_document,
    read_document,
)
from fastpose.bench.rows import timed as figures_of
from fastpose.measure import TRIES, Call, Times, steady, take_turns

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class WrongAnswerError(AssertionError):
    """What was to be timed gives another answer."""


@dataclass(frozen=True)
class Beside:
    """A peer's way of doing the same.

    Attributes:
        call: takes its turns; None where it is absent.
        check: compares its answer with ours and returns the difference in words; raises
            `WrongAnswerError` if it is another one.
        at_least: the ratio below which the benchmark fails; None for no gate.
        version: of the peer.
        figures: what else is known of it, such as its accuracy.
        absent: why there is none.
    """

    call: Call | None = None
    check: Callable[[], str] | None = None
    at_least: float | None = None
    version: str = ""
    figures: Mapping[str, float] | None = None
    absent: str = ""


class Suite:
    """The rows of a run, which are written after each of them.

    Attributes:
        rows: so far.
    """

    def __init__(self, config: pytest.Config) -> None:
        words = [word.replace(f"{ROOT}{os.sep}", "") for word in config.invocation_params.args]
        command = shlex.join(["pytest", *(Path(w).name if w.startswith("/") else w for w in words)])
        fresh = new_document((), command, ROOT)
        given = config.getoption("--results")
        name = config.getoption("--machine") or machine_name(fresh.machine)
        default = RESULTS / name / f"{fresh.date}-{fresh.commit}.json"
        self.path = Path(given) if given else default
        self.document: Document = self._continued(fresh)
        self.rows: list[Row] = []

    def _continued(self, fresh: Document) -> Document:
        """Parts of the suite that run one after another fill one file, which names them all.

        Raises:
            pytest.UsageError: the file has rows of other sources, or of another machine.
        """
        if not self.path.exists():
            return fresh
        known = read_document(self.path)
        ours, theirs = (
            f"commit {one.commit} on {machine_name(one.machine)}" for one in (fresh, known)
        )
        if ours != theirs:
            raise pytest.UsageError(f"{self.path.name} has rows of {theirs}, this is {ours}")
        commands = dict.fromkeys([*known.command.split("; "), fresh.command])
        return replace(known, command="; ".join(commands))

    def add(self, row: Row) -> Row:
        """Keep a row, at once: the run may be stopped at any moment."""
        self.rows.append(row)
        self.document = self.document.with_rows([row])
        self.document.write(self.path)
        return row


class Timed:
    """The `timed` fixture."""

    def __init__(self, suite: Suite, benchmark: Any, command: str) -> None:
        self.suite, self.benchmark, self.command = suite, benchmark, command
        self.used = False

    def __call__(
        self,
        group: str,
        name: str,
        case: Mapping[str, Any],
        ours: Call,
        *,
        check: Callable[[], str],
        beside: Mapping[str, Beside] | None = None,
        figures: Mapping[str, float] | None = None,
        rounds: int = 40,
        clock: str = "thread",
        threads: int = 1,
        device: str = "cpu",
        per_second: tuple[str, int] | None = None,
        **turns: Any,
    ) -> Row:
        """One row.

        Args:
            group: of `fastpose.bench.rows.GROUPS`.
            name: what is measured.
            case: on what.
            ours: what is timed.
            check: compares our answer with the truth and returns how far it was, in words; raises
                `WrongAnswerError` if it is another one. Nothing is timed before.
            beside: peers by name, absent ones too.
            figures: what else is known of the row.
            rounds: turns of each.
            clock: as in `take_turns`.
            threads: that ours works with.
            device: of the work.
            per_second: a name and how many of it a call does: ("fps", 1) gives the figure fps.
            turns: the rest of `take_turns`: before, repeats, settle, warm_up.

        Returns:
            The row. One that stays unsteady is kept as refused, without its times, and the
            benchmark skipped, as it is where the ratio to a peer with a limit stays so.
        """
        beside = dict(beside or {})
        row = Row(group, name, case, check(), threads, device, clock, command=self.command)
        words = {n: peer.check() for n, peer in beside.items() if peer.call and peer.check}
        if self.checks_only:
            return row
        calls = {"ours": ours, **{n: peer.call for n, peer in beside.items() if peer.call}}

        def take() -> dict[str, Times]:
            return self.take(calls, rounds=rounds, clock=clock, **turns)

        limits = {n: peer.at_least for n, peer in beside.items() if peer.at_least is not None}
        for _ in range(TRIES):  # one that is too slow indeed is so each time
            time_, ratios, refused = figures_of(steady(take))
            if not any(n in ratios and _below(ratios[n], least) for n, least in limits.items()):
                break
        peers = {
            n: replace(
                ratios.get(n) or Peer(absent=peer.absent or refused),
                difference=words.get(n, ""),
                version=peer.version,
                figures=dict(peer.figures or {}),
            )
            for n, peer in beside.items()
        }
        found = dict(figures or {})
        if time_ and per_second:
            found[per_second[0]] = round(1e3 * per_second[1] / time_["median_ms"], 2)
        row = self.suite.add(
            replace(
                row,
                time=time_,
                figures=found,
                peers=peers,
                limits=limits,
                refused=refused,
                load=load(),
            )
        )
        if refused:
            pytest.skip(f"refused: {refused}")
        assert_limits(row)
        unknown = [f"{n}: {row.peers[n].absent}" for n in limits if row.peers[n].unsteady]
        if unknown:
            pytest.skip(f"refused: {'; '.join(unknown)}")
        return row

    @property
    def checks_only(self) -> bool:
        """--benchmark-disable: answers are checked, and nothing is timed for a row."""
        return bool(getattr(self.benchmark, "disabled", False))

    def take(self, calls: Mapping[str, Call], **turns: Any) -> dict[str, Times]:
        """`take_turns`, for what makes rows by itself."""
        if self.checks_only:
            return take_turns(
                calls, **{**turns, "rounds": 1, "repeats": 1, "warm_up": 0, "settle": 0.0}
            )
        # pytest-benchmark lets its fixture be used once
        pedantic = None if self.used else getattr(self.benchmark, "pedantic", None)
        self.used = True
        return take_turns(calls, pedantic=pedantic, **turns)

    def keep(self, row: Row, limits: Mapping[str, float] | None = None) -> Row:
        """A row that was made elsewhere; `assert_limits` holds it against its limits."""
        if self.checks_only:
            return row
        return self.suite.add(replace(row, limits=dict(limits or {}), command=self.command))


def assert_limits(row: Row) -> None:
    """Fail where a ratio is below its limit; a peer that is absent here has none."""
    slow = [
        f"{name} {row.peers[name].ratio}, at least {least}"
        for name, least in row.limits.items()
        if _below(row.peers[name], least)
    ]
    assert not slow, f"{row.key}: {'; '.join(slow)}"


def _below(peer: Peer, least: float) -> bool:
    return peer.ratio is not None and peer.ratio < least
