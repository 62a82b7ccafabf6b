"""Turns, spreads and stages of the timer; times are those of a clock that the tests move."""

from __future__ import annotations

import gc
import threading

import pytest

from fastpose import measure
from fastpose.measure import Times, percentile, spread, stage, stages, steady, take_turns


class Clock:
    """Goes on by what the calls say they take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float):
        """Takes these seconds in turn, then the last of them for ever."""
        left = list(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setitem(measure.CLOCKS, "wall", own)
    return own


class Worker:
    """A call elsewhere: ten times as long as it looks from here."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def turn(self, repeats):
        self.asked.append(repeats)
        return repeats * self.seconds


def test_calls_take_turns(clock):
    calls = {"ours": clock.call("ours", 1.0), "theirs": clock.call("theirs", 3.0)}
    times = take_turns(calls, rounds=3, repeats=1, warm_up=1)
    assert clock.order[:2] == ["ours", "theirs"]
    assert clock.order[2:] == ["theirs", "ours"] * 3
    assert times["ours"].seconds == (1.0, 1.0, 1.0)
    assert times["ours"].ratio_to(times["theirs"]) == (3.0, 0.0)


def test_warm_up_does_not_count(clock):
    times = take_turns({"ours": clock.call("ours", 9.0, 9.0, 1.0)}, rounds=2, repeats=1, warm_up=2)
    assert times["ours"].seconds == (1.0, 1.0)


def test_short_calls_are_repeated_until_a_turn_is_long_enough(clock):
    calls = {"short": clock.call("short", 1e-5), "long": clock.call("long", 1.0)}
    times = take_turns(calls, rounds=1, warm_up=1)
    assert clock.order.count("short") == 1 + 10
    assert clock.order.count("long") == 1 + 1
    assert times["short"].median == pytest.approx(1e-5)


def test_what_is_done_before_a_turn_is_off_the_clock(clock):
    before = clock.call("before", 5.0)
    times = take_turns(
        {"ours": clock.call("ours", 1.0)}, rounds=2, repeats=1, before=before, warm_up=0
    )
    assert times["ours"].seconds == (1.0, 1.0)
    assert clock.order == ["before", "ours"] * 2


def test_what_is_done_before_each_repeat_is_off_the_clock(clock):
    before = clock.call("before", 5.0)
    ours = clock.call("ours", 2.0, 1.0, 9.0)
    times = take_turns({"ours": ours}, rounds=1, repeats=3, before=before, warm_up=0)
    assert times["ours"].seconds == (2.0,)  # the median of the three
    assert clock.order == ["before", "ours"] * 3


def test_after_a_pause_one_call_does_not_count(clock, monkeypatch):
    paused = []
    monkeypatch.setattr(measure.time, "sleep", paused.append)
    ours = clock.call("ours", 7.0, 1.0, 7.0, 1.0)
    times = take_turns({"ours": ours}, rounds=2, repeats=1, settle=0.5, warm_up=0)
    assert times["ours"].seconds == (1.0, 1.0)
    assert paused == [0.5, 0.5]


def test_a_call_elsewhere_counts_its_own_time(clock):
    worker = Worker(1e-6)
    times = take_turns({"ours": clock.call("ours", 1e-3), "peer": worker}, rounds=2, warm_up=1)
    assert times["peer"].seconds == pytest.approx((1e-6, 1e-6))
    assert worker.asked == [1, 100, 100]


def test_turns_through_pytest_benchmark(clock):
    asked = {}

    def pedantic(target, *, setup, rounds, iterations):
        asked.update(rounds=rounds, iterations=iterations)
        for _ in range(rounds):
            setup()
            target()

    calls = {"ours": clock.call("ours", 1.0), "theirs": clock.call("theirs", 2.0)}
    times = take_turns(calls, rounds=4, repeats=1, pedantic=pedantic, warm_up=0)
    assert asked == {"rounds": 4, "iterations": 1}
    assert times["theirs"].seconds == (2.0,) * 4
    assert times["ours"].seconds == (1.0,) * 4


def test_no_garbage_is_collected_within_a_turn():
    seen = []
    take_turns({"ours": lambda: seen.append(gc.isenabled())}, rounds=3, repeats=1, warm_up=0)
    assert seen == [False] * 3
    assert gc.isenabled()


def test_garbage_is_collected_again_after_a_call_that_fails():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        take_turns({"ours": fail}, repeats=1, warm_up=0)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"calls": {}}, "calls"),
        ({"rounds": 0}, "rounds"),
        ({"clock": "sun"}, "clock must be one of"),
        ({"warm_up": 0}, "repeats must be given"),
    ],
)
def test_unusable_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        take_turns(**{"calls": {"ours": list}, **arguments})


def test_ratio_is_that_of_each_turn():
    # the machine slows down by half in the last two turns, for both alike
    ours, theirs = Times((1.0, 1.0, 1.0, 2.0, 2.0)), Times((3.0, 3.0, 3.0, 6.0, 6.0))
    assert ours.ratio_to(theirs) == (3.0, 0.0)
    assert ours.spread > 0
    with pytest.raises(ValueError, match="expected 5 turns, got 1"):
        ours.ratio_to(Times((1.0,)))


def test_spread_and_percentiles_of_known_values():
    values = [float(n) for n in range(1, 102)]
    assert spread(values) == pytest.approx(1.57 * 50 / 51 / 101**0.5)
    assert percentile(values, 0.9) == pytest.approx(91)
    assert percentile([1.0, 2.0], 0.25) == pytest.approx(1.25)
    assert spread([1.0, 9.0]) == 0
    with pytest.raises(ValueError, match="share"):
        percentile(values, 90)
    with pytest.raises(ValueError, match="at least one"):
        Times(())


def test_the_median_of_more_turns_is_better_known():
    noisy = [1.0, 2.0] * 8
    assert spread(noisy * 4) == pytest.approx(spread(noisy) / 2)


def test_times_in_milliseconds():
    found = Times((0.001, 0.002, 0.003, 0.004)).to_dict()
    assert found["median_ms"] == 2.5
    assert found["min_ms"] == 1.0
    assert found["mean_ms"] == 2.5
    assert found["p90_ms"] == pytest.approx(3.7)
    assert found["turns"] == 4


@pytest.mark.parametrize(("tries", "taken"), [(["wild", "calm", "calm"], 2), (["wild"] * 5, 3)])
def test_unsteady_times_are_taken_again(tries, taken):
    made = {"wild": Times((1.0, 1.0, 5.0, 9.0)), "calm": Times((1.0, 1.0, 1.0, 1.01))}
    left = iter(tries)
    asked = []

    def take():
        asked.append(next(left))
        return {"ours": made[asked[-1]]}

    found = steady(take)
    assert len(asked) == taken
    assert found["ours"] is made[tries[taken - 1]]


def test_stages_add_up(monkeypatch):
    now = iter((0.0, 1.0, 10.0, 12.0, 20.0, 24.0))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    with stages() as spent:
        for name in ("crop", "network", "crop"):
            with stage(name):
                pass
    assert spent == {"crop": 5.0, "network": 2.0}


def test_a_stage_that_fails_is_counted_and_others_go_unwatched():
    with stages() as spent, pytest.raises(RuntimeError), stage("crop"):
        raise RuntimeError
    assert list(spent) == ["crop"]
    with stage("network"):
        pass
    assert list(spent) == ["crop"]


def test_stages_of_another_thread_are_its_own():
    def work():
        with stage("crop"):
            pass

    with stages() as spent:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert spent == {}
