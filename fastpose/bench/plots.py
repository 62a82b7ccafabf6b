"""Measurements as pictures, each readable at a width of 800 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpose.bench.rows import Document, ResultsError, Row
from fastpose.bench.table import machine_line, model_of, series_of
from fastpose.errors import BackendError

# Okabe and Ito, Color Universal Design, 2008: told apart by all common kinds of colour vision. Each
# series has a marker as well, for prints in grey: as 7 and 8 have no divisor, 56 pairs are unlike.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SIZE, DPI = (8.0, 5.6), 150  # inches, pixels an inch
ACCURACY = {
    "pck": "PCK, % of joints",
    "pckh": "PCKh, % of joints",
    "ap": "AP of keypoints, %",
    "shift_px": "median shift of joints from those in f32,\npixels of the network's input",
}
LOWER = ("shift_px",)  # is better
WIDE = 8.0  # largest by smallest from which an axis is logarithmic


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    top: float
    label: str = ""


Series = Mapping[str, Sequence[_Point]]


def plot_latency(document: Document, path: Path) -> Path | None:
    """Milliseconds a frame by the number of people: the median as a line, up to p90 as a band.

    Returns:
        The file; None where no row has both a time and a number of people.

    Raises:
        BackendError: matplotlib is not installed.
        ResultsError: the file cannot be written.
    """
    series: dict[str, list[_Point]] = {}
    placed = [row for row in document.rows if row.group == "pipeline" and "people" in row.case]
    for row in placed:
        people = row.case["people"]
        if row.time and isinstance(people, int):
            point = _Point(people, float(row.time["median_ms"]), float(row.time["p90_ms"]))
            series.setdefault(series_of(row), []).append(point)
    if not series:
        return None
    figure, axes = _axes(document, "Time of a frame by people", placed)
    for place, (name, points) in enumerate(series.items()):
        _line(axes, place, name, sorted(points, key=lambda point: point.x))
    _people_axis(axes, series)
    axes.set_xlabel("people in the frame" + _not_drawn(placed))
    axes.set_ylabel("milliseconds a frame: median, band up to p90")
    if _wide([point.y for points in series.values() for point in points]):
        _logarithmic(axes.yaxis, axes.set_yscale)
    else:
        axes.set_ylim(bottom=0)
    _frames_axis(axes)
    return _save(figure, axes, path)


def plot_accuracy(document: Document, path: Path) -> Path | None:
    """Accuracy, or where none is known the shift of joints, against windows a second, by engine.

    Returns:
        The file; None where no engine's row has both a time and one of the figures.

    Raises:
        BackendError: matplotlib is not installed.
        ResultsError: the file cannot be written.
    """
    engines = [row for row in document.rows if row.group == "engines"]
    rows = [row for row in engines if row.time and _throughput(row)]
    figure_name = next((name for name in ACCURACY if any(name in r.figures for r in rows)), None)
    if figure_name is None:
        return None
    series: dict[str, list[_Point]] = {}
    for row in rows:
        if figure_name in row.figures:
            value = row.figures[figure_name]
            label = f"{row.case['batch']}" if "batch" in row.case else ""
            point = _Point(_throughput(row), value, value, label)
            series.setdefault(series_of(row), []).append(point)
    figure, axes = _axes(document, "Accuracy against throughput", engines)
    for place, (name, points) in enumerate(series.items()):
        _line(axes, place, name, sorted(points, key=lambda point: point.x))
        _label(axes, points)
    axes.margins(0.08, 0.15)
    if _wide([point.x for points in series.values() for point in points]):
        _logarithmic(axes.xaxis, axes.set_xscale)
    else:
        axes.set_xlim(left=0)
    if figure_name not in LOWER:
        _keep_in_proportion(axes)
    text = "windows (people) a second; the number at a point is the batch"
    axes.set_xlabel(text + _not_drawn(engines))
    better = "lower" if figure_name in LOWER else "higher"
    axes.set_ylabel(f"{ACCURACY[figure_name]}; {better} is better")
    return _save(figure, axes, path)


def _not_drawn(rows: Sequence[Row]) -> str:
    """That a point is missing is told; why, the tables say."""
    refused = sum(bool(row.refused) for row in rows)
    return f"\n({refused} refused, not drawn)" if refused else ""


def _throughput(row: Row) -> float:
    return float(row.figures.get("windows_per_s", row.figures.get("fps", 0.0)))


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > WIDE


def _axes(document: Document, title: str, rows: Sequence[Row]) -> tuple[Any, Any]:
    """With what a picture by itself must say: the machine, and on what of it."""
    figure, axes = new_axes(SIZE)
    threads = sorted({row.threads for row in rows if row.time})
    words = [machine_line(document.machine)]
    words += [f"threads: {', '.join(map(str, threads))}"] if any(threads) else []
    words += sorted({str(row.case["video"]) for row in rows if "video" in row.case})
    axes.set_title(f"{title}: {model_of(document)}\n{', '.join(words)}", fontsize=11)
    return figure, axes


def new_axes(size: tuple[float, float]) -> tuple[Any, Any]:
    """An empty figure of matplotlib's and its axes, in the style of all pictures here.

    Args:
        size: inches.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError(
            "plots need matplotlib; install the extra: fastpose-inference[bench]"
        ) from None
    # a figure of its own and no pyplot: that would choose a window system, and keep the figure
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(visible=True, which="major", color="0.88")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _line(axes: Any, place: int, name: str, points: Sequence[_Point]) -> None:
    colour, x = COLOURS[place % len(COLOURS)], [point.x for point in points]
    middle, top = [point.y for point in points], [point.top for point in points]
    marker = MARKERS[place % len(MARKERS)]
    axes.plot(x, middle, color=colour, marker=marker, markersize=6, label=name)
    if top != middle:
        axes.fill_between(x, middle, top, color=colour, alpha=0.18, linewidth=0)


def _label(axes: Any, points: Sequence[_Point]) -> None:
    """Above and below by turns: neighbours are as accurate, and may be about as fast."""
    for place, point in enumerate(sorted(points, key=lambda point: point.x)):
        axes.annotate(
            point.label,
            (point.x, point.y),
            (0, -8 if place % 2 else 8),
            textcoords="offset points",
            ha="center",
            va="top" if place % 2 else "bottom",
            fontsize=9,
        )


def _keep_in_proportion(axes: Any) -> None:
    """Two points at least from bottom to top: a tenth of one is not to look like a cliff."""
    low, high = axes.get_ylim()
    short = max(0.0, 2.0 - (high - low)) / 2
    axes.set_ylim(low - short, min(high + short, 101.0))


def _people_axis(axes: Any, series: Series) -> None:
    """Doubling steps, with a place for nobody."""
    counts = sorted({int(point.x) for points in series.values() for point in points})
    if counts[-1] > 2:
        axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()


def _frames_axis(axes: Any) -> None:
    """The inverse on the right: less than that is left where opening the video counts."""

    def swap(values: Any) -> Any:
        import numpy as np

        return 1000 / np.maximum(values, 1e-9)

    right = axes.secondary_yaxis("right", functions=(swap, swap))
    right.set_ylabel("frames a second at that time of a frame")
    if axes.get_yscale() == "log":
        _plain(right.yaxis)


def _logarithmic(axis: Any, set_scale: Any) -> None:
    set_scale("log")
    _plain(axis)


def _plain(axis: Any) -> None:
    """20 and 50, not 2 x 10^1: ticks at 1, 2 and 5 of each power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, axes: Any, path: Path) -> Path:
    """With the legend below, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), 3)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
    return path
