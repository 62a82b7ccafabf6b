"""What `fastpose doctor --engine` runs: good engines pass, and every planted fault is found."""

from __future__ import annotations

import getpass
import json
import mmap
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from calm_network import CALM, make_trained, register

from fastpose import engines, fixtures, machine
from fastpose.cli import INTERRUPTED, main
from fastpose.cli import doctor as doctor_verb
from fastpose.conformance import (
    CHECKS,
    Failed,
    Report,
    Skipped,
    Subject,
    bundles,
    examine,
    run_conformance,
    running,
)
from fastpose.conformance.report import Anonymous
from fastpose.direct import DeviceFrames
from fastpose.engines import Manifest, Options, memory, source
from fastpose.engines.engine import BufferedEngine
from fastpose.errors import BackendError, EngineError
from fastpose.types import People

torch = pytest.importorskip("torch")

HERE = str(Path(__file__).parent)
AT_WORK = {name: check for name, check in CHECKS.items() if check.__module__ == running.__name__}


# An engine whose every answer is known, and faults of it


class Pooled(BufferedEngine):
    """Heat maps that follow the brightness of the window, a little differently for each joint."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(
            Manifest(
                spec=CALM,
                kind="torch",
                precision="f32",
                precision_asked=subject.precision,
                buckets=subject.buckets,
                device="cpu",
                versions={"torch": "2"},
                layers={"f32": 2},
            )
        )

    def _infer(self, count: int) -> None:
        h, w = CALM.cells
        cells = self._images[:count].mean(axis=1).reshape(count, h, 4, w, 4).mean(axis=(2, 4))
        self._result[:count] = cells[:, None] * np.linspace(0.5, 1, 14)[:, None, None]

    def _free(self) -> None:
        pass


class Examined(Subject):
    """An engine that needs no file, whose class a test chooses."""

    engine: type[BufferedEngine] = Pooled

    def build(self, name: str = "engine", options: Options | None = None) -> Path | None:
        return None

    def open(self, **changes: object) -> BufferedEngine:
        return self.engine(self)

    @contextmanager
    def reference(self) -> Iterator[BufferedEngine]:
        yield Pooled(self)

    @property
    def pictures(self) -> np.ndarray:
        return spots(CALM)


def spots(spec) -> np.ndarray:
    """Bright spots, where every engine of any precision finds the same joints."""
    h, w = spec.size
    y, x = np.mgrid[:h, :w]
    centres = np.random.default_rng(1).uniform((8, 8), (h - 8, w - 8), (4, 2))
    lit = [np.exp(-((x - b) ** 2 + (y - a) ** 2) / 60) for a, b in centres]
    return np.repeat(np.float32(lit)[:, None], 3, axis=1)


def examined(tmp_path: Path, engine: type[BufferedEngine], **values: object) -> Report:
    given = {
        "kind": "torch",
        "model": "calm",
        "precision": "f32",
        "device": "auto",
        "options": Options(),
        "folder": tmp_path,
        **values,
    }
    subject = Examined(**given)
    subject.engine = engine
    return examine(subject, AT_WORK)


def outcomes(report: Report, outcome: str) -> set[str]:
    return {row.name for row in report.rows if row.outcome == outcome}


def test_an_engine_that_is_right_passes(tmp_path):
    report = examined(tmp_path, Pooled)
    assert outcomes(report, "failed") == set(), report.rows
    assert outcomes(report, "skipped") == GRAPHS | {"throughput mode"}
    assert [row.name for row in report.rows] == list(AT_WORK)
    assert all(row.detail and row.seconds >= 0 for row in report.rows)


class Low(Pooled):
    def __init__(self, subject):
        super().__init__(subject)
        self.manifest = replace(self.manifest, precision="bf16")


class MostlyLow(Pooled):
    def __init__(self, subject):
        super().__init__(subject)
        self.manifest = replace(self.manifest, layers={"f32": 1, "bf16": 2})


class Off(Pooled):
    def _infer(self, count):
        super()._infer(count)
        self._result[:count] *= np.float32(1.01)


class Reuses(Pooled):
    def __call__(self, batch):
        found = super().__call__(batch)
        if len(batch) > self.manifest.buckets[-1]:
            return found
        self._result[: len(batch)] = found
        return self._result[: len(batch)]


class Spoils(Pooled):
    def run(self, count):
        found = super().run(count)
        self._images[:count] = 0
        return found


class LastRow(Pooled):
    def _infer(self, count):
        super()._infer(count)
        if count == 3:
            self._result[2] += 1


class FirstPartAgain(Pooled):
    def __call__(self, batch):
        found = super().__call__(batch)
        largest = self.manifest.buckets[-1]
        found[largest:] = found[: max(0, len(found) - largest)]
        return found


class NoEmpty(Pooled):
    def __call__(self, batch):
        return super().__call__(batch) if len(batch) else np.zeros((1, 14, *CALM.cells), np.float32)


class Casts(Pooled):
    def __call__(self, batch):
        return super().__call__(np.asarray(batch, np.float32))


class TakesAnyCount(Pooled):
    def _checked(self, count):
        return super()._checked(min(max(count, 1), self.manifest.buckets[-1]))


class ReadsMemory(Pooled):
    def __call__(self, batch):
        if isinstance(batch, np.ndarray) and batch.dtype == np.float32 and batch.ndim == 4:
            batch = batch.ravel(order="K").reshape(batch.shape)
        return super().__call__(batch)


class OneInput(Pooled):
    images = None

    def __init__(self, subject):
        super().__init__(subject)
        OneInput.images = self._images if OneInput.images is None else OneInput.images
        self._images = OneInput.images

    def _infer(self, count):
        time.sleep(1e-3)
        super()._infer(count)


class ClaimsToBeShareable(Pooled):
    shareable = True

    def _infer(self, count):
        time.sleep(1e-3)
        super()._infer(count)


class Leaks(Pooled):
    """A kilobyte a run, in fresh pages: what others have freed in this process is not used."""

    kept: list[mmap.mmap] = []  # noqa: RUF012
    runs = 0

    def _infer(self, count):
        super()._infer(count)
        self.runs += 1
        if self.runs % 500 == 0:
            Leaks.kept.append(mmap.mmap(-1, 500_000))
            Leaks.kept[-1].write(bytes([1]) * 500_000)


class OpenForEver(Pooled):
    def close(self):
        pass


class ClosesSilently(Pooled):
    def _checked(self, count):
        if self._closed:
            raise EngineError("something is wrong")
        return super()._checked(count)


@pytest.mark.parametrize(
    ("engine", "checks", "words"),
    [
        (Low, {"precision"}, "asked f32, found bf16"),
        (MostlyLow, {"precision", "accuracy"}, "most layers are bf16"),
        (Off, {"accuracy"}, "1.0e-02 of the largest value"),
        (Reuses, {"ownership of results"}, "changed what an earlier one had returned"),
        (Spoils, {"ownership of results"}, "changed the windows"),
        (LastRow, {"every batch size"}, "a batch of 3: "),
        (FirstPartAgain, {"over the largest batch"}, "9 windows: "),
        (NoEmpty, {"nobody"}, "no windows give float32 [1, 14, 16, 12]"),
        (Casts, {"wrong input"}, "float64 was taken"),
        (TakesAnyCount, {"wrong input"}, "a buffer of 0 was taken"),
        (ReadsMemory, {"strided input"}, "windows in memory "),
        (OneInput, {"two threads"}, "thread "),
        (ClaimsToBeShareable, {"two threads"}, "thread "),
        (OpenForEver, {"close"}, "works"),
        (ClosesSilently, {"close"}, "does not say that it is closed"),
    ],
)
def test_a_fault_is_found_by_the_check_for_it_alone(tmp_path, engine, checks, words):
    """A verification looks at the precision, too."""
    report = examined(tmp_path, engine)
    assert outcomes(report, "failed") == checks, report.rows
    failed = [row for row in report.rows if row.outcome == "failed"]
    assert words in failed[0].detail
    assert all("\n" not in row.detail and row.traceback == "" for row in failed)


def test_a_leak_of_a_kilobyte_a_run_is_found(tmp_path):
    try:
        report = examined(tmp_path, Leaks, full=True)
    finally:
        Leaks.kept.clear()
    assert outcomes(report, "failed") == {"memory"}, report.rows
    assert "bytes a run" in report.rows[-2].detail


# The engines of this machine


CHILD = """
import sys
sys.modules["torch"] = None  # the graph is there, and all goes faster
from pathlib import Path
from fastpose import models
from fastpose.models import spec, trained
trained.folder = lambda: Path({folder!r})
models.MODELS["calm"] = spec.ModelSpec.from_dict(trained.card("calm")["spec"])
"""


class Spots:
    """In place of `fixtures.Fixtures`, which would look for people in pictures."""

    name, truth, windows = "spots", None, spots(CALM)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        yield self.windows


@pytest.fixture(scope="session")
def folder_of_calm(tmp_path_factory) -> Path:
    """What stands for `trained/`."""
    path = tmp_path_factory.mktemp("calm")
    make_trained(path)
    return path


@pytest.fixture
def place(folder_of_calm, monkeypatch, tmp_path) -> Callable[[str], None]:
    """The calm network; other processes first run what this is called with."""
    register(folder_of_calm, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(fixtures, "windows", lambda *_, **__: Spots())
    first: list[str] = []
    monkeypatch.setattr(
        bundles, "python", lambda code: [sys.executable, "-c", "\n".join([*first, code])]
    )
    return first.append


GRAPHS = {"graph replay", "frames on the device", "other memory"}
ON_DISK = {name for name, check in CHECKS.items() if check.__module__ == bundles.__name__}
SLOW = {"building twice"}  # where a build takes many seconds


@pytest.mark.parametrize(
    ("kind", "precision", "given", "skipped"),
    [
        ("openvino", "f32", {}, GRAPHS | {"refit"}),
        ("openvino", "bf16", {}, GRAPHS | {"refit"}),
        ("openvino", "int8", {"calibration": "pictures"}, GRAPHS | {"refit"}),
        ("onnxruntime", "f32", {}, GRAPHS | {"refit", "throughput mode"}),
        ("torch", "f32", {}, GRAPHS | ON_DISK | {"throughput mode"}),
        (
            "torch",
            "f32",
            {"options": Options(compile="aot")},
            GRAPHS | {"refit", "throughput mode"},
        ),
        pytest.param(
            "torch",
            "f16",
            {"device": "cuda"},
            ON_DISK | {"throughput mode", "other memory"},
            marks=pytest.mark.gpu,
        ),
        pytest.param(
            "torch",
            "f32",
            {"device": "cuda", "options": Options(compile="aot")},
            {"refit", "throughput mode", "other memory"},
            marks=pytest.mark.gpu,
        ),
        pytest.param("tensorrt", "f32", {}, {"throughput mode"}, marks=pytest.mark.tensorrt),
        pytest.param("tensorrt", "f16", {}, {"throughput mode"}, marks=pytest.mark.tensorrt),
    ],
)
def test_every_engine_passes(
    place, folder_of_calm, tmp_path, monkeypatch, kind, precision, given, skipped
):
    if kind == "onnxruntime":
        place(CHILD.format(folder=str(folder_of_calm)))
    else:
        skip(*SLOW, monkeypatch=monkeypatch)
    told: list[str] = []
    report = run_conformance(
        kind,
        model="calm",
        precision=precision,
        threads=1,
        folder=tmp_path,
        tell=told.append,
        **given,
    )
    if report.rows[0].outcome == "skipped":
        assert precision in ("bf16", "int8")
        pytest.skip(report.rows[0].detail)
    assert outcomes(report, "failed") == set(), [r for r in report.rows if r.outcome == "failed"]
    assert outcomes(report, "skipped") == skipped | (SLOW if kind != "onnxruntime" else set())
    assert set(told) >= set(CHECKS)
    assert {"build", "accuracy", "memory", "close"} <= outcomes(report, "passed")


def skip(*names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave these checks out."""

    def skipped(subject: Subject) -> str:
        raise Skipped("takes long")

    for name in names:
        monkeypatch.setitem(CHECKS, name, skipped)


def onnx_subject(tmp_path: Path, **values: object) -> Subject:
    """An engine of ONNX Runtime, which is written at once."""
    given = {"kind": "onnxruntime", "model": "calm", "precision": "f32", "device": "auto"}
    rest = {"options": Options(), "folder": tmp_path, "threads": 1}
    return Subject(**{**given, **rest, **values})


def at_disk(tmp_path: Path, *names: str, **values: object) -> Report:
    """Its checks of bundles, or those that are named."""
    subject = onnx_subject(tmp_path, **values)
    chosen = names or tuple(ON_DISK - SLOW)
    return examine(subject, {n: check for n, check in CHECKS.items() if n in ("build", *chosen)})


def test_a_manifest_check_that_takes_everything_is_found(place, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "check_ties", lambda *_: None)
        report = at_disk(tmp_path)
    assert outcomes(report, "failed") == {"wrong version"}, report.rows
    assert any("was taken" in row.detail for row in report.rows)


def test_files_whose_hashes_nobody_compares_are_found(place, tmp_path, monkeypatch):
    monkeypatch.setattr(Manifest, "check_files", lambda *_: None)
    report = at_disk(tmp_path)
    assert outcomes(report, "failed") == {"damaged file"}, report.rows


def test_a_tie_to_the_processor_that_nobody_compares_is_found(place, tmp_path, monkeypatch):
    from fastpose.engines import onnxruntime

    def ties(options, device, built=None):
        """As if it were tied to a processor, which it finds to be whatever was asked for."""
        return {"onnxruntime": "1", "processor": (built or {"processor": "here"})["processor"]}

    monkeypatch.setattr(onnxruntime, "ties", ties)
    report = at_disk(tmp_path, "wrong device", "wrong version")
    assert outcomes(report, "failed") == {"wrong device"}, report.rows


def test_a_tie_that_is_refused_without_its_name_is_found(place, tmp_path, monkeypatch):
    def check(self, path, here):
        if self.ties != dict(here):
            raise EngineError("something differs")

    monkeypatch.setattr(Manifest, "check_ties", check)
    report = at_disk(tmp_path, "wrong version")
    assert report.rows[1].detail.startswith("onnxruntime '99.1' is not named: something differs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision_asked": "bf16"}, "precision_asked is 'bf16', not 'f32'"),
        ({"report": None}, "report: nothing is said"),
        ({}, "weights_hash is '.*', the engine says 'another'"),
    ],
)
def test_a_manifest_that_says_something_else_is_found(place, tmp_path, monkeypatch, change, words):
    kept = Subject.open

    def open_other(subject, **changes):
        engine = kept(subject, **changes)
        engine.manifest = replace(engine.manifest, weights_hash="another")
        return engine

    subject = onnx_subject(tmp_path)
    running.build(subject)
    bundles.edit(subject.bundle, **change)
    if not change:
        monkeypatch.setattr(Subject, "open", open_other)
    with pytest.raises(Failed, match=words):
        bundles.manifest(subject)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise RuntimeError('of the runtime')", "raises RuntimeError: of the runtime"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process ended with -11"),
        ("raise EngineError('one\\ntwo')", "is refused in several: one two"),
    ],
)
def test_a_runtime_that_dies_of_a_damaged_file_is_found(place, tmp_path, fault, words):
    place(
        "import os, signal\n"
        "from fastpose.errors import EngineError\n"
        "from fastpose.engines import onnxruntime\n"
        "kept = onnxruntime._open\n"
        "def fail(path, *given):\n"
        "    if path.stat().st_size > 5000: return kept(path, *given)\n"
        f"    {fault}\n"
        "onnxruntime._open = fail"
    )
    report = at_disk(tmp_path, "damage unnoticed")
    assert outcomes(report, "failed") == {"damage unnoticed"}, report.rows
    assert report.rows[-1].detail.startswith(f"engine.onnx cut to 0 %: {words}")


def test_a_process_that_refuses_everything_proves_nothing(place, tmp_path):
    place("import sys\nsys.modules['onnxruntime'] = None")
    report = at_disk(tmp_path, "damage unnoticed")
    assert "the whole bundle: raises BackendError: engine 'onnxruntime'" in report.rows[-1].detail


def test_builders_that_do_not_find_each_other_are_found(place, folder_of_calm, tmp_path):
    place(CHILD.format(folder=str(folder_of_calm)))
    place(
        "import os\n"
        "from fastpose import bundles\n"
        "kept = bundles.built_file\n"
        "def mine(*given):\n"
        "    path = kept(*given)\n"
        "    return path.parent / str(os.getpid()) / path.name\n"
        "bundles.built_file = mine"
    )
    report = at_disk(tmp_path, "building twice")
    assert report.rows[-1].detail == "they built 2 bundles"


def test_a_throughput_mode_that_is_none_is_found(place, tmp_path, monkeypatch):
    monkeypatch.setattr(Options, "with_run", lambda self, other: self)
    report = at_disk(tmp_path, "throughput mode", kind="openvino")
    assert outcomes(report, "failed") == {"throughput mode"}, report.rows


# What only a GPU has


class Stream:
    """A stream engine on the host, where what is captured is run."""

    type, layout, device = torch.float32, "nhwc", torch.device("cpu")

    def __init__(self, stale: bool) -> None:
        self.manifest = SimpleNamespace(buckets=(1, 4))
        self._runs, self._stale, self._last = 0, stale, {}

    def enqueue(self, windows):
        assert windows.is_contiguous(memory_format=torch.channels_last)
        self._runs += 1
        if self._stale and self._runs > 12 and len(windows) in self._last:
            return self._last[len(windows)]
        self._last[len(windows)] = torch.nn.functional.avg_pool2d(windows, 4)
        return self._last[len(windows)]


def test_replays_that_go_stale_are_found(tmp_path):
    subject = Examined("torch", "calm", "f32", "auto", Options(), tmp_path)
    assert running.check_replays(subject, Stream(stale=False), 8) == 0
    with pytest.raises(Failed, match=r"replay .* of a batch of 1: .* of the largest value apart"):
        running.check_replays(subject, Stream(stale=True), 40)


def people(shift: float, score: float) -> People:
    points = np.full((1, 14, 2), 30.0, np.float32) + np.float32(shift)
    box = np.array([[0, 0, 60, 60]], np.float32)
    one = np.ones(1, np.float32)
    return People(box, one, points, np.full((1, 14), score, np.float32), CALM.joints)


def test_a_decoding_kernel_that_was_kept_is_looked_at(tmp_path, monkeypatch):
    class Kept(Pooled):
        decoder, memory = "kernel", "memory"

    class Frames(DeviceFrames):
        finds_joints = True

        def upload(self, frames):
            return frames

        def close(self):
            pass

        def _find(self, frames, source, affines):
            raise AssertionError("nobody estimates")

    def check_decoder(*given):
        assert given == ("kernel", subject.spec, "memory")
        raise EngineError("points are 3 px apart")

    monkeypatch.setattr(running, "in_graphs", lambda network: Frames())
    monkeypatch.setattr(running, "estimate", lambda *given: [])
    monkeypatch.setattr(running, "check_decoder", check_decoder)
    subject = Examined("torch", "calm", "f32", "auto", Options(), tmp_path)
    subject.engine = Kept
    with pytest.raises(EngineError, match="points are 3 px apart"):
        running.frames(subject)


def test_joints_that_another_path_moves_are_found():
    wanted = [people(0, 0.9)]
    assert "14 joints 0.07 px" in running.compare_people(wanted, [people(0.05, 0.89)])
    with pytest.raises(Failed, match=r"joints are 0\.14 px apart in the median, at most 0\.1"):
        running.compare_people(wanted, [people(0.1, 0.9)])
    with pytest.raises(Failed, match="joints are nan px apart"):
        running.compare_people(wanted, [people(np.nan, 0.9)])
    with pytest.raises(Failed, match=r"scores are 0\.400 apart"):
        running.compare_people(wanted, [people(0, 0.5)])


def test_memory_of_the_gpu_that_grows_is_found():
    flat = [(1 << 30, 1 << 32)] * 20
    assert "GPUs 4096 MiB, +0.0 MiB" in running.check_flat(flat, 10_000)
    grown = [(a, b + i * (1 << 20)) for i, (a, b) in enumerate(flat)]
    with pytest.raises(Failed, match=r"GPUs 4115 MiB, \+15\.0 MiB over 10000 runs"):
        running.check_flat(grown, 10_000)


@pytest.fixture
def refitting(place, tmp_path, monkeypatch) -> Callable[[Any], str]:
    """The check of refitting on a bundle of ONNX Runtime, given a function that refits."""

    class Refitted(Subject):
        def suffix(self, options):
            return ".onnx"

        def arguments(self, options=None):
            return {**super().arguments(Options()), "engine": "onnxruntime"}

    def check(refit):
        runtime = SimpleNamespace(refit=refit)
        monkeypatch.setattr(bundles, "runtime_module", lambda kind: runtime)
        subject = Refitted("tensorrt", "calm", "f32", "auto", Options(), tmp_path, threads=1)
        subject.bundle = subject.build()
        return bundles.refit(subject)

    return check


def test_a_refit_is_held_to_the_network_with_those_weights(refitting):
    def refit(file, weights, device):
        return source.find_graph(CALM, weights)[0].read_bytes()

    assert "the answer changed by" in refitting(refit)


def test_a_refit_that_changes_nothing_is_found(refitting):
    with pytest.raises(Failed, match=r"from the network with these weights, 0\.0e\+00 from before"):
        refitting(lambda file, weights, device: file.read_bytes())


def test_what_is_special_to_tensorrt_on_a_double(place, tmp_path, monkeypatch):
    """All but what compares the double's answers with the network's, or needs other processes."""
    state, device = fake_tensorrt.State(), fake_tensorrt.Memory()
    memories: set[str] = set()
    state.input = ("image", (-1, 3, *CALM.size))
    state.outputs = {"heatmaps": (-1, *CALM.results[0])}
    state.layers = [{"LayerType": "conv", "Inputs": [{"Format/Datatype": "Float"}]}]
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make(state, memory=device))
    monkeypatch.delitem(sys.modules, "fastpose.engines.tensorrt", raising=False)

    def open_memory(kind: str, name: str) -> fake_tensorrt.Memory:
        if name != device.device:
            memory.device_index(name)  # refuses what is no CUDA device
        memories.add(kind)
        return device

    left_out = {"accuracy", "damage unnoticed", "building twice", "refit"}
    skip(*left_out, monkeypatch=monkeypatch)
    try:
        monkeypatch.setattr(engines.runtime_module("tensorrt"), "open_memory", open_memory)
        report = run_conformance("tensorrt", model="calm", threads=1, folder=tmp_path)
    finally:
        vars(engines).pop("tensorrt", None)
    assert outcomes(report, "failed") == set(), report.rows
    assert outcomes(report, "skipped") == left_out | GRAPHS - {"other memory"} | {"throughput mode"}
    assert memories == {"auto", *memory.KINDS}
    details = {row.name: row.detail for row in report.rows}
    ties = "platform, compute capability, gpu, device"
    assert details["wrong device"] == f"refused by name: {ties}"
    assert details["wrong version"].startswith("refused by name: tensorrt 99.11.4.0.106, here 11.4")


def test_what_the_driver_says(monkeypatch):
    answers = {"memory.used": "100 MiB\n20 MiB\n"}

    def run(command, **_):
        asked = command[1].partition("=")[2]
        text = answers.get(asked, "NVIDIA H200, 580.1, 9.0, 143771 MiB, Disabled\n")
        return SimpleNamespace(returncode=0, stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    assert machine.gpus()[0]["name"] == "NVIDIA H200"
    assert machine.gpus()[0]["compute_cap"] == "9.0"
    assert machine.gpu_bytes() == 120 << 20
    answers["memory.used"] = "[N/A]\n"
    assert machine.gpu_bytes() is None

    def missing(command, **_):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert (machine.gpus(), machine.gpu_bytes()) == ([], None)


# The report


def test_nothing_is_examined_where_nothing_was_built(tmp_path):
    class Broken(Pooled):
        def __init__(self, subject):
            raise EngineError("there is no engine")

    class Absent(Pooled):
        def __init__(self, subject):
            raise BackendError("precision 'f8' cannot run here")

    failed = examined(tmp_path, Broken)
    assert [row.outcome for row in failed.rows] == ["failed", *["skipped"] * (len(AT_WORK) - 1)]
    assert failed.rows[0].detail == "EngineError: there is no engine"
    assert "there is no engine" in failed.rows[0].traceback
    absent = examined(tmp_path, Absent)
    assert {row.outcome for row in absent.rows} == {"skipped"}
    assert absent.rows[0].detail == "precision 'f8' cannot run here"
    assert absent.rows[1].detail == "nothing was built"


def test_ctrl_c_keeps_what_was_done(tmp_path, monkeypatch):
    def interrupt(subject):
        raise KeyboardInterrupt

    monkeypatch.setitem(AT_WORK, "accuracy", interrupt)
    report = examined(tmp_path, Pooled)
    assert report.interrupted
    assert [row.name for row in report.rows] == ["build", "precision"]


def test_a_process_that_dies_leaves_a_report_that_names_the_check(tmp_path):
    class Dies(Pooled):
        def run(self, count):
            if count == 3:
                raise SystemExit  # as if the process were gone
            return super().run(count)

    subject = Examined("torch", "calm", "f32", "auto", Options(), tmp_path)
    subject.engine, kept = Dies, []
    with pytest.raises(SystemExit):
        examine(subject, AT_WORK, lambda report: kept.append(report.to_dict()))
    assert kept[-1]["running"] == "every batch size"
    assert [row["name"] for row in kept[-1]["rows"]] == list(AT_WORK)[: len(kept) - 1]
    subject.engine = Pooled
    assert examine(subject, AT_WORK).running == ""


def test_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(BackendError, match="'tvm' cannot be used here"):
        run_conformance("tvm", folder=tmp_path)
    with pytest.raises(ValueError, match=r"precision must be one of f32, .*got 'f64'"):
        run_conformance("torch", precision="f64", folder=tmp_path)


def test_texts_tell_nobody_who_and_where(monkeypatch, tmp_path):
    home = tmp_path / "homes" / "grace"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(getpass, "getuser", lambda: "hopper")
    monkeypatch.setattr(socket, "gethostname", lambda: "mark1.navy.mil")
    clean = Anonymous(tmp_path / "report")
    assert clean(f"{tmp_path}/report/engine/a.plan: cut") == "FOLDER/engine/a.plan: cut"
    assert clean(f"{home}/models/a") == "~/models/a"
    assert clean(f"{home}2/a") != "~2/a"
    assert clean("/home/ada/x, /Users/ada/x: y") == "~/x, ~/x: y"
    assert clean("hopper on mark1: hoppers, remark1") == "USER on HOST: hoppers, remark1"
    assert clean(f"{sys.prefix}/lib/python") == "PYTHON/lib/python"
    assert clean(f'File "{bundles.__file__}"') == 'File "INSTALLED/fastpose/conformance/bundles.py"'
    assert clean.values({"hopper": ["hopper", 3, None]}) == {"hopper": ["USER", 3, None]}


def test_a_home_that_is_the_root_or_a_user_without_a_name(monkeypatch, tmp_path):
    def unknown():
        raise KeyError("no such uid")

    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(getpass, "getuser", unknown)
    clean = Anonymous(tmp_path)
    assert clean("/usr/lib/x") == "/usr/lib/x"


# The command


@pytest.fixture
def folder(place, tmp_path, monkeypatch) -> Path:
    """The current one, and the home of somebody."""
    home = tmp_path / "ada"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "engine7")
    return home


def doctor(*arguments: str) -> int:
    return main(["doctor", "--model", "calm", "--threads", "1", "--engine", *arguments])


def test_the_command_writes_a_report_that_can_be_sent(folder, capsys, monkeypatch):
    def fail(subject):
        raise RuntimeError(f"of ada on engine7: {folder}/x and {subject.folder}/y")

    skip(*SLOW, monkeypatch=monkeypatch)
    assert doctor("onnxruntime") == 0
    out, err = capsys.readouterr()
    path = folder / "fastpose-doctor-onnxruntime.json"
    document = json.loads(path.read_text())
    (report,) = document["reports"]
    assert (document["schema"], report["kind"], report["precision"]) == (1, "onnxruntime", "f32")
    assert [row["name"] for row in report["rows"]] == list(CHECKS)
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["onnxruntime"]
    assert f"written to {path.name}, without names" in out
    assert "every batch size       passed" in out
    assert "f32: two threads " in err
    monkeypatch.setitem(CHECKS, "accuracy", fail)
    assert doctor("onnxruntime", "--out", "mine.json") == 2
    text = (folder / "mine.json").read_text()
    (row,) = [r for r in json.loads(text)["reports"][0]["rows"] if r["outcome"] == "failed"]
    assert row["detail"] == "RuntimeError: of USER on HOST: ~/x and FOLDER/y"
    assert "Traceback" in row["traceback"]
    for private in ("ada", "engine7", str(folder), str(Path(HERE).parents[1])):
        assert private not in text


def test_the_command_as_json_and_without_anything_to_run(folder, capsys):
    assert doctor("onnxruntime", "--precision", "bf16", "--json") == 2
    report = json.loads(capsys.readouterr().out)["reports"][0]
    assert {row["outcome"] for row in report["rows"]} == {"skipped"}


def test_the_full_command_examines_each_precision(folder, monkeypatch):
    skip(*(name for name in CHECKS if name != "build"), monkeypatch=monkeypatch)
    assert doctor("onnxruntime", "--full") == 0
    reports = json.loads(Path("fastpose-doctor-onnxruntime.json").read_text())["reports"]
    assert [(r["precision"], r["full"]) for r in reports] == [
        ("f32", True),
        ("f16", True),
        ("bf16", True),
    ]
    assert "batches 1, 2, 4, 8, 16, 32" in reports[0]["rows"][0]["detail"]


def test_ctrl_c_leaves_a_report(folder, monkeypatch):
    def interrupt(subject):
        raise KeyboardInterrupt

    monkeypatch.setitem(CHECKS, "precision", interrupt)
    assert doctor("onnxruntime", "--full") == INTERRUPTED
    (report,) = json.loads(Path("fastpose-doctor-onnxruntime.json").read_text())["reports"]
    assert report["interrupted"]
    assert report["running"] == "precision"
    assert [row["name"] for row in report["rows"]] == ["build"]


def test_what_the_command_cannot_do_is_said_in_one_line(folder, capsys):
    assert main(["doctor", "--full"]) == 2
    assert "which engine is to be examined? Give --engine KIND" in capsys.readouterr().err
    assert doctor("onnxruntime", "--out", "no/such/folder.json") == 2
    assert "no/such/folder.json: cannot be written: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("installed", "error", "words"),
    [
        ({}, ModuleNotFoundError("No module named 'tensorrt'"), "bindings none, not installed: No"),
        (
            {"tensorrt-cu13-bindings": "11.4.0"},
            ImportError("libnvinfer.so.11: cannot open"),
            "bindings 11.4.0, ImportError: libnvinfer.so.11: cannot open",
        ),
        ({"tensorrt-cu13-bindings": "11.4.0"}, None, "bindings 11.4.0, never run"),
    ],
)
def test_the_command_says_what_is_known_of_tensorrt(capsys, monkeypatch, installed, error, words):
    kept = doctor_verb.import_module

    def load(name: str) -> object:
        if error and name == "fastpose.engines.tensorrt":
            raise error
        return None if name == "fastpose.engines.tensorrt" else kept(name)

    monkeypatch.setattr(doctor_verb, "import_module", load)
    monkeypatch.setattr(machine, "versions", lambda: installed)
    main(["doctor"])
    text = capsys.readouterr().out
    assert f"tensorrt      {'no' if error else 'ok'}  {words}" in text
    assert "never run on a real TensorRT by the project: send the report of `fastpose" in text


def test_an_engine_that_is_not_installed_leaves_no_report(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert doctor("tensorrt", "--full") == 2
    assert "engine 'tensorrt' cannot run; install " in capsys.readouterr().err
    assert not list(folder.glob("*.json"))
