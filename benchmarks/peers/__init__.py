"""Peers: other projects that do the same, to be timed and scored beside us.

Those that pin other packages live in environments of their own and work in processes of their own;
the others are imported where they are. Whoever is missing is absent with a reason in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from suite import Beside

from peers.install import PEERS, Environment
from peers.process import AbsentError, PeerError, PeerProcess, Prepared

__all__ = ["PEERS", "AbsentError", "Environment", "PeerError", "PeerProcess", "Peers", "Prepared"]

WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class _Key:
    name: str
    threads: int


class Peers:
    """The workers of a session, started when they are first asked; a context manager.

    Attributes:
        AbsentError: what `prepare` raises for a peer that is not here.
    """

    AbsentError = AbsentError

    def __init__(
        self, known: Mapping[str, Environment] = PEERS, workers: Path = WORKERS, **limits: float
    ) -> None:
        """Start nothing yet.

        Args:
            known: environments by peer.
            workers: the folder of their programs, NAME_worker.py.
            limits: `start` and `timeout` of `PeerProcess`.
        """
        self._known, self._workers, self._limits = known, workers, limits
        self._running: dict[_Key, PeerProcess] = {}
        self._absent: dict[_Key, str] = {}

    def prepare(
        self,
        name: str,
        task: str,
        inputs: Mapping[str, np.ndarray] | None = None,
        *,
        clock: str = "thread",
        threads: int = 1,
        **options: Any,
    ) -> Prepared:
        """A peer's answer to a task, which can be timed again.

        Args:
            name: of `PEERS`.
            task: of its worker.
            inputs: arrays by name.
            clock: that its turns are timed with, by the worker.
            threads: that it may work with; each number has a process of its own.
            options: for the task.

        Raises:
            AbsentError: the peer is not installed, or its process has ended.
            PeerError: the task fails.
        """
        process = self._process(_Key(name, threads))
        return process.prepare(task, inputs, clock=clock, **options)

    def beside(
        self,
        name: str,
        task: str,
        inputs: Mapping[str, np.ndarray] | None = None,
        *,
        compare: Callable[[dict[str, np.ndarray]], str],
        at_least: float | None = None,
        figures: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Beside:
        """A peer for the `timed` fixture; absent with its reason where it is not here.

        Args:
            name: as in `prepare`.
            task: as there.
            inputs: as there.
            compare: gets its answer, returns how far it is from ours, in words with a unit, and
                raises `suite.WrongAnswerError` if it is another one.
            at_least: see `Beside`.
            figures: see `Beside`.
            options: the rest of `prepare`.
        """
        try:
            prepared = self.prepare(name, task, inputs, **options)
        except AbsentError as error:
            return Beside(absent=str(error))
        return Beside(
            prepared,
            lambda: compare(prepared.answer),
            at_least,
            prepared.version,
            figures,
        )

    def close(self) -> None:
        """End all workers."""
        while self._running:
            self._running.popitem()[1].close()

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _process(self, key: _Key) -> PeerProcess:
        if key in self._running:
            return self._running[key]
        if key not in self._absent:
            try:
                self._running[key] = self._start(key)
                return self._running[key]
            except AbsentError as error:
                self._absent[key] = str(error)
        raise AbsentError(self._absent[key])

    def _start(self, key: _Key) -> PeerProcess:
        peer = self._known[key.name]
        if not peer.ready():
            raise AbsentError(f"not installed: python benchmarks/peers/install.py {key.name}")
        worker = self._workers / f"{key.name}_worker.py"
        return PeerProcess(key.name, peer.python, worker, threads=key.threads, **self._limits)
