"""Tables: every row and reason is in them, and no column for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from untaken import beside, document, engine_row, people_row, time_of

from fastpose.bench.compare import RULES, compare
from fastpose.bench.table import (
    FIGURES,
    change_text,
    markdown,
    markdown_of_changes,
    number,
    series_of,
)


def tables(text: str) -> list[list[dict[str, str]]]:
    """The rows of each table, by the titles of their columns."""
    blocks, found = text.split("\n\n"), []
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        if cells:
            found.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return found


def test_an_engine_has_a_row_with_its_figures():
    figures = {"shift_px": 0.0123, "h2d_ms": 0.25, "file_mb": 10.0}
    rows = [
        engine_row(median=10, figures=figures, peers=beside(2.5)),
        engine_row("torch", median=20, batch=8),
    ]
    speed, costs = tables(markdown(document(*rows)))
    assert speed[0] == {
        "engine": "openvino",
        "precision": "f32",
        "batch": "1",
        "windows/s": "100",
        "median ms": "10",
        "p90 ms": "12",
        "p99 ms": "15",
        "spread %": "1.0",
        "H2D ms": "0.250",
        "shift px": "0.012",
        "× torch module f32": "2.50",
    }
    assert speed[1]["windows/s"] == "400"
    assert speed[1]["shift px"] == speed[1]["× torch module f32"] == ""
    assert costs[0] == {"engine": "openvino", "precision": "f32", "batch": "1", "file MB": "10"}


def test_people_have_a_row_each_with_their_stages_and_what_is_alike_is_told_once():
    text = markdown(document(people_row(0, 1), people_row(8, 50)))
    (found,) = tables(text)
    assert [row["people"] for row in found] == ["0", "8"]
    assert found[1]["frames/s"] == "20"
    assert found[1]["network ms"] == "49.50"
    assert "video" not in found[0]
    assert "## End to end\n\nvideo a.mp4, times of 10 frames\n" in text
    text = markdown(document(people_row(2, 9, case={"people": 2, "model": "tiny", "draw": False})))
    assert "## End to end\n\ndraw no, times of 10 frames\n" in text  # the model is the title
    assert "draw" not in tables(text)[0][0]


def test_how_many_values_percentiles_are_of_is_told():
    long = engine_row(batch=8, time={**time_of(20), "turns": 100})
    assert "\ntimes of 10 turns\n" in markdown(document(engine_row()))
    assert "\ntimes of 10 to 100 turns\n" in markdown(document(long, engine_row()))


def test_people_who_are_found_stand_apart_from_those_who_are_placed():
    case = {"detector": "default", "every": 1, "engine": "openvino", "precision": "f32"}
    text = markdown(document(people_row(1, 10), people_row(1, 20, case=case)))
    placed, found = tables(text)
    assert placed[0]["people"] == "1"
    assert "people" not in found[0]
    assert "of the people whom a detector finds\n\ndetector default, every 1, times" in text


def test_columns_with_nothing_in_them_are_left_out():
    text = markdown(document(engine_row()))
    assert "H2D" not in text
    assert "PCK" not in text
    assert "×" not in text
    text = markdown(document(engine_row(time=None, refused="too wide")))
    assert "median ms" in text
    assert "p90" not in text


def test_what_is_refused_or_absent_is_shown_with_its_reason():
    rows = [
        engine_row(),
        engine_row(precision="bf16", time=None, refused="too wide", figures={"pck": 80.0}),
        engine_row("torch", time=None, check="", absent="torch is not installed"),
        engine_row(batch=8, peers=beside(None, absent="its ratio is too wide")),
    ]
    text = markdown(document(*rows))
    found = tables(text)[0]
    assert [row["median ms"] for row in found] == ["10", "refused", "10"]
    assert found[1]["PCK %"] == "80"
    assert "- refused: tiny (engine openvino, precision bf16, batch 1): too wide" in text
    assert "- not here: tiny (engine torch, precision f32, batch 1): torch is not inst" in text
    assert "- no ratio to torch module f32: tiny (engine openvino, precision f32, batch 8)" in text


def test_a_reason_of_many_rows_is_told_once():
    rows = [engine_row(batch=n, peers=beside(None, absent="no torch")) for n in (1, 2)]
    text = markdown(document(*rows))
    assert text.count("no torch") == 1
    assert "- no ratio to torch module f32: all rows: no torch" in text
    text = markdown(document(*rows, engine_row(batch=4)))
    assert "f32: tiny (engine openvino, precision f32, batch 1, 2): no torch" in text


def test_rows_that_are_all_absent_make_no_table():
    text = markdown(document(engine_row(time=None, check="", absent="no such thing")))
    assert tables(text) == []
    assert "no such thing" in text


def test_the_header_tells_machine_versions_threads_load_and_command():
    text = markdown(document(engine_row(), machine={"gpus": [{"name": "H200"}]}, commit="abc"))
    assert text.startswith("# tiny\n")
    for words in ("Zen 9, 4 cores, H200 (avx2)", "Python 3.11.7, numpy 2.4.6", "threads: 1\n"):
        assert words in text
    assert "was measured: 0.5\n" in text
    assert "- 2026-11-21, commit abc, `fastpose bench tiny`" in text


def test_each_group_stands_under_its_title_in_one_order():
    text = markdown(document(people_row(1, 10), engine_row()))
    assert text.index("## Engines") < text.index("## End to end")


def test_a_reason_cannot_break_a_table():
    row = engine_row(engine="a|b\nc")
    assert "a\\|b c" in markdown(document(row))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (8.0, "8"), (1234.56, "1235"), (123.456, "123.5"), (1.234, "1.23"),
        (0.1234, "0.123"), (0.00123, "0.0012"), (1e-7, "1e-07"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers_are_as_long_as_they_are_exact(value, text):
    assert number(value) == text


def test_what_is_compared_has_a_name_of_its_own():
    assert series_of(engine_row()) == "openvino f32"
    assert series_of(
        engine_row(case={"engine": "torch", "precision": "f32", "compile": "aot"})
    ) == ("torch f32 aot")
    assert series_of(engine_row(case={"people": 8})) == "tiny"


def test_changes_are_a_table_with_failures_in_capitals():
    before = document(engine_row(median=10, figures={"file_mb": 9}), engine_row(batch=8))
    after = document(engine_row(median=12, figures={"file_mb": 9}), versions={"numpy": "3"})
    changes = compare(before, after)
    text = markdown_of_changes(changes, [], ["numpy: 2.4.6 before, 3 after"], anyway=False)
    (found,) = tables(text)
    assert [row["verdict"] for row in found] == ["SLOWER", "MISSING"]
    assert found[0]["worse by"] == "+20.0 %"
    assert "numpy: 2.4.6 before" in text
    assert "machines differ" not in text
    assert "Other figures that are the same: 1." in text


@pytest.mark.parametrize(("anyway", "words"), [(False, "NOT compared"), (True, "ANYWAY")])
def test_two_machines_are_told_before_all_else(anyway, words):
    text = markdown_of_changes([], ["cores: 4 before, 8 after"], [], anyway=anyway)
    assert text.startswith("**The machines differ: ")
    assert words in text.splitlines()[0]


def test_a_change_from_nothing_has_no_percentage():
    before, after = (engine_row(figures={"syncs": value}) for value in (0, 2))
    assert change_text(compare(document(before), document(after))[1]) == "from 0"


def test_every_figure_of_the_tables_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    names = [*FIGURES, *RULES]
    assert [name for name in names if f"`{name}`" not in text] == []
