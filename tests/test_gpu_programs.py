"""What the GPU programs make of what they see: of a clock, the sanitizer, ptxas, pytest.

The device is one whose kernels take as long as they are told.
"""

import importlib
import itertools
import os
import re
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
    doubles = {
        "is_available": lambda: True,
        "Event": device.event,
        "CUDAGraph": SimpleNamespace,
        "graph": device.graph,
        "synchronize": device.synchronize,
        "current_stream": lambda: "the caller's",
        "set_stream": lambda stream: None,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    return device


@pytest.fixture
def timing(device):
    return importlib.import_module("timing")


@pytest.fixture
def bench(timing, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "describe_machine", lambda: ({}, {}))
    bench = timing.Bench("program.py", ["--dry-run", "--out", str(tmp_path / "gpu.json")])
    bench.dry = False
    bench.report.set(ceilings={"copy_gb_s": 4000.0, "matmul_tflop_s_float16": 800.0})
    return bench


def measured(bench, timing, call, **changes):
    """The row of one case, the keywords of `Bench.measure` changed."""
    options = {"sets": 4, "work": timing.Work(bytes=1e7), "check": lambda: 0.0, **changes}
    bench.measure("op", {"people": 8}, call, **options)
    return bench.report.read().rows[-1]


def limits_met(row):
    return importlib.import_module("report").limits_met(row)


def test_a_call_is_timed_without_its_launch_and_held_against_floor_and_peers(bench, timing, device):
    peer = timing.Peer("peer", lambda _: device.kernel(15.0), at_least=3.5)
    row = measured(
        bench,
        timing,
        lambda _: device.kernel(5.0),
        peers=[peer],
        limits={"calls_per_s": 2e5, **timing.of_floor(1.3)},
    )
    assert (row.group, row.clock, row.threads, row.absent) == ("ops", "cuda", 0, "")
    assert row.check == "0 from the reference"
    assert row.time["median_ms"] == pytest.approx(5e-3)
    assert row.figures["floor_share"] == pytest.approx(0.5)  # 10 MB at 4 TB/s
    assert row.figures["gb_s"] == pytest.approx(2000.0)
    assert row.figures["calls_per_s"] == pytest.approx(2e5)
    assert row.peers["peer"].ratio == pytest.approx(3.0)
    assert limits_met(row) == {"calls_per_s": True, "floor_share": False, "peer": False}


def test_products_are_held_against_the_matmul_rate(bench, timing, device):
    row = measured(
        bench,
        timing,
        lambda _: device.kernel(1000.0),
        work=timing.Work(flops=4e11, dtype=torch.float16),
        limits={"matmul_share": 0.5},
    )
    assert row.figures == {"tflop_s": 400.0, "matmul_share": 0.5}
    assert limits_met(row) == {"matmul_share": True}


def test_a_wrong_result_is_never_timed(bench, timing, device):
    def check():
        timing.agree(torch.ones(3), torch.tensor([1.0, 1.0, 2.0]), absolute=0.5)

    row = measured(bench, timing, lambda _: device.kernel(5.0), check=check)
    assert row.absent.startswith("wrong: differs from the reference by 1")
    assert row.time is None
    assert device.now == 0.0
    with pytest.raises(SystemExit):
        bench.close()


def test_times_that_stay_unsteady_are_refused(bench, timing, device):
    lengths = itertools.cycle([100.0, 1000.0, 100.0, 2000.0])

    def run():
        device.now += next(lengths)

    def compute():
        times = bench.take_turns({"ours": timing.Replay(run)})
        return timing.Found("the same", times, {"gb_s": 1.0})

    bench.record("pipeline", "step", {"people": 8}, compute, limits={"calls_per_s": 1.0})
    row = bench.report.read().rows[-1]
    assert "may be" in row.refused
    assert (row.time, row.figures, row.absent) == (None, {}, "")
    assert limits_met(row) == {"calls_per_s": None}
    assert not bench.failed


def test_a_peer_that_fails_costs_the_row_nothing(bench, timing, device):
    def broken(_):
        raise RuntimeError("no kernel image")

    row = measured(
        bench, timing, lambda _: device.kernel(5.0), peers=[timing.Peer("peer", broken, None, 2.0)]
    )
    assert row.time["median_ms"] == pytest.approx(5e-3)
    assert row.peers["peer"].absent == "RuntimeError: no kernel image"
    assert limits_met(row) == {}


def test_a_peer_that_cannot_be_captured_is_timed_and_decides_nothing(bench, timing, device):
    def copies(_):
        if device.capturing:
            raise RuntimeError("it copies")
        device.kernel(15.0)

    row = measured(
        bench, timing, lambda _: device.kernel(5.0), peers=[timing.Peer("peer", copies, None, 20.0)]
    )
    assert row.peers["peer"].ratio == pytest.approx((15.0 + LAUNCH_US) / 5.0)
    assert row.peers["peer"].difference == "launched one by one: it copies"
    assert limits_met(row) == {}


def test_what_cannot_be_captured_is_of_no_use(bench, timing, device):
    def call(_):
        if device.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        device.kernel(5.0)

    row = measured(bench, timing, call)
    assert "cannot be captured: operation not permitted" in row.absent
    assert row.time is None
    assert bench.failed


def test_a_lost_device_leaves_the_rest_to_a_new_process(bench, timing, device, monkeypatch):
    def call(_):
        device.lost = True
        device.synchronize()

    started = []
    monkeypatch.setattr(timing.os, "execv", lambda *args: started.append(args))
    row = measured(bench, timing, call, check=lambda: call(0))
    assert "illegal memory access" in row.absent
    ((_, command),) = started
    assert command[-1] == "--resume"

    device.lost = False
    again = timing.Bench("program.py", ["--dry-run", *command[2:]])
    assert again.failed
    again.measure("op", {"people": 8}, call, sets=1, work=timing.Work(), check=lambda: 0.0)
    (kept,) = again.report.read().rows
    assert "illegal memory access" in kept.absent


def test_rows_of_others_are_kept_or_their_reason(bench, timing, device):
    rows = importlib.import_module("fastpose.bench.rows")
    case = {"batch": 1, "engine": "torch"}
    made = rows.Row("engines", "cpn50", case, check="the same", device="cpu", figures={"fps": 2.0})
    bench.collect("engines", "cpn50", case, lambda: [made])
    bench.collect("engines", "cpm-lsp", case, lambda: [][0])
    fine, failed = bench.report.read().rows
    assert fine.figures == {"fps": 2.0}
    assert fine.command == bench.command
    assert failed.absent == "IndexError: list index out of range"
    assert failed.load is not None
    assert bench.failed


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
    rows = importlib.import_module("fastpose.bench.rows")
    case = {"people": 8}
    time = {"median_ms": 7.5e-3, "spread": 0.18}
    timed = rows.Row(
        "ops",
        "decode",
        case,
        "the same",
        time=time,
        figures={"floor_share": 0.667},
        peers={"torch": rows.Peer(4.0), "numpy": rows.Peer(absent="it fails")},
        limits={"floor_share": 0.769, "torch": 2.0},
    )
    found = [
        timed,
        rows.Row("ops", "warp", case, absent="wrong: differs"),
        rows.Row("ops", "render", case, "the same", refused="the median may be 30 % off"),
    ]
    stages = [{"stage": "warp", "status": "timed out", "seconds": 35}]
    document = rows.Document(found, {}, {}, "", "", "", {"stages": stages})
    lines = report.table(document).splitlines()
    assert lines[-4:] == [
        "  ABSENT warp people=8 wrong: differs",
        "decode people=8 7.50 us +-18% floor_share 0.667 (0.769 MISSED) torch 4.0x (2 ok) "
        "numpy absent",
        "render people=8 refused: the median may be 30 % off",
        "3 rows, 1 absent, 1 refused; limits met: 1 of 2",
    ]
    assert lines[2].split() == ["warp", "timed", "out", "35", "s"]

    many = report.table(rows.Document(found[:1] * 500, {}, {}, "", "", ""))
    assert len(many) < 12_000
    assert many.endswith("500 rows, 0 absent, 0 refused; limits met: 500 of 1000")


def test_a_document_says_where_the_sources_come_from(device, tmp_path):
    report = importlib.import_module("report")
    path = str(tmp_path / "gpu.json")
    report.main([path, "begin", "abc123", "bash benchmarks/gpu.sh"])
    report.main([path, "stage", "warp", "124", "30", "python benchmarks/gpu/warp.py"])
    report.Report(Path(path)).describe({"gpus": [{"name": "H"}]}, {"cuda": "13.0"})
    found = importlib.import_module("fastpose.bench.rows").read_document(Path(path))
    assert (found.commit, found.command) == ("abc123", "bash benchmarks/gpu.sh")
    assert found.machine["gpus"] == [{"name": "H"}]
    assert found.machine["cores"]
    assert found.versions["cuda"] == "13.0"
    (stage,) = found.extra["stages"]
    assert stage["status"] == "timed out"


class Found(list):
    """People with joints in a row."""

    def __init__(self, points, scores):
        super().__init__(points)
        joints = len(points[0]) if points else 0
        self.keypoints = np.asarray(points, np.float32).reshape(len(points), joints, 2)
        self.scores = np.asarray(scores, np.float32).reshape(len(points), joints)


@pytest.mark.parametrize(
    ("points", "scores", "said"),
    [
        ([[[10, 10], [20, 20]]], [[0.9, 0.1]], ""),
        ([[[10, 10], [90, 90]]], [[0.9, 0.1]], ""),  # nobody was sure of the second
        ([[[10.3, 10], [20, 20]]], [[0.9, 0.1]], "1 joints 0.15 px"),  # of 256 where it has 512
        ([[[float("nan")] * 2, [20, 20]]], [[0.9, 0.1]], "1 joints inf px"),
        ([], [], "0 people instead of 1"),
    ],
)
def test_joints_on_the_device_are_those_of_the_cpu(device, points, scores, said):
    pipeline = importlib.import_module("pipeline")
    expected = Found([[[10, 10], [20, 20]]], [[0.9, 0.1]])
    boxes = np.array([[0, 0, 200, 512]], np.float32)
    failed = pytest.raises(pipeline.WrongResultError, match=said) if said else nullcontext()
    with failed:
        assert "px from those" in pipeline.compare(Found(points, scores), expected, boxes, 256)


def test_joints_of_which_none_is_sure_prove_nothing(device):
    pipeline = importlib.import_module("pipeline")
    unsure = Found([[[10, 10]]], [[0.1]])
    with pytest.raises(pipeline.WrongResultError, match="no joint is sure"):
        pipeline.compare(unsure, unsure, np.array([[0, 0, 9, 9]], np.float32), 256)
    nobody = Found([], [])
    assert pipeline.compare(nobody, nobody, np.empty((0, 4)), 256).startswith("nobody")


@pytest.mark.parametrize(("late", "fails"), [(1009, False), (1011, True)])
def test_memory_that_grows_is_an_error(device, monkeypatch, late, fails):
    pipeline = importlib.import_module("pipeline")
    frames, sizes = [], iter([1000, late])
    monkeypatch.setattr(pipeline, "MANY", 20)
    monkeypatch.setattr(pipeline, "SETTLED", 5)
    monkeypatch.setattr(pipeline, "resident_bytes", lambda: next(sizes))
    pose = lambda frame, boxes: frames.append(len(boxes))  # noqa: E731
    bench = SimpleNamespace(dry=False, device_bytes=lambda: 500)
    failed = pytest.raises(pipeline.WrongResultError, match=r"memory grew by 1\.10 %")
    with failed if fails else nullcontext():
        found = pipeline.measure_memory(bench, pose)
        assert found.figures["growth_percent"] == pytest.approx(0.9)
    assert frames[:8] == [*pipeline.PEOPLE, 0]
    assert len(frames) == 20


def test_the_memory_of_an_engine_is_what_opening_it_took(device, monkeypatch):
    networks = importlib.import_module("networks")
    use = SimpleNamespace(allocated=100, peak=700)
    monkeypatch.setattr(networks.cuda, "device_memory", lambda: use)
    monkeypatch.setattr(networks.cuda, "forget_peak", lambda: None)
    watch = networks.Watch()
    for step in ("open torch eager f16", "compare torch eager f16", "time batches of 1"):
        watch(step)
    assert watch.peaks == {"torch eager f16": 600}


def test_weights_are_read_where_their_package_is_missing(device, tmp_path, monkeypatch):
    package = pytest.importorskip("safetensors.torch")
    stand_in = importlib.import_module("stand_in")
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).half(),
        "c": torch.tensor(7),
        "d": torch.randn(2, 2).bfloat16(),
        "e": torch.empty(0, 3),
    }
    path = tmp_path / "weights.safetensors"
    package.save_file(tensors, str(path), metadata={"made": "here"})
    found = stand_in.load_file(str(path))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)

    stand_in.read_safetensors()
    assert sys.modules["safetensors.torch"] is package
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    stand_in.read_safetensors()
    assert sys.modules["safetensors.torch"].load_file is stand_in.load_file


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
