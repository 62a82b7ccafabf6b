"""Faults that are planted into the kernels are caught by the benchmarks themselves."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastpose import measure
from fastpose.measure import Times
from fastpose.ops import cpp, decode, warp

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
PLANTED = Path(__file__).with_name("planted")
KERNEL = 1e-3  # seconds on the clock that is moved by hand


@pytest.fixture(scope="module")
def benchmarks():
    """Modules of the benchmarks, by name."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("benchmarks/counts", "benchmarks/ops", "benchmarks"):
            patch.syspath_prepend(str(ROOT / folder))
        names = ("suite", "bench_decode", "bench_warp", "bench_instructions", "callgrind")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def timed(benchmarks):
    """The fixture of that name; its rows are `timed.suite.rows`."""
    rows = []
    suite = SimpleNamespace(rows=rows, add=lambda row: rows.append(row) or row)
    return benchmarks.suite.Timed(suite, SimpleNamespace(pedantic=measure._rounds), "a command")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for the seconds of a kernel, or of what stands beside it.

    `beside` has those: of the reference and of the scalar kernel.
    """
    clock = SimpleNamespace(now=0.0, beside={"reference": 1e3, "scalar": 1e3})

    def moved(function, name=""):
        def run(*arguments, isa="auto", **named):
            clock.now += clock.beside.get(name or isa, KERNEL)
            return function(*arguments, **named, **({} if name else {"isa": isa}))

        return run

    monkeypatch.setitem(measure.CLOCKS, "thread", lambda: clock.now)
    for name in ("decode", "warp"):
        monkeypatch.setattr(cpp, name, moved(getattr(cpp, name)))
    module = sys.modules[decode.__module__]
    monkeypatch.setattr(module, "decode_reference", moved(module.decode_reference, "reference"))
    return clock


def twice(*arguments, **named):
    decode(*arguments, **named)
    return decode(*arguments, **named)


def half_a_pixel_off(frame, affines, *arguments, **named):
    shifted = affines.copy()
    shifted[..., 2] += 0.5
    return warp(frame, shifted, *arguments, **named)


def test_a_decode_that_takes_twice_its_time(benchmarks, timed, clock):
    """Of each limit: a kernel between it and twice its distance passes, twice its time does not."""
    run = benchmarks.bench_decode.beside_reference
    row = run(timed, "quarter")
    assert row.time["median_ms"] == pytest.approx(1e3 * KERNEL)
    assert row.limits
    for name, least in row.limits.items():
        clock.beside[name] = 1.4 * least * KERNEL
        assert run(timed, "quarter").peers[name].ratio == pytest.approx(1.4 * least, rel=1e-3)
        with pytest.raises(AssertionError, match=rf"decode .*: {name} .*, at least"):
            run(timed, "quarter", function=twice)
        clock.beside[name] = 1e3


def test_a_warp_that_is_half_a_pixel_off(benchmarks, timed, clock, monkeypatch):
    def timing(*arguments, **named):
        raise InterruptedError("it would have been timed")

    monkeypatch.setattr(benchmarks.suite, "take_turns", timing)
    run = benchmarks.bench_warp.beside_reference
    with pytest.raises(InterruptedError):
        run(timed, "straight")
    with pytest.raises(benchmarks.suite.WrongAnswerError, match="grey levels apart, at most"):
        run(timed, "straight", function=half_a_pixel_off)
    assert timed.suite.rows == []


@pytest.mark.parametrize(("peer", "says"), [("wild", "refused: wild: the median"), ("calm", "")])
def test_a_limit_that_nothing_is_known_of_does_not_pass(benchmarks, timed, monkeypatch, peer, says):
    times = {"wild": (3.0, 3.0, 6.0, 6.0), "calm": (3.0,) * 4, "ours": (1.0,) * 4}
    monkeypatch.setattr(
        benchmarks.suite, "take_turns", lambda calls, **_: {n: Times(times[n]) for n in calls}
    )
    beside = {peer: benchmarks.suite.Beside(list, at_least=1)}
    skips = pytest.raises(pytest.skip.Exception, match=says) if says else nullcontext()
    with skips:
        timed("ops", "work", {}, list, check=lambda: "right", beside=beside)
    (row,) = timed.suite.rows
    assert row.peers[peer].unsteady is bool(says)


def suite_says(tmp_path, *arguments, planted):
    """Exit status, output and rows of a run of the benchmarks by themselves."""
    results = tmp_path / f"{planted}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if planted:
        path = [str(PLANTED), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *arguments, f"--results={results}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = json.loads(results.read_text())["rows"] if results.exists() else []
    return done.returncode, done.stdout + done.stderr, rows


COUNTED = "benchmarks/counts/bench_instructions.py"


@pytest.fixture(scope="module")
def counting(benchmarks):
    """Skips where instructions cannot be counted."""
    if why := benchmarks.callgrind.obstacle():
        pytest.skip(why)


def test_a_sound_decode_passes_the_gate_on_instructions(counting, tmp_path):
    status, output, rows = suite_says(tmp_path, COUNTED, "-k", "quarter", planted=False)
    assert status == 0, output
    assert [row["case"]["isa"] for row in rows] == ["scalar", "avx2"]
    assert all(row["peers"]["baseline"]["ratio"] > 0.9 for row in rows)


def test_the_suite_itself_finds_both(counting, tmp_path):
    """The whole way: pytest, the benchmarks as they are, and the simulator's child."""
    warped = "benchmarks/ops/bench_warp.py"
    chosen = "(decode and quarter and avx2) or (reference and scalar and straight)"
    status, output, rows = suite_says(tmp_path, COUNTED, warped, "-k", chosen, planted=True)
    assert status == 1
    assert re.search(r"decode method=quarter .*: baseline 0\.[45]\d*, at least 0\.\d+", output)
    assert re.search(r"WrongAnswerError: \S+ grey levels apart, at most", output)
    assert [row["name"] for row in rows] == ["decode"]


def test_a_compiler_is_known_by_its_note(benchmarks, tmp_path):
    file = tmp_path / "binary"
    notes = [b"GCC: (Debian 12.2.0-14) 12.2.0", b"GCC: (GNU) 8.5.0 20210514", b"clang version 9.1"]
    for note, name in ((notes, "GCC 12"), ([b"clang version 17.0.6"], "clang 17"), ([], "unknown")):
        file.write_bytes(b"\0".join([b"ELF", *note, b""]))
        assert benchmarks.bench_instructions.compiler(file) == name
