"""Files of Caffe, written byte by byte from the wire format's description, without protobuf.

So that a test's file and the reader under test cannot share a mistake.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

Layers = Mapping[str, Sequence[np.ndarray]]


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as 64 bits of two's complement."""
    value %= 1 << 64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def shape_of(dims: Sequence[int]) -> bytes:
    """A BlobShape in a blob."""
    return chunk(7, chunk(1, b"".join(map(varint, dims))))


def blob(array: np.ndarray, *, axes: int = 0, double: bool = False) -> bytes:
    """A BlobProto; with `axes` 4 as before BlobShape came, filled up with ones from the left."""
    dims = (1,) * (axes - array.ndim) + array.shape
    shape = b"".join(number(i, n) for i, n in enumerate(dims, 1)) if axes else shape_of(dims)
    values = np.ascontiguousarray(array, "<f8" if double else "<f4").tobytes()
    # Caffe writes the numbers before the shape; the gradient, which is no weight, is skipped
    return chunk(8 if double else 5, values) + chunk(6, struct.pack("<f", 7.0)) + shape


def layer(name: str, blobs: Sequence[bytes]) -> bytes:
    """A LayerParameter, with some of what else one has."""
    settings = chunk(106, number(1, 64) + number(4, 3))
    head = chunk(1, name.encode()) + chunk(2, b"Convolution") + chunk(3, b"data") + chunk(4, b"x")
    return chunk(100, head + b"".join(chunk(7, each) for each in blobs) + settings)


def v1_layer(name: str, blobs: Sequence[bytes]) -> bytes:
    """A V1LayerParameter, of before 2014."""
    head = chunk(2, b"data") + chunk(3, b"x") + chunk(4, name.encode()) + number(5, 4)
    rate = varint(7 << 3 | 5) + struct.pack("<f", 2.0)
    return chunk(2, head + b"".join(chunk(6, each) for each in blobs) + rate)


def caffemodel(layers: Layers, *, old: bool = False, double: bool = False) -> bytes:
    """A NetParameter; an old one has V1 layers and blobs of four axes."""
    write = v1_layer if old else layer
    parts = [chunk(1, b"net"), chunk(3, b"data"), number(4, 368), number(5, 0), write("relu1", ())]
    for name, arrays in layers.items():
        parts.append(write(name, [blob(a, axes=4 if old else 0, double=double) for a in arrays]))
    return b"".join(parts)
