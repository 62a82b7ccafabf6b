"""Joints out of maps inside a graph, against the reference outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from fastpose import ops  # noqa: E402
from fastpose.engines import open_graph  # noqa: E402
from fastpose.engines.build import write_graph  # noqa: E402
from fastpose.errors import ModelError  # noqa: E402
from fastpose.geometry import cells_to_frame  # noqa: E402
from fastpose.models import MODELS, model_spec  # noqa: E402
from fastpose.models.decoding import Decode  # noqa: E402
from fastpose.models.joints import as_joints, find_peaks, locate_joints  # noqa: E402
from fastpose.models.spec import ModelSpec  # noqa: E402
from fastpose.ops.decode import METHODS  # noqa: E402

SPEC = replace(model_spec("cpn-light"), size=(96, 64))
CELLS = SPEC.cells
NAN, INF = np.float32("nan"), np.float32("inf")
CLOSE = 1e-4  # cells
# What a runtime has to know to decode; TensorRT's parser has all of them in float32 and int64.
OPERATORS = {
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "Div", "Equal", "Exp", "Floor", "Gather",
    "GatherElements", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Log", "MaxPool",
    "Min", "Mul", "Pad", "Pow", "ReduceMax", "ReduceMin", "ReduceSum", "Reshape", "Sign", "Sqrt",
    "Sub", "Unsqueeze", "Where",
}  # fmt: skip


def gaussians(centres: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    """Centres [M, 2] -> maps [M, h, w]."""
    y, x = np.mgrid[: CELLS[0], : CELLS[1]]
    across, down = centres[:, :1, None], centres[:, 1:, None]
    return np.exp(-((x - across) ** 2 + (y - down) ** 2) / (2 * sigma**2)).astype(np.float32)


def centres(count: int, margin: float = -0.4) -> np.ndarray:
    """Everywhere in the map, its borders and corners included."""
    h, w = CELLS
    high = np.array((w - 1, h - 1)) - margin
    return np.random.default_rng(0).uniform((margin, margin), high, (count, 2))


def as_batch(maps: np.ndarray) -> np.ndarray:
    """[M, h, w] -> [N, K, h, w] of the spec's K joints."""
    return maps.reshape(-1, len(SPEC.joints), *CELLS)


def kinds() -> dict[str, np.ndarray]:
    """Maps by name, [N, K, h, w] each."""
    random, count = np.random.default_rng(1), 3 * len(SPEC.joints)
    clean = gaussians(centres(count))
    noise = random.normal(0, 0.01, clean.shape).astype(np.float32)
    odd = clean[: len(SPEC.joints)].copy()
    odd[0] = NAN
    odd[1] = 0.0
    odd[2] = -1.0
    odd[3, 2, 3] = INF
    odd[4] = -INF
    odd[5, :, :4] = NAN  # counts as 0
    odd[6] = 1.0  # level: the first cell
    odd[7] = 0.0
    odd[7, [3, 3, 9], [9, 12, 1]] = 0.7  # equal maxima: the first in row order
    return {
        "clean": as_batch(clean),
        "noisy": as_batch(clean + noise),
        "steps": as_batch(np.round(4 * clean) / 4),
        "below zero": as_batch(clean - np.float32(0.5)),
        "odd": as_batch(odd),
    }


KINDS = kinds()


def expected(maps: np.ndarray, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    return ops.decode(
        maps,
        method=spec.method,
        sigma=spec.sigma,
        peak_value=spec.peak_value,
        peaks=spec.peaks,
        backend="reference",
    )


def decoded(maps: np.ndarray, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        joints = Decode(spec)(torch.from_numpy(maps))
    assert joints.dtype == torch.float32
    return joints[..., :2].numpy(), joints[..., 2].numpy()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_joints_are_those_of_the_reference(method: str, kind: str) -> None:
    if (method, kind) == ("cpn", "steps"):
        pytest.skip("blurred steps are equal maxima but for rounding")
    spec = replace(SPEC, method=method, peak_value=2.0)
    points, scores = decoded(KINDS[kind], spec)
    true_points, true_scores = expected(KINDS[kind], spec)
    np.testing.assert_allclose(points, true_points, atol=CLOSE, rtol=0)
    np.testing.assert_allclose(scores, true_scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["dark", "udp", "soft"])
def test_sigma_sets_blur_and_window(method: str) -> None:
    spec = replace(SPEC, method=method, sigma=3.0)
    maps = as_batch(gaussians(centres(2 * len(SPEC.joints), 1.0), 3.0))
    points, _ = decoded(maps, spec)
    np.testing.assert_allclose(points, expected(maps, spec)[0], atol=CLOSE, rtol=0)
    narrow, _ = decoded(maps, replace(spec, sigma=1.0))
    assert np.abs(narrow - points).max() > 10 * CLOSE


def test_pure_noise_gives_the_references_cells() -> None:
    """Refined steps may differ there, since nothing curves as a peak does; cells may not."""
    maps = as_batch(np.random.default_rng(2).random((14, *CELLS), np.float32))
    for method in METHODS:
        points, _ = decoded(maps, replace(SPEC, method=method))
        near = np.abs(points - expected(maps, replace(SPEC, method=method))[0]) < 0.3
        assert near.mean() > 0.9, method
    points, _ = decoded(maps, replace(SPEC, method="argmax"))
    np.testing.assert_array_equal(points, expected(maps, replace(SPEC, method="argmax"))[0])


def test_background_is_no_joint() -> None:
    spec = replace(SPEC, background=True, method="argmax")
    maps = KINDS["clean"]
    with_background = np.concatenate((maps, np.full_like(maps[:, :1], 9.0)), axis=1)
    points, _ = decoded(with_background, spec)
    assert points.shape == (3, 14, 2)
    np.testing.assert_array_equal(points, expected(maps, spec)[0])


@pytest.mark.parametrize("method", [m for m in METHODS if m != "cpn"])
def test_several_peaks_of_a_map(method: str) -> None:
    spec = replace(SPEC, method=method, peaks=2)
    first = gaussians(centres(28, 3.0))
    second = 0.8 * gaussians(centres(56, 3.0)[28:])
    maps = np.maximum(first, second).reshape(4, 7, *CELLS)
    maps[0, 0] = 0.0
    maps[0, 1] = gaussians(np.array([[9.0, 9.0]]))[0]  # one peak alone
    maps[0, 2, 4:6, 4:6] = 3.0  # a level top: its first cell
    points, scores = decoded(maps, spec)
    true_points, true_scores = expected(maps, spec)
    np.testing.assert_allclose(points.reshape(true_points.shape), true_points, atol=CLOSE, rtol=0)
    np.testing.assert_allclose(scores.reshape(true_scores.shape), true_scores, atol=1e-6)


def turned(count: int) -> np.ndarray:
    """Affines [N, 2, 3] that scale, turn and move."""
    angle = np.linspace(0.3, 2.0, count)
    rows = np.stack((np.cos(angle), -np.sin(angle), 40 + angle), axis=1)
    columns = np.stack((np.sin(angle), np.cos(angle), 7 * angle), axis=1)
    return 1.7 * np.stack((rows, columns), axis=1)


@pytest.mark.parametrize("peaks", [1, 2])
def test_located_joints_are_those_of_the_maps(peaks: int) -> None:
    spec = replace(SPEC, method="parabola", peaks=peaks)
    count = len(SPEC.joints) // peaks
    maps = np.maximum(
        gaussians(centres(3 * count, 2.0)), gaussians(centres(6 * count)[3 * count :])
    )
    maps = maps.reshape(3, count, *CELLS)
    maps[0, 0] = 0.0
    affines = turned(3)
    affines[2] = np.nan
    wanted, scores = locate_joints(maps, affines, spec)
    with torch.inference_mode():
        joints = Decode(spec)(torch.from_numpy(maps)).numpy()
    found, found_scores = locate_joints(joints, affines, replace(spec, output="joints"))
    np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=0)
    np.testing.assert_allclose(found_scores, scores, atol=1e-6, rtol=0)
    assert np.isnan(found[2]).all()
    assert (found_scores[2] == 0).all()


SIMCC = replace(
    SPEC, output="simcc", stride=1, split=2.0, convention="cpn", skeleton="coco17", method="argmax"
)


def vectors() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    x, y = (random.random((4, 17, 2 * side), np.float32) for side in (SPEC.size[1], SPEC.size[0]))
    x[0, 0] = NAN
    y[0, 1] = -1.0
    x[0, 2, 5] = INF
    x[0, 3, [4, 8]] = 2.0
    y[0, 4, :100] = NAN
    return x, y


def test_simcc_vectors() -> None:
    x, y = vectors()
    spec = replace(SIMCC, peak_value=2.0)
    affines = turned(4)
    wanted, scores = locate_joints(np.concatenate((x, y), axis=2), affines, spec)
    with torch.inference_mode():
        joints = Decode(spec)((torch.from_numpy(x), torch.from_numpy(y))).numpy()
    points, found = locate_joints(joints, affines, replace(spec, output="joints"))
    np.testing.assert_allclose(points, wanted, atol=1e-3, rtol=0)
    np.testing.assert_allclose(found, scores, atol=1e-6, rtol=0)


WAYS = {
    "dark": replace(SPEC, method="dark"),
    "udp": replace(SPEC, method="udp"),
    "soft": replace(SPEC, method="soft", sigma=1.0),
    "cpn": replace(SPEC, method="cpn"),
    "peaks": replace(SPEC, method="quarter", peaks=2),
}


class Ways(torch.nn.Module):
    """All that is done to find joints, on the same maps, so that one export shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = torch.nn.ModuleList(map(Decode, WAYS.values()))

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(way(maps) for way in self.ways)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoding") / "ways.onnx"
    write_graph(Ways(), torch.rand(2, 14, *CELLS), path, ["maps"], list(WAYS), any_batch=True)
    return path


def test_operators_are_those_of_every_runtime(graph: Path) -> None:
    model = onnx.load(str(graph))
    onnx.checker.check_model(model, full_check=True)
    used = {node.op_type for node in model.graph.node}
    assert used <= OPERATORS, used - OPERATORS
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.DOUBLE not in types


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_runtimes_decode_alike(graph: Path, kind: str, precision: str) -> None:
    """Coordinates also stay what they are where a runtime computes in bfloat16."""
    pytest.importorskip(kind)
    if (kind, precision) == ("onnxruntime", "bf16"):
        pytest.skip("it does not compute in bf16")
    run = open_graph(graph, kind=kind, threads=1, precision=precision)
    for name, maps in KINDS.items():
        results = run({"maps": maps})
        with torch.inference_mode():
            wanted = Ways()(torch.from_numpy(maps))
        for method, joints in zip(WAYS, wanted, strict=True):
            if (method, name) == ("cpn", "steps"):
                continue  # see above
            np.testing.assert_allclose(
                results[method], joints.numpy(), atol=CLOSE, rtol=0, err_msg=f"{method}, {name}"
            )
    run.close()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_or_says_why(name: str) -> None:
    spec = model_spec(name)
    if spec.output == "heatmap" and len(spec.views) == 1 and spec.enlarge == 1:
        Decode(spec)
        return
    with pytest.raises(ModelError, match=rf"{name}: its joints cannot be found inside .*: its"):
        Decode(spec)


def test_find_peaks_and_the_graph_agree_in_a_batch() -> None:
    cells = cells_to_frame(turned(3), SPEC.convention, SPEC.size, CELLS)
    wanted = as_joints(*find_peaks(KINDS["noisy"], cells, SPEC), SPEC)
    with torch.inference_mode():
        joints = Decode(SPEC)(torch.from_numpy(KINDS["noisy"])).numpy()
    found = locate_joints(joints, turned(3), replace(SPEC, output="joints"))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=0)
