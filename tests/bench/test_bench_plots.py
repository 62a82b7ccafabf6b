"""Pictures: what is drawn, and where the library that draws them is missing."""

from __future__ import annotations

import sys

import cv2
import pytest
from untaken import document, engine_row, people_row

from fastpose.bench import plots
from fastpose.bench.plots import plot_accuracy, plot_latency
from fastpose.bench.rows import ResultsError
from fastpose.errors import BackendError

PEOPLE = (0, 1, 2, 4, 8, 16, 32)


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the pictures that are made."""
    pytest.importorskip("matplotlib")
    seen, axes_of = [], plots._axes

    def watched(*args):
        figure, axes = axes_of(*args)
        seen.append(axes)
        return figure, axes

    monkeypatch.setattr(plots, "_axes", watched)
    return seen


def by_people():
    return [
        people_row(n, 1 + scale * n, precision)
        for precision, scale in (("f32", 10.0), ("bf16", 5.0))
        for n in PEOPLE
    ]


def test_latency_is_a_line_an_engine_over_people_with_a_band(tmp_path, drawn):
    path = tmp_path / "latency.png"
    assert plot_latency(document(*by_people()), path) == path
    (axes,) = drawn
    assert [line.get_label() for line in axes.lines] == ["openvino f32", "openvino bf16"]
    assert list(axes.lines[0].get_xdata()) == list(PEOPLE)
    assert list(axes.lines[0].get_ydata()) == [1 + 10.0 * n for n in PEOPLE]
    assert len(axes.collections) == 2  # the bands
    assert axes.get_yscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(n) for n in PEOPLE]
    assert "milliseconds" in axes.get_ylabel()
    assert "tiny" in axes.get_title()
    assert "Zen 9, 4 cores, threads: 1, a.mp4" in axes.get_title()
    height, width, _ = cv2.imread(str(path)).shape
    assert width >= 800
    assert height >= 500


def test_one_number_of_people_is_a_point(tmp_path, drawn):
    assert plot_latency(document(people_row(0, 5)), tmp_path / "a.png")
    assert drawn[0].get_yscale() == "linear"


def test_refused_rows_and_other_groups_are_not_drawn(tmp_path, drawn):
    refused = people_row(4, 40, time=None, refused="too wide")
    plot_latency(document(people_row(1, 10), refused, engine_row()), tmp_path / "a.png")
    assert list(drawn[0].lines[0].get_xdata()) == [1]
    assert "1 refused, not drawn" in drawn[0].get_xlabel()
    assert plot_latency(document(refused, engine_row()), tmp_path / "b.png") is None
    assert not (tmp_path / "b.png").exists()


def test_accuracy_is_drawn_over_throughput_with_the_batch_at_each_point(tmp_path, drawn):
    rows = [
        engine_row(precision=name, batch=batch, median=median, figures={"pck": pck, "shift_px": 1})
        for name, pck, median in (("f32", 81.5, 10.0), ("bf16", 81.3, 5.0))
        for batch in (1, 8)
    ]
    assert plot_accuracy(document(*rows), tmp_path / "a.png")
    (axes,) = drawn
    assert sorted(axes.lines[0].get_xdata()) == [100, 800]
    assert list(axes.lines[1].get_ydata()) == [81.3, 81.3]
    assert [text.get_text() for text in axes.texts] == ["1", "8"] * 2
    assert "PCK" in axes.get_ylabel()
    assert "higher is better" in axes.get_ylabel()
    low, high = axes.get_ylim()
    assert high - low >= 2  # 0.2 points are no cliff


def test_without_annotated_data_the_shift_is_drawn(tmp_path, drawn):
    rows = [engine_row(median=10, figures={"shift_px": 0.02}), people_row(1, 5)]
    plot_accuracy(document(*rows), tmp_path / "a.png")
    assert "shift" in drawn[0].get_ylabel()
    assert "lower is better" in drawn[0].get_ylabel()


def test_nothing_known_of_accuracy_is_no_picture(tmp_path):
    assert plot_accuracy(document(engine_row(), people_row(1, 5)), tmp_path / "a.png") is None
    assert list(tmp_path.iterdir()) == []


def test_many_engines_are_told_apart(tmp_path, drawn):
    rows = [people_row(n, 5 + i, f"p{i}") for i in range(10) for n in (1, 2)]
    plot_latency(document(*rows), tmp_path / "a.png")
    looks = {(line.get_color(), line.get_marker()) for line in drawn[0].lines}
    assert len(looks) == 10


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"fastpose-inference\[bench\]") as caught:
        plot_latency(document(*by_people()), tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path, drawn):
    with pytest.raises(ResultsError, match="cannot be written: No such file or directory"):
        plot_latency(document(*by_people()), tmp_path / "no" / "a.png")
