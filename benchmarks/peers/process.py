"""A peer's worker: another Python, asked by JSON lines, its calls timed where they are done."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fastpose.measure import CLOCKS

CORES = os.sched_getaffinity(0)
START = 120.0  # seconds that a worker may take to import its peer
ANSWER = 600.0  # seconds that it may take to answer


class PeerError(RuntimeError):
    """A worker was asked for what it cannot do."""


class AbsentError(RuntimeError):
    """A peer is not here, or no longer; the message is the reason, in one line."""


class PeerProcess:
    """A worker's process; a context manager.

    Attributes:
        name: of the peer.
        version: of the peer and of what decides its speed, as the worker says.
    """

    def __init__(
        self,
        name: str,
        python: Path,
        worker: Path,
        *,
        threads: int = 1,
        start: float = START,
        timeout: float = ANSWER,
    ) -> None:
        """Start it and wait until it has imported its peer.

        Args:
            name: of the peer.
            python: the interpreter of its environment.
            worker: the program, which calls `serve`.
            threads: that it may work with.
            start: seconds it may take until it is ready.
            timeout: seconds it may take for an answer.

        Raises:
            AbsentError: it does not get ready.
        """
        self.name, self.timeout = name, timeout
        self._folder = tempfile.TemporaryDirectory(prefix="fastpose-peer-")
        self._errors = (self.folder / "said").open("w+b")
        self._rest = b""
        self._files = 0
        self._dropped: list[int] = []
        self._replies, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [python, "-E", "-s", worker, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=self._errors,  # peers print, from C++ too: replies have a pipe of their own
                stderr=self._errors,
                pass_fds=(theirs,),
                cwd=self.folder,
                env=environment(threads),
            )
            os.sched_setaffinity(self._process.pid, CORES)  # ours may be on one core just now
        except OSError as error:
            self._clear()
            raise AbsentError(f"{name}: cannot be started: {error.strerror}") from error
        finally:
            os.close(theirs)
        self.version = str(self._reply(start)["version"])

    @property
    def folder(self) -> Path:
        """Where arrays are handed over."""
        return Path(self._folder.name)

    def prepare(
        self,
        task: str,
        inputs: Mapping[str, np.ndarray] | None = None,
        *,
        clock: str = "thread",
        **options: Any,
    ) -> Prepared:
        """Have it done once, ready to be done again.

        Args:
            task: of the worker's.
            inputs: arrays by name.
            clock: of `fastpose.measure.CLOCKS`, which its turns are timed with.
            options: for the task: what JSON can say, and paths, which are made absolute.

        Raises:
            ValueError: there is no such clock.
            PeerError: the task fails.
            AbsentError: the worker has ended, or takes too long.
        """
        if clock not in CLOCKS:
            raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
        self._drop()
        files = {name: self._save(array) for name, array in (inputs or {}).items()}
        found = self._ask("prepare", task=task, inputs=files, options=options, clock=clock)
        for file in files.values():
            (self.folder / file).unlink()
        answer = {name: self._load(file) for name, file in found["answer"].items()}
        prepared = Prepared(self, found["handle"], answer, self._laps(found))
        weakref.finalize(prepared, self._dropped.append, found["handle"])
        return prepared

    def turn(self, handle: int, repeats: int) -> tuple[float, np.ndarray | None]:
        """Seconds of so many calls of a prepared task, and those of the last call's parts."""
        found = self._ask("turn", handle=handle, repeats=repeats)
        return float(found["seconds"]), self._laps(found)

    def close(self) -> None:
        """End it."""
        if not self._errors.closed:
            self._process.kill()
            self._process.communicate()
            self._clear()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, do: str, **words: Any) -> dict[str, Any]:
        if self._errors.closed:
            raise AbsentError(f"{self.name}: its process was ended before")
        line = json.dumps({"do": do, **words}, default=_absolute) + "\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        found = self._reply(self.timeout)
        if "error" in found:
            raise PeerError(f"{self.name}: {found['error']}")
        return found

    def _reply(self, timeout: float) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.close()
                raise AbsentError(f"{self.name}: no answer within {timeout:g} s")
            more = os.read(self._replies, 1 << 16)
            if not more:
                raise self._ended()
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def _ended(self) -> AbsentError:
        """Why there is no answer, after the worker was ended for good."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:  # it closed its output and works on
            status = None
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        what = f": {said[-1].strip()}" if said else ""
        return AbsentError(f"{self.name}: its process ended with status {status}{what}")

    def _clear(self) -> None:
        os.close(self._replies)
        self._errors.close()
        self._folder.cleanup()

    def _drop(self) -> None:
        """Have the worker forget what nobody here holds any more."""
        if self._dropped:
            handles, self._dropped[:] = list(self._dropped), []
            self._ask("drop", handles=handles)

    def _laps(self, found: Mapping[str, Any]) -> np.ndarray | None:
        return None if found["laps"] is None else self._load(found["laps"])

    def _save(self, array: np.ndarray) -> str:
        self._files += 1
        name = f"input{self._files}.npy"
        np.save(self.folder / name, array)
        return name

    def _load(self, name: str) -> np.ndarray:
        file = self.folder / name
        array = np.load(file)
        file.unlink()
        return array


class Prepared:
    """A task that a peer has done once: what it answered, and turns of it.

    Implements `fastpose.measure.Elsewhere`.

    Attributes:
        answer: arrays by name.
        version: of the peer.
        seconds: of each part, such as a frame, of the last call; None where the task keeps none.
    """

    def __init__(
        self,
        process: PeerProcess,
        handle: int,
        answer: Mapping[str, np.ndarray],
        seconds: np.ndarray | None,
    ) -> None:
        self.answer, self.version, self.seconds = dict(answer), process.version, seconds
        self._process, self._handle = process, handle

    def turn(self, repeats: int) -> float:
        """Do it so many times there; see `Elsewhere.turn`.

        Raises:
            PeerError, AbsentError: see `PeerProcess.prepare`.
        """
        spent, self.seconds = self._process.turn(self._handle, repeats)
        return spent


def _absolute(option: object) -> str:
    """A path for a process that works in another folder."""
    if isinstance(option, Path):
        return str(option.resolve())
    raise TypeError(f"expected what JSON can say, or a Path, got {type(option).__name__}")


def environment(threads: int) -> dict[str, str]:
    """Ours, without what belongs to our own Python, and with the threads for every library."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return kept | dict.fromkeys(pools, str(threads)) | {"PYTHONDONTWRITEBYTECODE": "1"}
