"""Stages of a frame, on a clock that only the work itself moves."""

from __future__ import annotations

import threading

import cv2
import pytest
from test_pipeline import DotEngine, Everywhere, box_round, dotted, pose_with

from fastpose import measure, pipeline, pose
from fastpose.measure import stages
from fastpose.sinks import drawn, open_sinks
from fastpose.sinks.background import BackgroundSink
from fastpose.sinks.files import Sink
from fastpose.smooth import OneEuro
from fastpose.types import Frame

DOTS = (60, 80), (200, 120)
# What each part of the work takes on the clock.
COSTS = {"detect": 2, "crop": 3, "network": 5, "decode": 7, "follow": 11, "draw": 13}


class Clock:
    """Goes on by what the work says it takes, in the thread that made it."""

    def __init__(self, monkeypatch):
        self.now, self.inside, self.deepest = 0.0, 0, 0
        self.thread = threading.get_ident()
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)
        self.count_depth(monkeypatch)

    def count_depth(self, monkeypatch):
        enter, leave = measure.stage.__enter__, measure.stage.__exit__

        def entered(own):
            if threading.get_ident() == self.thread:
                self.inside += 1
                self.deepest = max(self.deepest, self.inside)
            enter(own)

        def left(own, *error):
            if threading.get_ident() == self.thread:
                self.inside -= 1
            leave(own, *error)

        monkeypatch.setattr(measure.stage, "__enter__", entered)
        monkeypatch.setattr(measure.stage, "__exit__", left)

    def slow(self, monkeypatch, owner, name, seconds):
        call = getattr(owner, name)

        def slowed(*args, **options):
            if threading.get_ident() == self.thread:
                self.now += seconds
            return call(*args, **options)

        monkeypatch.setattr(owner, name, slowed)


@pytest.fixture
def clock(monkeypatch):
    own = Clock(monkeypatch)
    parts = {
        "detect": (Everywhere, "__call__"),
        "crop": (pipeline, "crop_people"),
        "network": (DotEngine, "run"),
        "decode": (pipeline, "locate_joints"),
        "follow": (OneEuro, "smooth"),
        "draw": (drawn, "draw"),
    }
    for name, (owner, attribute) in parts.items():
        own.slow(monkeypatch, owner, attribute, COSTS[name])
    return own


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), dotted(*DOTS))
    return tmp_path


class Kept(Sink):
    """Takes 17 on the clock for each frame."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def _write(self, frame, people):
        self.clock.now += 17

    def _finish(self):
        pass

    def _discard(self):
        pass


def found():
    return pose_with(Everywhere(*(box_round(*dot) for dot in DOTS)))


def test_stages_of_a_stream_add_up_to_the_whole(clock, folder):
    with stages() as spent:
        sink = Kept(clock)
        for frame, people in found().stream(folder, smooth="one-euro"):
            sink.write(frame, people)
    assert spent == {
        "read": 0,
        "detect": 3 * 2,
        "crop": 3 * 3,
        "network": 3 * 5,
        "decode": 3 * 7,
        "follow": 3 * 11,
        "write": 3 * 17,
    }
    assert sum(spent.values()) == clock.now
    assert (clock.deepest, clock.inside) == (1, 0)


def test_boxes_that_follow_the_joints_are_found_without_the_detector(clock, folder):
    with stages() as spent:
        list(found().stream(folder, detect_every=3))
    assert (spent["detect"], spent["crop"]) == (2, 3 * 3)


def test_waiting_for_the_reader_is_reading(clock, folder, monkeypatch):
    taken = pose.islice
    monkeypatch.setattr(
        pose, "islice", lambda *a: setattr(clock, "now", clock.now + 19) or taken(*a)
    )
    with stages() as spent:
        list(found().stream(folder))
    assert spent["read"] == 4 * 19  # three frames, and that there are no more


@pytest.mark.parametrize("kind", ["image", "video"])
def test_drawn_frames_are_drawn_and_then_written(clock, tmp_path, kind):
    class Source:
        name, fps = "a", 25.0

    Source.kind = kind
    people = found()(frame := dotted(*DOTS))
    jsonl, background = open_sinks(("jsonl",), tmp_path, Source(), {"joints": []}, video=True)
    clock.now = 0.0
    with stages() as spent, jsonl, background.inner as inner:
        for sink in (jsonl, inner):
            sink.write(Frame(frame, 0, 0.0), people)
    background._stop()
    assert spent == {"write": 0, "draw": 13}
    assert clock.deepest == 1


def test_what_a_background_sink_does_is_not_of_this_thread(tmp_path):
    class Slow(Kept):
        def _write(self, frame, people):
            with measure.stage("draw"):
                pass

    people = found()(frame := dotted(*DOTS))
    with stages() as spent, BackgroundSink(Slow(None)) as sink:
        sink.write(Frame(frame, 0, 0.0), people)
    assert list(spent) == ["write"]


def test_threads_that_work_beside_are_not_seen(clock):
    own, other = found(), found()
    with stages() as spent:
        own(dotted(*DOTS))
        before = dict(spent)
        thread = threading.Thread(target=other, args=(dotted(*DOTS),))
        thread.start()
        thread.join()
        assert spent == before


def test_nothing_is_kept_when_nobody_watches(clock, folder):
    with stages() as spent:
        pass
    list(found().stream(folder))
    assert spent == {}


def test_a_fault_ends_its_stage(clock, monkeypatch):
    own = found()
    monkeypatch.setattr(own._engine, "run", lambda count: 1 / 0)
    with stages() as spent, pytest.raises(ZeroDivisionError):
        own(dotted(*DOTS))
    assert "network" in spent
    assert clock.inside == 0
