"""JSON lines: a header, then one line a frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastpose.sinks.files import RecordFile, Sink, rounded
from fastpose.types import Frame, People

SCHEMA = 1


class JsonLinesSink(Sink):
    """`{"schema": 1, ...header}`, then `{"frame", "time", "people"}` for each frame.

    A person is `{box, box_score, keypoints, scores, id}`: pixels to 0.001, scores to 0.0001, null
    for the coordinates of a joint that was not found. Frames that have a name of their own, the
    pictures of a folder, carry it as `"name"`.

    Args:
        path: the file.
        source: the source's name.
        header: model, skeleton, joints, versions, ...; added to the first line.
    """

    def __init__(self, path: Path, source: str, header: dict[str, Any]) -> None:
        super().__init__()
        self._source = source
        self._file = RecordFile(path)
        self._file.append(_line({"schema": SCHEMA, "source": source, **header}))

    def _write(self, frame: Frame, people: People) -> None:
        line: dict[str, Any] = {"frame": frame.index, "time": round(frame.time, 6)}
        if frame.name != self._source:
            line["name"] = frame.name
        line["people"] = _people(people)
        self._file.append(_line(line))

    def _finish(self) -> None:
        self.files.append(self._file.finish())

    def _discard(self) -> None:
        self._file.discard()


def _people(people: People) -> list[dict[str, Any]]:
    ids = [None] * len(people) if people.ids is None else people.ids.tolist()
    columns = zip(
        rounded(people.boxes),
        rounded(people.box_scores, 4),
        rounded(people.keypoints),
        rounded(people.scores, 4),
        ids,
        strict=True,
    )
    names = ("box", "box_score", "keypoints", "scores", "id")
    return [dict(zip(names, person, strict=True)) for person in columns]


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
