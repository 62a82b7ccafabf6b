"""The one timer: calls by turns, what their times say, and how long each stage of a frame took.

Times of two runs on one machine differ by more than most improvements: its clock, its caches and
whoever else works there change between them. So everything that is compared takes turns in one
run, and a ratio is the median of the ratios of the turns, not of two medians.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

SPREAD = 0.15  # a median that may be further off than this share of it is refused
NOTCH = 1.57  # of `spread`
FEWEST = 4  # values whose quartiles say something
TRIES = 3  # for a steady one
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "thread": time.thread_time,  # processor time of the calling thread: other work does not count
}
SHORTEST = 1e-4  # seconds of a turn, so that reading the clock counts for little
WARM_UP = 2  # turns that are not counted


@runtime_checkable
class Elsewhere(Protocol):
    """A call that is done and timed by another process."""

    def turn(self, repeats: int) -> float:
        """Do it `repeats` times there.

        Returns:
            The seconds of all of them.
        """


Call = Callable[[], object] | Elsewhere


@dataclass(frozen=True)
class Times:
    """How long one call took, in seconds, in each turn.

    Attributes:
        seconds: of one call, in the order of the turns; at least one.
    """

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("seconds must hold at least one time")

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """How far the median may be off; see `spread`."""
        return spread(self.seconds)

    def percentile(self, share: float) -> float:
        """The time within which that share of the turns was done, in seconds."""
        return percentile(self.seconds, share)

    def ratio_to(self, other: Times) -> tuple[float, float]:
        """Median and spread of other's time divided by ours, turn by turn: over 1, ours is faster.

        Raises:
            ValueError: the two did not take turns.
        """
        if len(other.seconds) != len(self.seconds):
            raise ValueError(f"expected {len(self.seconds)} turns, got {len(other.seconds)}")
        ratios = [b / a for a, b in zip(self.seconds, other.seconds, strict=True)]
        return statistics.median(ratios), spread(ratios)

    def to_dict(self) -> dict[str, float | int]:
        """Milliseconds to six significant digits, the spread, and the number of turns."""
        figures = {
            "median_ms": 1e3 * self.median,
            "min_ms": 1e3 * min(self.seconds),
            "mean_ms": 1e3 * statistics.fmean(self.seconds),
            "p90_ms": 1e3 * self.percentile(0.9),
            "p99_ms": 1e3 * self.percentile(0.99),
        }
        rounded: dict[str, float | int] = {k: float(f"{v:.6g}") for k, v in figures.items()}
        return {**rounded, "spread": round(self.spread, 4), "turns": len(self.seconds)}


def spread(values: Sequence[float]) -> float:
    """How far the median may be off, as a share of it; 0 of fewer than `FEWEST` values.

    Half of its 95 % interval, by the distance of the quartiles and the number of values (McGill,
    Tukey and Larsen, Variations of Box Plots, The American Statistician, 1978): what is noisy
    becomes known by more turns.
    """
    if len(values) < FEWEST:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return NOTCH * (high - low) / math.sqrt(len(values)) / middle if middle else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies, between two neighbours by their distance."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def take_turns(
    calls: Mapping[str, Call],
    *,
    rounds: int = 40,
    repeats: int | None = None,
    clock: str = "wall",
    before: Callable[[], object] | None = None,
    settle: float = 0.0,
    warm_up: int = WARM_UP,
    pedantic: Callable[..., object] | None = None,
) -> dict[str, Times]:
    """Time calls by turns: A B C A B C ...

    Args:
        calls: by name. The first is ours: of a process elsewhere, too, its times are kept.
        rounds: how many turns of each are counted.
        repeats: calls in a turn; None chooses for each as many as last `SHORTEST`.
        clock: "wall", or "thread" for work that its calling thread does alone.
        before: done before each call, off the clock: it puts back what calls write over, and leaves
            the caches alike for all. The calls of a turn are then timed one by one, and their
            median counts.
        settle: seconds to wait before each turn, after which one call is not counted: the threads
            of a runtime go on spinning for a while and slow down whoever comes next.
        warm_up: turns before the first that counts.
        pedantic: `benchmark.pedantic` of pytest-benchmark, through which the turns are taken, so
            that its own table and files have ours, too.

    Returns:
        The times of each call, by its name.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_turns(calls, rounds, repeats, clock, warm_up)
    turns = [_Turn(call, CLOCKS[clock], before, settle, repeats) for call in calls.values()]
    for _ in range(warm_up):
        for turn in turns:
            turn.take()
    for turn in turns:
        turn.choose_repeats()
    with _uncollected():
        (pedantic or _rounds)(
            turns[0].take_and_keep, setup=_let(turns[1:], turns[0]), rounds=rounds, iterations=1
        )
    return {name: Times(tuple(turn.kept)) for name, turn in zip(calls, turns, strict=True)}


def _check_turns(
    calls: Mapping[str, Call],
    rounds: int,
    repeats: int | None,
    clock: str,
    warm_up: int,
) -> None:
    if not calls:
        raise ValueError("calls must name at least one call")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if clock not in CLOCKS:
        raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
    if repeats is None and warm_up < 1:
        raise ValueError("repeats must be given where no turn is taken before, to choose them by")


def _rounds(
    target: Callable[[], object], *, setup: Callable[[], None], rounds: int, iterations: int
) -> None:
    """What `benchmark.pedantic` does with these arguments."""
    for _ in range(rounds):
        setup()
        for _ in range(iterations):
            target()


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection, which would fall on whoever has the turn."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _let(others: Sequence[_Turn], ours: _Turn) -> Callable[[], None]:
    """The others' turns, and all of ours that is off the clock."""

    def take() -> None:
        for turn in others:
            turn.prepare()
            turn.take_and_keep()
        ours.prepare()

    return take


@dataclass
class _Turn:
    """One call's turns."""

    call: Call
    clock: Callable[[], float]
    before: Callable[[], object] | None
    settle: float
    repeats: int | None
    last: float = 0.0
    kept: list[float] = field(default_factory=list)

    def choose_repeats(self) -> None:
        if self.repeats is None:
            self.repeats = max(1, round(SHORTEST / max(self.last, 1e-9)))

    def take(self) -> None:
        self.prepare()
        self._run()

    def take_and_keep(self) -> None:
        self._run()
        self.kept.append(self.last)

    def prepare(self) -> None:
        if self.settle:
            time.sleep(self.settle)
            self._once()
        if self.before is not None:
            self.before()

    def _run(self) -> None:
        repeats = self.repeats or 1
        if isinstance(self.call, Elsewhere):
            self.last = self.call.turn(repeats) / repeats
        elif self.before is None:
            self.last = self._seconds(repeats) / repeats
        else:
            took = [self._seconds(1)]  # `prepare` has done what comes before
            for _ in range(repeats - 1):
                self.before()
                took.append(self._seconds(1))
            self.last = statistics.median(took)

    def _seconds(self, repeats: int) -> float:
        call, clock = self.call, self.clock
        assert not isinstance(call, Elsewhere)
        start = clock()
        for _ in range(repeats):
            call()
        return clock() - start

    def _once(self) -> None:
        if isinstance(self.call, Elsewhere):
            self.call.turn(1)
        else:
            if self.before is not None:
                self.before()
            self.call()


def steady(take: Callable[[], Mapping[str, Times]], bound: float = SPREAD) -> dict[str, Times]:
    """Times whose spreads are within a bound, of the first try that has such.

    Args:
        take: takes the turns; called up to `TRIES` times.
        bound: of each spread.

    Returns:
        The times of the steadiest try: who asks looks at their spreads.
    """
    best: dict[str, Times] = {}
    for _ in range(TRIES):
        found = dict(take())
        if not best or _worst(found) < _worst(best):
            best = found
        if _worst(best) <= bound:
            break
    return best


def _worst(times: Mapping[str, Times]) -> float:
    return max(own.spread for own in times.values())


_spent: ContextVar[dict[str, float] | None] = ContextVar("fastpose_stages", default=None)


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Where the time of a frame goes: seconds of wall time by stage, summed up while it is open.

    Stages are "read", "detect", "crop", "network", "decode", "follow", "draw" and "write"; work of
    other threads than this one is not seen.

    Yields:
        A dict that fills up.
    """
    spent: dict[str, float] = {}
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)


class stage:  # noqa: N801 - read as a statement
    """What is done inside belongs to the stage of that name; costs nothing worth while unwatched.

    Stages do not nest: the inner one would be counted twice.
    """

    __slots__ = ("_name", "_spent", "_start")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._spent = _spent.get()
        if self._spent is not None:
            self._start = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        if self._spent is not None:
            took = time.perf_counter() - self._start
            self._spent[self._name] = self._spent.get(self._name, 0.0) + took
