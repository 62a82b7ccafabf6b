"""`fastpose predict` from end to end with the default model, and every fault a user may bring."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose.cli import main
from fastpose.errors import BackendError
from fastpose.models import trained


def clip(path, frames=6, size=(120, 160)):
    """A short video of a moving bar."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, size[::-1])
    for i in range(frames):
        frame = np.full((*size, 3), 40, np.uint8)
        cv2.rectangle(frame, (20 + 5 * i, 20), (40 + 5 * i, 100), (200, 180, 160), -1)
        writer.write(frame)
    writer.release()
    return path


def predict(*words, capsys=None):
    """Exit status and what was printed on both streams."""
    status = main(["predict", *map(str, words)])
    if capsys is None:
        return status
    out = capsys.readouterr()
    return status, out.out, out.err


def child(*words, **options):
    """`fastpose predict` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastpose", "predict", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_video_becomes_lines_and_a_video(tmp_path, capsys):
    out = tmp_path / "out"
    words = [clip(tmp_path / "a.mp4"), "--detector", "none", "--video", "--out", out, "--json"]
    status, printed, errors = predict(*words, capsys=capsys)
    assert status == 0
    header, *frames = lines(out / "a.people.jsonl")
    assert header["schema"] == 1
    assert header["joints"][13] == "head_top"
    assert [f["frame"] for f in frames] == list(range(6))
    assert [round(f["time"], 3) for f in frames] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(len(f["people"]) == 1 for f in frames)
    video = cv2.VideoCapture(str(out / "a.pose.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    (source,) = json.loads(printed)["sources"]  # one document, and nothing beside it
    assert (source["frames"], source["people"]) == (6, 6)
    assert sorted(Path(f).name for f in source["files"]) == ["a.people.jsonl", "a.pose.mp4"]
    assert "6/6 frames" in errors


@pytest.mark.parametrize("shape", [(1, 1, 3), (40, 30), (40, 30, 4)])
def test_pictures_of_every_kind(tmp_path, shape):
    cv2.imwrite(str(tmp_path / "p.png"), np.full(shape, 99, np.uint8))
    out = tmp_path / "out"
    assert predict(tmp_path / "p.png", "--detector", "none", "--video", "--out", out) == 0
    assert len(lines(out / "p.people.jsonl")) == 2
    assert cv2.imread(str(out / "p.pose.png")).shape == (*shape[:2], 3)


def test_every_format_and_several_sources(tmp_path):
    pytest.importorskip("pyarrow")
    sources = [clip(tmp_path / f"{name}.mp4", frames=2) for name in "ab"]
    out = tmp_path / "out"
    save = "jsonl,csv,coco,openpose,parquet"
    assert predict(*sources, "--detector", "none", "--save", save, "--out", out) == 0
    for name in "ab":
        for ending in (".people.jsonl", ".people.csv", ".coco.json", ".openpose", ".parquet"):
            assert (out / f"{name}{ending}").exists()
    assert not [p for p in out.iterdir() if "part" in p.name]  # nothing temporary is left


def test_sources_of_one_name_do_not_replace_each_other(tmp_path):
    for i, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        clip(tmp_path / folder / "x.mp4", frames=2 + i)
        cv2.imwrite(str(tmp_path / folder / "p.png"), np.full((40, 30 + i, 3), 99, np.uint8))
    sources = [tmp_path / folder / name for folder in "ab" for name in ("x.mp4", "p.png")]
    out = tmp_path / "out"
    assert predict(*sources, "--detector", "none", "--video", "--out", out) == 0
    assert [len(lines(out / f"{name}.people.jsonl")) for name in ("x", "x_2", "p", "p_2")] == [
        3, 4, 2, 2,
    ]  # fmt: skip
    assert [cv2.imread(str(out / f"{name}.pose.png")).shape[1] for name in ("p", "p_2")] == [30, 31]
    assert (out / "x_2.pose.mp4").exists()


def test_a_bad_source_does_not_stop_the_others(tmp_path, capsys):
    sources = [clip(tmp_path / "a.mp4"), text_as_video(tmp_path), clip(tmp_path / "b.mp4")]
    out = tmp_path / "out"
    status, printed, errors = predict(
        *sources, "--detector", "none", "--json", "--out", out, capsys=capsys
    )
    assert status == 2
    first, bad, last = json.loads(printed)["sources"]
    assert (first["frames"], last["frames"]) == (6, 6)
    assert (bad["source"], "text.mp4" in bad["error"]) == (str(sources[1]), True)
    assert f"fastpose predict: {bad['error']}" in errors.splitlines()
    assert sorted(p.name for p in out.iterdir()) == ["a.people.jsonl", "b.people.jsonl"]


def test_what_was_written_is_told(tmp_path, capsys, monkeypatch):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40, 30, 3), 99, np.uint8))
    out = tmp_path / "out"
    words = ["--detector", "none", "--video", "--out", out]
    _, _, errors = predict(tmp_path, *words, capsys=capsys)
    name = tmp_path.name
    assert errors.splitlines()[1:] == [
        f"wrote {out / name}.people.jsonl",
        f"wrote 3 files in {out / name}.pose",
    ]
    monkeypatch.setitem(sys.modules, "av", None)
    _, _, errors = predict(clip(tmp_path / "a.mp4"), *words, capsys=capsys)
    assert "a.pose.mp4 (mp4v; the extra fastpose-inference[video] gives H.264)" in errors


def test_boxes_from_a_file_and_a_video_with_nobody(tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("frame,x0,y0,x1,y1,score\n1,10,10,60,110,0.9\n1,50,10,90,110,0.8\n")
    out = tmp_path / "out"
    assert predict(clip(tmp_path / "a.mp4"), "--boxes", boxes, "--out", out) == 0
    counts = [len(f["people"]) for f in lines(out / "a.people.jsonl")[1:]]
    assert counts == [0, 2, 0, 0, 0, 0]


def test_tracks_have_numbers(tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("".join(f"{i},10,10,60,110\n" for i in range(6)))
    out = tmp_path / "out"
    words = ["--boxes", boxes, "--track", "--smooth", "--out", out]
    assert predict(clip(tmp_path / "a.mp4"), *words) == 0
    people = [p for f in lines(out / "a.people.jsonl")[1:] for p in f["people"]]
    assert all(isinstance(p["id"], int) for p in people)


def truncated(folder):
    whole = clip(folder / "whole.mp4", frames=30).read_bytes()
    path = folder / "cut.mp4"
    path.write_bytes(whole[: len(whole) // 3])
    return path


def text_as_video(folder):
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    return folder / "text.mp4"


def empty(folder):
    (folder / "empty.mp4").write_bytes(b"")
    return folder / "empty.mp4"


@pytest.mark.parametrize("make", [truncated, text_as_video, empty, lambda f: f / "missing.mp4"])
def test_a_bad_source_is_one_line_that_names_it(tmp_path, make, capsys):
    source = make(tmp_path)
    status, printed, errors = predict(
        source, "--detector", "none", "--out", tmp_path / "out", capsys=capsys
    )
    assert (status, printed) == (2, "")
    (line,) = [one for one in errors.splitlines() if one.startswith("fastpose predict:")]
    assert source.name in line
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model", "openpose"], "unknown model 'openpose'; known: default, cpn-light"),
        (["--engine", "tensorrt"], "tensorrt"),
        (["--detector", "absent.onnx"], "absent.onnx"),
        (["--detector-layout", "ssd", "--detector", "x.onnx"], "unknown layout 'ssd'; known:"),
        (["--detector-layout", "detr", "--detector", "default"], "got 'detr' for default"),
        (["--detector-layout", "detr"], "--detector-layout is for a detector from FILE.onnx"),
        (
            ["--detector-layout", "detr", "--boxes", "b.csv"],
            "is for --detector FILE.onnx, got b.csv",
        ),
        (["--boxes", "absent.csv"], "absent.csv"),
        (["--engine", "absent.json"], "absent.json"),
        (["--engine", "opencv"], "unknown engine 'opencv'; known: auto, openvino"),
    ],
)
def test_a_wrong_choice_is_one_line_that_names_it(tmp_path, words, text, capsys):
    none = [] if {"--detector", "--boxes"} & set(words) else ["--detector", "none"]
    status, _, errors = predict(clip(tmp_path / "a.mp4"), *words, *none, capsys=capsys)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert text in errors


@pytest.mark.parametrize("row", ["1,nan,10,60,110", "1,10,10,-5,110", "1,10,10,inf,110"])
def test_boxes_that_are_none(tmp_path, row, capsys):
    (tmp_path / "b.csv").write_text(row + "\n")
    status, _, errors = predict(
        clip(tmp_path / "a.mp4"), "--boxes", tmp_path / "b.csv", capsys=capsys
    )
    assert status == 2
    assert "b.csv" in errors
    assert len(errors.splitlines()) == 1


def test_an_onnx_that_is_no_detector(tmp_path, capsys):
    graph = trained.graph_path("cpn-light")
    status, _, errors = predict(clip(tmp_path / "a.mp4"), "--detector", graph, capsys=capsys)
    assert status == 2
    assert "cpn-light.onnx" in errors
    assert "--detector-layout" in errors


def test_damaged_weights_are_named(tmp_path, capsys, monkeypatch):
    broken = tmp_path / "trained"
    broken.mkdir()
    (broken / "cpn-light.onnx").write_bytes(b"\x08\x09 no graph")
    (broken / "cpn-light.json").write_text(json.dumps(trained.card("cpn-light")))
    monkeypatch.setattr(trained, "folder", lambda: broken)
    status, _, errors = predict(clip(tmp_path / "a.mp4"), "--detector", "none", capsys=capsys)
    assert status == 2
    assert "cpn-light.onnx" in errors
    assert len(errors.splitlines()) == 1


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, _, errors = predict(
        clip(tmp_path / "a.mp4"),
        "--detector",
        "none",
        "--out",
        tmp_path / "file" / "out",
        capsys=capsys,
    )
    assert status == 2
    assert str(tmp_path / "file") in errors


def test_a_full_disk_keeps_whole_lines(tmp_path):
    """The size limit of a process stands in for a disk that fills up in the middle."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"
    run = child(
        clip(tmp_path / "a.mp4", frames=60),
        "--detector",
        "none",
        "--out",
        out,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)),
    )
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 2, errors
    assert "a.people.jsonl" in errors
    assert "Traceback" not in errors
    header, *frames = lines(out / "a.people.jsonl")  # each parses: no line is cut
    assert header["schema"] == 1
    assert 0 < len(frames) < 60
    assert len(list(out.iterdir())) == 1


def test_ctrl_c_keeps_whole_lines_and_exits_130(tmp_path):
    out = tmp_path / "out"
    source = clip(tmp_path / "a.mp4", frames=3000)
    run = child(source, "--detector", "none", "--video", "--out", out)
    deadline = time.monotonic() + 300
    while not any(p.stat().st_size > 20_000 for p in out.glob("*jsonl*")):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    frames = lines(out / "a.people.jsonl")[1:]
    assert 0 < len(frames) < 3000
    assert [f["frame"] for f in frames] == list(range(len(frames)))
    assert cv2.VideoCapture(str(out / "a.pose.mp4")).read()[0]
    assert sorted(p.name for p in out.iterdir()) == ["a.people.jsonl", "a.pose.mp4"]


def test_ctrl_c_that_an_import_swallowed_is_still_ctrl_c(capsys, monkeypatch):
    def swallow(args):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise BackendError("no runtime is installed")

    monkeypatch.setattr("fastpose.cli.models.run", swallow)
    handler = signal.getsignal(signal.SIGINT)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "fastpose models: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_without_torch(tmp_path):
    """Torch, ONNX Runtime and every other extra are out of reach; the base packages do it all."""
    out = tmp_path / "out"
    code = (
        "import sys\n"
        "for name in ('torch', 'triton', 'onnx', 'onnxruntime', 'av', 'pyarrow', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from fastpose.cli import main\n"
        f"sys.exit(main(['predict', {str(clip(tmp_path / 'a.mp4'))!r}, '--detector', 'none',"
        f" '--video', '--out', {str(out)!r}]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert len(lines(out / "a.people.jsonl")) == 7
    assert (out / "a.pose.mp4").stat().st_size > 1000


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(tmp_path, unbuffered):
    words = [clip(tmp_path / "a.mp4"), "--detector", "none", "--json", "--out", tmp_path / "out"]
    run = child(*words, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    os.close(run.stdout.fileno())
    run.stdout = None
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "VERB"),
        (["predict"], "source"),
        (["predict", "--detect-every", "0", "x"], "--detect-every: must be a whole number from 1"),
        (["predict", "--max-frames", "all", "x"], "--max-frames: must be a whole number from 1"),
        (["predict", "--min-score", "high", "x"], "--min-score: must be a number from 0 to 1"),
        (["predict", "--save", "xml", "x"], "--save: unknown ['xml']; choose from jsonl,csv"),
        (["predict", "--detector", "none", "--boxes", "b.csv", "x"], "--boxes: not allowed with"),
        (["eval", "--data", "lsp:x"], "MODEL --predictions"),
    ],
)
def test_arguments_are_checked_before_anything_runs(words, text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert line.endswith("--help")


def test_a_warning_is_one_line(capsys, monkeypatch):
    """Random weights are told without the line of our source that asked for the engine."""

    def warn(args):
        warnings.warn("there are no weights", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("fastpose.cli.models.run", warn)
    shown = warnings.showwarning
    assert main(["models"]) == 0
    assert capsys.readouterr().err == "fastpose models: warning: there are no weights\n"
    assert warnings.showwarning is shown


def test_what_takes_long_is_told_on_standard_error(capsys, monkeypatch):
    """An export is; standard output stays one document, and the log is left as it was."""
    log = logging.getLogger("fastpose")
    before = log.level, list(log.handlers)

    def run(args):
        logging.getLogger("fastpose.engines.source").info("%s: exported", "tiny")
        logging.getLogger("fastpose.engines.source").debug("not for the user")
        sys.stdout.write("{}\n")
        return 0

    monkeypatch.setattr("fastpose.cli.models.run", run)
    assert main(["models", "--json"]) == 0
    out = capsys.readouterr()
    assert (out.out, out.err) == ("{}\n", "fastpose models: tiny: exported\n")
    assert (log.level, log.handlers) == before


def test_models_and_doctor(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    (default,) = [row for row in rows if row["default"]]
    assert default["trained"]
    assert default["terms"]
    assert main(["models"]) == 0
    assert "cpn-light" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["default_model"]["works"]
    assert report["kernels"]["works"]
    assert main(["doctor"]) == 0
    assert "default model" in capsys.readouterr().out


def test_a_trained_model_without_measured_accuracy_is_listed(capsys, monkeypatch):
    card = {**trained.card("cpn-light"), "accuracy": None}
    monkeypatch.setattr(trained, "card", lambda name: card)
    assert main(["models"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.endswith(" MB (default)")


def test_doctor_says_which_kernels_for_cuda_are_missing(capsys, monkeypatch):
    found = {"warp": "nvcc was not there", "decode, render, propagate": ""}
    monkeypatch.setattr("fastpose.ops.choose.gpu_kernels", lambda: found)
    main(["doctor"])
    text = "cuda kernels  no  warp: nvcc was not there (without them only a network runs on CUDA)"
    assert text in capsys.readouterr().out
    found["warp"] = ""
    main(["doctor"])
    assert "cuda kernels  ok" in capsys.readouterr().out


def test_doctor_says_why_cuda_is_not_there(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["cuda"] == {"works": False, "why": "not looked for: torch is not installed"}
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "{" not in printed
    assert "first result after" in printed


def test_threads_reach_networks_and_kernels(tmp_path):
    from fastpose import ops
    from fastpose.ops import cpp

    before = cpp.get_num_threads()
    words = ["--detector", "none", "--threads", "1", "--out", tmp_path / "out"]
    try:
        assert predict(clip(tmp_path / "a.mp4", frames=2), *words) == 0
        assert cpp.get_num_threads() == 1
    finally:
        ops.set_num_threads(before)
