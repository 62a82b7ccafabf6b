"""docs/benchmarks.md is made from the results, and tells what they do."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fastpose.bench.rows import Document, Peer, Row

ROOT = Path(__file__).parents[1]
TIME = {"median_ms": 2.0, "min_ms": 1.9, "mean_ms": 2.0, "p90_ms": 2.2, "p99_ms": 2.4}
TIME |= {"spread": 0.05, "turns": 40}


@pytest.fixture(scope="module")
def page():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("page")


def row(group, name, case, **fields):
    sound = {"check": "compared", "threads": 1, "clock": "wall", "time": TIME, "load": 0.5}
    return Row(group, name, case, **{**sound, **fields})


def peer(ratio, **fields):
    return Peer(ratio, 0.05, time={**TIME, "median_ms": 2.0 * ratio}, **fields)


def warp(people, ratio):
    peers = {"OpenCV": peer(ratio, difference="within 0.5 grey levels", version="5.0")}
    return row("ops", "warp", {"people": people, "method": "straight"}, peers=peers)


def one_person(people, ratio):
    return row(
        "pipeline",
        "one person",
        {"people": people, "engine": "openvino", "precision": "bf16", "every": 10},
        figures={"pck": 79.3, "pictures": 100, "seen_percent": 99.0},
        peers={"MediaPipe": peer(ratio, figures={"pck": 81.9, "seen_percent": 98.0})},
    )


def pose(people, precision, ratio):
    return row(
        "pipeline",
        "reading and pose",
        {"people": people, "engine": "openvino", "precision": precision},
        threads=4,
        peers={"rtmlib": peer(ratio)} if ratio else {"rtmlib": Peer(absent="not installed")},
    )


def swept(people):
    case = {"people": people, "engine": "openvino", "precision": "bf16"}
    return row("pipeline", "cpn-light", case, figures={"fps": 500.0, "crop_ms": 0.25})


def engine(precision, pck):
    return row(
        "engines",
        "cpn-light",
        {"batch": 8, "engine": "openvino", "precision": precision},
        figures={"windows_per_s": 4000.0, "pck": pck, "peak_rss_mb": 321.0},
        peers={"torch module f32": peer(3.2)},
    )


ROWS = (
    warp(1, 4.5),
    warp(8, 7.5),
    row(
        "ops",
        "decode",
        {"people": 8, "method": "dark"},
        time=None,
        refused="the median may be 40 % off, over 20",
        peers={"mmpose": Peer(absent="the median may be 40 % off, over 20")},
    ),
    row(
        "ops", "warp", {"people": 8, "isa": "avx2"}, peers={"reference": peer(44.0)}
    ),
    pose(8, "f32", 0.9),
    pose(8, "bf16", 4.4),
    pose(1, "f32", None),
    one_person(1, 1.7),
    one_person(0, 2.6),
    swept(1),
    swept(8),
    engine("f32", 81.5),
    engine("bf16", 81.4),
    row("startup", "import", {}, figures={"import_ms": 123.0}),
    row(
        "counts", "decode", {"people": 8}, time=None, figures={"instructions": 348326},
        peers={"baseline": Peer(0.97)},
    ),
)  # fmt: skip
DOCUMENT = Document(
    ROWS,
    {"processor": "A Processor", "cores": 4, "memory_gib": 16.0, "python": "3.11", "gpus": []},
    {"numpy": "2.4"},
    "0123abc",
    "2026-11-21",
    "pytest benchmarks",
)


@pytest.fixture
def written(page, tmp_path):
    """A function: documents by machine -> what is written of them, and its path."""

    def write(**machines):
        for name, documents in machines.items():
            for document in documents:
                stem = f"{document.date}-{document.commit}"
                document.write(tmp_path / "results" / name / f"{stem}.json")
        path = tmp_path / "benchmarks.md"
        where = ["--results", str(tmp_path / "results"), "--page", str(path)]
        assert page.main(where) == 0
        return path.read_text(), path, where

    return write


@pytest.fixture(scope="module")
def text(page):
    return text_of(page, DOCUMENT)


def text_of(page, *documents):
    """The page of one machine's results."""
    return page.page([page.Machine("zen", documents)], {})


def cells(text, start):
    """Of the line that starts so, in a table."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def under(text, title):
    """The lines of a section."""
    return text.split(f"### {title}\n", 1)[1].split("\n##", 1)[0]


def test_the_answer_comes_first(text):
    first = text[: text.index("## How it was measured")]
    assert "windows of 8 people: OpenCV × 7.50." in first
    assert "same network and boxes: f32 × 0.900 rtmlib, bf16 × 4.40 rtmlib." in first
    assert "bf16: × 1.70 MediaPipe; PCK@0.2 79.30, 81.90 (ours, theirs)" in first
    assert "Slower than a peer somewhere: reading a video and pose, CPN-50, openvino f32" in first


def test_a_slower_detector_is_told_though_it_has_no_number_of_people(page):
    found = row("pipeline", "detect", {"precision": "bf16"}, peers={"YOLOX-nano": peer(0.6)})
    assert "; finding people, bf16, beside YOLOX-nano." in text_of(
        page, DOCUMENT.with_rows([found])
    )


def test_ratios_stand_by_people_with_the_answers_beside(text):
    table = under(text, "Beside other projects")
    assert cells(table, "warp, straight") == [
        "warp, straight", "OpenCV", "× 4.50", "× 7.50", "–", "2 (8)", "within 0.5 grey levels", "1"
    ]  # fmt: skip
    found = cells(table, "network cpn-light, openvino bf16")
    assert found[1:5] == ["torch module f32", "–", "× 3.20", "–"]
    assert found[6] == "PCK@0.2 81.40"
    assert "reference" not in table
    assert "baseline" not in table


def test_every_cell_has_its_head(text):
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) > 5
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_the_headline_keeps_to_other_projects_and_their_kind(page):
    itself = row("ops", "fit_tree", {"people": 1}, peers={"smaller maps": peer(0.9)})
    late = row("ops", "warp", {"people": 32, "method": "straight"}, peers={"kornia": peer(9.0)})
    lines = page.headline((warp(8, 7.5), itself, pose(8, "f32", 0.9), late))
    assert [line.peer for line in lines] == ["OpenCV", "kornia", "rtmlib"]


def test_bars_begin_at_one(page, monkeypatch, tmp_path):
    plots = pytest.importorskip("matplotlib.axes")
    drawn = []
    barh = plots.Axes.barh
    monkeypatch.setattr(
        plots.Axes, "barh", lambda *words, **named: drawn.append(named) or barh(*words, **named)
    )
    page.plot_ratios(replace(DOCUMENT, rows=(warp(8, 7.5), pose(8, "f32", 0.5))), tmp_path / "p")
    (bars,) = drawn
    assert bars["left"] == 1


def test_one_person_with_and_without_somebody_in_the_frame(text):
    table = under(text, "One person, the whole loop")
    assert cells(table, "with a person")[4:] == [
        "2 / 3.40", "× 1.70", "99 / 98", "79.30 / 81.90", "100"
    ]  # fmt: skip
    assert cells(table, "empty")[5] == "× 2.60"


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("End to end", "crop ms"),
        ("Engines", "321"),
        ("Start", "123"),
        ("Counts", "348326"),
        ("Each operation beside its reference", "44"),
    ],
)
def test_every_group_has_its_table(text, title, words):
    assert words in under(text, title)


def test_what_is_not_there_has_its_reason(text):
    gone = under(text, "What is not here, and why")
    assert "- rtmlib: not installed (reading a video and pose, CPN-50, openvino f32)" in gone
    assert "- refused: decode, DARK, 8 people: the median may be 40 % off" in gone
    assert gone.count("40 % off") == 1


def test_a_loop_that_does_not_run_here_has_its_reason(page):
    loop = replace(pose(8, "int8", 7.0), time=None, peers={}, absent="needs NNCF")
    gone = under(text_of(page, replace(DOCUMENT, rows=(loop,))), "What is not here, and why")
    assert "- reading a video and pose, CPN-50, openvino int8: needs NNCF (8 people)" in gone


def test_the_machine_stands_over_its_tables(text):
    machine = text.split("## A Processor, 4 cores\n", 1)[1]
    assert "16.0 GiB" in machine
    assert "Python 3.11, numpy 2.4" in machine
    assert "- peers: OpenCV 5.0\n" in machine
    assert "2026-11-21, commit 0123abc, `pytest benchmarks`" in machine


def test_the_newest_file_gives_the_tables_and_all_the_history(page, tmp_path):
    older = replace(DOCUMENT, rows=(warp(8, 5.5),), date="2026-10-01", commit="4567def")
    for document in (DOCUMENT, older):
        document.write(tmp_path / "zen" / f"{document.date}-{document.commit}.json")
    (machine,) = page.machines(tmp_path)
    text = page.page([machine], {})
    over = under(text, "Over time")
    assert cells(over, "ratio")[2:] == ["2026-10-01 4567def", "2026-11-21 0123abc"]
    assert cells(over, "warp, straight beside OpenCV")[1:] == ["8", "5.50", "7.50"]
    assert "5.50" not in under(text, "Beside other projects")


def test_what_was_measured_between_two_commits_is_left_out(page, tmp_path):
    for commit in ("0123abc", "0123abc-dirty"):
        path = tmp_path / "zen" / f"2026-11-21-{commit}.json"
        replace(DOCUMENT, commit=commit).write(path)
    (machine,) = page.machines(tmp_path)
    assert [document.commit for document in machine.documents] == ["0123abc"]


def test_without_a_gpu_its_section_says_so(text):
    assert "## H200\n\nnot measured: no GPU was at hand." in text


def test_what_a_gpu_measured_stands_in_its_section(page):
    with_gpu = {**DOCUMENT.machine, "gpus": [{"name": "NVIDIA H200"}]}
    timed = replace(warp(8, 3.3), device="cuda", clock="cuda")
    text = text_of(page, replace(DOCUMENT, machine=with_gpu, rows=(timed,)))
    assert "not measured" not in text
    assert "3.30" in text.split("## On a GPU\n", 1)[1]
    assert cells(text, "warp, straight, on the GPU")[3] == "× 3.30"


def test_nothing_measured_is_said(page):
    assert "Nothing has been measured yet." in page.page([], {})


def test_pictures_are_drawn_and_old_ones_removed(written):
    pytest.importorskip("matplotlib")
    text, path, _ = written(zen=[DOCUMENT])
    folder = path.with_suffix("")
    assert {file.name for file in folder.iterdir()} == {
        "zen-ratios.png", "zen-people.png", "zen-accuracy.png"
    }  # fmt: skip
    assert "![End to end](benchmarks/zen-people.png)" in text
    (folder / "old.png").touch()
    written(zen=[replace(DOCUMENT, rows=(warp(8, 7.5),))])
    assert [file.name for file in folder.iterdir()] == ["zen-ratios.png"]


def test_check_finds_a_page_that_is_not_up_to_date(page, written, capsys):
    pytest.importorskip("matplotlib")
    text, path, where = written(zen=[DOCUMENT])
    assert page.main([*where, "--check"]) == 0
    path.write_text(text.replace("× 7.50", "× 9.50"))
    assert page.main([*where, "--check"]) == 1
    assert "benchmarks.md is not what the results give" in capsys.readouterr().err
    path.write_text(text)
    (path.with_suffix("") / "zen-people.png").unlink()
    assert page.main([*where, "--check"]) == 1
    assert "zen-people.png is missing" in capsys.readouterr().err


def test_the_committed_page_is_up_to_date(page, tmp_path):
    """With the committed results: those of a run that somebody just made are not in it yet."""
    command = ["git", "-C", str(ROOT), "ls-files", "benchmarks/results"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    results = tmp_path / "results"
    results.mkdir()
    for name in done.stdout.split():
        copy = results / Path(name).relative_to("benchmarks/results")
        if copy.parent != results and (ROOT / name).exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, copy)
    if done.returncode:  # no checkout, but an archive of one
        results = page.RESULTS
    assert page.main(["--results", str(results), "--check"]) == 0
