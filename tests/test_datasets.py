from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest

from fastpose.datasets import open_data, read_image, read_lsp, read_lspet, read_predictions
from fastpose.errors import BackendError, DataError
from fastpose.skeleton import LSP14

JOINTS = np.arange(42, dtype=float).reshape(14, 3)  # x, y, flag


def savemat(path, values):
    pytest.importorskip("scipy.io").savemat(path, values)


JOINTS[:, 2] = 1
JOINTS[6, 2] = 0  # right_wrist


def row(name="im0001.jpg", split="test", joints=JOINTS, **more):
    values = {"file": name, "split": split, "width": 60, "height": 80}
    return values | {"joints": joints.tolist()} | more


def write(folder, *rows):
    (folder / "annotations.json").write_text(json.dumps({"images": rows}))
    return folder


def test_lsp_counts_from_zero_and_keeps_order_and_flags(tmp_path):
    write(tmp_path, row("im0003.jpg"), row("im0002.jpg", "train"), row("im0001.jpg"))
    data = open_data(f"lsp:{tmp_path}")
    assert (data.name, data.split, data.skeleton) == ("lsp", "test", LSP14)
    assert [s.image.name for s in data.samples] == ["im0003.jpg", "im0001.jpg"]
    sample = data.samples[0]
    assert sample.image.parent == tmp_path / "images"
    assert sample.size == (80, 60)
    assert sample.joints.dtype == np.float32
    np.testing.assert_array_equal(sample.joints, JOINTS[:, :2] - 1)
    assert sample.labelled.all()
    assert np.flatnonzero(~sample.visible).tolist() == [6]
    assert [s.image.name for s in read_lsp(tmp_path, "train").samples] == ["im0002.jpg"]


def test_lspet_crops_are_shifted_by_one_source_pixel(tmp_path):
    # 120 source pixels became 60: a pixel of the source is half a pixel of the crop
    write(tmp_path, row("im00001.jpg", "train", crop=[40, 0, 160, 160]))
    data = open_data(f"lspet:{tmp_path}")
    assert data.split == "train"
    sample = data.samples[0]
    np.testing.assert_array_equal(sample.joints, JOINTS[:, :2] - 0.5)
    assert np.flatnonzero(~sample.labelled).tolist() == [6]


def test_original_lsp_equals_the_shared_layout(tmp_path):
    shared, original = tmp_path / "shared", tmp_path / "original"
    shared.mkdir()
    original.mkdir()
    pictures = np.random.default_rng(0).uniform(1, 99, (1002, 14, 3)).astype(np.float32)
    pictures[..., 2] = pictures[..., 2] > 50  # visible
    source = pictures.copy()
    source[..., 2] = 1 - source[..., 2]  # the original flag says occluded
    savemat(original / "joints.mat", {"joints": source.transpose(2, 1, 0)})
    write(shared, *(row(f"im{i}.jpg", "test", pictures[i - 1]) for i in (1001, 1002)))
    expected, actual = read_lsp(shared, "test"), read_lsp(original, "test")
    assert [s.image.name for s in actual.samples] == ["im1001.jpg", "im1002.jpg"]
    assert actual.samples[0].size is None
    for a, b in zip(actual.samples, expected.samples, strict=True):
        np.testing.assert_allclose(a.joints, b.joints, atol=1e-4)
        np.testing.assert_array_equal(a.visible, b.visible)
    train = read_lsp(original, "train")
    assert len(train) == 1000
    assert train.samples[0].image == original / "images" / "im0001.jpg"


def test_original_lspet_flags_what_is_labelled(tmp_path):
    savemat(tmp_path / "joints.mat", {"joints": JOINTS[:, :, None]})
    sample = read_lspet(tmp_path).samples[0]
    assert sample.image.name == "im00001.jpg"
    np.testing.assert_array_equal(sample.joints, JOINTS[:, :2] - 1)
    assert np.flatnonzero(~sample.labelled).tolist() == [6]


def test_original_layout_without_scipy_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "joints.mat").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(BackendError, match=r"fastpose-inference\[eval\]"):
        read_lsp(tmp_path, "test")


@pytest.mark.parametrize("text", ["voc:x.json", "lsp", "lsp:", "/some/folder", ""])
def test_an_unknown_kind_lists_the_known_ones(text):
    with pytest.raises(DataError, match=r"lsp:DIR, lspet:DIR, .*; got "):
        open_data(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found neither"),
        ("not JSON", r"annotations\.json: no JSON"),
        ("[1, 2]", "expected a JSON object with a list 'images'"),
        ('{"images": {"a": 1}}', "expected a JSON object with a list 'images'"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}]}', r"images\[0\]: expected file, split"),
        ('{"images": ["a.jpg"]}', r"images\[0\]: expected file, split"),
        (json.dumps({"images": [row(joints=JOINTS[:13])]}), r"must be \[14, 3\] finite numbers"),
        (json.dumps({"images": [row(joints=JOINTS * np.nan)]}), "finite numbers, got .*nan"),
        (json.dumps({"images": [row(width=float("inf"))]}), r"images\[0\]: expected file, split"),
        ("[" * 100_000, r"annotations\.json: JSON that is nested too deeply"),
        (json.dumps({"images": [row(split="train")]}), "no picture of split 'test'"),
        (json.dumps({"images": [row(crop=[0, 0, 60, 80])]}), "this is the lspet set"),
    ],
)
def test_bad_annotations_are_told_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        open_data(f"lsp:{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lsp_is_not_taken_for_lspet(tmp_path):
    write(tmp_path, row())
    with pytest.raises(DataError, match="this is not the lspet set"):
        read_lspet(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_data(f"lsp:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("read", [lambda folder: read_lsp(folder, "test"), read_lspet])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no MATLAB file", "expected a MATLAB file"),
        ({"points": JOINTS}, "expected a MATLAB file with an array 'joints'"),
        ({"joints": np.zeros((5, 5))}, r"got \[5, 5\]"),
        ({"joints": np.zeros((3, 16, 2))}, r"got \[3, 16, 2\]"),
    ],
)
def test_a_bad_joints_file_is_told_in_one_line(tmp_path, read, content, message):
    path = tmp_path / "joints.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_read_image_gives_bgr(tmp_path):
    image = np.zeros((3, 5, 3), np.uint8)
    image[..., 0] = 200
    cv2.imwrite(str(tmp_path / "blue.png"), image)
    np.testing.assert_array_equal(read_image(tmp_path / "blue.png"), image)


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_a_picture_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "im0001.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"im0001\.jpg: (No such file|not a readable picture)"):
        read_image(path)


def test_predictions_count_like_the_set(tmp_path):
    data = read_lsp(write(tmp_path, row()), "test")
    np.save(tmp_path / "p.npy", JOINTS[None, :, :2])
    predicted = read_predictions(tmp_path / "p.npy", data)
    np.testing.assert_array_equal(predicted[0], data.samples[0].joints)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 14, 2)), r"expected \[1, 14, 2\] .* got \[2, 14, 2\]"),
        (np.zeros((1, 14, 3)), r"expected \[1, 14, 2\] .* got \[1, 14, 3\]"),
        (np.array([["a", "b"]]), "array of numbers"),
        (np.array([None]), "array of numbers"),
    ],
)
def test_predictions_of_another_shape_or_type(tmp_path, array, message):
    data = read_lsp(write(tmp_path, row()), "test")
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "p.npy", data)


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04"])
def test_a_predictions_file_that_is_no_array(tmp_path, content):
    data = read_lsp(write(tmp_path, row()), "test")
    path = tmp_path / "p.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.npy: (No such file|expected a \.npy array)"):
        read_predictions(path, data)


def test_head_keeps_the_first(tmp_path):
    data = read_lsp(write(tmp_path, row("a.jpg"), row("b.jpg")), "test")
    assert [s.image.name for s in data.head(1).samples] == ["a.jpg"]
    assert len(data.head(None)) == 2


def test_the_shared_sets_are_complete(data_dir):
    lsp, lspet = open_data(f"lsp:{data_dir / 'lsp'}"), open_data(f"lspet:{data_dir / 'lspet'}")
    assert (len(lsp), len(lspet)) == (700, 10_000)
    assert sum(int(s.labelled.sum()) for s in lspet.samples) == 123_213
    sample = lsp.samples[0]
    assert read_image(sample.image).shape[:2] == sample.size
