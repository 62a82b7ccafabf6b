"""The one JSON document of a run on a GPU, written anew after each result, and its table.

    python benchmarks/gpu/report.py FILE stage NAME STATUS SECONDS COMMAND
    python benchmarks/gpu/report.py FILE build LOG
    python benchmarks/gpu/report.py FILE tests XML
    python benchmarks/gpu/report.py FILE tune JSON
    python benchmarks/gpu/report.py FILE table

It needs Python alone, so that what went wrong with anything else can be written down.
"""

from __future__ import annotations

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUS = {"0": "passed", "3": "absent", "124": "timed out", "130": "timed out", "137": "timed out"}
ABSENT = 3  # a program's exit status where what it needs is not installed
WIDTH = 118
LONGEST = 11_000  # characters of the table: whoever ran this elsewhere may see only its end
MESSAGE = 400
ORDER = (  # of the table, which may be cut
    "step", "engine", "direct", "cubin", "memory", "propagate", "warp", "render", "decode",
)  # fmt: skip
UNSTEADY = 0.05  # a spread from which on it is told


class Report:
    """The document, in memory or in a file that is read before and written after each change.

    Args:
        path: the file, which need not exist; None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._memory: dict[str, Any] = {"schema": SCHEMA, "stages": [], "rows": []}

    def read(self) -> dict[str, Any]:
        """What is written so far."""
        if self.path is not None and self.path.exists():
            self._memory = json.loads(self.path.read_text())
        return self._memory

    def set(self, **entries: Any) -> None:
        """Put entries at the top level."""
        self._write(self.read() | entries)

    def append(self, key: str, entry: Mapping[str, Any]) -> None:
        """Put an entry behind those of a list."""
        document = self.read()
        self._write(document | {key: [*document.get(key, []), dict(entry)]})

    def _write(self, document: dict[str, Any]) -> None:
        self._memory = document
        if self.path is not None:
            # a stage may be killed at any moment, and must not take the others' results with it
            whole = self.path.with_suffix(".part")
            whole.write_text(json.dumps(document, indent=1) + "\n")
            os.replace(whole, self.path)  # noqa: PTH105


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


def table(document: Mapping[str, Any]) -> str:
    """The run on one page: stages, ceilings, then what is wrong, then a line for each row."""
    about = document.get("about", {})
    lines = ["", " ".join(f"{key} {value}" for key, value in about.items() if value)[:WIDTH]]
    lines += [
        f"  {stage['stage']:<12} {stage['status']:<10} {stage['seconds']:>4} s"
        for stage in document.get("stages", [])
    ]
    tests = document.get("tests", {})
    if tests:
        counts = (f"{key} {value}" for key, value in tests.items() if isinstance(value, int))
        lines.append("tests: " + (tests.get("error") or ", ".join(counts)))
        lines += [f"  FAILED {line}"[:WIDTH] for line in tests.get("failed", [])[:8]]
    for entry in document.get("sanitizer", []):
        lines.append(f"{entry['tool']} {entry['part']}: {entry['verdict']}"[:WIDTH])
    ceilings = document.get("ceilings")
    if ceilings:
        lines.append("ceilings: " + ", ".join(f"{k} {v}" for k, v in ceilings.items()))
    rows = sorted(document.get("rows", []), key=lambda row: ORDER.index(row["op"]))
    wrong = [row for row in rows if row["status"] != "ok"]
    lines += [f"  {row['status'].upper()} {describe(row)}"[:WIDTH] for row in wrong[:12]]
    lines += [describe(row)[:WIDTH] for row in rows if row["status"] == "ok"]
    text = "\n".join(lines)
    if len(text) > LONGEST:
        text = text[:LONGEST] + "\n... the rest is in the JSON file"
    met = [ok for row in rows for ok in row.get("met", {}).values() if ok is not None]
    return f"{text}\n{len(rows)} rows, {len(wrong)} not ok; targets met: {sum(met)} of {len(met)}"


def describe(row: Mapping[str, Any]) -> str:
    """A row in one line: what, how long, against the floor, the matmul rate and the peers."""
    words = [row["op"], row["case"]]
    if row["status"] != "ok":
        return " ".join([*words, row.get("error") or ""])
    if row["us"] is None:
        return " ".join([*words, "checked; not timed in a dry run"])
    met = row.get("met", {})

    def against(key: str, text: str) -> str:
        sign = {True: " ok", False: " MISSED", None: ""}[met.get(key)]
        limit = row["limits"].get(key)
        return text + (f" ({limit:g}{sign})" if limit is not None else "")

    words.append(against("us", f"{row['us']:.2f} us"))
    if row["spread"] >= UNSTEADY:
        words.append(f"+-{100 * row['spread']:.0f}%")
    if row.get("ratio_to_floor") is not None:
        words.append(against("ratio_to_floor", f"{row['ratio_to_floor']:.2f}x floor"))
    if row.get("share_of_matmul") is not None:
        words.append(against("share_of_matmul", f"{row['share_of_matmul']:.2f} of matmul"))
    if row.get("overhead") is not None:
        words.append(against("overhead", f"overhead {100 * row['overhead']:.1f} %"))
        words.append(f"network {row['network_us']:.0f} eager {row['eager_us']:.0f}")
        words.append(f"host +{row['host_us']:.0f} us, opened in {row['open_s']:.1f} s")
    for name, peer in row.get("peers", {}).items():
        ratio = peer.get("ratio")
        how = " eager" if peer.get("timed") == "eager" else ""
        words.append(against(name, f"{name} {ratio:.1f}x{how}" if ratio else f"{name} failed"))
    return " ".join(words)


def main(arguments: Sequence[str]) -> None:
    """Write one thing down, or print the table."""
    path, verb, *rest = arguments
    report = Report(Path(path))
    match verb, rest:
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
