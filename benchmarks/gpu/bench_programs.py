"""What `pytest benchmarks --device cuda` runs: the programs of this folder, each in a new process.

`benchmarks/gpu.sh` runs the same ones, each within its share of the time, with the tests and the
sanitizer before them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from suite import ROOT, Suite

from fastpose.bench.rows import read_document

# The first measures what the others are held against.
PROGRAMS = (
    "ceilings", "step", "pipeline", "warp", "decode", "render", "propagate", "engines", "networks",
)  # fmt: skip


@pytest.fixture(scope="session")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the programs write into."""
    return tmp_path_factory.mktemp("gpu") / "gpu.json"


@pytest.mark.parametrize("program", PROGRAMS)
def bench_program(suite: Suite, document: Path, program: str):
    command = f"benchmarks/gpu/{program}.py"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(ROOT / command), "--out", str(document)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if document.exists():
        found = read_document(document)
        suite.document = replace(suite.document, extra={**suite.document.extra, **found.extra})
        for row in found.rows:
            if row.command.startswith(f"python {command} "):
                suite.add(row)
    assert done.returncode == 0, f"{command}: status {done.returncode}"
