"""A sink in a thread: same order, same outcome, faults told, nothing left behind."""

import threading
import time

import numpy as np
import pytest

from fastpose.errors import OutputError
from fastpose.sinks.background import DEPTH, BackgroundSink
from fastpose.sinks.files import Sink
from fastpose.skeleton import LSP14
from fastpose.types import Frame, People

NOBODY = People.empty(LSP14)


class Recorder(Sink):
    """Remembers what it was asked to do; `gate` holds it back, `fail_at` makes it fail."""

    def __init__(self, fail_at=None, error=None, held=False):
        super().__init__()
        self.seen, self.ends = [], []
        self.fail_at, self.error = fail_at, error or OutputError("disk full")
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def _write(self, frame, people):
        self.gate.wait(60)
        if frame.index == self.fail_at:
            raise self.error
        self.seen.append(frame.index)

    def _finish(self):
        self.ends.append("finish")
        self.files.append("file")

    def _discard(self):
        self.ends.append("discard")


def frame(i):
    return Frame(np.zeros((2, 2, 3), np.uint8), i)


def test_every_frame_arrives_in_order_and_the_file_is_finished():
    before = threading.active_count()
    inner = Recorder()
    with BackgroundSink(inner) as sink:
        for i in range(50):
            sink.write(frame(i), NOBODY)
    assert inner.seen == list(range(50))
    assert inner.ends == ["finish"]
    assert sink.files == ["file"]
    assert threading.active_count() == before


def test_the_caller_does_not_wait_until_the_queue_is_full():
    inner = Recorder(held=True)
    sink = BackgroundSink(inner)
    for i in range(DEPTH):
        sink.write(frame(i), NOBODY)
    assert inner.seen == []
    late = threading.Thread(target=lambda: [sink.write(frame(i), NOBODY) for i in (4, 5)])
    late.start()
    late.join(0.2)
    assert late.is_alive()  # memory is bounded
    inner.gate.set()
    late.join(60)
    sink.close()
    assert inner.seen == list(range(6))


@pytest.mark.parametrize("error", [OutputError("disk full"), ZeroDivisionError("bug")])
def test_a_fault_reaches_the_caller_once_and_what_was_whole_is_kept(error):
    inner = Recorder(fail_at=3, error=error)
    sink = BackgroundSink(inner)

    def run():
        with sink:
            for i in range(100):
                sink.write(frame(i), NOBODY)
                time.sleep(0.001)

    with pytest.raises(type(error), match=str(error)):
        run()
    assert inner.seen == [0, 1, 2]  # nothing is written after the fault
    assert inner.ends == ["finish"]  # by abort: frames 0 to 2 are kept
    sink.close()


def test_a_fault_in_the_last_frame_is_told_by_close():
    inner = Recorder(fail_at=1)
    sink = BackgroundSink(inner)
    sink.write(frame(0), NOBODY)
    sink.write(frame(1), NOBODY)
    with pytest.raises(OutputError, match="disk full"):
        sink.close()
    assert inner.ends == ["finish"]


def test_a_fault_in_the_first_frame_leaves_nothing():
    inner = Recorder(fail_at=0)
    sink = BackgroundSink(inner)
    sink.write(frame(0), NOBODY)
    sink.abort()
    assert inner.ends == ["discard"]


def test_abort_writes_what_was_accepted():
    inner = Recorder()
    sink = BackgroundSink(inner)

    def run():
        with sink:
            for i in range(3):
                sink.write(frame(i), NOBODY)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert inner.seen == [0, 1, 2]
    assert inner.ends == ["finish"]


def test_abort_raises_nothing():
    inner = Recorder(fail_at=1, error=ZeroDivisionError("bug"))
    sink = BackgroundSink(inner)
    sink.write(frame(0), NOBODY)
    sink.write(frame(1), NOBODY)
    sink.abort()
    assert inner.seen == [0]
    assert inner.ends == ["finish"]


def test_abort_without_frames_discards():
    inner = Recorder()
    BackgroundSink(inner).abort()
    assert inner.ends == ["discard"]
