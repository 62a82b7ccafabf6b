"""The gate on counts: what it reads, and what it lets pass."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastpose.bench.rows import Row

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counts():
    """Modules of benchmarks/counts, by name."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("benchmarks/counts", "benchmarks"):
            patch.syspath_prepend(str(ROOT / folder))
        names = ("baseline", "callgrind", "kernel_cases", "bench_binaries", "suite")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def row(count, figure="instructions"):
    return Row("counts", "decode", {"people": 8}, figures={figure: count})


@pytest.fixture
def held(counts, tmp_path):
    """A function: a count, held against the file; whether it passes."""
    file = tmp_path / "baseline.json"

    def hold(count, tools="GCC 12", update=False, key="decode people=8"):
        baseline = counts.baseline.Baseline("instructions", tools, update, file)
        found = baseline.hold(row(count), key, {"allocations": 12})
        try:
            counts.suite.assert_limits(found)
        except AssertionError:
            return found, False
        return found, True

    hold.file = file
    return hold


@pytest.mark.parametrize(
    ("count", "tools", "passes"),
    [
        (1000, "GCC 12", True),
        (500, "GCC 12", True),
        (1049, "GCC 12", True),
        (1051, "GCC 12", False),
        (1499, "GCC 13", True),
        (1501, "GCC 13", False),
        (2000, "clang 17", False),
    ],
)
def test_a_count_may_be_a_little_over_its_baseline(held, count, tools, passes):
    held(1000, update=True)
    found, passed = held(count, tools)
    assert passed is passes
    peer = found.peers["baseline"]
    assert peer.ratio == pytest.approx(1000 / count, abs=1e-4)
    assert (peer.version, peer.difference) == ("GCC 12", f"{count - 1000:+d}")
    assert peer.figures == {"instructions": 1000.0, "allocations": 12.0}


def test_a_case_without_a_baseline_says_how_it_gets_one(held):
    held(1000, update=True)
    found, passed = held(5000, key="decode people=9")
    assert passed
    assert "--update-counts" in found.peers["baseline"].absent
    assert "decode people=9" not in held.file.read_text()


def test_counts_of_other_tools_do_not_mix(held):
    held(1000, update=True)
    held(2000, update=True, key="decode people=16")
    held(900, "GCC 13", update=True)
    assert json.loads(held.file.read_text()) == {
        "instructions": {
            "tools": "GCC 13",
            "cases": {"decode people=8": {"instructions": 900, "allocations": 12}},
        }
    }


def test_every_case_has_a_baseline_and_no_other(counts):
    known = json.loads(counts.baseline.FILE.read_text())
    assert set(known) == {"instructions", "allocated_bytes"}
    forms = ("isa=scalar", "isa=avx2")
    here = [f"isa={isa}" for isa in counts.kernel_cases.ISAS]
    cases = [
        key
        for key in known["instructions"]["cases"]
        if not key.endswith(forms) or key.endswith(tuple(here))
    ]
    assert cases == list(counts.kernel_cases.kernel_cases())


def test_allocations_are_calls_by_the_kernel_and_not_by_an_allocator(counts):
    dump = """fn=(1) fastpose::decode(fastpose::DecodeJob const&, fastpose::Isa)
cfn=(2) operator new(unsigned long)
calls=3 0
0 300
cfn=(3) calloc
calls=2 0
0 80
fn=(2)
cfn=(4) malloc
calls=3 0
0 200
fn=(3)
cfn=(4)
calls=2 0
0 40
fn=(5) pybind11::cpp_function::dispatcher(_object*, _object*, _object*)
cfn=(4)
calls=9 0
0 0
totals: 1234
"""
    assert counts.callgrind._allocations(dump) == 3 + 2
    assert counts.callgrind._total(dump) == 1234


def test_without_valgrind_the_reason_is_told(counts, monkeypatch):
    monkeypatch.setattr(counts.callgrind.shutil, "which", lambda name: None)
    assert counts.callgrind.obstacle() == "needs valgrind"


def test_a_program_that_fails_is_told_by_its_last_line(counts):
    said = "import sys; sys.exit('==7== Copyright\\nno such case\\n==7== I refs: 0')"
    with pytest.raises(counts.callgrind.CallgrindError, match="failed: no such case"):
        counts.callgrind._run([sys.executable, "-c", said])


def test_what_kernels_take_is_read_for_each_architecture(counts):
    listing = """
arch = sm_80
 Function _ZN8fastpose4cuda11warp_framesINS0_11InterleavedEfLb0EEEvNS0_6FramesE:
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:528 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN8fastpose4cuda11warp_framesINS0_4Nv12EfLb0EEEvNS0_6FramesE:
  REG:38 STACK:8 SHARED:0 LOCAL:4 CONSTANT[0]:528 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_90
 Function _ZN8fastpose4cuda9warp_mapsIfLb1EEEvNS0_4MapsE:
  REG:32 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:528 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert counts.bench_binaries.used_by(listing) == {
        ("warp_frames", 80): {
            "registers": 40,
            "stack_bytes": 8,
            "shared_bytes": 0,
            "spill_bytes": 4,
        },
        ("warp_maps", 90): {
            "registers": 32,
            "stack_bytes": 0,
            "shared_bytes": 16,
            "spill_bytes": 0,
        },
    }
