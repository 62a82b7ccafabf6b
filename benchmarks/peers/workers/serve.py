"""What every peer's worker does: prepare tasks and time turns of them, asked by JSON lines.

A request is one line on standard input, a reply one line in the pipe whose number is the program's
argument, where nothing that a peer prints can get; arrays travel as .npy files. Needs nothing but
numpy, and runs on every Python that a peer may want.

    {"do": "prepare", "task": NAME, "inputs": {NAME: FILE}, "options": {...}, "clock": "thread"}
    -> {"handle": 1, "answer": {NAME: FILE}, "version": "0.1"}
    {"do": "turn", "handle": 1, "repeats": 10}  -> {"seconds": 0.2, "laps": FILE or null}
    {"do": "drop", "handles": [1]}              -> {}
    anything that fails                         -> {"error": "ValueError: ..."}
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}


class Task:
    """Something that can be done again and again.

    Args:
        call: does it once and returns an answer.
        answer: makes of that the arrays by name that are handed over; off the clock.
        before: done before each call, off the clock; it restores what the call writes over.
        laps: seconds of each part of the last call, where the call keeps them.
    """

    def __init__(
        self,
        call: Callable[[], Any],
        answer: Callable[[Any], dict[str, Any]],
        before: Callable[[], Any] | None = None,
        laps: list[float] | None = None,
    ) -> None:
        self.call, self.answer, self.before, self.laps = call, answer, before, laps
        self.clock = time.perf_counter

    def turn(self, repeats: int) -> float:
        """Seconds of so many calls; of those that need something before each, by their median."""
        if self.before is None:
            start = self.clock()
            for _ in range(repeats):
                self.call()
            return self.clock() - start
        spent = []
        for _ in range(repeats):
            self.before()
            start = self.clock()
            self.call()
            spent.append(self.clock() - start)
        return repeats * statistics.median(spent)  # as our timer does


def serve(version: str, tasks: dict[str, Callable[..., Task]]) -> None:
    """Answer requests until standard input ends.

    Args:
        version: of the peer.
        tasks: by name, what prepares one: called with the arrays and options by name.
    """
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as replies:
        Server(version, tasks, replies).run()


class Server:
    """The tasks that were prepared, and the files of what they answered."""

    def __init__(self, version: str, tasks: dict[str, Callable[..., Task]], replies: Any) -> None:
        self.version, self.tasks, self.replies = version, tasks, replies
        self.prepared: dict[int, Task] = {}
        self.files = 0

    def run(self) -> None:
        self.reply({"version": self.version})
        for line in sys.stdin:
            request = json.loads(line)
            try:
                found = getattr(self, "do_" + request.pop("do"))(**request)
            except Exception as error:  # of whatever kind: the one who asked is told
                found = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
            self.reply(found)

    def reply(self, found: dict[str, Any]) -> None:
        self.replies.write(json.dumps(found) + "\n")
        self.replies.flush()

    def do_prepare(
        self, task: str, inputs: dict[str, str], options: dict[str, Any], clock: str
    ) -> dict[str, Any]:
        arrays = {name: np.load(file) for name, file in inputs.items()}
        prepared = self.tasks[task](**arrays, **options)
        prepared.clock = CLOCKS[clock]
        if prepared.before:
            prepared.before()
        answer = prepared.answer(prepared.call())
        handle = max(self.prepared, default=0) + 1
        self.prepared[handle] = prepared
        files = {name: self.save(array) for name, array in answer.items()}
        return {"handle": handle, "answer": files, "laps": self.save_laps(prepared)}

    def do_turn(self, handle: int, repeats: int) -> dict[str, Any]:
        prepared = self.prepared[handle]
        return {"seconds": prepared.turn(repeats), "laps": self.save_laps(prepared)}

    def do_drop(self, handles: list[int]) -> dict[str, Any]:
        for handle in handles:
            del self.prepared[handle]
        return {}

    def save_laps(self, prepared: Task) -> str | None:
        return None if prepared.laps is None else self.save(prepared.laps)

    def save(self, array: Any) -> str:
        """Write an array into the working folder, whose owner removes it."""
        self.files += 1
        name = f"answer{self.files}.npy"
        np.save(name, np.asarray(array))
        return name
