"""What the GPU programs make of what they see: of a clock, the sanitizer, ptxas, pytest.

The device is one whose kernels take as long as they are told.
"""

import importlib
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

PROGRAMS = Path(__file__).parents[1] / "benchmarks" / "gpu"
LAUNCH_US = 20.0  # what a launch costs outside of a graph


class Device:
    """A clock in microseconds that kernels move on, and torch.cuda's names for it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.capturing = False
        self.lost = False
        self.streams: list[str] = []

    def kernel(self, us: float) -> None:
        self.now += us if self.capturing else us + LAUNCH_US

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(synchronize=self.synchronize)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: (end.at - event.at) / 1e3
        return event

    @contextmanager
    def graph(self, graph, capture_error_mode):
        begin, self.capturing = self.now, True
        try:
            yield
        finally:
            cost, self.now, self.capturing = self.now - begin, begin, False
        graph.replay = lambda: setattr(self, "now", self.now + cost)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.syspath_prepend(str(PROGRAMS))
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", device.graph)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the caller's")
    monkeypatch.setattr(torch.cuda, "set_stream", device.streams.append)
    cache = SimpleNamespace(L2_cache_size=50e6)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: cache)
    return device


@pytest.fixture
def timing(device):
    return importlib.import_module("timing")


@pytest.fixture
def bench(timing, tmp_path):
    bench = timing.Bench("program.py", ["--dry-run", "--out", str(tmp_path / "gpu.json")])
    bench.dry = False
    bench.report.set(ceilings={"copy_gb_s": 4000.0, "matmul_tflop_s_float16": 800.0})
    return bench


def measured(bench, timing, call, **changes):
    """The row of one case, the keywords of `Bench.measure` changed."""
    options = {"sets": 4, "work": timing.Work(bytes=1e7), "check": lambda: 0.0, **changes}
    bench.measure("op", "case", call, **options)
    return bench.report.read()["rows"][-1]


def test_a_call_is_timed_without_its_launch_and_held_against_floor_and_peers(bench, timing, device):
    peer = timing.Peer("peer", lambda _: device.kernel(15.0), at_least=3.5)
    row = measured(
        bench,
        timing,
        lambda _: device.kernel(5.0),
        peers=[peer],
        limits={"us": 5.0, "ratio_to_floor": 1.3},
    )
    assert row["status"] == "ok"
    assert row["us"] == pytest.approx(5.0)
    assert row["floor_us"] == pytest.approx(2.5)  # 10 MB at 4 TB/s
    assert row["ratio_to_floor"] == pytest.approx(2.0)
    assert row["gb_s"] == pytest.approx(2000.0)
    assert row["peers"]["peer"] == {"us": 15.0, "ratio": 3.0, "timed": "graph"}
    assert row["met"] == {"us": True, "ratio_to_floor": False, "peer": False}
    assert row["launches"] % 4 == 0
    assert row["launches"] >= 50


def test_products_are_held_against_the_matmul_rate(bench, timing, device):
    row = measured(
        bench,
        timing,
        lambda _: device.kernel(1000.0),
        work=timing.Work(flops=4e11, dtype=torch.float16),
        limits={"share_of_matmul": 0.5},
    )
    assert row["tflop_s"] == pytest.approx(400.0)
    assert row["share_of_matmul"] == pytest.approx(0.5)
    assert row["met"] == {"share_of_matmul": True}


def test_every_set_is_launched_equally_often(bench, timing, device):
    seen = [0] * 7

    def call(i):
        if device.capturing:
            seen[i] += 1
        device.kernel(3.0)

    measured(bench, timing, call, sets=7)
    assert len(set(seen)) == 1


def test_a_wrong_result_is_never_timed(bench, timing, device):
    def check():
        timing.agree(torch.ones(3), torch.tensor([1.0, 1.0, 2.0]), absolute=0.5)

    row = measured(bench, timing, lambda _: device.kernel(5.0), check=check)
    assert row["status"] == "wrong"
    assert row["us"] is None
    assert "differs from the reference by 1" in row["error"]
    assert device.now == 0.0
    with pytest.raises(SystemExit):
        bench.close()


def test_a_peer_that_fails_costs_the_row_nothing(bench, timing, device):
    def broken(_):
        raise RuntimeError("no kernel image")

    row = measured(
        bench, timing, lambda _: device.kernel(5.0), peers=[timing.Peer("peer", broken, None, 2.0)]
    )
    assert row["status"] == "ok"
    assert row["us"] == pytest.approx(5.0)
    assert row["peers"]["peer"] == {"error": "RuntimeError: no kernel image"}
    assert row["met"] == {"peer": None}


def test_what_cannot_be_captured_is_timed_and_fails(bench, timing, device):
    def call(_):
        if device.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        device.kernel(5.0)

    row = measured(bench, timing, call)
    assert device.streams == ["the caller's"]
    assert row["status"] == "failed"
    assert row["timed"] == "eager"
    assert row["us"] == pytest.approx(5.0 + LAUNCH_US)
    assert "not permitted" in row["error"]


def test_a_lost_device_leaves_the_rest_to_a_new_process(bench, timing, device, monkeypatch):
    def call(_):
        device.lost = True
        device.synchronize()

    started = []
    monkeypatch.setattr(timing.os, "execv", lambda *args: started.append(args))
    row = measured(bench, timing, call, check=lambda: call(0))
    assert row["status"] == "failed"
    ((_, command),) = started
    assert command[-1] == "--resume"

    device.lost = False
    again = timing.Bench("program.py", ["--dry-run", *command[2:]])
    assert again.failed
    again.measure("op", "case", call, sets=1, work=timing.Work(), check=lambda: 0.0)
    assert len(again.report.read()["rows"]) == 1


@pytest.mark.parametrize(
    ("actual", "expected", "fits"),
    [
        ([1.0, float("nan")], [1.0, float("nan")], True),
        ([1.0, float("nan")], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, float("nan")], False),
        ([1.0, float("inf")], [1.0, 2.0], False),
        ([1.0], [1.0, 2.0], False),
    ],
)
def test_results_agree_only_where_both_are_numbers(timing, actual, expected, fits):
    for limit in ({"absolute": 0.1}, {"relative": 0.1}):
        if fits:
            assert timing.agree(torch.tensor(actual), torch.tensor(expected), **limit) == 0.0
        else:
            with pytest.raises(timing.WrongResultError):
                timing.agree(torch.tensor(actual), torch.tensor(expected), **limit)


CLEAN = "========= COMPUTE-SANITIZER\n========= {}\n"


@pytest.mark.parametrize(
    ("said", "tool", "part", "status", "verdict"),
    [
        ("ERROR SUMMARY: 0 errors", "memcheck", "warp", 0, "clean"),
        ("ERROR SUMMARY: 2 errors", "memcheck", "warp", 9, "2 errors"),
        ("ERROR SUMMARY: 0 errors", "memcheck", "warp", 1, "clean, but the calls failed with stat"),
        ("Invalid __global__ read\nERROR SUMMARY: 1 error", "memcheck", "planted", 9, "found"),
        ("ERROR SUMMARY: 1 error", "memcheck", "planted", 9, "not found"),
        ("ERROR SUMMARY: 0 errors", "memcheck", "planted", 0, "not found"),
        ("Error: Device not supported", "memcheck", "warp", 1, "no verdict: ========= Error: Devi"),
        (
            "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
            "racecheck", "decode", 0, "clean",
        ),
        (
            "RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)",
            "racecheck", "decode", 9, "2 errors",
        ),
    ],
)  # fmt: skip
def test_the_sanitizer_is_believed_only_with_a_summary(device, said, tool, part, status, verdict):
    judge = importlib.import_module("sanitize").judge
    assert judge(CLEAN.format(said), tool, part, status).startswith(verdict)


def test_the_sanitizer_gets_no_more_time_than_its_stage(device):
    script = (PROGRAMS.parent / "gpu.sh").read_text()
    (share,) = re.findall(r"^program sanitize (\d+)", script, re.MULTILINE)
    assert int(share) - 15 >= importlib.import_module("sanitize").SECONDS


def test_each_kernel_of_ptxas_is_a_line(device):
    log = (
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function '_Z4warpf' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z4warpf\n"
        "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 44 registers, used 0 barriers, 8 bytes cumulative stack size\n"
    )
    assert importlib.import_module("report").kernel_resources(log) == [
        "sm_90 44 registers, 8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads: "
        "_Z4warpf"
    ]


@pytest.mark.parametrize(("skipped", "error"), [(1, None), (2, "none of 2 tests ran")])
def test_tests_that_all_skip_are_an_error(device, tmp_path, skipped, error):
    path = tmp_path / "tests.xml"
    path.write_text(
        f'<testsuites><testsuite tests="2" failures="0" errors="0" skipped="{skipped}">'
        '<testcase classname="a" name="b"><skipped message="no device"/></testcase>'
        "</testsuite></testsuites>"
    )
    counts = importlib.import_module("report").count_tests(path)
    assert counts.get("error") == error
    assert counts["skips"] == ["a::b: no device"]


def test_the_table_tells_what_failed_before_what_did_not(device):
    report = importlib.import_module("report")
    timed = {"us": 7.5, "spread": 0.2, "ratio_to_floor": 1.5, "peers": {"torch": {"ratio": 4.0}}}
    timed |= {"limits": {"ratio_to_floor": 1.3, "torch": 2.0}}
    timed |= {"met": {"ratio_to_floor": False, "torch": True}}
    rows = [
        {"op": "decode", "case": "N=8", "status": "ok", **timed},
        {"op": "warp", "case": "N=1", "status": "wrong", "error": "differs", "us": None},
    ]
    stages = [{"stage": "warp", "status": "timed out", "seconds": 35}]
    lines = report.table({"stages": stages, "rows": rows}).splitlines()
    assert lines[-3:] == [
        "  WRONG warp N=1 differs",
        "decode N=8 7.50 us +-20% 1.50x floor (1.3 MISSED) torch 4.0x (2 ok)",
        "2 rows, 1 not ok; targets met: 1 of 2",
    ]
    assert lines[2].split() == ["warp", "timed", "out", "35", "s"]

    many = report.table({"rows": rows[:1] * 500})
    assert len(many) < 12_000
    assert many.endswith("500 rows, 0 not ok; targets met: 500 of 1000")


def test_a_worker_that_lost_the_device_fails_one_test_alone(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "torch.py").write_text(
        "class cuda:\n"
        "    lost = False\n"
        "    @staticmethod\n"
        "    def synchronize():\n"
        "        if cuda.lost:\n"
        "            raise RuntimeError('CUDA error: an illegal memory access')\n"
    )
    (tmp_path / "test_device.py").write_text(
        "import pytest, torch\n"
        "@pytest.mark.parametrize('i', range(12))\n"
        "def test_device(i):\n"
        "    torch.cuda.lost |= i == 2\n"
        "    torch.cuda.synchronize()\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": f"{tmp_path}:{PROGRAMS}"}
    workers = ["-p", "lost_device", "-p", "xdist", "-n", "1", "--dist", "load"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *workers, "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    assert set(failed) == {"test_device.py::test_device[2]"}, done.stdout
    assert "11 passed" in done.stdout
