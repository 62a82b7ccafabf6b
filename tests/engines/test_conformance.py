"""What `fastpose doctor --engine` runs: good engines pass, and every planted fault is found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import TINY

from fastpose.conformance import CHECKS, Report, Subject, examine, running
from fastpose.engines import Manifest, Options
from fastpose.engines.engine import BufferedEngine
from fastpose.errors import EngineError

torch = pytest.importorskip("torch")

AT_WORK = {name: check for name, check in CHECKS.items() if check.__module__ == running.__name__}


# An engine whose every answer is known, and faults of it


class Pooled(BufferedEngine):
    """Heat maps that follow the brightness of the window, a little differently for each joint."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(
            Manifest(
                spec=TINY,
                kind="torch",
                precision="f32",
                precision_asked=subject.precision,
                buckets=subject.buckets,
                device="cpu",
                versions={"torch": "2"},
                layers={"f32": 2},
            )
        )

    def _infer(self, count: int) -> None:
        h, w = TINY.cells
        cells = self._images[:count].mean(axis=1).reshape(count, h, 4, w, 4).mean(axis=(2, 4))
        self._result[:count] = cells[:, None] * np.linspace(0.5, 1, 14)[:, None, None]

    def _free(self) -> None:
        pass


class Examined(Subject):
    """An engine that needs no file, whose class a test chooses."""

    engine: type[BufferedEngine] = Pooled

    def build(self, name: str = "engine", options: Options | None = None) -> Path | None:
        return None

    def open(self, **changes: object) -> BufferedEngine:
        return self.engine(self)

    @contextmanager
    def reference(self) -> Iterator[BufferedEngine]:
        yield Pooled(self)

    @property
    def pictures(self) -> np.ndarray:
        return spots(TINY)


def spots(spec) -> np.ndarray:
    """Bright spots, where every engine of any precision finds the same joints."""
    h, w = spec.size
    y, x = np.mgrid[:h, :w]
    centres = np.random.default_rng(1).uniform((3, 3), (h - 3, w - 3), (4, 2))
    lit = [np.exp(-((x - b) ** 2 + (y - a) ** 2) / 30) for a, b in centres]
    return np.repeat(np.float32(lit)[:, None], 3, axis=1)


def examined(tmp_path: Path, engine: type[BufferedEngine], **values: object) -> Report:
    given = {
        "kind": "torch",
        "model": "tiny",
        "precision": "f32",
        "device": "auto",
        "options": Options(),
        "folder": tmp_path,
        **values,
    }
    subject = Examined(**given)
    subject.engine = engine
    return examine(subject, AT_WORK)


def outcomes(report: Report, outcome: str) -> set[str]:
    return {row.name for row in report.rows if row.outcome == outcome}


def test_an_engine_that_is_right_passes(tmp_path):
    report = examined(tmp_path, Pooled)
    assert outcomes(report, "failed") == set(), report.rows
    assert outcomes(report, "skipped") == {"graph replay", "refit", "throughput mode"}
    assert [row.name for row in report.rows] == list(AT_WORK)
    assert all(row.detail and row.seconds >= 0 for row in report.rows)


class Low(Pooled):
    def __init__(self, subject):
        super().__init__(subject)
        self.manifest = replace(self.manifest, precision="bf16")


class MostlyLow(Pooled):
    def __init__(self, subject):
        super().__init__(subject)
        self.manifest = replace(self.manifest, layers={"f32": 1, "bf16": 2})


class Off(Pooled):
    def _infer(self, count):
        super()._infer(count)
        self._result[:count] *= np.float32(1.01)


class Reuses(Pooled):
    def __call__(self, batch):
        found = super().__call__(batch)
        if len(batch) > self.manifest.buckets[-1]:
            return found
        self._result[: len(batch)] = found
        return self._result[: len(batch)]


class Spoils(Pooled):
    def run(self, count):
        found = super().run(count)
        self._images[:count] = 0
        return found


class LastRow(Pooled):
    def _infer(self, count):
        super()._infer(count)
        if count == 3:
            self._result[2] += 1


class FirstPartAgain(Pooled):
    def __call__(self, batch):
        found = super().__call__(batch)
        largest = self.manifest.buckets[-1]
        found[largest:] = found[: max(0, len(found) - largest)]
        return found


class NoEmpty(Pooled):
    def __call__(self, batch):
        return super().__call__(batch) if len(batch) else np.zeros((1, 14, *TINY.cells), np.float32)


class Casts(Pooled):
    def __call__(self, batch):
        return super().__call__(np.asarray(batch, np.float32))


class TakesAnyCount(Pooled):
    def _checked(self, count):
        return super()._checked(min(max(count, 1), self.manifest.buckets[-1]))


class ReadsMemory(Pooled):
    def __call__(self, batch):
        if isinstance(batch, np.ndarray) and batch.dtype == np.float32 and batch.ndim == 4:
            batch = batch.ravel(order="K").reshape(batch.shape)
        return super().__call__(batch)


class OneInput(Pooled):
    images = None

    def __init__(self, subject):
        super().__init__(subject)
        OneInput.images = self._images if OneInput.images is None else OneInput.images
        self._images = OneInput.images

    def _infer(self, count):
        time.sleep(1e-3)
        super()._infer(count)


class ClaimsToBeShareable(Pooled):
    shareable = True

    def _infer(self, count):
        time.sleep(1e-3)
        super()._infer(count)


class Leaks(Pooled):
    kept: list[bytearray] = []  # noqa: RUF012

    def _infer(self, count):
        super()._infer(count)
        Leaks.kept.append(bytearray(1000))


class OpenForEver(Pooled):
    def close(self):
        pass


class ClosesSilently(Pooled):
    def _checked(self, count):
        if self._closed:
            raise EngineError("something is wrong")
        return super()._checked(count)


@pytest.mark.parametrize(
    ("engine", "checks", "words"),
    [
        (Low, {"precision"}, "asked f32, found bf16"),
        (MostlyLow, {"precision", "accuracy"}, "most layers are bf16"),
        (Off, {"accuracy"}, "1.0e-02 of the largest value"),
        (Reuses, {"ownership of results"}, "changed what an earlier one had returned"),
        (Spoils, {"ownership of results"}, "changed the windows"),
        (LastRow, {"every batch size"}, "a batch of 3: "),
        (FirstPartAgain, {"over the largest batch"}, "9 windows: "),
        (NoEmpty, {"nobody"}, "no windows give float32 [1, 14, 4, 6]"),
        (Casts, {"wrong input"}, "float64 was taken"),
        (TakesAnyCount, {"wrong input"}, "a buffer of 0 was taken"),
        (ReadsMemory, {"strided input"}, "windows in memory "),
        (OneInput, {"two threads"}, "thread "),
        (ClaimsToBeShareable, {"two threads"}, "thread "),
        (OpenForEver, {"close"}, "works"),
        (ClosesSilently, {"close"}, "does not say that it is closed"),
    ],
)
def test_a_fault_is_found_by_the_check_for_it_alone(tmp_path, engine, checks, words):
    """A verification looks at the precision, too."""
    report = examined(tmp_path, engine)
    assert outcomes(report, "failed") == checks, report.rows
    failed = [row for row in report.rows if row.outcome == "failed"]
    assert words in failed[0].detail
    assert all("\n" not in row.detail and row.traceback == "" for row in failed)


def test_a_leak_of_a_kilobyte_a_run_is_found(tmp_path):
    try:
        report = examined(tmp_path, Leaks, full=True)
    finally:
        Leaks.kept.clear()
    assert outcomes(report, "failed") == {"memory"}, report.rows
    assert "bytes a run" in report.rows[-2].detail
