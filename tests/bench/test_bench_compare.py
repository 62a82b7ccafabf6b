"""What counts as a change, and what does not: noise, another machine, a peer that has gone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from untaken import beside, document, engine_row, time_of

from fastpose.bench.compare import (
    Change,
    compare,
    machine_differences,
    other_differences,
)
from fastpose.bench.rows import ResultsError


def only(before, after, fail_over=0.05, **kwargs) -> Change:
    (change,) = compare(document(before), document(after), fail_over, **kwargs)
    return change


@pytest.mark.parametrize(
    ("median", "verdict"),
    [(10.6, "slower"), (10.4, "same"), (10.0, "same"), (9.6, "same"), (9.4, "faster")],
)
def test_a_change_is_one_over_the_bound(median, verdict):
    found = only(engine_row(median=10.0), engine_row(median=median))
    assert found.verdict == verdict
    assert found.what == "median ms"
    assert found.change == pytest.approx(median / 10 - 1)
    assert found.failing == (verdict == "slower")


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(("median", "verdict"), [(10.6, "unclear"), (11.2, "slower")])
def test_a_change_within_the_spread_of_either_is_none(where, median, verdict):
    before, after = engine_row(median=10.0), engine_row(median=median)
    noisy = {"before": before, "after": after}[where]
    wide = replace(noisy, time=time_of(noisy.median_ms, 0.10))
    found = only(wide, after) if where == "before" else only(before, wide)
    assert (found.verdict, found.noise) == (verdict, 0.10)


def test_the_bound_is_the_one_asked_for():
    before, after = engine_row(median=10.0), engine_row(median=10.6)
    assert only(before, after, 0.10).verdict == "same"
    assert only(before, after, 0.0).verdict == "slower"
    for bound in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fail_over must be a share from 0"):
            compare(document(before), document(after), bound)


def test_rows_are_found_by_what_they_measure_and_not_by_their_place():
    rows = [engine_row(batch=1, median=10.0), engine_row(batch=8, median=40.0)]
    changes = compare(document(*rows), document(*reversed(rows)))
    assert [change.verdict for change in changes] == ["same", "same"]


def test_what_is_refused_is_no_verdict():
    refused = engine_row(time=None, refused="the median may be 40 % off, over 20")
    found = only(engine_row(), refused)
    assert (found.verdict, found.failing) == ("refused", False)
    assert "40 % off" in found.note
    assert only(refused, engine_row()).verdict == "refused"


def test_an_answer_that_has_become_wrong_fails():
    wrong = engine_row(time=None, refused="median shift 3 px, at most 0.1")
    unsteady = engine_row(time=None, refused="the median may be 40 % off, over 20")
    for before in (engine_row(), unsteady):
        found = only(before, wrong)
        assert (found.verdict, found.failing, found.note) == ("wrong", True, wrong.refused)
    for after in (wrong, unsteady, engine_row()):
        found = only(wrong, after)
        assert (found.verdict, found.failing) == ("refused", False)


def test_what_has_gone_fails_and_what_is_new_does_not():
    common, gone = engine_row(), engine_row(batch=8)
    changes = compare(document(common, gone), document(common))
    assert [(c.verdict, c.failing) for c in changes] == [("same", False), ("missing", True)]
    changes = compare(document(common), document(common, gone))
    assert [(c.verdict, c.failing) for c in changes] == [("same", False), ("new", False)]
    absent = engine_row(time=None, check="", absent="onnxruntime is not installed")
    found = only(engine_row(), absent)
    assert (found.verdict, found.note) == ("missing", "onnxruntime is not installed")
    assert only(absent, engine_row()).verdict == "new"
    assert compare(document(absent), document(absent)) == []
    more = replace(absent, case={**absent.case, "batch": 8})  # never was there, and is not now
    assert [c.verdict for c in compare(document(common), document(common, more))] == ["same"]


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.88, "slower"), (1.93, "same"), (2.08, "same"), (2.2, "faster")]
)
def test_a_ratio_to_a_peer_is_compared_as_the_time_in_units_of_the_peers(ratio, verdict):
    before, after = engine_row(peers=beside(2.0)), engine_row(peers=beside(ratio))
    time, found = compare(document(before), document(after))
    assert time.verdict == "same"
    assert (found.what, found.verdict) == ("ratio to torch module f32", verdict)
    assert (found.before, found.after) == (2.0, ratio)
    assert found.change == pytest.approx(2.0 / ratio - 1)


def test_the_spread_of_a_ratio_counts():
    before, after = engine_row(peers=beside(2.0, 0.2)), engine_row(peers=beside(1.8))
    assert compare(document(before), document(after))[1].verdict == "unclear"


def test_a_peer_that_has_gone_is_told_and_does_not_fail():
    before, after = engine_row(peers=beside(2.0)), engine_row(peers=beside(None, absent="no torch"))
    found = compare(document(before), document(after))[1]
    assert (found.verdict, found.note, found.failing) == ("refused", "no torch", False)
    assert compare(document(before), document(engine_row()))[1].verdict == "refused"


def test_two_machines_are_compared_by_ratios_and_counts_alone():
    figures = {"instructions": 1e6, "peak_rss_mb": 100.0}
    worse = {"instructions": 1.2e6, "peak_rss_mb": 200.0}
    before = document(engine_row(median=10, figures=figures, peers=beside(2.0)))
    after = document(
        engine_row(median=30, figures=worse, peers=beside(1.5)), machine={"processor": "Zen 10"}
    )
    found = {change.what: change.verdict for change in compare(before, after)}
    assert found == {"ratio to torch module f32": "slower", "instructions": "worse"}
    found = {change.what: change.verdict for change in compare(before, after, anyway=True)}
    assert (found["median ms"], found["peak_rss_mb"]) == ("slower", "worse")


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ({"processor": "Zen 10"}, "processor: Zen 9 before, Zen 10 after"),
        ({"cores": 8}, "cores: 4 before, 8 after"),
        ({"instruction_sets": []}, "instruction_sets: avx2 before, none after"),
        ({"gpus": [{"name": "H200"}]}, "gpus: none before, H200 after"),
    ],
)
def test_how_machines_differ_is_told(machine, text):
    before, after = document(engine_row()), document(engine_row(), machine=machine)
    assert machine_differences(before, after) == [text]
    assert machine_differences(before, before) == []
    assert other_differences(before, after) == []


def test_what_else_differs_is_told_and_does_not_forbid():
    row = engine_row(median=10)
    more = engine_row(batch=8, threads=4)
    after = document(row, more, versions={"numpy": "2.5", "onnx": "1"}, machine={"python": "3.12"})
    found = other_differences(document(row), after)
    assert found == [
        "numpy: 2.4.6 before, 2.5 after",
        "onnx: none before, 1 after",
        "python: 3.11.7 before, 3.12 after",
        "threads: 1 before, 1, 4 after",
    ]
    assert compare(document(row), after)[0].what == "median ms"


def test_that_others_were_at_work_is_told():
    quiet, loud = (document(engine_row(load=load)) for load in (6.0, 6.1))  # on 4 cores
    assert other_differences(quiet, quiet) == []
    for before, after in ((quiet, loud), (loud, quiet)):
        (text,) = other_differences(before, after)
        assert text.startswith("load: up to 6")
        assert "others were at work" in text


@pytest.mark.parametrize(
    ("name", "before", "after", "verdict"),
    [
        ("pck", 90.0, 89.6, "same"),
        ("pck", 90.0, 89.4, "worse"),
        ("pck", 90.0, 90.6, "better"),
        ("pckh", 90.0, 80.0, "worse"),
        ("ap", 70.0, 69.4, "worse"),
        ("shift_px", 0.01, 0.05, "same"),  # five times as much, and nothing
        ("shift_px", 0.01, 0.3, "worse"),
        ("moved_percent", 0.1, 0.7, "worse"),
        ("instructions", 1000, 1040, "same"),
        ("instructions", 1000, 1060, "worse"),
        ("instructions", 1000, 900, "better"),
        ("launches", 0, 1, "worse"),
        ("spills", 0, 0, "same"),
        ("peak_rss_mb", 500, 560, "worse"),
        ("peak_rss_mb", 5, 5.9, "same"),
        ("open_ms", 1, 100, None),  # has no spread: not judged
    ],
)
def test_figures_are_judged_by_what_they_mean(name, before, after, verdict):
    rows = [engine_row(figures={name: value}) for value in (before, after)]
    _, *found = compare(document(rows[0]), document(rows[1]))
    assert [change.verdict for change in found] == ([verdict] if verdict else [])


def test_accuracy_that_is_not_measured_any_more_fails():
    _, found = compare(document(engine_row(figures={"pck": 90})), document(engine_row()))
    assert (found.what, found.verdict, found.failing) == ("pck", "missing", True)


def test_documents_of_different_things_are_not_compared():
    with pytest.raises(ResultsError, match="no row in common: 1 rows before, 1 after"):
        compare(document(engine_row(batch=1)), document(engine_row(batch=8)))


def test_a_change_becomes_json_even_from_nothing():
    before, after = (engine_row(figures={"syncs": value}) for value in (0, 2))
    _, found = compare(document(before), document(after))
    entry = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (entry["change"], entry["before"], entry["after"]) == (None, 0, 2)
