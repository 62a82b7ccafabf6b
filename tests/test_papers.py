"""docs/papers.md names tests: they are there."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
NAME = re.compile(r"`((?:[\w/]+\.py)?)(?:::([\w*]+))?`")


def named(text: str) -> list[tuple[int, str, str]]:
    """(line, file, test or "") of each; one without a file is in the file before it in its line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        file = ""
        for own, test in NAME.findall(line):
            file = own or file
            if own or test:
                found.append((number, file, test))
    return found


def missing(text: str) -> list[str]:
    lost = []
    for number, file, test in named(text):
        places = [root / file for root in (TESTS, ROOT) if file and (root / file).is_file()]
        functions = re.findall(r"def (\w+)\(", places[0].read_text()) if places else []
        if not places or (test and not any(fnmatch(name, test) for name in functions)):
            lost.append(f"line {number}: {file}::{test}")
    return lost


def test_every_test_that_the_papers_claims_name_is_there() -> None:
    papers = ROOT / "docs" / "papers.md"
    if not papers.is_file():
        pytest.skip("tests without the documents")
    text = papers.read_text(encoding="utf-8")
    assert len(named(text)) > 200
    assert missing(text) == []


def test_what_is_not_there_is_found() -> None:
    text = (
        "`test_papers.py::test_what_is_not_*`, `::missing`\n`test_papers.py::test_gone`\n"
        "`::missing`\n`gone.py`"
    )
    assert missing(text) == [
        "line 2: test_papers.py::test_gone",
        "line 3: ::missing",
        "line 4: gone.py::",
    ]
