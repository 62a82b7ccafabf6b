"""What `fastpose train` refuses before it begins."""

import pytest

from fastpose.cli import main

pytest.importorskip("torch")


def refused(tmp_path, capsys, *words):
    """The one line that says why training does not begin."""
    assert main(["train", "cpn-light", "--data", f"lsp:{tmp_path}", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there(device, tmp_path, capsys):
    out = tmp_path / "out"
    line = refused(tmp_path, capsys, "--device", device, "--out", str(out))
    assert f"device '{device}' cannot be used by torch" in line
    assert not out.exists()


def test_a_folder_that_cannot_be_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastpose.datasets.open_poses", lambda *_, **__: None)
    (tmp_path / "file").write_text("")
    line = refused(tmp_path, capsys, "--device", "cpu", "--out", str(tmp_path / "file" / "out"))
    assert f"{tmp_path / 'file' / 'out'}: expected a folder to write to" in line
