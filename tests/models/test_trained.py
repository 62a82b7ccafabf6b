from __future__ import annotations

import json

import pytest

from fastpose.errors import WeightsError
from fastpose.models import trained


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "folder", lambda: tmp_path)
    return tmp_path


def test_an_empty_folder_has_nothing(folder):
    assert trained.cards() == []
    assert trained.graph_path("cpn-light") is None
    assert trained.weights_path("cpn-light") is None
    with pytest.raises(WeightsError, match=r"cpn-light\.json: no card of a model"):
        trained.card("cpn-light")


def test_what_is_there_is_found(folder):
    for name in ("b", "a"):
        (folder / f"{name}.json").write_text(json.dumps({"name": name}))
    (folder / "a.onnx").touch()
    (folder / "b.safetensors").touch()
    assert [card["name"] for card in trained.cards()] == ["a", "b"]
    assert trained.card("b") == {"name": "b"}
    assert trained.graph_path("a") == folder / "a.onnx"
    assert trained.weights_path("b") == folder / "b.safetensors"


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff"])
def test_a_damaged_card_is_named(folder, content):
    (folder / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"a\.json: not a model's card") as error:
        trained.cards()
    assert "\n" not in str(error.value)


def test_the_folder_is_found_in_this_install():
    assert trained.folder().name == "trained"
