"""A machine with a GPU may have little else, and no time for a slip: what runs there, run here."""

import importlib
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from fastpose.bench.rows import Row, new_document, read_document

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
ABSENT = (
    "openvino", "onnx", "onnxruntime", "onnxscript", "safetensors", "scipy", "sklearn", "pyarrow",
    "av", "faster_coco_eval", "xdist",
)  # fmt: skip
SECONDS = 540  # for all stages


def without_what_may_be_absent(code: str, *arguments: str) -> str:
    """The output of a new Python that can import what every such machine has, and no more."""
    absent = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", absent + code, *arguments],
        cwd=ROOT,
        env={**env, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_gpu_tests_are_found_with_torch_pytest_and_opencv_alone():
    found = without_what_may_be_absent(
        "import pytest, torch\n"
        "torch.cuda.is_available = lambda: True\n"  # tests that take the device's place count, too
        "sys.exit(pytest.main(['tests', '-m', 'gpu', '--collect-only', '-q', '-p', 'no:xdist']))"
    )
    found = re.findall(r"^(tests/\S+\.py): \d+$", found, re.MULTILINE)
    assert {f"tests/{file}" for file in (
        "models/test_models.py", "ops/test_decode.py", "ops/test_propagate.py",
        "ops/test_render.py", "ops/test_warp_cuda.py", "test_detector_cuda.py", "test_graph.py",
        "test_direct.py", "test_memory.py",
    )} <= set(found)  # fmt: skip
    (pattern,) = re.findall(r"grep -rlE '(.*?)' tests", SCRIPT.read_text())
    for file in found:  # is one of those that the script looks into
        assert re.search(pattern, (ROOT / file).read_text()), file


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """What the script's programs write in a dry run, all in one process."""
    pytest.importorskip("triton")
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    programs = re.findall(r"^program (\w+)", SCRIPT.read_text(), re.MULTILINE)
    code = (
        "sys.path.insert(0, 'benchmarks/gpu')\n"
        "sys.path.insert(0, 'tests')\n"
        "import importlib, quick\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name).main(['--dry-run', '--out', sys.argv[1]])\n"
        "    if 'triton' in sys.modules:\n"  # by a program, which chose the interpreter before
        "        quick.quicken_interpreter()\n"
        "importlib.import_module('tune_propagate').main(['--dry-run'])\n"
    )
    without_what_may_be_absent(code, str(path), *reversed(programs))  # those that take most last
    return read_document(path)


def test_a_dry_run_checks_everything_and_writes_rows_that_say_how(document):
    assert {(row.group, row.name) for row in document.rows} >= {
        *(("ops", name) for name in ("warp", "decode", "render", "propagate", "upload")),
        *(("pipeline", name) for name in ("step", "frame", "video")),
        ("engines", "cpn-light"), ("counts", "frame"), ("memory", "frames"),
    }  # fmt: skip
    for row in document.rows:
        assert not row.absent, row
        assert row.check, row
        assert re.fullmatch(r"python benchmarks/gpu/\w+\.py --dry-run", row.command)
    assert document.machine["processor"]
    assert document.versions["torch"]


def test_the_table_has_a_line_for_every_row(document, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    report = importlib.import_module("report")
    lines = report.table(document).splitlines()
    assert sum(line.endswith("checked; not timed") for line in lines) <= len(document.rows)
    assert f"{len(document.rows)} rows, 0 absent, 0 refused; limits met: 0 of 0" in lines


def test_a_dry_run_gives_no_figure(document):
    assert document.extra["ceilings"] is None
    for row in document.rows:
        assert (row.device, row.clock, row.time, row.figures) == ("cpu", "", None, {})
        for peer in row.peers.values():
            assert (peer.ratio, peer.absent) == (None, "not timed in a dry run")


def test_the_stages_fit_the_time():
    shares = re.findall(r"^ *(?:stage|program) [\w-]+ (\d+)", SCRIPT.read_text(), re.MULTILINE)
    assert len(shares) >= 9
    assert sum(map(int, shares)) <= SECONDS


def test_the_suite_runs_the_same_programs_for_the_device():
    run = (
        "import pytest\n"
        "words = 'benchmarks/gpu benchmarks/ops/bench_simcc.py --device cuda --collect-only -vv'\n"
        "sys.exit(pytest.main([*words.split(), '-p', 'no:benchmark', '-p', 'no:xdist']))"
    )
    found = re.findall(r"bench_program\[(\w+)\]", without_what_may_be_absent(run))
    programs = re.findall(r"^program (\w+)", SCRIPT.read_text(), re.MULTILINE)
    assert found == [program for program in programs if program != "sanitize"]


@pytest.mark.parametrize("status", [0, 1])
def test_the_suite_keeps_the_rows_of_a_program(status, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    programs = importlib.import_module("bench_programs")
    path, kept = tmp_path / "gpu.json", []
    fresh = new_document((), "")
    suite = SimpleNamespace(document=fresh, add=kept.append)
    commands = ("python benchmarks/gpu/warp.py --seed 1", "python benchmarks/gpu/step.py --seed 1")
    rows = [Row("ops", name, {}, command=name) for name in commands]
    written = replace(fresh, rows=tuple(rows), extra={"ceilings": {"copy_gb_s": 1.0}})

    def run(command, **options):
        written.write(Path(command[command.index("--out") + 1]))
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(programs.subprocess, "run", run)
    with pytest.raises(AssertionError, match="status 1") if status else nullcontext():
        programs.bench_program(suite, path, "warp")
    assert [row.name for row in kept] == [commands[0]]
    assert suite.document.extra == {"ceilings": {"copy_gb_s": 1.0}}


FOUND = "echo Invalid __global__ read of size 4 bytes; echo ERROR SUMMARY: 5 errors"
CLEAN = "echo ERROR SUMMARY: 0 errors; echo RACECHECK SUMMARY: 0 hazards displayed '(0 errors)'"


@pytest.mark.parametrize(
    ("planted", "others", "status", "verdict"),
    [
        (FOUND, CLEAN, 0, "clean"),
        (FOUND, f"{CLEAN}; exit 1", 1, "clean, but the calls failed with status 1"),
        (FOUND, "echo ERROR SUMMARY: 2 errors; exit 9", 1, "2 errors"),
        (FOUND, "exit 1", 1, "no verdict: no output"),
        ("echo Device not supported; exit 1", CLEAN, 3, "no verdict: clean, by a tool"),
        (CLEAN, CLEAN, 3, "no verdict: clean, by a tool"),
        ("echo ERROR SUMMARY: 1 error", "echo ERROR SUMMARY: 1 error", 3, "no verdict: 1 errors"),
    ],
    ids=["clean", "failed calls", "errors", "silent", "refused", "blind", "errors of its own"],
)
def test_a_sanitizer_that_misses_the_planted_error_counts_as_absent(
    planted, others, status, verdict, tmp_path, monkeypatch
):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\ncase "$*" in *planted) {planted} ;; *) {others} ;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    sanitize = importlib.import_module("sanitize")
    monkeypatch.setattr(sanitize, "SECONDS", 300)  # this machine may be a busy one
    assert sanitize.watch_all(tmp_path / "gpu.json") == status
    entries = read_document(tmp_path / "gpu.json").extra["sanitizer"]
    assert [entry["part"] for entry in entries] == ["planted", *sanitize.PARTS, *sanitize.PARTS]
    assert entries[1]["tool"] == "memcheck"
    assert entries[1]["verdict"].startswith(verdict)
