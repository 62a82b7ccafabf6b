"""Weights of Caffe nets: a .caffemodel, or its blobs in an .npz, as arrays with torch's names."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.errors import BackendError, WeightsError

# What the blobs of a layer are, by how many it has: of a convolution with or without a bias, and
# of a norm that keeps its statistics beside its slope and bias. Layers with another number, such as
# Caffe's later BatchNorm with three, keep their blobs under plain numbers.
BLOBS: dict[int, tuple[str, ...]] = {
    1: ("weight",),
    2: ("weight", "bias"),
    4: ("weight", "bias", "running_mean", "running_var"),
}
MOST_AXES = 32  # that Caffe has
NPZ_NAME = re.compile(r"(.+)[/._](?:(\d)|(weights?|bias|biases|running_mean|running_var))")
PLURALS = {"weights": "weight", "biases": "bias"}

# The few fields of caffe.proto that carry weights: (number, type) by message and field; "*" marks
# those that repeat. Whatever else a file has is skipped. The numbers of a blob are read as bytes:
# a packed field looks no different, and nothing has to become a Python object for each number.
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Shape": {"dim*": (1, "int64")},
    "Blob": {
        "num": (1, "int32"),
        "channels": (2, "int32"),
        "height": (3, "int32"),
        "width": (4, "int32"),
        "data": (5, "bytes"),
        "shape": (7, "Shape"),
        "double_data": (8, "bytes"),
    },
    "Layer": {"name": (1, "bytes"), "blobs*": (7, "Blob")},
    "V1Layer": {"name": (4, "bytes"), "blobs*": (6, "Blob")},
    "Net": {"layers*": (2, "V1Layer"), "layer*": (100, "Layer")},
}


def read_caffemodel(path: Path) -> dict[str, np.ndarray]:
    """The blobs of a .caffemodel, of the present format or the one before (V1).

    Returns:
        float32, by LAYER.weight, LAYER.bias and so on; see `BLOBS`.

    Raises:
        WeightsError: the file is no binary NetParameter, damaged or cut off; a blob's shape is not
            that of its numbers; two layers have one name.
        BackendError: protobuf is not installed.
    """
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise BackendError(
            "a .caffemodel needs protobuf; install the extra: fastpose-inference[torch]"
        ) from None
    content = _bytes(path)
    try:
        net = _net_message().FromString(content)
    except DecodeError:
        raise WeightsError(f"{path}: {_no_net(content)}") from None
    del content
    arrays: dict[str, np.ndarray] = {}
    for layer in (*net.layers, *net.layer):
        name = layer.name.decode(errors="replace")
        blobs = {
            i: _blob(blob, f"{path}: {name!r}, blob {i}") for i, blob in enumerate(layer.blobs)
        }
        _add(arrays, _named(name, blobs), path)
    if not arrays:
        raise WeightsError(f"{path}: no layer in it has weights: not the .caffemodel of a net")
    return arrays


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The blobs of a Caffe net that `numpy.savez` wrote.

    An array is called LAYER/BLOB, LAYER.BLOB or LAYER_BLOB, where BLOB is the blob's number from 0
    on, as in pycaffe's `net.params[LAYER][0].data`, or weight(s), bias(es), running_mean or
    running_var.

    Returns:
        As `read_caffemodel`; arrays of other names keep theirs.

    Raises:
        WeightsError: the file is damaged or packed; it has arrays of Python objects, of which
            reading would run code, or of anything but floating point; a blob is there twice.
    """
    arrays: dict[str, np.ndarray] = {}
    numbered: dict[str, dict[str, np.ndarray]] = {}
    for key, array in _npz_arrays(path).items():
        match = NPZ_NAME.fullmatch(key)
        layer, digit, word = match.groups() if match else (key, None, None)
        if digit:
            _add(numbered.setdefault(layer, {}), {f"{layer}.{digit}": array}, path)
        else:
            name = f"{layer}.{PLURALS.get(word, word)}" if word else layer
            _add(arrays, {name: array}, path)
    for layer, blobs in numbered.items():
        by_number = {int(name[-1]): array for name, array in blobs.items()}
        _add(arrays, _named(layer, by_number), path)
    return arrays


def _add(arrays: dict[str, np.ndarray], more: Mapping[str, np.ndarray], path: Path) -> None:
    """Join arrays of different names; the same name would make one of two disappear."""
    if twice := sorted(arrays.keys() & more.keys()):
        raise WeightsError(f"{path}: {twice[0]!r} is in it twice")
    arrays.update(more)


def _named(layer: str, blobs: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    """A layer's blobs by their meaning; all but the weight of a convolution are vectors."""
    names = BLOBS.get(len(blobs), ())
    if sorted(blobs) != list(range(len(names))):
        return {f"{layer}.{number}": blob for number, blob in blobs.items()}
    vectors = range(0 if len(names) == 4 else 1, len(names))
    return {
        f"{layer}.{names[number]}": blob.reshape(-1) if number in vectors else blob
        for number, blob in blobs.items()
    }


@cache
def _net_message() -> Any:
    """The class of messages that hold a whole net."""
    from google.protobuf import (  # type: ignore[import-untyped]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="fastpose_caffe.proto", package="fastpose", syntax="proto2"
    )
    for message, fields in MESSAGES.items():
        entry = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            repeats = name.endswith("*")
            field = entry.field.add(
                name=name.removesuffix("*"),
                number=number,
                label=field_type.LABEL_REPEATED if repeats else field_type.LABEL_OPTIONAL,
            )
            if kind in MESSAGES:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".fastpose.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()  # of its own: nothing of Caffe's can be there already
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fastpose.Net"))


def _blob(blob: Any, where: str) -> np.ndarray:
    """One blob in its shape, float32; the shape is checked before anything is made of it."""
    double = blob.HasField("double_data")
    numbers = np.frombuffer(blob.double_data if double else blob.data, np.uint8)
    itemsize = 8 if double else 4
    # before BlobShape came, every blob had four axes
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else _four_axes(blob)
    fits = len(shape) <= MOST_AXES and all(n > 0 for n in shape)
    if not fits or itemsize * math.prod(shape) != len(numbers):
        raise WeightsError(
            f"{where}: {len(numbers)} bytes do not fill the shape {list(shape[:MOST_AXES])}"
        )
    return _single(numbers.view(f"<f{itemsize}").reshape(shape))


def _four_axes(blob: Any) -> tuple[int, ...]:
    return blob.num, blob.channels, blob.height, blob.width


def _single(array: np.ndarray) -> np.ndarray:
    """A copy in float32; what is too large for it becomes infinite, which is refused later."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name; no more is read than the file has."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise WeightsError("packed; write it by numpy.savez, not savez_compressed")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise WeightsError("its arrays overlap, which numpy.savez never makes")
            return {entry.filename.removesuffix(".npy"): _npy(archive, entry) for entry in entries}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception:  # damaged bytes make zipfile and numpy raise whatever comes up
        raise WeightsError(f"{path}: damaged, cut off, or no .npz of numpy.savez") from None


def _npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One array, float32. What its header claims is not allocated, as `numpy.load` would do."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.hasobject:
            raise WeightsError(
                f"refused: {entry.filename!r} has Python objects, and reading them would run code"
            )
        if dtype.kind != "f":
            raise WeightsError(f"{entry.filename!r} must be of floating point, got {dtype}")
        numbers = np.frombuffer(file.read(), dtype)
    return _single(numbers.reshape(shape, order="F" if by_columns else "C"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None


def _no_net(content: bytes) -> str:
    """What bytes are that are no NetParameter."""
    if content.startswith(b"\x89HDF"):
        return "HDF5, not protobuf; save the net without HDF5, or its blobs by numpy.savez"
    if re.fullmatch(rb"[\t\n\r -~]+", content[:64]):
        return "text, such as a prototxt, which has no weights"
    return "damaged, cut off, or no .caffemodel"
