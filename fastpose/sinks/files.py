"""What every output has in common: a sink, and a file that holds only whole records."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.errors import OutputError
from fastpose.measure import stage
from fastpose.types import Frame, People


class Sink(ABC):
    """One output of a run; a context manager.

    Nothing is visible under the final name before `close` or `abort`. Leaving the `with` block
    through an exception, Ctrl-C included, aborts.

    Attributes:
        files: the final paths of what was written, from `close` or `abort` on.
        frames: how many frames were written whole.
    """

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.frames = 0
        self._open = True

    def write(self, frame: Frame, people: People) -> None:
        """Add one frame's people.

        Raises:
            OutputError: it cannot be written; the frames before it stay whole.
        """
        with stage("write"):
            self._write(frame, people)
        self.frames += 1

    def close(self) -> None:
        """Finish the output and give it its name. Closing again does nothing.

        Raises:
            OutputError: the output cannot be finished.
        """
        if self._open:
            self._open = False
            self._finish()

    def abort(self) -> None:
        """Keep the frames that were written whole, if there are any, under the final name.

        Raises nothing: the fault that stopped the run is the one to report.
        """
        if not self._open:
            return
        self._open = False
        try:
            if self.frames:
                self._finish()
            else:
                self._discard()
        except OSError:  # OutputError is one
            self._discard()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def _write(self, frame: Frame, people: People) -> None: ...

    @abstractmethod
    def _finish(self) -> None:
        """Complete the output, rename it, and put its paths into `files`."""

    @abstractmethod
    def _discard(self) -> None:
        """Remove what has no final name yet."""


class RecordFile:
    """A file under a temporary name that at any moment can be cut back to whole records.

    Args:
        path: the final name; the temporary one is `partial_path(path)`.
        tail: what must follow the last record. It is kept on the disk after every record, so that
            a full disk cannot be in its way.

    Raises:
        OutputError: the file cannot be made.
    """

    def __init__(self, path: Path, tail: bytes = b"") -> None:
        self.path, self._tail = path, tail
        self._partial = partial_path(path)
        make_folder(path.parent)
        try:
            self._file = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise not_writable(path, error) from None
        self._whole = 0

    def append(self, record: bytes) -> None:
        """Add a record.

        Raises:
            OutputError: there is no room, or the disk fails; the records before it stay.
        """
        try:
            self._put(record + self._tail)
        except OSError as error:
            raise not_writable(self.path, error) from None
        self._whole += len(record)

    def finish(self) -> Path:
        """Cut off what is not whole, close the file, rename it, and return its final path."""
        try:
            os.ftruncate(self._file, self._whole)
            self._put(self._tail)
            os.close(self._file)
            self._partial.replace(self.path)
        except OSError as error:
            raise not_writable(self.path, error) from None
        return self.path

    def discard(self) -> None:
        """Remove the file; it has not been finished."""
        os.close(self._file)
        self._partial.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._whole + done)


def partial_path(path: Path) -> Path:
    """Where a file is written until it is finished: beside its place, with the same ending."""
    return path.with_name(f".partial-{path.name}")


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        came = "a file" if path.is_file() else error.strerror
        raise OutputError(f"{path}: expected a folder to write to, came: {came}") from None


def not_writable(path: Path, error: OSError) -> OutputError:
    """The error for a file that the system will not let us write."""
    return OutputError(f"{path}: expected a file that can be written, came: {error.strerror}")


def rounded(values: npt.NDArray[Any], digits: int = 3) -> list[Any]:
    """Nested lists for JSON: rounded, and None where a value is not finite."""
    values = np.asarray(values, np.float64).round(digits)
    if np.isfinite(values).all():
        return values.tolist()
    blanked = values.astype(object)
    blanked[~np.isfinite(values)] = None
    return blanked.tolist()
