"""Progress on standard error: a line that is rewritten, or now and then in a log; stages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

ON_SCREEN, IN_LOG = 0.1, 10.0  # seconds between updates


class Progress:
    """Counts what is done.

    Args:
        label: what is being worked on.
        total: how many there will be, or None.
        unit: of what.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "frames",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = self._before = 0
        self._label, self._total, self._unit, self._clock = label, total, unit, clock
        self._screen = sys.stderr.isatty()
        self._start = self._shown = clock()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._start

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._before) / max(self.seconds, 1e-9)

    def resume(self, done: int) -> None:
        """Begin with so many done by a run before; they do not count as fast."""
        self.done = self._before = done

    def step(self, note: str = "", count: int = 1) -> None:
        """Count, and show it when it is time to; `note` follows the figures."""
        self.done += count
        now = self._clock()
        if self.done == self._total:  # `finish` shows that
            return
        if now - self._shown >= (ON_SCREEN if self._screen else IN_LOG):
            self._shown = now
            self._write([self._left(), note])

    def finish(self, note: str = "") -> None:
        """Show the last figures, whether all is done or not, and end the line."""
        self._write([note])
        if self._screen:
            print(file=sys.stderr)

    def _left(self) -> str:
        """How long the rest will take at the rate so far; nothing where that is not known."""
        if self._total is None or not self._before < self.done < self._total:
            return ""
        return f"{_span((self._total - self.done) / max(self.rate, 1e-9))} left"

    def _write(self, notes: list[str]) -> None:
        of = "" if self._total is None else f"/{self._total}"
        speed = f"{self.rate:.1f}/s" if self.rate >= 0.1 else f"{self.rate * 3600:.1f}/h"
        parts = [f"{self._label}: {self.done}{of} {self._unit}", speed]
        line = ", ".join([*parts, *(note for note in notes if note)])
        if self._screen:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    """A length of time for people: 45 s, 3:20 min, 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Stages:
    """The stages of a long piece of work: one line each, with its time, when it is over.

    Attributes:
        seconds: of each stage, by name, in order; one that comes again is added up.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._screen = sys.stderr.isatty()
        self._clock, self._name, self._start = clock, "", clock()

    def begin(self, name: str) -> None:
        """The stage before is over, this one begins."""
        self.finish()
        self._name, self._start = name, self._clock()
        if self._screen:
            print(f"{name} ...", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """The last stage is over, if one had begun."""
        if not self._name:
            return
        took, name, self._name = self._clock() - self._start, self._name, ""
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        start = "\r\x1b[2K" if self._screen else ""
        print(f"{start}{name} {took:.1f} s", file=sys.stderr, flush=True)
