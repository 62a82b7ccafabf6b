"""A detector's two graphs: names, fixed shapes, and the same answers in every runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from tiny_detector import TINY, fill, make_tiny  # noqa: E402

from fastpose.engines import open_graph  # noqa: E402
from fastpose.engines.build import detector_halves, export_detector, random_detector  # noqa: E402
from fastpose.engines.torch import TorchGraph  # noqa: E402
from fastpose.errors import BackendError  # noqa: E402
from fastpose.models import create_detector, detector_spec  # noqa: E402
from fastpose.models.anchors import anchors  # noqa: E402

LIGHT = replace(detector_spec("fpn-light"), size=(96, 64), batch=3)
KINDS = ("openvino", "onnxruntime")
HALVES = ("rpn", "head")


def make_light():
    network = create_detector("fpn-light")
    fill(network)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            tensor.copy_(tensor.half())
    return network


DETECTORS = {"light": (make_light, LIGHT), "tiny": (make_tiny, TINY)}


@pytest.fixture(scope="module", params=list(DETECTORS))
def detector(request, tmp_path_factory):
    """Network, spec and its two graphs in float32."""
    make, spec = DETECTORS[request.param]
    network = make()
    folder = tmp_path_factory.mktemp(request.param)
    paths = {half: folder / f"{half}.onnx" for half in HALVES}
    export_detector(network, spec, paths["rpn"], paths["head"], half=False)
    return network, spec, paths


def feeds(spec, half):
    rng = np.random.default_rng(3)
    shape = (1, 3, *spec.size)
    if half == "head":
        shape = (spec.batch, spec.width, spec.pool, spec.pool)
    name = "image" if half == "rpn" else "windows"
    return {name: rng.standard_normal(shape).astype(np.float32)}


def expected(network, spec, half):
    (given,) = feeds(spec, half).values()
    with torch.inference_mode():
        if half == "head":
            logits, deltas = network.classify(torch.from_numpy(given))
            return {"logits": logits.numpy(), "deltas": deltas.numpy()}
        pyramid, logits, deltas = network.propose(torch.from_numpy(given))
    levels = {f"p{i}": level.numpy() for i, level in enumerate(pyramid[: spec.pooled])}
    return levels | {"objectness": logits.numpy(), "deltas": deltas.numpy()}


def torch_graph(network, spec, half, dtype=torch.float32):
    module = detector_halves(network, spec)[HALVES.index(half)]
    ((name, array),) = feeds(spec, half).items()
    outputs = tuple(expected(network, spec, half))
    port = {name: (array.shape, np.dtype(np.float32))}
    return TorchGraph("graph", module, port, outputs, torch.device("cpu"), dtype)


def assert_near(actual, truth, tolerance):
    assert actual.keys() == truth.keys()
    for name, array in truth.items():
        assert actual[name].shape == array.shape, name
        error = np.abs(actual[name] - array).max() / np.abs(array).max()
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kind", [*KINDS, "torch"])
def test_every_runtime_answers_as_the_module(detector, half, kind):
    network, spec, paths = detector
    if kind == "torch":
        graph = torch_graph(network, spec, half)
    else:
        graph = open_graph(paths[half], kind=kind)
    given = feeds(spec, half)
    assert_near(graph(given), expected(network, spec, half), 1e-4)
    first = {name: array.copy() for name, array in graph(given).items()}
    other = {name: -2 * array for name, array in given.items()}
    assert any(np.abs(graph(other)[name] - first[name]).max() > 0.1 for name in first)
    graph.close()


@pytest.mark.parametrize("half", HALVES)
def test_bfloat16_is_near_where_it_runs(detector, half):
    network, spec, paths = detector
    truth, given = expected(network, spec, half), feeds(spec, half)
    module = torch_graph(network, spec, half, torch.bfloat16)
    assert module.precision == "bf16"
    assert_near(module(given), truth, 0.1)
    for kind in KINDS:
        try:
            graph = open_graph(paths[half], kind=kind, precision="bf16")
        except BackendError:
            continue  # this machine or this runtime does not compute in it
        assert graph.precision == "bf16"
        assert_near(graph(given), truth, 0.1)


def test_names_and_shapes_are_fixed(detector):
    _, spec, paths = detector
    count = len(anchors(spec, spec.size)[0])
    cells = [(spec.size[0] // s, spec.size[1] // s) for s in spec.strides[: spec.pooled]]
    levels = {f"p{i}": (1, spec.width, *side) for i, side in enumerate(cells)}
    windows = (spec.batch, spec.width, spec.pool, spec.pool)
    ports = {
        "rpn": (
            {"image": (1, 3, *spec.size)},
            levels | {"objectness": (1, count), "deltas": (1, count, 4)},
        ),
        "head": (
            {"windows": windows},
            {
                "logits": (spec.batch, len(spec.classes) + 1),
                "deltas": (spec.batch, len(spec.classes), 4),
            },
        ),
    }
    for half, path in paths.items():
        for kind in KINDS:
            graph = open_graph(path, kind=kind)
            assert {name: shape for name, (shape, _) in graph.inputs.items()} == ports[half][0]
            assert {name: shape for name, (shape, _) in graph.outputs.items()} == ports[half][1]
            assert list(graph.outputs) == list(ports[half][1])  # in this order


def test_the_graphs_hold_no_suppression_no_norm_and_nothing_of_this_machine(detector, tmp_path):
    _, _, paths = detector
    for path in paths.values():
        model = onnx.load(path)
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"NonMaxSuppression", "BatchNormalization", "TopK", "RoiAlign", "If"}
        assert all(not part.doc_string for part in (model, model.graph, *model.graph.node))
        for place in (b"/fastpose", b"site-packages", str(tmp_path.parent).encode()):
            assert place not in path.read_bytes()


def test_two_exports_give_the_same_bytes_and_half_is_half(tmp_path):
    network = make_tiny()
    written = []
    for name in ("a", "b"):
        paths = [tmp_path / f"{name}.{half}.onnx" for half in HALVES]
        export_detector(network, TINY, *paths)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    for half, path in zip(HALVES, paths, strict=True):
        # folded weights are rounded, once, to 11 bits
        assert_near(open_graph(path)(feeds(TINY, half)), expected(network, TINY, half), 5e-3)
    for path in paths:
        kept = {t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) > 1}
        assert onnx.TensorProto.FLOAT16 in kept
        assert onnx.TensorProto.FLOAT not in kept


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kind", [*KINDS, "torch"])
def test_wrong_feeds_are_refused(detector, half, kind):
    network, spec, paths = detector
    graph = (
        torch_graph(network, spec, half) if kind == "torch" else open_graph(paths[half], kind=kind)
    )
    ((name, array),) = feeds(spec, half).items()
    for wrong in ({name: array[:, :, 1:]}, {name: array.astype(np.float64)}, {"other": array}, {}):
        with pytest.raises(ValueError, match="must be"):
            graph(wrong)


def test_random_detectors_are_the_same_every_time_and_leave_the_generator_alone():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again = random_detector("fpn-light"), random_detector("fpn-light")
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
