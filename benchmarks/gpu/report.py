"""The one JSON document of a run on a GPU, written anew after each result, and its table.

    python benchmarks/gpu/report.py FILE begin COMMIT COMMAND
    python benchmarks/gpu/report.py FILE stage NAME STATUS SECONDS COMMAND
    python benchmarks/gpu/report.py FILE build LOG
    python benchmarks/gpu/report.py FILE tests XML
    python benchmarks/gpu/report.py FILE tune JSON
    python benchmarks/gpu/report.py FILE table

It is one of `fastpose.bench.rows`, with stages, tests and more beside the rows. Neither torch nor
a compiled kernel is imported, so that what went wrong with those can be written down.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastpose.bench.rows import Document, Row, new_document, read_document

ROOT = Path(__file__).parents[2]
COMMAND = "bash benchmarks/gpu.sh"
STATUS = {"0": "passed", "3": "absent", "124": "timed out", "130": "timed out", "137": "timed out"}
ABSENT = 3  # a program's exit status where what it needs is not installed
WIDTH = 118
LONGEST = 11_000  # characters of the table: whoever ran this elsewhere may see only its end
MESSAGE = 400
ORDER = ("pipeline", "counts", "memory", "startup", "engines", "accuracy", "ops")  # it may be cut
UNSTEADY = 0.05  # a spread from which on it is told


class Report:
    """The document, in memory or in a file that is read before and written after each change.

    Args:
        path: the file, which need not exist; None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._memory: Document | None = None

    def read(self) -> Document:
        """What is written so far."""
        if self.path is not None and self.path.exists():
            return read_document(self.path)
        if self._memory is None:
            self._memory = new_document((), COMMAND, ROOT)
        return self._memory

    def begin(self, commit: str, command: str) -> None:
        """A new document of this machine; `commit` is told where the sources are in no repository.

        Raises:
            ResultsError: the file cannot be written.
        """
        fresh = new_document((), command, ROOT)
        self._write(replace(fresh, commit=commit or fresh.commit))

    def describe(self, machine: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Put facts to those of the document."""
        found = self.read()
        self._write(
            replace(
                found,
                machine={**found.machine, **machine},
                versions={**found.versions, **versions},
            )
        )

    def set(self, **entries: Any) -> None:
        """Put entries at the top level."""
        found = self.read()
        self._write(replace(found, extra={**found.extra, **entries}))

    def append(self, key: str, entry: Mapping[str, Any]) -> None:
        """Put an entry behind those of a list."""
        self.set(**{key: [*self.read().extra.get(key, []), dict(entry)]})

    def add(self, *rows: Row) -> None:
        """Put rows to the others; one of the same key takes the other's place."""
        self._write(self.read().with_rows(rows))

    def _write(self, document: Document) -> None:
        self._memory = document
        if self.path is not None:
            document.write(self.path)


def first_line(error: BaseException) -> str:
    """An error in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:MESSAGE]


def kernel_resources(log: str) -> list[str]:
    """What ptxas says of each kernel, in a line: architecture, name, registers, stack, spills."""
    kernel = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'"
        r".*?(?P<stack>\d+ bytes stack frame[^\n]*)"
        r".*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return [
        f"{found['arch']} {found['registers']} registers, {found['stack']}: {found['name']}"
        for found in kernel.finditer(log)
    ]


def count_tests(path: Path) -> dict[str, Any]:
    """Numbers of a junit file, and what failed or was skipped why; "error" if nothing ran."""
    if not path.exists():
        return {"error": f"pytest wrote no {path.name}"}
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    counts: dict[str, Any] = {
        key: sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    for key, tags in (("failed", ("failure", "error")), ("skips", ("skipped",))):
        counts[key] = [
            f"{case.get('classname')}::{case.get('name')}: {said.get('message') or ''}"[:MESSAGE]
            for suite in suites
            for case in suite.iter("testcase")
            for said in case
            if said.tag in tags
        ]
    if counts["skipped"] == counts["tests"]:
        counts["error"] = f"none of {counts['tests']} tests ran"
    return counts


def table(document: Document) -> str:
    """The run on one page: stages, ceilings, then what is wrong, then a line for each row."""
    gpus = [gpu.get("name", "") for gpu in document.machine.get("gpus", ())]
    versions = [f"{name} {version}" for name, version in document.versions.items()]
    lines = ["", ", ".join([*(gpus or ["no GPU"]), document.date, *versions])[:WIDTH]]
    extra = document.extra
    lines += [
        f"  {stage['stage']:<12} {stage['status']:<10} {stage['seconds']:>4} s"
        for stage in extra.get("stages", [])
    ]
    tests = extra.get("tests", {})
    if tests:
        counts = (f"{key} {value}" for key, value in tests.items() if isinstance(value, int))
        lines.append("tests: " + (tests.get("error") or ", ".join(counts)))
        lines += [f"  FAILED {line}"[:WIDTH] for line in tests.get("failed", [])[:8]]
    for entry in extra.get("sanitizer", []):
        lines.append(f"{entry['tool']} {entry['part']}: {entry['verdict']}"[:WIDTH])
    ceilings = extra.get("ceilings")
    if ceilings:
        lines.append("ceilings: " + ", ".join(f"{k} {v}" for k, v in ceilings.items()))
    rows = sorted(document.rows, key=lambda row: ORDER.index(row.group))
    wrong = [row for row in rows if row.absent]
    lines += [f"  ABSENT {describe(row)}"[:WIDTH] for row in wrong[:12]]
    lines += [describe(row)[:WIDTH] for row in rows if not row.absent]
    text = "\n".join(lines)
    if len(text) > LONGEST:
        text = text[:LONGEST] + "\n... the rest is in the JSON file"
    met = [ok for row in rows for ok in limits_met(row).values() if ok is not None]
    refused = sum(bool(row.refused) for row in rows)
    return (
        f"{text}\n{len(rows)} rows, {len(wrong)} absent, {refused} refused; "
        f"limits met: {sum(met)} of {len(met)}"
    )


def limits_met(row: Row) -> dict[str, bool | None]:
    """Whether each limit of a row is met; None where nothing can be said."""

    def found(key: str) -> float | None:
        return row.peers[key].ratio if key in row.peers else row.figures.get(key)

    values = {key: found(key) for key in row.limits}
    return {key: None if v is None else v >= row.limits[key] for key, v in values.items()}


def describe(row: Row) -> str:
    """A row in one line: what, how long, and its figures and ratios against their limits."""
    case = " ".join(f"{key}={value}" for key, value in row.case.items())
    words = [row.name, case]
    if row.absent or row.refused:
        return " ".join([*words, row.absent or f"refused: {row.refused}"])
    met = limits_met(row)

    def against(key: str, text: str) -> str:
        sign = {True: " ok", False: " MISSED", None: ""}[met.get(key)]
        limit = row.limits.get(key)
        return text + (f" ({limit:g}{sign})" if limit is not None else "")

    if row.time is None and not row.figures:
        return " ".join([*words, "checked; not timed"])
    if row.time is not None:
        words.append(f"{1e3 * row.time['median_ms']:.2f} us")
        if row.time["spread"] >= UNSTEADY:
            words.append(f"+-{100 * row.time['spread']:.0f}%")
    words += [against(key, f"{key} {value:g}") for key, value in row.figures.items()]
    for name, peer in row.peers.items():
        words.append(against(name, f"{name} {peer.ratio:.1f}x" if peer.ratio else f"{name} absent"))
    return " ".join(words)


def main(arguments: Sequence[str]) -> None:
    """Write one thing down, or print the table."""
    path, verb, *rest = arguments
    report = Report(Path(path))
    match verb, rest:
        case "begin", [commit, command]:
            report.begin(commit, command)
        case "stage", [name, status, seconds, command]:
            report.append(
                "stages",
                {
                    "stage": name,
                    "status": STATUS.get(status, f"failed ({status})"),
                    "seconds": int(seconds),
                    "command": command,
                },
            )
        case "build", [log]:
            lines = kernel_resources(Path(log).read_text(errors="replace"))
            report.set(nvcc=lines)
            print("\n".join(lines))
        case "tests", [xml]:
            counts = count_tests(Path(xml))
            report.set(tests=counts)
            if "error" in counts:
                raise SystemExit(counts["error"])
        case "tune", [other]:
            report.set(tune=json.loads(Path(other).read_text()) if Path(other).exists() else None)
        case "table", []:
            print(table(report.read()))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
