"""Weights of Caffe: both formats of a .caffemodel, dumps in an .npz, and files that are bad."""

from __future__ import annotations

import os
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caffe_files import blob, caffemodel, chunk, layer, number, shape_of, varint

from fastpose.errors import BackendError, WeightsError
from fastpose.models.caffe import read_caffemodel, read_npz


def counted(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3


LAYERS = {
    "conv1": [counted(4, 3, 5, 2), counted(4)],
    "conv2/3x3": [counted(2, 4, 1, 1)],
    "bn": [counted(1, 4), counted(1, 4) + 1, counted(1, 4) + 2, counted(1, 4) + 3],
}
NAMED = {
    "conv1.weight": counted(4, 3, 5, 2),
    "conv1.bias": counted(4),
    "conv2/3x3.weight": counted(2, 4, 1, 1),
    "bn.weight": counted(4),
    "bn.bias": counted(4) + 1,
    "bn.running_mean": counted(4) + 2,
    "bn.running_var": counted(4) + 3,
}


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    return path


def refused(read: Callable[[Path], Any], path: Path) -> str:
    """The one line that says why a file is not read; it begins with the file."""
    with pytest.raises(WeightsError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == np.float32
        assert actual[name].flags.writeable
        np.testing.assert_array_equal(actual[name], array, strict=True)


# .caffemodel


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_both_formats_are_read(tmp_path: Path, old: bool, double: bool) -> None:
    path = written(tmp_path, caffemodel(LAYERS, old=old, double=double))
    same(read_caffemodel(path), NAMED)


def test_layers_of_both_formats_in_one_file(tmp_path: Path) -> None:
    content = caffemodel({"a": [counted(2)]}) + caffemodel({"b": [counted(3)]}, old=True)
    arrays = read_caffemodel(written(tmp_path, content))
    assert set(arrays) == {"a.weight", "b.weight"}


def test_blobs_of_a_layer_of_another_kind_keep_their_numbers(tmp_path: Path) -> None:
    """Caffe's BatchNorm has mean, variance and a factor: none of them is a weight."""
    path = written(tmp_path, caffemodel({"norm": [counted(4), counted(4), counted(1)]}))
    assert list(read_caffemodel(path)) == ["norm.0", "norm.1", "norm.2"]


@pytest.mark.parametrize("part", [0.03, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off(tmp_path: Path, part: float) -> None:
    content = caffemodel(LAYERS)
    path = written(tmp_path, content[: int(part * len(content))])
    assert refused(read_caffemodel, path) == "damaged, cut off, or no .caffemodel"


def with_shape(dims: tuple[int, ...], values: np.ndarray) -> bytes:
    return layer("conv1", [chunk(5, values.tobytes()) + shape_of(dims)])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (with_shape((3,), counted(4)), "'conv1', blob 0: 16 bytes do not fill the shape [3]"),
        (with_shape((2**40, 2**40), counted(4)), "'conv1', blob 0: 16 bytes do not fill the sha"),
        (with_shape((-2, -2), counted(4)), "'conv1', blob 0: 16 bytes do not fill the shape [-2,"),
        (with_shape((0, 2**62), counted(0)), "'conv1', blob 0: 0 bytes do not fill the shape [0,"),
        (with_shape((1,) * 999, counted(1)), "'conv1', blob 0: 4 bytes do not fill the shape [1,"),
        (with_shape((2**63 - 1,), counted(1)), "'conv1', blob 0: 4 bytes do not fill the shape ["),
        (
            layer("conv1", [chunk(5, b"\0" * 7) + shape_of((2,))]),
            "'conv1', blob 0: 7 bytes do not fill the shape [2]",
        ),
        (
            layer("conv1", [chunk(5, b"\0" * 8)]),
            "'conv1', blob 0: 8 bytes do not fill the shape [0, 0, 0, 0]",
        ),
        (
            layer("a\nb", [chunk(5, b"\0" * 8)]),
            "'a\\nb', blob 0: 8 bytes do not fill the shape [0, 0, 0, 0]",
        ),
        # a length that promises more than any machine has
        (varint(100 << 3 | 2) + varint(2**62) + b"\0" * 9, "damaged, cut off, or no .caffemodel"),
        (chunk(100, varint(7 << 3 | 2) + varint(2**31)), "damaged, cut off, or no .caffemodel"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_asked_for(
    tmp_path: Path, content: bytes, text: str
) -> None:
    path = written(tmp_path, content)
    with suppress(WeightsError):
        read_caffemodel(path)  # what is imported and made once is no matter of the file
    tracemalloc.start()
    try:
        line = refused(read_caffemodel, path)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert line.startswith(text)
    assert len(line) < 200


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b'name: "net"\nlayer {\n  name: "conv1"\n}\n',
            "text, such as a prototxt, which has no we",
        ),
        (b"<!DOCTYPE html><html><title>Quota exceeded</title>", "text, such as a prototxt"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha", "text, such as a prototxt"),
        (b"\x89HDF\r\n\x1a\n" + bytes(range(64)), "HDF5, not protobuf; save the net without HDF5"),
        (bytes(range(256)), "damaged, cut off, or no .caffemodel"),
        (b"PK\x03\x04" + b"\0" * 60, "damaged, cut off, or no .caffemodel"),
        (b"", "no layer in it has weights: not the .caffemodel of a net"),
        (caffemodel({}), "no layer in it has weights: not the .caffemodel of a net"),
        # a solver's state: iteration, the net's file, momentum
        (
            number(1, 40000) + chunk(2, b"\x22\x05a.net") + chunk(3, blob(counted(4))),
            "no layer in it has weights: not the .caffemodel of a net",
        ),
        (caffemodel({"a": [counted(2)]}) * 2, "'a.weight' is in it twice"),
    ],
)
def test_what_is_no_caffemodel(tmp_path: Path, content: bytes, text: str) -> None:
    assert refused(read_caffemodel, written(tmp_path, content)).startswith(text)


@pytest.mark.parametrize("old", [False, True])
def test_flipped_bytes_raise_nothing_else(tmp_path: Path, old: bool) -> None:
    whole = caffemodel(LAYERS, old=old)
    for place in range(len(whole)):
        path = written(tmp_path, whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with suppress(WeightsError):
            read_caffemodel(path)


def test_numbers_beyond_float32_become_infinite(tmp_path: Path) -> None:
    """They are refused where they would be used, as all that is not finite."""
    path = written(tmp_path, caffemodel({"a": [np.array([1e300, np.nan])]}, double=True))
    assert not np.isfinite(read_caffemodel(path)["a.weight"]).any()


def test_a_missing_file(tmp_path: Path) -> None:
    assert refused(read_caffemodel, tmp_path / "no.caffemodel").startswith("cannot be read: No su")


def test_without_protobuf_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf.message", None)
    with pytest.raises(BackendError, match=r"install the extra: fastpose-inference\[torch\]$"):
        read_caffemodel(written(tmp_path, caffemodel(LAYERS)))


# .npz


@pytest.mark.parametrize("between", ["/", ".", "_"])
@pytest.mark.parametrize(
    "names",
    [
        ("0", "1", "2", "3"),
        ("weight", "bias", "running_mean", "running_var"),
        ("weights", "biases", "running_mean", "running_var"),
    ],
)
def test_spellings_of_dumps(tmp_path: Path, between: str, names: tuple[str, ...]) -> None:
    layers = {"conv1_1": LAYERS["conv1"], "bn_1": [a.reshape(-1) for a in LAYERS["bn"]]}
    arrays = {
        f"{layer}{between}{name}": array
        for layer, blobs in layers.items()
        for name, array in zip(names, blobs, strict=False)
    }
    np.savez(tmp_path / "net.npz", **arrays)
    expected = {
        name.replace("conv1", "conv1_1").replace("bn", "bn_1"): array
        for name, array in NAMED.items()
        if "3x3" not in name
    }
    same(read_npz(tmp_path / "net.npz"), expected)


def test_other_names_and_numbers_with_gaps_stay(tmp_path: Path) -> None:
    np.savez(tmp_path / "net.npz", mean=counted(3), a_0=counted(2), a_2=counted(2))
    assert sorted(read_npz(tmp_path / "net.npz")) == ["a.0", "a.2", "mean"]


def test_dumps_of_other_precision_and_order(tmp_path: Path) -> None:
    array = np.asfortranarray(counted(4, 3, 2, 2))
    np.savez(tmp_path / "net.npz", a_0=array, b_0=array.astype(">f8"), c_0=array.astype("f2"))
    plain = {f"{name}.weight": counted(4, 3, 2, 2) for name in "abc"}
    same(read_npz(tmp_path / "net.npz"), plain)


@pytest.mark.parametrize("names", [("a_0", "a.0"), ("a_0", "a_weight"), ("a/weights", "a.weight")])
def test_a_blob_that_is_there_twice(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "net.npz", **dict.fromkeys(names, counted(2)))
    assert refused(read_npz, tmp_path / "net.npz") in (
        "'a.0' is in it twice",
        "'a.weight' is in it twice",
    )


class Trap:
    """Reading it with pickle makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_arrays_of_objects_are_never_read(tmp_path: Path) -> None:
    path, mark = tmp_path / "net.npz", tmp_path / "mark"
    np.savez(path, conv1_0=np.array([Trap(mark)]))
    assert refused(read_npz, path) == (
        "refused: 'conv1_0.npy' has Python objects, and reading them would run code"
    )
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as arrays, suppress(Exception):
        arrays["conv1_0"]
    assert mark.exists()  # the trap works


@pytest.mark.parametrize(
    "array", [np.arange(3), np.array(["a"]), np.array([True]), np.ones(2, "c8")]
)
def test_arrays_that_are_no_weights(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "net.npz", conv1_0=array)
    text = refused(read_npz, tmp_path / "net.npz")
    assert text == f"'conv1_0.npy' must be of floating point, got {array.dtype}"


def test_packed_dumps(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "net.npz", conv1_0=np.zeros(9999))
    text = refused(read_npz, tmp_path / "net.npz")
    assert text == "packed; write it by numpy.savez, not savez_compressed"


def archive(path: Path, header: str, data: bytes = b"\0" * 16) -> Path:
    """An .npz of one array with that header."""
    text = header.encode("latin1") + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("conv1_0.npy", npy)
    return path


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 5000,
        "{'descr': '<f4', 'fortran_order': False}",
        "__import__('os').mkdir('ran')",
    ],
)
def test_headers_that_lie(tmp_path: Path, header: str) -> None:
    path = archive(tmp_path / "net.npz", header)
    tracemalloc.start()
    try:
        text = refused(read_npz, path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert text == "damaged, cut off, or no .npz of numpy.savez"


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.99])
def test_a_dump_that_was_cut_off(tmp_path: Path, part: float) -> None:
    path = tmp_path / "net.npz"
    np.savez(path, conv1_0=counted(99))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert refused(read_npz, path) == "damaged, cut off, or no .npz of numpy.savez"


def test_flipped_bytes_of_a_dump_raise_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    np.savez(path, conv1_0=counted(9))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with suppress(WeightsError):
            read_npz(path)
