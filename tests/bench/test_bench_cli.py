"""`fastpose bench` from the words of a user to tables, files and exit statuses."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from untaken import document, engine_row, people_row

from fastpose.bench import run as bench_run
from fastpose.bench.engines import EngineCase
from fastpose.bench.people import AnswerError
from fastpose.bench.rows import read_document
from fastpose.bench.run import Plan, chosen_cases, make_clip, run_bench
from fastpose.cli import main
from fastpose.engines import Statement, wrap_network
from fastpose.errors import BackendError, EngineError
from fastpose.frames import open_source
from fastpose.machine import machine


class Measured:
    """Stands for all that measures: it only remembers what it was asked for."""

    def __init__(self):
        self.engines, self.people, self.poses = [], [], []
        self.fail: BaseException | None = None

    def measure_engines(self, model, cases, *, batches, tell, **asked):
        tell("time")
        self.engines.append({"model": model, "batches": batches, **asked})
        return [
            engine_row(c.engine, c.precision, n, absent=c.absent, **self.gone(c))
            for n in batches
            for c in cases
        ]

    @staticmethod
    def gone(case):
        return {"time": None, "check": "", "figures": {}} if case.absent else {}

    def measure_people(self, pose, video, *, people, name, detector, tell, take, **asked):
        tell("check")
        if self.fail:
            raise self.fail
        self.people.append({"video": Path(video), "people": people, **asked})
        counts = [{"people": n} for n in people] if people else [{"detector": detector}]
        rows = [people_row(1, 10, name=name) for _ in counts]
        figures = {"fps": 100.0, "rss_mb": 900.0}
        return [
            replace(row, case={**own, "engine": pose, "precision": "f32"}, figures=figures)
            for row, own in zip(rows, counts, strict=True)
        ]

    def pose(self, model, **asked):
        if asked.get("engine") == "onnxruntime":
            raise BackendError("onnxruntime cannot be loaded")
        self.poses.append({"model": model, **asked})
        return _Pose(asked.get("engine", "auto"))


class _Pose(str):
    """What is opened; a fake row is named after it."""

    def __enter__(self):
        return str(self)

    def __exit__(self, *error):
        pass


@pytest.fixture
def measured(monkeypatch):
    own = Measured()
    monkeypatch.setattr(bench_run, "measure_engines", own.measure_engines)
    monkeypatch.setattr(bench_run, "measure_people", own.measure_people)
    monkeypatch.setattr(bench_run, "Pose", own.pose)
    return own


def bench(capsys, *words):
    status = main(["bench", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def clip(path, frames=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def test_steps_and_tries_of_a_video_are_told():
    told = []
    steps = bench_run._Steps(told.append, "openvino f32: people placed")
    for _ in range(2):
        assert steps.take({"call": lambda: None}, rounds=1)["call"].seconds
    assert told == ["openvino f32: people placed: time, try 2 of 3, for the last was unsteady"]


def test_nothing_to_measure_is_refused(capsys, measured):
    status, out, err = bench(capsys, "--batch", "none", "--people", "none")
    assert (status, out) == (2, "")
    assert "nothing to measure" in err
    assert bench(capsys, "--batch", "none", "--people", "1")[0] == 0


def test_where_nothing_can_run_the_status_says_so_too(capsys, measured, monkeypatch):
    absent = engine_row(time=None, check="", figures={}, absent="no such runtime")
    monkeypatch.setattr(bench_run, "measure_engines", lambda *_, **__: [absent])
    status, out, err = bench(capsys, "--people", "none", "--json")
    assert json.loads(out)["rows"][0]["absent"] == "no such runtime"
    assert (status, err) == (
        2,
        "fastpose bench: nothing could be measured here; each row says why\n",
    )


def test_a_real_run_of_a_network_from_elsewhere_gives_one_document_and_all_files(tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("matplotlib")
    from foreign import heatmap_network

    out = tmp_path / "new" / "out"
    graph = heatmap_network(tmp_path / "net.onnx", np.ones((17, 3)) / 3, (128, 96))
    stated = {"mean": (0.0,) * 3, "std": (255.0,) * 3, "rgb": True, "method": "dark"}
    bundle = wrap_network(
        graph,
        Statement(**stated, convention="symmetric"),
        engine="openvino",
        out=tmp_path / "bundle.onnx",
    )
    status, text, err = bench(
        capsys, bundle, "--batch", "1", "--people", "0,1", "--frames", "2",
        "--rounds", "4", "--threads", "1", "--limit", "1", "--out", out, "--json",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(text)
    assert found["schema"] == 2
    rows = {row["group"]: row for row in found["rows"]}
    assert rows.keys() == {"engines", "pipeline"}
    assert rows["engines"]["name"] == "net"
    assert rows["engines"]["case"] == {"batch": 1, "engine": "openvino", "precision": "f32"}
    assert rows["engines"]["threads"] == 1
    assert rows["engines"]["check"]
    assert rows["engines"]["figures"]["peak_rss_mb"] > 20
    assert rows["pipeline"]["case"]["video"] == "built-in.mp4"
    assert "rss_mb" not in rows["pipeline"]["figures"]
    # folders of this machine are told to nobody
    assert found["command"] == (
        "fastpose bench bundle.json --threads 1 --batch 1 --people 0,1 --frames 2 --limit 1 "
        "--rounds 4"
    )
    assert read_document(out / "bench.json").to_dict() == found
    assert "| openvino | f32 " in (out / "bench.md").read_text()
    timed = [row for row in found["rows"] if row.get("time")]
    drawn = {"accuracy.png": "engines", "latency.png": "pipeline"}
    expected = {name for name, group in drawn.items() if any(r["group"] == group for r in timed)}
    assert {path.name for path in out.iterdir()} == {"bench.json", "bench.md", *expected}


def test_tables_are_printed_and_nothing_is_written(measured, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = bench(capsys)
    assert status == 0
    assert out.startswith("# ")
    assert "## Engines" in out
    assert "## End to end" in out
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_is_what_is_measured(measured, capsys, tmp_path):
    video = clip(tmp_path / "a.mp4")
    status, out, _ = bench(
        capsys, "default", "--video", video, "--engines", "openvino:f32,torch:bf16:compile",
        "--batch", "2,4", "--people", "3,5", "--frames", "7", "--rounds", "9", "--threads", "2",
        "--detector", "fpn-light", "--detect-every", "4", "--draw", "--limit", "2", "--json",
    )  # fmt: skip
    assert status == 0
    (engines,) = measured.engines
    assert (engines["batches"], engines["rounds"], engines["threads"]) == ((2, 4), 9, 2)
    assert len(engines["pictures"]) == 2
    placed, found = measured.people[:2]
    assert (placed["people"], placed["detect_every"]) == ((3, 5), 1)
    assert (found["people"], found["detect_every"]) == (None, 4)
    for asked in measured.people:
        assert (asked["frames"], asked["rounds"], asked["threads"]) == (7, 9, 2)
        assert (asked["draw"], asked["video"]) == (True, video)
    assert [pose["options"].compile for pose in measured.poses] == ["eager", "compile"]
    assert {pose["detector"] for pose in measured.poses} == {"fpn-light"}
    command = shlex.split(json.loads(out)["command"])
    assert command[:5] == ["fastpose", "bench", "default", "--engines", command[4]]
    assert command[command.index("--video") + 1] == "a.mp4"
    cases = [row["case"] for row in json.loads(out)["rows"] if row["group"] == "pipeline"]
    assert len(cases) == 6  # two engines; three and five people, and those who are found
    assert {case.get("compile", "") for case in cases} == {"", "compile"}


def test_a_video_is_also_measured_with_the_people_in_it(measured, capsys, tmp_path):
    bench(capsys, "--video", clip(tmp_path / "a.mp4"), "--batch", "none", "--people", "1")
    assert [asked["people"] for asked in measured.people] == [(1,), None]
    assert measured.engines == []
    bench(capsys, "--people", "1")
    assert [asked["people"] for asked in measured.people[2:]] == [(1,)]


def test_engines_alone_open_no_video(measured, capsys):
    assert bench(capsys, "--people", "none")[0] == 0
    assert measured.people == []
    assert len(measured.engines) == 1


def test_an_engine_that_cannot_be_opened_is_told_and_the_others_go_on(measured, capsys):
    status, out, _ = bench(capsys, "--engines", "onnxruntime:f32,openvino:f32", "--people", "1")
    assert status == 0
    assert "onnxruntime cannot be loaded" in out
    assert len(measured.people) == 1


def test_what_was_wrong_among_the_engines_is_not_timed_in_a_video(measured, capsys, monkeypatch):
    reasons = {"f32": "the median may be 30 % off, over 20", "bf16": "joints are 3 px away"}

    def measure(model, cases, **_):
        return [
            engine_row(case.engine, case.precision, time=None, refused=reasons[case.precision])
            for case in cases
        ]

    monkeypatch.setattr(bench_run, "measure_engines", measure)
    engines = "openvino:f32,openvino:bf16"
    _, out, _ = bench(capsys, "--engines", engines, "--people", "1", "--json")
    assert len(measured.people) == 1  # the one that was only unsteady
    rows = [row for row in json.loads(out)["rows"] if row["group"] == "pipeline"]
    assert [row.get("refused", "") for row in rows] == ["", "joints are 3 px away"]


def test_batches_that_are_too_large_for_an_engine_cost_no_video(measured, capsys, monkeypatch):
    def measure(model, cases, **_):
        too_large = {**measured.gone(EngineCase("openvino", "f32", absent="x")), "absent": "x"}
        return [engine_row(), engine_row(batch=8, **too_large)]

    monkeypatch.setattr(bench_run, "measure_engines", measure)
    bench(capsys, "--engines", "openvino:f32", "--people", "1")
    assert len(measured.people) == 1


def test_the_engine_that_predict_takes_is_held_to_the_same(measured, capsys, monkeypatch):
    def measure(model, cases, **_):
        reason = {"time": None, "refused": "joints are 3 px away"}
        return [engine_row(case.engine, case.precision, **reason) for case in cases]

    monkeypatch.setattr(bench_run, "measure_engines", measure)
    _, out, _ = bench(capsys, "--people", "1", "--json")
    assert measured.people == []
    (row,) = [row for row in json.loads(out)["rows"] if row["group"] == "pipeline"]
    assert row["refused"] == "joints are 3 px away"
    assert row["case"]["engine"] == "openvino"


def test_a_wrong_answer_in_a_video_is_a_refused_row(measured, capsys):
    measured.fail = AnswerError("joints of frame 2 are elsewhere")
    status, out, _ = bench(capsys, "--people", "1")
    assert status == 0
    assert "refused: cpn-light" in out
    assert "joints of frame 2 are elsewhere" in out


def test_an_engine_that_fails_in_a_video_costs_no_other_row(measured, capsys):
    measured.fail = EngineError("/home/somebody/net.onnx: out of memory")
    status, out, _ = bench(capsys, "--people", "1")
    assert status == 0
    assert "## Engines" in out
    assert ": net.onnx: out of memory" in out


@pytest.mark.parametrize(("batches", "allowed"), [("1", True), ("none", False)])
def test_what_is_built_is_compared_with_the_network_once(
    measured, capsys, monkeypatch, tmp_path, batches, allowed
):
    asked = []
    monkeypatch.setattr(bench_run, "build_engine", lambda *_, **given: asked.append(given))
    monkeypatch.setattr(bench_run, "chosen_cases", lambda _: [EngineCase("openvino", "int8")])
    bench(capsys, "--engines", "openvino:int8", "--people", "1", "--batch", batches)
    assert [given["allow"] for given in asked] == [allowed]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-model"], "unknown model 'no-such-model'; known: "),
        (["--video", "{}/none.mp4"], "none.mp4"),
        (["--video", "{}/bad.mp4"], "bad.mp4"),
        (["--detector", "nobody"], "nobody: no such file"),
        (["--detector", "{}/none.onnx"], "none.onnx"),
        (["--data", "lsp:{}/none"], "none: no such folder"),
        (["--data", "{}/none"], "none: no such folder"),
        (["--calibration", "{}/none"], "none: no such folder"),
        (["--engines", "vulkan:f32"], "engine must be one of"),
        (["--engines", "openvino"], "expected ENGINE:PRECISION"),
        (["--engines", "openvino:f8"], "precision must be one of"),
        (["{}/none.onnx"], "none"),
        (["--rounds", "3"], "rounds must be at least 4"),
        (["one", "two"], "expected one model, got one two"),
        (["--fail-over", "5%"], "are for compare"),
        (["--out", "{}/file/x"], "expected a folder to write to"),
        (["compare", "a.json"], "compare takes two files, got 1"),
        (["compare", "a", "b", "c"], "compare takes two files, got 3"),
        (["compare", "{}/none.json", "b"], "none.json: cannot be read"),
        (["compare", "{}/file", "b"], "not JSON"),
        (["compare", "a", "b", "--batch", "1"], "--batch is for measuring"),
        (["compare", "a", "b", "--out", "d"], "--out is for measuring"),
    ],
)
def test_a_fault_of_the_input_is_one_line_before_anything_is_measured(
    measured, tmp_path, capsys, words, message
):
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    status, out, err = bench(capsys, *(word.replace("{}", str(tmp_path)) for word in words))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert measured.engines == measured.people == []


def test_a_device_that_is_not_there_is_found_first(measured, capsys, monkeypatch):
    def no_device(*_, device, **__):
        raise BackendError(f"torch has no device {device!r}")

    monkeypatch.setattr(bench_run, "open_engine", no_device)
    status, out, err = bench(capsys, "--device", "cuda")
    assert (status, out, err) == (2, "", "fastpose bench: torch has no device 'cuda'\n")
    assert measured.engines == []


@pytest.mark.parametrize(
    "words",
    [
        ["--people", "1,x"],
        ["--people", "-1"],
        ["--batch", "0"],
        ["--frames", "0"],
        ["--fail-over", "5"],
        ["--fail-over", "-5%"],
        ["--engines", "a,,b"],
        ["--device", "tpu"],
    ],
)
def test_a_wrong_argument_is_one_line_with_the_help(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("\n") == 1
    assert "fastpose bench --help" in err


def test_a_folder_that_cannot_be_written_is_found_first(measured, tmp_path, capsys, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    status, _, err = bench(capsys, "--out", tmp_path / "out")
    assert status == 2
    assert err.endswith("came: No space left on device\n")
    assert measured.engines == []


def test_a_disk_that_fills_up_is_one_line(measured, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    status, out, err = bench(capsys, "--out", tmp_path)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith("bench.json: cannot be written: No space left on device")


def test_ctrl_c_leaves_what_was_measured(measured, tmp_path, capsys):
    measured.fail = KeyboardInterrupt()
    status, out, err = bench(capsys, "--out", tmp_path, "--engines", "openvino:f32")
    assert (status, out) == (130, "")
    assert "interrupted" in err
    rows = read_document(tmp_path / "bench.json").rows
    assert {row.group for row in rows} == {"engines"}
    assert "openvino" in (tmp_path / "bench.md").read_text()


def test_a_bad_model_leaves_an_earlier_run_as_it_was(measured, tmp_path, capsys):
    (tmp_path / "bench.json").write_text("earlier")
    assert bench(capsys, "no-such-model", "--out", tmp_path)[0] == 2
    assert (tmp_path / "bench.json").read_text() == "earlier"


def test_pictures_of_an_earlier_run_do_not_stand_beside_new_figures(measured, tmp_path, capsys):
    (tmp_path / "accuracy.png").write_text("earlier")
    bench(capsys, "--out", tmp_path, "--batch", "none")
    assert not (tmp_path / "accuracy.png").exists()


def test_without_matplotlib_all_but_the_pictures_is_written(
    measured, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = bench(capsys, "--out", tmp_path)
    assert status == 0
    assert err.count("fastpose-inference[bench]") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.md"}


def test_no_word_takes_what_runs_here_at_once(monkeypatch):
    here = [
        EngineCase("openvino", "f32"),
        EngineCase("openvino", "int8"),
        EngineCase("onnxruntime", "f32", absent="not installed"),
        EngineCase("torch", "f32", "compile"),
        EngineCase("torch", "f32", "aot"),
        EngineCase("tensorrt", "f16"),
    ]
    monkeypatch.setattr(bench_run, "available_cases", lambda device: here)
    assert [case.name for case in chosen_cases(Plan())] == ["openvino f32", "onnxruntime f32"]
    with_pictures = chosen_cases(Plan(calibration="folder"))
    assert "openvino int8" in [case.name for case in with_pictures]
    everything = chosen_cases(Plan(engines=("all",)))
    assert [case.name for case in everything] == [case.name for case in here]
    assert "calibrate" in everything[1].absent


def test_a_bundle_is_its_one_engine(monkeypatch):
    monkeypatch.setattr(bench_run, "case_of_bundle", lambda path: EngineCase("openvino", "int8"))
    assert [c.name for c in chosen_cases(Plan("light.xml"))] == ["openvino int8"]
    with pytest.raises(BackendError, match=r"light.xml is an engine itself, got engines torch:f32"):
        chosen_cases(Plan("light.xml", engines=("torch:f32",)))


def test_the_library_keeps_each_step(measured):
    steps, kept = [], []
    found = run_bench(
        Plan(engines=("openvino:f32",), people=(1,)), keep=kept.append, tell=steps.append
    )
    assert [len(one.rows) for one in kept] == [2, 3]
    assert kept[-1] == found
    assert steps[0] == "time"


def test_the_built_in_clip_moves(tmp_path):
    with open_source(make_clip(tmp_path / "built-in.mp4", 3)) as source:
        frames = [frame.image for frame in source]
    assert [frame.shape for frame in frames] == [(720, 1280, 3)] * 3
    moved = frames[2][:, : -2 * bench_run.CLIP_STEP], frames[0][:, 2 * bench_run.CLIP_STEP :]
    assert np.abs(moved[0].astype(int) - moved[1]).mean() < 10
    assert np.abs(frames[2].astype(int) - frames[0]).mean() > 10


@pytest.fixture
def pair(tmp_path):
    """Writes two documents of the machine that we are on, and gives their names."""

    def write(before, after, **values):
        here = machine()
        document(before, machine=here).write(tmp_path / "a.json")
        document(after, machine={**here, **values}).write(tmp_path / "b.json")
        return tmp_path / "a.json", tmp_path / "b.json"

    return write


@pytest.mark.parametrize(
    ("median", "spread", "status"), [(10.6, 0.01, 1), (10.4, 0.01, 0), (10.6, 0.1, 0), (9.0, 0, 0)]
)
def test_compare_fails_over_the_bound_and_names_the_row(pair, capsys, median, spread, status):
    files = pair(engine_row(median=10), engine_row(median=median, spread=spread))
    found, out, err = bench(capsys, "compare", *files, "--fail-over", "5%")
    assert found == status
    assert "median ms" in out
    key = "engines tiny batch=1 engine=openvino precision=f32 (cpu 1 threads)"
    assert err == (f"fastpose bench: slower: {key}: median ms +6.0 %\n" if status else "")
    assert bench(capsys, "compare", *files)[0] == 0  # only who asks for a gate gets one


def test_compare_as_json(pair, capsys):
    files = pair(engine_row(median=10), engine_row(median=12))
    status, out, _ = bench(capsys, "compare", *files, "--fail-over", "5%", "--json")
    found = json.loads(out)
    assert status == 1
    assert (found["times_compared"], found["fail_over"]) == (True, 0.05)
    assert found["failed"] == [engine_row().key]
    assert found["changes"][0]["verdict"] == "slower"


def test_compare_of_two_machines_says_so_and_leaves_times_alone(pair, capsys):
    files = pair(engine_row(median=10), engine_row(median=30), processor="another")
    status, out, _ = bench(capsys, "compare", *files, "--fail-over", "5%")
    assert status == 0
    assert "The machines differ" in out.splitlines()[0]
    assert bench(capsys, "compare", *files, "--fail-over", "5%", "--anyway")[0] == 1


def test_files_of_one_run_can_be_compared(measured, tmp_path, capsys):
    bench(capsys, "--out", tmp_path, "--people", "none", "--engines", "openvino:f32")
    file = tmp_path / "bench.json"
    status, out, _ = bench(capsys, "compare", file, file, "--fail-over", "1%")
    assert status == 0
    assert "| same" in out
