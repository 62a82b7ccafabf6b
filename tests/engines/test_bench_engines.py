"""What stands in the rows of engines, and which engines are never timed. No test asks for times."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calm_network import CALM, make_trained, register

from fastpose.bench import alone as module_alone
from fastpose.bench import engines as bench
from fastpose.bench.alone import alone
from fastpose.bench.engines import (
    MODULE,
    EngineCase,
    available_cases,
    case_of_bundle,
    difference,
    measure_engines,
    parse_case,
)
from fastpose.bench.rows import Row
from fastpose.engines import Statement, open_engine, wrap_network
from fastpose.engines.manifest import file_hash
from fastpose.errors import EngineError
from fastpose.fixtures import Fixtures, windows
from fastpose.measure import Times

torch = pytest.importorskip("torch")

OPENVINO = EngineCase("openvino", "f32")
TAKEN = {MODULE: 0.02}  # seconds of a call; 0.01 of others


class Turns:
    """Stands for `take_turns`: runs each call once, and remembers which.

    Attributes:
        asked: the names of the calls, each time.
        unsteady: names whose times are never alike.
    """

    def __init__(self, *unsteady: str) -> None:
        self.asked: list[list[str]] = []
        self.unsteady = unsteady

    def __call__(self, calls: dict[str, Callable[[], object]], **_: object) -> dict[str, Times]:
        self.asked.append(list(calls))
        for call in calls.values():
            call()
        return {name: Times(self.seconds(name)) for name in calls}

    def seconds(self, name: str) -> tuple[float, ...]:
        took = TAKEN.get(name, 0.01)
        return tuple(took * (1 + i * (name in self.unsteady)) for i in range(5))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calm network's graph, weights and card."""
    folder = tmp_path_factory.mktemp("trained")
    make_trained(folder)
    return folder


@pytest.fixture
def calm(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The calm network has a name and weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    register(trained, monkeypatch)
    return trained


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the one graph that is exported."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def untrained(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The calm network has a name alone, and what it computes counts as random."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    register(tmp_path, monkeypatch)


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Path:
    """The graph as one from elsewhere, which any process can open."""
    said = Statement(
        mean=CALM.mean, std=CALM.std, skeleton="lsp14", rgb=True, method="parabola", padding=1.25
    )
    return wrap_network(
        trained / "calm.onnx", said, like="simplebaseline", engine="openvino", buckets=(1, 2),
        out=tmp_path / "elsewhere.onnx",
    )  # fmt: skip


def pictures(limit: int = 6) -> Fixtures:
    return windows(CALM, limit=limit)


def measured(*cases: EngineCase, take: Turns | None = None, **given: object) -> list[Row]:
    options = {"batches": (1, 2), "pictures": pictures(), "threads": 1, "alone": False}
    return measure_engines("calm", cases, take=take or Turns(), **{**options, **given})


class Shifted:
    """An engine that sees its windows moved to the right by a part of a pixel."""

    shareable = False

    def __init__(self, engine, pixels: float) -> None:
        self.engine, self.pixels, self.manifest = engine, pixels, engine.manifest
        self.buffer, self.run, self.close = engine.buffer, engine.run, engine.close

    def __call__(self, batch):
        moved = (1 - self.pixels) * batch + self.pixels * np.roll(batch, 1, axis=3)
        return self.engine(moved.astype(np.float32))


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine of OpenVINO sees half a pixel too far."""

    def opened(model, *, kind, **given):
        engine = open_engine(model, kind=kind, **given)
        return Shifted(engine, 0.5) if kind == "openvino" else engine

    monkeypatch.setattr(bench, "open_engine", opened)


# Cases


def test_a_case_is_read_from_a_word():
    assert parse_case("openvino:bf16") == EngineCase("openvino", "bf16")
    assert parse_case("torch:f16:aot", "cuda") == EngineCase("torch", "f16", "aot", "cuda")
    assert parse_case("torch:f32").name == "torch eager f32"
    assert parse_case("openvino:int8").name == "openvino int8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("openvino", "expected ENGINE:PRECISION"),
        ("a:b:c:d", "expected ENGINE:PRECISION"),
        ("caffe:f32", "engine must be one of openvino"),
        ("openvino:f64", "precision must be one of f32"),
        ("openvino:f32:aot", "compile of openvino must be one of eager, got 'aot'"),
        ("torch:f32:jit", "compile of torch must be one of eager, compile, aot"),
    ],
)
def test_what_is_no_case_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        parse_case(text)


def test_cases_that_cannot_run_say_why(monkeypatch):
    monkeypatch.setitem(bench.OFFERED["cpu"], "tensorrt", ("f16",))
    cases = {case.name: case.absent for case in available_cases()}
    assert cases["openvino f32"] == cases["torch compile bf16"] == ""
    assert "tensorrt" in cases["tensorrt f16"]
    monkeypatch.setitem(bench.OFFERED["cpu"], "openvino", ("f16", "f32"))
    offered = {case.name: case.absent for case in available_cases()}["openvino f16"]
    assert offered == "" or offered.startswith("openvino offers f32")
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, got 'npu'"):
        available_cases("npu")


# Rows


def test_a_row_holds_speed_and_what_was_compared(calm):
    take = Turns()
    torch_case, tensorrt = EngineCase("torch", "f32"), EngineCase("tensorrt", "f16")
    rows = measured(OPENVINO, torch_case, tensorrt, take=take)
    assert [row.case["batch"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert take.asked == 2 * [["openvino f32", "torch eager f32", MODULE]]
    row = rows[3]
    assert (row.group, row.name, row.threads, row.clock) == ("engines", "calm", 1, "wall")
    assert row.case == {"batch": 2, "engine": "openvino", "precision": "f32"}
    assert rows[4].case["compile"] == "eager"
    assert row.check.startswith("joints on 6 windows of built-in, beside torch f32: median shift")
    assert row.peers[MODULE].ratio == pytest.approx(2.0)
    assert row.figures["windows_per_s"] == pytest.approx(200.0)
    assert row.figures["shift_px"] < 0.01
    assert row.figures["moved_percent"] == 0
    assert row.figures["layers_f32"] == 7
    assert row.figures["file_mb"] == round((calm / "calm.onnx").stat().st_size / 1e6, 2)
    assert row.figures["compile_s"] > 0
    assert not {"h2d_ms", "enqueue_ms", "compute_ms", "d2h_ms", "device_mb"} & set(row.figures)
    absent = rows[5]
    assert absent.time is None
    assert absent.figures == {}
    assert "tensorrt" in absent.absent
    assert json.loads(json.dumps([row.to_dict() for row in rows]))


def test_a_case_that_is_known_to_be_absent_is_not_opened(calm, monkeypatch):
    monkeypatch.setattr(bench, "open_engine", None)
    (row,) = measured(EngineCase("openvino", "f32", absent="not today"), batches=(1,))
    assert row.absent == "not today"


def test_int8_without_pictures_says_what_it_needs(calm):
    (row,) = measured(EngineCase("openvino", "int8"), batches=(1,))
    assert "int8 is calibrated with pictures" in row.absent


def test_a_reason_tells_no_folder_of_this_machine(calm, monkeypatch):
    def opened(*_, **__):
        raise EngineError("/home/somebody/.cache/calm-1.onnx: no primitive; see a/b, 1/2 or '/x/y'")

    monkeypatch.setattr(bench, "open_engine", opened)
    (row,) = measured(OPENVINO, batches=(1,))
    assert row.absent == "calm-1.onnx: no primitive; see a/b, 1/2 or 'y'"


def test_half_a_pixel_is_never_timed(calm, shifted):
    take = Turns()
    wrong, right = measured(OPENVINO, EngineCase("torch", "f32"), take=take, batches=(1,))
    assert take.asked == [["torch eager f32", MODULE]]
    assert wrong.time is None
    assert re.match(r"median shift 0\.\d+ px, at most 0\.1", wrong.refused)
    assert wrong.figures["shift_px"] == pytest.approx(0.5, abs=0.2)  # as far as the decoder sees it
    assert "windows_per_s" not in wrong.figures
    assert right.time
    assert not right.refused


def test_what_is_over_the_bounds_is_timed_if_somebody_allows_it(calm, shifted):
    (row,) = measured(OPENVINO, batches=(1,), allow=True)
    assert row.time
    assert "over the bounds: median shift" in row.check


def test_random_weights_are_compared_by_their_results(untrained):
    (row,) = measured(OPENVINO, batches=(1,))
    assert row.check.startswith("results of random weights on 6 windows of built-in, beside torch")
    assert row.check.endswith("at most 0.001")
    assert row.time
    assert "shift_px" not in row.figures


def test_half_a_pixel_is_seen_in_random_results(untrained, shifted):
    (row,) = measured(OPENVINO, batches=(1,))
    assert row.time is None
    assert "the results differ by" in row.refused


@pytest.mark.parametrize("random", [0, 3])
def test_a_weight_file_is_judged_by_what_its_card_says(calm, tmp_path, random):
    path = tmp_path / "calm.safetensors"
    path.write_bytes((calm / "calm.safetensors").read_bytes())
    card = {"name": "calm", "weights_sha256": file_hash(path), "random": random}
    path.with_suffix(".json").write_text(json.dumps(card))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is random
        (row,) = measure_engines(
            path, [EngineCase("torch", "f32")], batches=(1,), pictures=pictures(), threads=1,
            alone=False, take=Turns(),
        )  # fmt: skip
    assert row.time
    assert row.check.startswith("results of random weights" if random else "joints on 6 windows")
    assert row.figures["file_mb"] == round(path.stat().st_size / 1e6, 2)


def test_another_precision_than_asked_is_refused(untrained, monkeypatch):
    def opened(model, *, precision, **given):
        engine = open_engine(model, precision="f32", **given)
        object.__setattr__(engine.manifest, "precision_asked", precision)
        return engine

    monkeypatch.setattr(bench, "open_engine", opened)
    (row,) = measured(EngineCase("openvino", "bf16"), batches=(1,))
    assert "bf16 was asked for, 0 of 7 layers compute in it" in row.refused


def test_unsteady_engines_take_turns_again_by_themselves(calm):
    take = Turns("openvino f32")
    unsteady, steady = measured(OPENVINO, EngineCase("torch", "f32"), take=take, batches=(1,))
    assert take.asked[0] == ["openvino f32", "torch eager f32", MODULE]
    assert take.asked[1:] == 2 * [["openvino f32", MODULE]]
    assert unsteady.time is None
    assert "may be" in unsteady.refused
    assert steady.time


def test_batches_are_counted_from_one(calm):
    with pytest.raises(ValueError, match=r"batches must be whole numbers from 1, got \[0\]"):
        measured(OPENVINO, batches=(0,))


# How far results are apart


def test_a_level_that_all_cells_share_does_not_hide_a_difference(calm):
    engine = open_engine("calm", kind="torch", precision="f32", buckets=(1,), threads=1)

    class Raised(Shifted):
        def __call__(self, batch):
            return self.engine(batch) + np.float32(self.pixels)

    def apart(level, pixels):
        return difference(Raised(engine, level), Raised(engine, level + pixels), [images])

    images = pictures(2).windows
    assert apart(0, 0) == 0
    assert apart(0, 10) == pytest.approx(apart(1000, 10), rel=1e-2)
    assert apart(0, 10) > 0.1
    engine.close()


def test_results_that_say_nothing_are_not_compared(calm):
    engine = open_engine("calm", kind="torch", precision="f32", buckets=(1,), threads=1)
    empty = [np.zeros((1, 3, *CALM.size), np.float32)]
    with pytest.raises(ValueError, match="the same everywhere"):
        difference(engine, engine, empty)
    engine.close()


# A bundle, and a process of its own


def test_a_start_that_fails_costs_no_row(calm, monkeypatch):
    def failed(*_, **__):
        raise EngineError("ended by signal 9")

    monkeypatch.setattr(bench, "run_alone", failed)
    with pytest.warns(UserWarning, match="ended by signal 9"):
        (row,) = measured(OPENVINO, batches=(1,), alone=True)
    assert row.time


def test_a_row_has_the_memory_of_its_own_process(calm, monkeypatch):
    asked = []

    def started(model, case, *, batch, threads):
        asked.append((model, case, batch, threads))
        return {"peak_rss_mb": 100.0 * batch}

    monkeypatch.setattr(bench, "run_alone", started)
    rows = measured(OPENVINO, alone=True)
    assert asked == [("calm", OPENVINO, 1, 1), ("calm", OPENVINO, 2, 1)]
    assert [row.figures["peak_rss_mb"] for row in rows] == [100, 200]


def test_a_network_from_elsewhere_has_no_module_to_be_timed_beside(bundle):
    case = case_of_bundle(bundle)
    assert case == OPENVINO
    (row,) = measure_engines(
        bundle, [case], batches=(1,), pictures=pictures(), threads=1, alone=False, take=Turns()
    )
    assert row.time
    assert row.peers[MODULE].absent == "a network from elsewhere has no module"
    assert row.figures["file_mb"] > 0


def test_a_bundle_takes_no_larger_batches_than_it_was_built_for(bundle):
    take = Turns()
    case = case_of_bundle(bundle)
    rows = measure_engines(
        bundle, [case], batches=(1, 8), pictures=pictures(), threads=1, alone=False, take=take
    )
    assert take.asked == [["openvino f32"]]
    assert [bool(row.time) for row in rows] == [True, False]
    assert (rows[1].absent, rows[1].figures) == ("the engine takes at most 2 windows", {})


def test_a_process_of_its_own_tells_its_start_and_its_memory(bundle):
    found = alone(bundle, OPENVINO, threads=1, runs=1)
    assert set(found) == {"import_ms", "open_ms", "first_ms", "peak_rss_mb"}
    assert all(value > 0 for value in found.values())
    assert 20 < found["peak_rss_mb"] < 600


def test_what_a_runtime_prints_when_it_ends_is_no_figure(bundle, monkeypatch):
    monkeypatch.setattr(module_alone, "CHILD", module_alone.CHILD + "print('bye')\n")
    assert alone(bundle, OPENVINO, threads=1, runs=1)["open_ms"] > 0


def test_what_fails_there_is_one_line(tmp_path):
    with pytest.raises(EngineError) as caught:
        alone(tmp_path / "none.onnx", OPENVINO)
    text = str(caught.value)
    assert "\n" not in text
    where = "openvino f32 of none.onnx in a process of its own"
    assert text.startswith(f"{where}: {tmp_path}")
    assert "no such file" in text


def test_a_process_that_takes_too_long_is_ended(bundle):
    with pytest.raises(EngineError, match=r"did not end within 0\.01 s"):
        alone(bundle, OPENVINO, patience=0.01)
