"""Results out: files of joints, and pictures with the joints drawn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from fastpose.sinks.files import Sink

FORMATS = ("jsonl", "csv", "coco", "openpose", "parquet")


class Described(Protocol):
    """What a sink must know of the source; `fastpose.frames.Source` has it."""

    name: str
    kind: str
    fps: float | None


def open_sinks(
    formats: Iterable[str],
    out_dir: Path,
    source: Described,
    header: dict[str, Any],
    *,
    video: bool = False,
    show: bool = False,
    min_score: float = 0.3,
) -> list[Sink]:
    """Open the outputs of one source.

    They are `out_dir`/<source name> with `.people.jsonl`, `.people.csv`, `.coco.json`,
    `.openpose` (a folder) and `.parquet`, and, with `video`, `.pose.mp4`; of pictures `.pose.png`,
    of a folder of pictures a folder `.pose`.

    Args:
        formats: some of `FORMATS`.
        out_dir: made if need be.
        source: its name, kind and frame rate.
        header: "model", "skeleton", "joints" (their names), "versions", ...: what the JSON lines
            begin with and Parquet keeps as metadata.
        video: also write the frames with the people drawn.
        show: also show them in a window.
        min_score: joints below are not drawn.

    Raises:
        ValueError: there is no such format.
        BackendError: a format or the window needs an extra that is not installed.
        OutputError: the folder cannot be made or written.
    """
    opened: list[Sink] = []
    try:
        for name in formats:
            opened.append(_open(name, Path(out_dir), source, header))
        if video:
            from fastpose.sinks.background import BackgroundSink
            from fastpose.sinks.video import open_drawn

            drawn = open_drawn(Path(out_dir), source, min_score=min_score)
            opened.append(BackgroundSink(drawn))
        if show:
            from fastpose.sinks.window import WindowSink

            opened.append(WindowSink(source.name, min_score=min_score))
    except BaseException:
        for sink in opened:
            sink.abort()
        raise
    return opened


def _open(name: str, folder: Path, source: Described, header: dict[str, Any]) -> Sink:
    match name:
        case "jsonl":
            from fastpose.sinks.jsonl import JsonLinesSink

            return JsonLinesSink(folder / f"{source.name}.people.jsonl", source.name, header)
        case "csv":
            from fastpose.sinks.csv import CsvSink

            return CsvSink(folder / f"{source.name}.people.csv", header["joints"])
        case "coco":
            from fastpose.sinks.coco import CocoSink

            pictures = source.kind in ("image", "folder")
            return CocoSink(folder / f"{source.name}.coco.json", pictures=pictures)
        case "openpose":
            from fastpose.sinks.openpose import OpenPoseSink

            return OpenPoseSink(folder / f"{source.name}.openpose", source.name)
        case "parquet":
            from fastpose.sinks.parquet import ParquetSink

            return ParquetSink(folder / f"{source.name}.parquet", header)
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
