"""Measurements, and what has changed in them, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastpose.bench.compare import Change
from fastpose.bench.rows import GROUPS, Document, Row

TITLES = {
    "ops": "Operations",
    "engines": "Engines",
    "pipeline": "End to end",
    "accuracy": "Accuracy",
    "startup": "Start",
    "memory": "Memory",
    "counts": "Counts",
}
FOUND = ", of the people whom a detector finds"
# In the order of the columns; what is not here comes behind, under its own name.
CASES = (
    "video",
    "frame",
    "detector",
    "every",
    "engine",
    "precision",
    "compile",
    "backend",
    "isa",
    "method",
    "batch",
    "people",
    "views",
    "draw",
    "write",
)
RATES = ("fps", "windows_per_s")
STAGES = ("read", "detect", "crop", "network", "decode", "follow", "draw", "write")
FIGURES = {
    "fps": "frames/s",
    "windows_per_s": "windows/s",
    "people_found": "people found",
    **{f"{name}_ms": f"{name} ms" for name in STAGES},
    "enqueue_ms": "enqueue ms",
    "h2d_ms": "H2D ms",
    "compute_ms": "compute ms",
    "d2h_ms": "D2H ms",
    "pck": "PCK %",
    "pckh": "PCKh %",
    "ap": "AP %",
    "pck_loss": "PCK loss, points",
    "pckh_loss": "PCKh loss, points",
    "ap_loss": "AP loss, points",
    "shift_px": "shift px",
    "shift_p95_px": "shift p95 px",
    "moved_percent": "moved %",
    "compile_s": "build s",
    "import_ms": "import ms",
    "open_ms": "open ms",
    "first_ms": "first ms",
    "file_mb": "file MB",
    "peak_rss_mb": "peak RSS MB",
    "rss_mb": "RSS MB",
    "device_mb": "device MB",
    "growth_percent": "growth %",
    "allocated_bytes": "bytes allocated",
}
# What an engine takes beside time, in a table of its own: one with all would be too wide.
COSTS = (
    "compile_s",
    "import_ms",
    "open_ms",
    "first_ms",
    "file_mb",
    "peak_rss_mb",
    "device_mb",
    "layers_f32",
    "layers_bf16",
    "layers_f16",
    "layers_int8",
)
ALWAYS = ("engine", "precision", "compile", "batch", "people")  # columns, be they all alike
TIMES = {
    "median_ms": "median ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
}
Cell = Callable[[Row], str]


def markdown(document: Document) -> str:
    """The machine, then a table for each group of rows, and what is missing from it and why."""
    parts = ["\n".join(_header(document))]
    for group in GROUPS:
        rows = [row for row in document.rows if row.group == group]
        found = [row for row in rows if "detector" in row.case]
        for title, some in (("", [row for row in rows if row not in found]), (FOUND, found)):
            if some:
                parts.append("\n".join([f"## {TITLES[group]}{title}", "", *group_table(some)]))
    return "\n\n".join(parts) + "\n"


def model_of(document: Document) -> str:
    """The names of what was measured as a whole: the networks of the rows."""
    whole = [row.name for row in document.rows if row.group in ("engines", "pipeline")]
    return ", ".join(dict.fromkeys(whole or [row.name for row in document.rows]))


def machine_line(machine: Mapping[str, Any]) -> str:
    """Processor, cores and GPUs, short enough for a title."""
    gpus = [str(gpu.get("name", "")) for gpu in machine.get("gpus", [])]
    return ", ".join([str(machine.get("processor")), f"{machine.get('cores')} cores", *gpus])


def _header(document: Document) -> list[str]:
    lines = [f"# {model_of(document) or 'fastpose bench'}", ""]
    isa = ", ".join(document.machine.get("instruction_sets", []))
    lines.append(f"- machine: {machine_line(document.machine)}" + (f" ({isa})" if isa else ""))
    versions = ", ".join(f"{name} {value}" for name, value in document.versions.items())
    lines.append(f"- versions: Python {document.machine.get('python')}, {versions}")
    timed = [row for row in document.rows if row.time]
    threads = sorted({row.threads for row in timed})
    if threads:
        words = [str(count) if count else "chosen by the runtime" for count in threads]
        lines.append(f"- threads: {', '.join(words)}")
    loads = [row.load for row in timed if row.load is not None]
    if loads:
        span = f"{min(loads)} to {max(loads)}" if len(set(loads)) > 1 else f"{loads[0]}"
        lines.append(f"- load of the machine while it was measured: {span}")
    commit = f", commit {document.commit}" if document.commit else ""
    lines.append(f"- {document.date}{commit}, `{document.command}`")
    return lines


def group_table(rows: Sequence[Row]) -> list[str]:
    """The lines of the table, or of two, of the rows of one group.

    A column that would be empty is left out, and one that would say the same in each row is told
    above. Rows without any result are told below, as are the reasons of times that were refused.
    """
    shown = [row for row in rows if not row.absent]
    alike = _alike(shown)
    told = [f"{name} {_word(value)}" for name, value in alike.items() if value != shown[0].name]
    told += _turns(shown)
    lines = [", ".join(told), ""] if told else []
    if shown:
        figures, costs = _split_figures(shown)
        lines += _table(_columns(shown, alike, figures), shown)
        if costs:
            # a start is the same whatever was refused, and the times stand above
            lines += ["", *_table(_columns(shown, alike, costs, timed=False), shown)]
    reasons = list(_reasons(rows, alike))
    return [*lines, *([""] if lines and reasons else []), *reasons]


def _reasons(rows: Sequence[Row], alike: Mapping[str, Any]) -> Iterator[str]:
    """Why something is not there, each reason once."""
    places: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        missing = {"refused": row.refused, "not here": row.absent}
        missing |= {f"no ratio to {name}": peer.absent for name, peer in row.peers.items()}
        for what, why in missing.items():
            if why:
                places.setdefault((what, why), []).append(row)
    for (what, why), found in places.items():
        all_alike = len(found) == len(rows) > 1
        where = "all rows" if all_alike else "; ".join(_places(found, alike))
        yield f"- {what}: {where}: {why}"


def _alike(rows: Sequence[Row]) -> dict[str, Any]:
    """What is the same of all rows, and needs no column."""
    return {
        name: value
        for name, value in (rows[0].case if rows else {}).items()
        if name not in ALWAYS and all(row.case.get(name) == value for row in rows)
    }


def _turns(rows: Sequence[Row]) -> list[str]:
    """Of how many values the percentiles are: those of a video are of its frames."""
    counts = sorted({int(row.time["turns"]) for row in rows if row.time and "turns" in row.time})
    if not counts:
        return []
    unit = "frames" if rows[0].group == "pipeline" else "turns"
    return [f"times of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} {unit}"]


def _split_figures(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The names of figures beside the times, and those for a table of their own."""
    found = _ordered(FIGURES, (name for row in rows for name in row.figures))
    if not any(row.time for row in rows) or rows[0].group != "engines":
        return found, []
    return [n for n in found if n not in COSTS], [n for n in found if n in COSTS]


def number(value: float) -> str:
    """With three or four significant digits, as a person reads it."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value)}"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}" if size >= 0.01 else f"{value:.2g}"


def series_of(row: Row) -> str:
    """Runtime, precision and how it was compiled, such as "openvino bf16": what is compared."""
    words = [str(row.case.get(name, "")) for name in ("engine", "precision", "compile")]
    words = [word for word in words if word not in ("", "eager")]
    return " ".join(words) or row.name


def _places(rows: Sequence[Row], alike: Mapping[str, Any]) -> Iterator[str]:
    """Names and cases of rows in words; those that differ in one number alone are one."""
    numbers: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        case = {k: v for k, v in row.case.items() if k not in alike and v != row.name}
        axis = next((name for name in ("batch", "people") if name in case), "")
        value = [_word(case.pop(axis))] if axis else []
        words = [f"{name} {_word(value)}" for name, value in case.items()]
        numbers.setdefault((row.name, axis, *words), []).extend(value)
    for (name, axis, *words), found in numbers.items():
        words += [f"{axis} {', '.join(dict.fromkeys(found))}"] if axis else []
        yield f"{name} ({', '.join(words)})" if words else name


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Cell
    right: bool = True


def _columns(
    rows: Sequence[Row], alike: Mapping[str, Any], figures: Sequence[str], *, timed: bool = True
) -> list[_Column]:
    names = list(dict.fromkeys(row.name for row in rows))
    columns = [_Column("name", lambda row: row.name, right=False)] if len(names) > 1 else []
    columns += [
        _Column(name, _case_cell(name), right=name in ("batch", "people", "every", "views"))
        for name in _ordered(CASES, (name for row in rows for name in row.case))
        if name not in alike
    ]
    if len({row.threads for row in rows}) > 1:
        columns.append(_Column("threads", lambda row: str(row.threads)))
    rates = [name for name in figures if name in RATES]
    columns += [_figure(name) for name in rates]
    if timed:
        columns += [_Column(title, _time_cell(name)) for name, title in TIMES.items()]
        columns.append(_Column("spread %", _spread_cell))
    columns += [_figure(name) for name in figures if name not in rates]
    if timed:
        peers = dict.fromkeys(name for row in rows for name in row.peers)
        columns += [_Column(f"× {name}", _ratio_cell(name)) for name in peers]
    return [column for column in columns if any(column.cell(row) for row in rows)]


def _figure(name: str) -> _Column:
    return _Column(FIGURES.get(name, name.replace("_", " ")), _figure_cell(name))


def _ordered(known: Iterable[str], found: Iterable[str]) -> list[str]:
    """Those that were found, the known ones first and in their order."""
    names = list(dict.fromkeys(found))
    first = [name for name in known if name in names]
    return first + [name for name in names if name not in first]


def _case_cell(name: str) -> Cell:
    return lambda row: _word(row.case.get(name, ""))


def _time_cell(name: str) -> Cell:
    def cell(row: Row) -> str:
        if row.refused and name == "median_ms":
            return "refused"
        return "" if row.time is None or name not in row.time else number(float(row.time[name]))

    return cell


def _spread_cell(row: Row) -> str:
    return "" if row.time is None else f"{100 * float(row.time['spread']):.1f}"


def _figure_cell(name: str) -> Cell:
    return lambda row: number(row.figures[name]) if name in row.figures else ""


def _ratio_cell(name: str) -> Cell:
    def cell(row: Row) -> str:
        peer = row.peers.get(name)
        return "" if peer is None or peer.ratio is None else f"{number(peer.ratio)}"

    return cell


def _table(columns: Sequence[_Column], rows: Sequence[Row]) -> list[str]:
    cells = [[_escaped(column.cell(row)) for column in columns] for row in rows]
    return _lines([(column.title, column.right) for column in columns], cells)


def _lines(heads: Sequence[tuple[str, bool]], cells: Sequence[Sequence[str]]) -> list[str]:
    """Padded, so that it is a table before it is rendered, too."""
    titles = [_escaped(title) for title, _ in heads]
    widths = [max(3, *map(len, column)) for column in zip(titles, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, (_, right) in zip(row, widths, heads, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - right) + ":" * right for width, (_, right) in zip(widths, heads, strict=True)
    ]
    return [line(titles), line(rule), *map(line, cells)]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def markdown_of_changes(
    changes: Sequence[Change], machines: Sequence[str], others: Sequence[str], *, anyway: bool
) -> str:
    """What `fastpose.bench.compare.compare` found.

    Args:
        changes: all of them.
        machines: in what the machines differ, loudest.
        others: in what else the documents do.
        anyway: times were compared nevertheless.
    """
    lines = []
    if machines:
        what = "times are compared ANYWAY" if anyway else "times and memory are NOT compared"
        lines += [f"**The machines differ: {what}.**", "", *(f"- {text}" for text in machines), ""]
    if others:
        lines += ["Also different:", "", *(f"- {text}" for text in others), ""]
    heads = [
        ("row", False),
        ("figure", False),
        ("before", True),
        ("after", True),
        ("worse by", True),
        ("spread", True),
        ("verdict", False),
    ]
    shown = [found for found in changes if found.timed or found.verdict != "same"]
    lines += _lines(heads, [_cells(change) for change in shown])
    if len(shown) < len(changes):
        lines += ["", f"Other figures that are the same: {len(changes) - len(shown)}."]
    notes = [
        f"- {change.row}: {change.verdict}: {change.note}" for change in changes if change.note
    ]
    return "\n".join([*lines, *(["", *dict.fromkeys(notes)] if notes else [])]) + "\n"


def change_text(change: Change) -> str:
    """The change in percent, "+" is worse."""
    if change.change is None:
        return ""
    if math.isinf(change.change):
        return "from 0"
    return f"{100 * change.change:+.1f} %"


def _cells(change: Change) -> list[str]:
    noise = f"{100 * change.noise:.1f} %" if change.noise else ""
    values = ["" if value is None else number(value) for value in (change.before, change.after)]
    verdict = change.verdict.upper() if change.failing else change.verdict
    cells = [change.row, change.what, *values, change_text(change), noise, verdict]
    return [_escaped(cell) for cell in cells]
