"""Parquet: one row a person, for tables of days of video (extra `data`)."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.errors import BackendError
from fastpose.sinks.files import Sink, make_folder, not_writable, partial_path
from fastpose.types import Frame, People

ROW_GROUP = 4096  # people; bounds the memory at about 1 MB for 17 joints
_FOOTER_OF_A_GROUP = 16 * 1024  # bytes, generous: about 10 columns of some 300 bytes


class ParquetSink(Sink):
    """Columns frame, time, name, person, id, box [4], box_score, keypoints [K, 2], scores [K].

    Coordinates are float32 frame pixels, NaN where a joint was not found; id is null where nobody
    tracks. A frame without people has no row. The schema's metadata holds `schema`, `skeleton`,
    `joints` (a JSON list) and `header` (the whole header as JSON). Memory is constant: rows are
    written in groups.

    Args:
        path: the file.
        header: as for JSON lines; needs "skeleton" and "joints".

    Raises:
        BackendError: pyarrow is not installed.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        super().__init__()
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise BackendError(
                "saving parquet needs pyarrow: install fastpose-inference[data]"
            ) from None
        self._arrow, self._path, self._partial = pyarrow, path, partial_path(path)
        self._schema = _schema(header)
        make_folder(path.parent)
        try:
            self._file = self._partial.open("wb", buffering=0)
        except OSError as error:
            raise not_writable(path, error) from None
        self._waiting: list[tuple[Frame, People]] = []
        self._rows = self._groups = 0
        self._reserve(0)
        self._writer = parquet.ParquetWriter(self._file, self._schema)

    def _write(self, frame: Frame, people: People) -> None:
        if not len(people):
            return
        # Only name and numbers of the frame are kept: the picture would hold memory.
        light = Frame(np.empty((0, 0, 3), np.uint8), frame.index, frame.time, frame.name)
        self._waiting.append((light, people))
        self._rows += len(people)
        if self._rows >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        table = self._table(self._waiting)
        self._reserve(table.nbytes)
        self._writer.write_table(table)
        self._waiting, self._rows = [], 0
        self._groups += 1

    def _reserve(self, size: int) -> None:
        """Make sure of the room for a group and the index at the end before it is begun.

        A writer that fails inside a group cannot write the index any more, and then nothing of the
        file can be read.
        """
        room = 2 * size + (self._groups + 2) * _FOOTER_OF_A_GROUP
        try:
            os.posix_fallocate(self._file.fileno(), self._file.tell(), room)
        except OSError as error:
            raise not_writable(self._path, error) from None

    def _table(self, rows: list[tuple[Frame, People]]) -> Any:
        pa = self._arrow
        counts = [len(people) for _, people in rows]
        k = self._schema.field("scores").type.list_size

        def repeated(values: list[Any]) -> list[Any]:
            return [value for value, n in zip(values, counts, strict=True) for _ in range(n)]

        def joined(name: str, width: int) -> Any:
            flat = pa.array(np.concatenate([getattr(p, name).reshape(-1) for _, p in rows]))
            return pa.FixedSizeListArray.from_arrays(flat, width) if width else flat

        ids = [
            None if people.ids is None else int(people.ids[i])
            for _, people in rows
            for i in range(len(people))
        ]
        columns = [
            repeated([frame.index for frame, _ in rows]),
            repeated([frame.time for frame, _ in rows]),
            repeated([frame.name for frame, _ in rows]),
            [i for n in counts for i in range(n)],
            ids,
            joined("boxes", 4),
            joined("box_scores", 0),
            pa.FixedSizeListArray.from_arrays(joined("keypoints", 2), k),
            joined("scores", k),
        ]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _finish(self) -> None:
        try:
            if self._waiting:
                self._flush()
        finally:
            self._complete()

    def _complete(self) -> None:
        try:
            self._writer.close()
            self._file.truncate()
            self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise not_writable(self._path, error) from None
        self.files.append(self._path)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()
        self._file.close()
        self._partial.unlink(missing_ok=True)


def _schema(header: dict[str, Any]) -> Any:
    import pyarrow as pa

    k = len(header["joints"])
    fields = [
        ("frame", pa.int64()),
        ("time", pa.float64()),
        ("name", pa.string()),
        ("person", pa.int32()),
        ("id", pa.int64()),
        ("box", pa.list_(pa.float32(), 4)),
        ("box_score", pa.float32()),
        ("keypoints", pa.list_(pa.list_(pa.float32(), 2), k)),
        ("scores", pa.list_(pa.float32(), k)),
    ]
    metadata = {
        "schema": "1",
        "skeleton": header["skeleton"],
        "joints": json.dumps(header["joints"]),
        "header": json.dumps(header),
    }
    return pa.schema(fields, metadata=metadata)
