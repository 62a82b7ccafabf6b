"""Does an engine do on this machine what fastpose promises? The suite that answers, for any."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from fastpose.conformance import bundles, running
from fastpose.conformance.report import FAILED, PASSED, SKIPPED, Anonymous, Report, Row
from fastpose.conformance.subject import Failed, Skipped, Subject
from fastpose.engines import KINDS, Options, choose_runtime
from fastpose.engines.engine import PRECISIONS, cause
from fastpose.machine import machine, versions

__all__ = ["CHECKS", "Check", "Failed", "Report", "Row", "Skipped", "Subject", "run_conformance"]

Check = Callable[[Subject], str]

CHECKS: dict[str, Check] = {
    "build": running.build,
    "precision": running.precision,
    "manifest": bundles.manifest,
    "accuracy": running.accuracy,
    "ownership of results": running.ownership,
    "every batch size": running.batches,
    "over the largest batch": running.splitting,
    "nobody": running.nobody,
    "wrong input": running.wrong_input,
    "strided input": running.strided_input,
    "graph replay": running.graph_replay,
    "frames on the device": running.frames,
    "throughput mode": running.throughput,
    "other memory": running.other_memory,
    "two threads": running.two_threads,
    "wrong device": bundles.wrong_device,
    "wrong version": bundles.wrong_version,
    "damaged file": bundles.damaged_file,
    "damage unnoticed": bundles.damage_unnoticed,
    "building twice": bundles.building_twice,
    "refit": bundles.refit,
    "speed": running.speed,
    "memory": running.memory,
    "close": running.close,
}
"""Checks by name, in their order; each returns what it found, or raises `Failed` or `Skipped`."""


def run_conformance(
    kind: str,
    *,
    model: str = "default",
    precision: str = "f32",
    device: str = "auto",
    options: Options | None = None,
    full: bool = False,
    threads: int | None = None,
    calibration: str | Path | None = None,
    folder: str | Path,
    tell: Callable[[str], None] | None = None,
    keep: Callable[[Report], None] | None = None,
) -> Report:
    """Build an engine and examine it; what a check finds, the next ones do not depend on.

    Args:
        kind: "openvino", "onnxruntime", "torch" or "tensorrt".
        model: a registered name.
        precision: "f32", "bf16", "f16" or "int8".
        device: "auto" or the runtime's name of a device.
        options: what the graph does and what the runtime is asked.
        full: 10,000 runs in place of 300, and batches up to 32.
        threads: of the runtime; None leaves the number to it.
        calibration: for int8, as in `fastpose.build_engine`.
        folder: an empty one, for all that is built.
        tell: called with the name of each check and stage that begins.
        keep: called with the report before each check and at the end: a runtime may take the whole
            process with it.

    Returns:
        What was found. An error that no check expects is a failure of its check; Ctrl-C ends the
        report early.

    Raises:
        BackendError: the runtime is not installed.
        ValueError: there is no such precision.
    """
    choose_runtime(kind, KINDS)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    subject = Subject(
        kind=kind,
        model=model,
        precision=precision,
        device=device,
        options=options or Options(),
        folder=Path(folder),
        full=full,
        threads=threads,
        calibration=Path(calibration) if calibration else None,
        tell=tell or (lambda stage: None),
    )
    return examine(subject, keep=keep)


def examine(
    subject: Subject,
    checks: Mapping[str, Check] = CHECKS,
    keep: Callable[[Report], None] | None = None,
) -> Report:
    """As `run_conformance`, of an engine that somebody else has described.

    Args:
        subject: what is examined.
        checks: of `CHECKS`; without "build" the subject is taken as built.
        keep: as there.
    """
    clean = Anonymous(subject.folder)
    report = Report(
        machine=clean.values(machine()),
        versions=versions(),
        kind=subject.kind,
        model=subject.model,
        precision=subject.precision,
        device=subject.device,
        full=subject.full,
    )
    subject.built = "build" not in checks
    try:
        for name, check in checks.items():
            report.running = name
            if keep:
                keep(report)
            report.rows.append(_checked(name, check, subject, clean))
        report.running = ""
    except KeyboardInterrupt:
        report.interrupted = True
    if keep:
        keep(report)
    return report


def _checked(name: str, check: Check, subject: Subject, clean: Anonymous) -> Row:
    start = time.monotonic()
    trace = ""
    try:
        if not (subject.built or check is running.build):
            raise Skipped("nothing was built")
        subject.tell(name)
        outcome, detail = PASSED, check(subject)
    except Skipped as reason:
        outcome, detail = SKIPPED, str(reason)
    except Failed as reason:
        outcome, detail = FAILED, str(reason)
    except Exception as error:  # of a machine that nobody has seen anything may come
        outcome, detail = FAILED, f"{type(error).__name__}: {cause(error)}"
        trace = "".join(traceback.format_exception(error))
    seconds = round(time.monotonic() - start, 3)
    return Row(name, outcome, clean(detail), seconds, clean(trace))
