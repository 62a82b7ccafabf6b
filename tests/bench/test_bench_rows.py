"""Rows and documents: what may stand in them, and that they come back as they were written."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest

from fastpose.bench.rows import (
    Document,
    Peer,
    ResultsError,
    Row,
    commit_of,
    machine_name,
    new_document,
    read_document,
    timed,
)
from fastpose.measure import SPREAD, Times

TIME = Times((0.001,) * 8).to_dict()
ROW = Row(
    "ops",
    "warp",
    {"people": 8, "isa": "avx2"},
    check="within 0.5 grey levels of the reference",
    threads=1,
    clock="thread",
    time=TIME,
    figures={"fps": 1000.0},
    peers={"rtmlib": Peer(15.1, 0.01, "0.5 grey levels", TIME, {"pck": 80.0}, "0.0.16")},
    limits={"rtmlib": 5},
    load=0.5,
    command="pytest benchmarks/ops/bench_warp.py",
)


def document(*rows: Row) -> Document:
    return replace(new_document(rows, "pytest benchmarks"), commit="abc")


def test_a_document_comes_back_as_it_was_written(tmp_path):
    absent = Row("ops", "warp", {"people": 1}, absent="no such thing here")
    path = tmp_path / "machine" / "one.json"
    document(ROW, absent).write(path)
    assert read_document(path) == document(ROW, absent)
    assert [file.name for file in path.parent.iterdir()] == ["one.json"]


def test_what_was_timed_must_have_been_checked():
    with pytest.raises(ValueError, match="must have been checked"):
        replace(ROW, check="")


def test_a_group_must_be_known():
    with pytest.raises(ValueError, match="group must be one of ops"):
        replace(ROW, group="speed")


def test_a_row_takes_the_place_of_an_older_one_of_its_key():
    newer, other = replace(ROW, load=2.0), replace(ROW, case={"people": 1})
    merged = document(ROW).with_rows([other, newer])
    assert merged.rows == (newer, other)
    assert ROW.key == "ops warp people=8 isa=avx2 (cpu 1 threads)"


def test_ratios_of_steady_turns():
    times = {"ours": Times((1.0, 1.1, 1.0, 1.1)), "peer": Times((3.0, 3.3, 3.0, 3.3))}
    own, peers, refused = timed(times)
    assert own is not None
    assert own["median_ms"] == 1050
    assert peers["peer"].ratio == 3.0
    assert not refused


def test_unsteady_times_of_ours_are_refused():
    wild = Times((1.0, 1.0, 2.0, 2.0))
    own, peers, refused = timed({"ours": wild, "peer": Times((3.0,) * 4)})
    assert own is None
    assert peers == {}
    assert f"over {100 * SPREAD:.0f}" in refused


def test_one_unsteady_peer_does_not_cost_the_row_the_others():
    times = {"ours": (1.0,) * 4, "calm": (2.0,) * 4, "wild": (2.0, 2.0, 4.0, 4.0)}
    own, peers, refused = timed({name: Times(seconds) for name, seconds in times.items()})
    assert own is not None
    assert peers["calm"].ratio == 2.0
    assert peers["wild"].ratio is None
    assert "median of its ratio" in peers["wild"].absent
    assert not refused


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("case", 3, "case must be an object, got 3"),
        ("time", {}, "median_ms must be a number, got None"),
        ("time", {**TIME, "spread": "0.1"}, "spread must be a number, got '0.1'"),
        ("figures", {"fps": None}, "fps must be a number, got None"),
        ("peers", {"rtmlib": {"ratio": 0}}, "ratio to rtmlib must be a number"),
        ("machine", [], r"machine must be an object, got \[\]"),
    ],
)
def test_a_value_that_cannot_be_computed_with(tmp_path, field, value, said):
    path = tmp_path / "x.json"
    found = document(ROW).to_dict()
    (found if field in found else found["rows"][0])[field] = value
    path.write_text(json.dumps(found))
    with pytest.raises(ResultsError, match=said):
        read_document(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "schema 2"),
        ('{"schema": 1}', "schema 2"),
        ('{"schema": 2}', "'rows'"),
        ('{"schema": 2, "rows": [{"group": "ops"}]}', "not a row"),
        ('{"schema": 2, "rows": [{"group": "x", "name": "y", "case": {}}]}', "group must be"),
        ('{"schema": 2, "rows": [3]}', "not a row"),
    ],
)
def test_a_file_that_is_no_document(tmp_path, text, said):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=said) as error:
        read_document(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read"):
        read_document(tmp_path / "none.json")


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written"):
        document(ROW).write(tmp_path / "file" / "x.json")
    with pytest.raises(ResultsError, match="cannot be written"):
        document(ROW).write(tmp_path)


def test_nothing_empty_is_written(tmp_path):
    path = tmp_path / "x.json"
    document(Row("ops", "warp", {}, absent="why")).write(path)
    (row,) = json.loads(path.read_text())["rows"]
    assert set(row) == {"group", "name", "case", "threads", "device", "absent"}


def test_the_commit_says_whether_files_differ_from_it(tmp_path):
    assert commit_of(tmp_path) == ""

    def git(*words: str) -> None:
        own = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run([*own, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    clean = commit_of(tmp_path)
    assert len(clean) >= 7
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == f"{clean}-dirty"


def test_a_machine_has_a_name_for_a_folder():
    facts = {"processor": "AMD EPYC", "cores": 4, "gpus": [{"name": "NVIDIA H200"}]}
    assert machine_name(facts) == "nvidia-h200-amd-epyc-4-cores"
    assert machine_name(facts | {"gpus": []}) == "amd-epyc-4-cores"


def test_what_a_program_adds_comes_back_beside_the_rest(tmp_path):
    path = tmp_path / "gpu.json"
    document = replace(new_document([ROW], "bash benchmarks/gpu.sh"), extra={"stages": [{"a": 1}]})
    document.with_rows([replace(ROW, name="decode")]).write(path)
    assert json.loads(path.read_text())["stages"] == [{"a": 1}]
    assert read_document(path).extra == {"stages": [{"a": 1}]}
    with pytest.raises(ValueError, match="extra must have names of its own, got rows"):
        replace(document, extra={"rows": []})
