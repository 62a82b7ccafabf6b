"""What `fastpose build`, `verify` and `inspect` say of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastpose.engines import DetectorManifest, Manifest
from fastpose.errors import DataError, FastposeError

WIDTH = 12  # columns of a row's name


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """The library's ValueErrors, which here are faults of what the user gave, as such.

    Raises:
        DataError: with the same text.
    """
    try:
        yield
    except FastposeError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from None


def row(name: str, text: str) -> str:
    """One line of a table of two columns."""
    return f"{name:<{WIDTH}}{text}".rstrip()


def files_text(folder: Path, names: Iterable[str]) -> str:
    """Names of files with their sizes."""
    return ", ".join(f"{name} ({size_text((folder / name).stat().st_size)})" for name in names)


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def precision_text(manifest: Manifest | DetectorManifest) -> str:
    """Precision asked and found, with the layers that the runtime counts."""
    counted = ", ".join(f"{count} {name}" for name, count in manifest.layers.items())
    layers = f"layers: {counted}" if counted else f"{manifest.kind} does not tell that of layers"
    return f"asked {manifest.precision_asked}, found {manifest.precision} ({layers})"


def report_lines(report: Mapping[str, Any] | None) -> list[str]:
    """What a verification found, and each bound that is broken."""
    if report is None:
        return [row("verified", "never")]
    state = "passed" if report["passed"] else "NOT PASSED"
    chance = ", with random weights" if report.get("random") else ""
    seen = f"{_seen(report)} ({report['source']})"
    scores, metric = report["score_change"], report["metric"]
    lines = [
        row("verified", f"{state}, beside {report['reference']} on {seen}{chance}"),
        _overlap(report["overlap"]) if "overlap" in report else _shift(report["shift"]),
        row("scores", f"change: median {scores['median']}, max {scores['largest']}"),
    ]
    if metric:
        lines.append(row(metric["name"], f"{metric['before']:.2f} -> {metric['after']:.2f}"))
    return lines + [row("not passed", reason) for reason in report["reasons"]]


def _seen(report: Mapping[str, Any]) -> str:
    return f"{report['frames']} frames" if "frames" in report else f"{report['windows']} windows"


def _shift(shift: Mapping[str, Any]) -> str:
    """How far joints have moved."""
    return row(
        "shift",
        f"of {shift['joints']} joints: median {_pixels(shift['median'])}, p95 "
        f"{_pixels(shift['p95'])}, max {_pixels(shift['largest'])} px; "
        f"{100 * shift['moved']:.2f} % moved over 2 px",
    )


def _overlap(overlap: Mapping[str, Any]) -> str:
    """How much boxes are the same."""
    return row(
        "overlap",
        f"of {overlap['boxes']} boxes: median {overlap['median']}, p5 {overlap['p5']}; "
        f"{100 * overlap['found']:.1f} % are found, {100 * overlap['own']:.1f} % of the engine's "
        "own are the reference's",
    )


def _pixels(value: float | None) -> str:
    return "lost" if value is None else f"{value:.3f}"
