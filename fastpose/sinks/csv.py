"""A table: one row a person, three columns a joint."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastpose.sinks.files import RecordFile, Sink, rounded
from fastpose.types import Frame, People

PERSON_COLUMNS = (
    "frame", "time", "name", "person", "id", "box_x0", "box_y0", "box_x1", "box_y1", "box_score"
)  # fmt: skip


class CsvSink(Sink):
    """Columns frame, time, name, person, id, box_*, then <joint>_x, <joint>_y, <joint>_score.

    Time in seconds, coordinates in frame pixels; a cell is empty where there is no value. A frame
    without people has no row.

    Args:
        path: the file.
        joints: names of the skeleton's joints, in order.
    """

    def __init__(self, path: Path, joints: Iterable[str]) -> None:
        super().__init__()
        self._file = RecordFile(path)
        triples = (f"{joint}_{part}" for joint in joints for part in ("x", "y", "score"))
        self._file.append(_rows([[*PERSON_COLUMNS, *triples]]))

    def _write(self, frame: Frame, people: People) -> None:
        rows = []
        for person in range(len(people)):
            number = None if people.ids is None else int(people.ids[person])
            row = [frame.index, round(frame.time, 6), frame.name, person, number]
            row += [*rounded(people.boxes[person]), *rounded(people.box_scores[person, None], 4)]
            points, scores = rounded(people.keypoints[person]), rounded(people.scores[person], 4)
            for (x, y), score in zip(points, scores, strict=True):
                row += [x, y, score]
            rows.append(row)
        self._file.append(_rows(rows))

    def _finish(self) -> None:
        self.files.append(self._file.finish())

    def _discard(self) -> None:
        self._file.discard()


def _rows(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
