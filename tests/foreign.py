"""Networks from elsewhere, as ONNX graphs that find bright dots: every joint in a colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

REAL = 1  # onnx.TensorProto.FLOAT


def cell_places(convention: str, size: int, cells: int) -> np.ndarray:
    """[cells] the input pixel that each cell lies at, as the families' own code has it."""
    p, t = np.arange(cells), size / cells
    match convention:
        case "udp":
            return p * (size - 1) / (cells - 1)
        case "msra":
            return p * t
        case "cpn" | "hourglass":
            return p * t + t / 2
        case _:  # symmetric, caffe: the cell's middle
            return p * t + (t - 1) / 2


def sampler(places: np.ndarray, size: int, width: float) -> np.ndarray:
    """[places, size] a Gaussian round each place."""
    weights = np.exp(-((np.arange(size) - places[:, None]) ** 2) / (2 * width**2))
    return weights.astype(np.float32)


def heatmap_network(
    path: Path,
    colours: np.ndarray,
    size: tuple[int, int] = (64, 48),
    *,
    stride: int = 4,
    convention: str = "msra",
    batch: int | str = "n",
    ports: tuple[str, ...] = ("image", "maps"),
    spatial: bool = True,
) -> Path:
    """[N, 3, h, w] -> [N, K, h / stride, w / stride].

    Args:
        path: where it is written.
        colours: [K, 3] what each joint answers to, by channel of the input.
        size: (h, w).
        stride: of the maps.
        convention: where their cells lie.
        batch: of the input: a number, or a name for any.
        ports: names of input and output.
        spatial: h and w are fixed.
    """
    cells = [side // stride for side in size]
    down, across = (
        sampler(cell_places(convention, s, c), s, 2.0 * stride)
        for s, c in zip(size, cells, strict=True)
    )
    node = onnx.helper.make_node
    nodes = [
        node("Conv", [ports[0], "colours"], ["shades"]),
        node("Relu", ["shades"], ["mixed"]),  # what is darker than the mean is no dot
        node("MatMul", ["down", "mixed"], ["rows"]),
        node("MatMul", ["rows", "across"], [ports[1]]),
    ]
    weights = {
        "colours": np.float32(colours)[:, :, None, None],
        "down": down,
        "across": across.T,
    }
    taken = list(size) if spatial else ["h", "w"]
    outputs = {ports[1]: [batch, len(colours), *(cells if spatial else ["a", "b"])]}
    return save(path, nodes, weights, {ports[0]: [batch, 3, *taken]}, outputs)


def simcc_network(
    path: Path,
    colours: np.ndarray,
    size: tuple[int, int] = (64, 48),
    *,
    split: float = 2.0,
    batch: int | str = "n",
    ports: tuple[str, ...] = ("input", "simcc_x", "simcc_y"),
) -> Path:
    """[N, 3, h, w] -> [N, K, w * split] and [N, K, h * split]; arguments as `heatmap_network`."""
    bins = [round(side * split) for side in size]
    down, across = (
        sampler(np.arange(b) / split, side, 2.0) for b, side in zip(bins, size, strict=True)
    )
    node = onnx.helper.make_node
    nodes = [
        node("Conv", [ports[0], "colours"], ["shades"]),
        node("Relu", ["shades"], ["mixed"]),  # what is darker than the mean is no dot
        node("ReduceMax", ["mixed"], ["columns"], axes=[2], keepdims=0),
        node("ReduceMax", ["mixed"], ["rows"], axes=[3], keepdims=0),
        node("MatMul", ["columns", "across"], [ports[1]]),
        node("MatMul", ["rows", "down"], [ports[2]]),
    ]
    weights = {
        "colours": np.float32(colours)[:, :, None, None],
        "down": down.T,
        "across": across.T,
    }
    k = len(colours)
    outputs = {ports[1]: [batch, k, bins[1]], ports[2]: [batch, k, bins[0]]}
    return save(path, nodes, weights, {ports[0]: [batch, 3, *size]}, outputs)


def constant_network(
    path: Path, outputs: dict[str, list[int]], size: tuple[int, ...] = (64, 48), value: float = 0.0
) -> Path:
    """A graph that gives this value in these shapes, whatever it is shown."""
    node = onnx.helper.make_node
    nodes = [
        node("ReduceMax", ["input"], ["level"], axes=[0, 1, 2, 3], keepdims=0),
        node("Mul", ["level", "nothing"], ["zero"]),
    ]
    weights = {"nothing": np.float32(0)}
    for name, shape in outputs.items():
        weights[f"{name}.shape"] = np.full(shape, value, np.float32)
        nodes.append(node("Add", [f"{name}.shape", "zero"], [name]))
    return save(path, nodes, weights, {"input": [1, 3, *size]}, outputs)


def save(path, nodes, weights, inputs, outputs) -> Path:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "foreign",
        [info(name, REAL, shape) for name, shape in inputs.items()],
        [info(name, REAL, shape) for name, shape in outputs.items()],
        [
            onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in weights.items()
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def picture(dots: dict[tuple[float, float], tuple[int, int, int]], size=(150, 120)) -> np.ndarray:
    """Round dots of the given BGR colours at (x, y), on black."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3))
    for (u, v), colour in dots.items():
        spread = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 3.0**2))
        image += spread[..., None] * colour
    return np.rint(image.clip(0, 255)).astype(np.uint8)
