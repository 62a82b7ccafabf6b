"""A machine with a GPU may have little else, and no time for a slip: what runs there, run here."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

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
        "import importlib\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name).main(['--dry-run', '--out', sys.argv[1]])\n"
        "importlib.import_module('tune_propagate').main(['--dry-run'])\n"
    )
    without_what_may_be_absent(code, str(path), *programs)
    return json.loads(path.read_text())


def test_a_dry_run_checks_every_kernel_and_writes_rows_that_say_how(document):
    assert {row["op"] for row in document["rows"]} >= {
        "warp", "decode", "render", "propagate", "step", "cubin", "memory", "direct", "engine"
    }  # fmt: skip
    for row in document["rows"]:
        assert row["status"] == "ok", row
        assert row["difference"] >= 0
        assert row["command"].startswith("python benchmarks/gpu/")
        for key in ("case", "device", "torch", "triton", "driver", "date", "seed", "limits", "met"):
            assert key in row


def test_the_table_has_a_line_for_every_row(document, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    report = importlib.import_module("report")
    assert {row["op"] for row in document["rows"]} == set(report.ORDER)
    lines = report.table(document).splitlines()
    assert f"{len(document['rows'])} rows, 0 not ok; targets met: 0 of 0" in lines


def test_a_dry_run_gives_no_figure(document):
    assert document["ceilings"] is None
    kept = {"difference", "bytes", "flops", "seed", "sets", "launches"}  # of the work, not of time
    kept |= {"people", "windows", "batch", "nodes", "cells", "background", "flip", "bit_equal"}
    for row in document["rows"]:
        assert row["device"].startswith("none")
        figures = {key for key, value in row.items() if isinstance(value, int | float)}
        assert figures <= kept
        for peer in row.get("peers", {}).values():
            assert peer == {"us": None, "ratio": None, "timed": None}
        assert set(row["met"].values()) <= {None}


@pytest.mark.parametrize(
    ("how", "error", "met", "said"),
    [
        ("graph", "", True, "conv 4.0x (3 ok)"),
        ("clock", "", True, "conv 4.0x (3 ok)"),
        ("eager", "it copies", None, "conv 4.0x eager (3)"),
    ],
)
def test_a_peer_that_was_not_captured_decides_nothing(how, error, met, said, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    timing, report = map(importlib.import_module, ("timing", "report"))
    peer = timing.describe_peer(timing.Replay(print, 1, how, error, [8.0]), 2.0)
    assert peer == {"us": 8.0, "ratio": 4.0, "timed": how} | ({"error": error} if error else {})
    row = {"op": "warp", "case": "N=1", "status": "ok", "us": 2.0, "spread": 0.0}
    row |= {"peers": {"conv": peer, "other": timing.describe_peer("it fails", 2.0)}}
    row |= {"limits": {"conv": 3.0, "other": 3.0}}
    row["met"] = {key: timing.meets(key, row, limit) for key, limit in row["limits"].items()}
    assert row["met"] == {"conv": met, "other": None}
    assert report.describe(row) == f"warp N=1 2.00 us {said} other failed (3)"


def test_the_stages_fit_the_time():
    shares = re.findall(r"^ *(?:stage|program) [\w-]+ (\d+)", SCRIPT.read_text(), re.MULTILINE)
    assert len(shares) >= 9
    assert sum(map(int, shares)) <= SECONDS


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
    assert sanitize.watch_all(tmp_path / "gpu.json") == status
    entries = json.loads((tmp_path / "gpu.json").read_text())["sanitizer"]
    assert [entry["part"] for entry in entries] == ["planted", *sanitize.PARTS, *sanitize.PARTS]
    assert entries[1]["tool"] == "memcheck"
    assert entries[1]["verdict"].startswith(verdict)
