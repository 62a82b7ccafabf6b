"""A sink that works in a thread of its own, so that drawing and encoding overlap inference."""

from __future__ import annotations

import queue
import threading

from fastpose.sinks.files import Sink
from fastpose.types import Frame, People

DEPTH = 4  # frames accepted and not yet written


class BackgroundSink(Sink):
    """Hands every frame to another sink, in order, from a thread.

    A fault of the other sink is raised by one of the next `write`s, or by `close`. What was
    accepted before `close` or `abort` is written first. `frames` counts what was accepted.

    Args:
        inner: the sink; it must not need the main thread, as a window does.
    """

    def __init__(self, inner: Sink) -> None:
        super().__init__()
        self.inner = inner
        self.files = inner.files
        self._waiting: queue.Queue[tuple[Frame, People] | None] = queue.Queue(DEPTH)
        self._fault: BaseException | None = None
        self._told = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        """Write what comes until None; after a fault, only take it, so that nobody waits."""
        while (item := self._waiting.get()) is not None:
            if self._fault is None:
                try:
                    self.inner.write(*item)
                except BaseException as error:  # whatever it is, the caller must learn of it
                    self._fault = error

    def _tell(self) -> None:
        """Raise the thread's fault, once."""
        if self._fault is not None and not self._told:
            self._told = True
            raise self._fault

    def _write(self, frame: Frame, people: People) -> None:
        self._tell()
        self._waiting.put((frame, people))

    def abort(self) -> None:
        """See `Sink`."""
        self._told = True  # the fault that stopped the run is the one to report
        super().abort()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _finish(self) -> None:
        self._stop()
        if self._told:
            self.inner.abort()
            return
        try:
            self._tell()
        except BaseException:
            self.inner.abort()
            raise
        self.inner.close()

    def _discard(self) -> None:
        self._stop()
        self.inner.abort()
