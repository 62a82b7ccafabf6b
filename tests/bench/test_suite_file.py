"""The file of results that runs of the benchmarks fill one after another."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastpose.bench.rows import Row, read_document

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function: words of the command line, a row and a commit -> the document in the file."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    suite = importlib.import_module("suite")
    new = suite.new_document
    path = tmp_path / "results.json"

    def measure(words, name, commit="0123abc", cores=4):
        def fresh(*arguments):
            machine = {"processor": "A Processor", "cores": cores}
            return replace(new(*arguments), commit=commit, machine=machine)

        monkeypatch.setattr(suite, "new_document", fresh)
        options = {"--results": str(path), "--machine": None}
        config = SimpleNamespace(
            invocation_params=SimpleNamespace(args=words), getoption=options.__getitem__
        )
        suite.Suite(config).add(Row("memory", name, {}))
        return read_document(path)

    return measure


def test_parts_fill_one_file_which_names_their_commands(run):
    run(["benchmarks/ops"], "warp")
    run(["benchmarks/ops"], "warp")
    found = run(["benchmarks/engines", "--full"], "cpn50")
    assert [row.name for row in found.rows] == ["warp", "cpn50"]
    assert found.command == "pytest benchmarks/ops; pytest benchmarks/engines --full"


@pytest.mark.parametrize(
    ("other", "words"),
    [({"commit": "4567def"}, "commit 4567def on"), ({"cores": 2}, "a-processor-2-cores")],
)
def test_rows_of_other_sources_do_not_mix(run, other, words):
    run(["benchmarks/ops"], "warp")
    with pytest.raises(pytest.UsageError, match=f"has rows of commit 0123abc .* {words}"):
        run(["benchmarks/ops"], "decode", **other)
