"""Detectors: tiny graphs and stand-ins whose answer is known by construction."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose.detect import LAYOUTS, GraphDetector, open_detector, runtime_of
from fastpose.errors import BackendError, DetectorError, FastposeError
from fastpose.types import Boxes

FRAME = (301, 400)  # h, w: scaled to 64 it is 48.16 by 64, which published code rounds to 48 rows
PERSON = np.array([120.0, 30.0, 220.0, 270.0])
SIDE = 64
CELLS = 64 + 16 + 4
SHARES = (200 / 255, 100 / 255, 10 / 255)  # the colour of `frame_of`, RGB
IMAGENET = (SHARES - np.array([0.485, 0.456, 0.406])) / (0.229, 0.224, 0.225)

F, I64 = np.float32, np.int64


def to_input(box, fit):
    """A frame's box in the input's pixels, from how the published code lays out the frame."""
    x, y = SIDE / FRAME[1], (SIDE if fit == "stretch" else 48) / FRAME[0]
    top = 8 if fit == "centre" else 0
    return np.array(box) * (x, y, x, y) + (0, top, 0, top)


def centred(box):
    return np.array(
        [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]
    )


def yolox(box):
    """Cells of three classes: a person, their fainter double, somebody faint, and another class."""
    out = np.zeros((1, CELLS, 8), F)
    cx, cy, w, h = centred(to_input(box, "corner"))
    for row, col, objectness, classes in (
        (3, 3, 0.9, (0.8, 0, 0)),
        (4, 3, 0.8, (0.8, 0, 0)),
        (6, 6, 0.5, (0.5, 0, 0)),
        (0, 0, 0.9, (0, 0.9, 0)),
    ):
        out[0, row * 8 + col] = (
            cx / 8 - col, cy / 8 - row, np.log(w / 8), np.log(h / 8), objectness, *classes
        )  # fmt: skip
    coarse = 64 + 1 * 4 + 2  # stride 16, row 1, column 2: a box of class 2
    out[0, coarse] = (0, 0, 0, 0, 0.9, 0, 0, 0.9)
    return {"output": out}


def yolov8(box):
    out = np.zeros((1, 7, CELLS), F)
    out[0, :4, 20:23] = centred(to_input(box, "centre"))[:, None]
    out[0, 4, 20:22] = 0.72, 0.64
    out[0, 5, 22] = 0.9
    return {"output0": out}


def yolo_end2end(box):
    rows = np.zeros((1, 5, 6), F)
    rows[0, :3, :4] = to_input(box, "centre")
    rows[0, :3, 4:] = (0.2, 0), (0.72, 0), (0.9, 5)
    return {"output0": rows}


def dets_labels(box):
    dets = np.zeros((1, 3, 5), F)
    dets[0, :, :4] = to_input(box, "corner")
    dets[0, :, 4] = 0.9, 0.72, 0.1
    return {"dets": dets, "labels": np.array([[2, 0, 0]], I64)}


def torchvision(box):
    boxes = np.tile(to_input(box, "corner"), (3, 1)).astype(F)
    return {"boxes": boxes, "labels": np.array([3, 1, 1], I64), "scores": F([0.9, 0.72, 0.1])}


def rtdetr_end2end(box):
    boxes = np.tile(to_input(box, "stretch"), (1, 3, 1)).astype(F)
    labels, scores = np.array([[3, 0, 0]], I64), F([[0.9, 0.72, 0.1]])
    return {"labels": labels, "boxes": boxes, "scores": scores}


def queries(box, classes, person, logit):
    """Four queries; the second is the person, with this logit; the third another class."""
    logits, boxes = np.full((1, 4, classes), -20.0, F), np.zeros((1, 4, 4), F)
    boxes[0, 1:3] = centred(to_input(box, "stretch")) / SIDE
    logits[0, 1, person] = logit
    logits[0, 2, person + 1] = 5
    return logits, boxes


def logit(probability):
    return np.log(probability / (1 - probability))


def rtdetr(box):
    logits, boxes = queries(box, 80, 0, logit(0.72))
    return {"logits": logits, "pred_boxes": boxes}


def rfdetr(box):
    logits, boxes = queries(box, 91, 1, logit(0.72))
    return {"dets": boxes, "labels": logits}


def detr(box):
    logits, boxes = queries(box, 92, 1, logit(0.72))
    logits[..., -1] = 0.0  # no object
    return {
        "logits": logits,
        "pred_boxes": boxes,
        "last_hidden_state": np.zeros((1, 4, 8), F),
        "encoder_last_hidden_state": np.zeros((1, 9, 8), F),
    }


OUTPUTS = {
    "yolox": yolox,
    "yolov8": yolov8,
    "yolo-end2end": yolo_end2end,
    "dets-labels": dets_labels,
    "rtmdet": dets_labels,
    "torchvision": torchvision,
    "rtdetr-end2end": rtdetr_end2end,
    "rtdetr": rtdetr,
    "rfdetr": rfdetr,
    "detr": detr,
}


def write_graph(path: Path, outputs, shape=(1, 3, SIDE, SIDE), dtype="FLOAT", extras=()) -> Path:
    """An ONNX file that answers `outputs` whatever it is given."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, of the extra torch")
    helper, kind = onnx.helper, onnx.TensorProto
    inputs = [helper.make_tensor_value_info("picture", getattr(kind, dtype), shape)]
    inputs += [helper.make_tensor_value_info(name, kind.INT64, s) for name, s in extras]
    nodes, constants, given = [], [], []
    nodes += [
        helper.make_node("Cast", ["picture"], ["p"], to=kind.FLOAT),
        helper.make_node("ReduceMean", ["p"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants.append(onnx.numpy_helper.from_array(np.zeros((), F), "zero"))
    for name, array in outputs.items():
        constants.append(onnx.numpy_helper.from_array(array.astype(F), name + "_value"))
        to = kind.INT64 if array.dtype == I64 else kind.FLOAT
        nodes.append(helper.make_node("Add", [name + "_value", "nothing"], [name + "_f"]))
        nodes.append(helper.make_node("Cast", [name + "_f"], [name], to=to))
        given.append(helper.make_tensor_value_info(name, to, array.shape))
    graph = helper.make_graph(nodes, "detector", inputs, given, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


class FakeGraph:
    """A graph in Python: keeps what it was fed and answers `outputs`."""

    def __init__(self, outputs, shape=(1, 3, SIDE, SIDE), dtype=F, extras=()):
        self.inputs = {"picture": (shape, np.dtype(dtype))}
        self.inputs.update({name: ((1, 2), np.dtype(I64)) for name in extras})
        self.outputs = {name: (array.shape, array.dtype) for name, array in outputs.items()}
        self.answer, self.fed, self.closed = outputs, {}, False

    def __call__(self, feeds):
        self.fed = {name: array.copy() for name, array in feeds.items()}
        return self.answer

    def close(self):
        self.closed = True


def detector(layout, graph=None, **options):
    options = {"score": 0.3, "iou": 0.6, "person_class": None, **options}
    graph = graph or FakeGraph(OUTPUTS[layout](PERSON))
    return GraphDetector(Path("made.onnx"), graph, layout, **options)


def frame_of(size=FRAME, colour=(10, 100, 200)):
    return np.full((*size, 3), colour, np.uint8)


@pytest.mark.parametrize("layout", OUTPUTS)
def test_a_graph_is_recognised_and_its_person_is_found(layout, tmp_path):
    shape = (3, SIDE, SIDE) if layout == "torchvision" else (1, 3, SIDE, SIDE)
    extras = [("orig_target_sizes", (1, 2))] if layout == "rtdetr-end2end" else []
    path = write_graph(tmp_path / "d.onnx", OUTPUTS[layout](PERSON), shape, extras=extras)
    found = open_detector(str(path), layout="rtmdet" if layout == "rtmdet" else None)
    assert found.layout == layout
    (boxes,) = found([frame_of()])
    found.close()
    np.testing.assert_allclose(boxes.boxes, PERSON[None], atol=1e-3)
    np.testing.assert_allclose(boxes.scores, [0.72], atol=1e-5)
    assert boxes.boxes.dtype == boxes.scores.dtype == np.float32


def test_every_layout_is_tested():
    assert set(OUTPUTS) == set(LAYOUTS)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("yolox", (10, 100, 200)),
        ("dets-labels", (10, 100, 200)),
        ("rtmdet", ((10 - 103.53) / 57.375, (100 - 116.28) / 57.12, (200 - 123.675) / 58.395)),
        ("yolov8", SHARES),
        ("yolo-end2end", SHARES),
        ("torchvision", SHARES),
        ("rtdetr", SHARES),
        ("rtdetr-end2end", SHARES),
        ("rfdetr", IMAGENET),
        ("detr", IMAGENET),
    ],
)  # fmt: skip
def test_colours_arrive_as_the_network_was_trained(layout, expected):
    graph = FakeGraph(OUTPUTS[layout](PERSON))
    detector(layout, graph)([frame_of()])
    np.testing.assert_allclose(graph.fed["picture"][0, :, 24, 32], expected, atol=1e-4)


@pytest.mark.parametrize("size", [(301, 400), (400, 301), (97, 353), (64, 64)])
@pytest.mark.parametrize("layout", ["yolox", "yolov8"])
def test_letterbox_equals_the_published_one(layout, size):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    graph = FakeGraph(OUTPUTS[layout](PERSON))
    detector(layout, graph)([frame])
    scale = min(SIDE / size[0], SIDE / size[1])
    whole = int if layout == "yolox" else round
    h, w = whole(size[0] * scale), whole(size[1] * scale)
    top, left = (0, 0) if layout == "yolox" else ((SIDE - h) // 2, (SIDE - w) // 2)
    expected = np.full((SIDE, SIDE, 3), 114, np.uint8)
    expected[top : top + h, left : left + w] = cv2.resize(frame, (w, h))
    if layout == "yolov8":
        expected = expected[..., ::-1] / 255
    difference = np.abs(graph.fed["picture"][0] - expected.transpose(2, 0, 1))
    assert difference.max() <= (1 if layout == "yolox" else 1 / 255) + 1e-4


def test_strong_down_scaling_averages_where_the_network_was_trained_so():
    noise = np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    spread = {}
    for layout in ("rtdetr", "yolov8"):
        graph = FakeGraph(OUTPUTS[layout](PERSON))
        detector(layout, graph)([noise])
        spread[layout] = graph.fed["picture"].std()
    assert spread["rtdetr"] < 0.4 * spread["yolov8"]


@pytest.mark.parametrize(
    ("layout", "frame", "size"),
    [
        ("detr", (480, 640), (800, 1067)),
        ("detr", (100, 1000), (133, 1333)),
        ("torchvision", (301, 400), (301, 400)),
        ("rtdetr", (301, 400), (640, 640)),
        ("dets-labels", (301, 400), (640, 640)),
    ],
)
def test_a_graph_that_leaves_its_size_open_gets_the_stated_one(layout, frame, size):
    graph = FakeGraph(OUTPUTS[layout](PERSON), (None, 3, None, None))
    detector(layout, graph)([frame_of(frame)])
    assert graph.fed["picture"].shape == (1, 3, *size)


def test_inputs_beside_the_picture():
    graph = FakeGraph(rtdetr_end2end(PERSON), extras=["orig_target_sizes"])
    detector("rtdetr-end2end", graph)([frame_of()])
    np.testing.assert_array_equal(graph.fed["orig_target_sizes"], [[SIDE, SIDE]])
    graph = FakeGraph(detr(PERSON), (1, 3, 32, 64), extras=["pixel_mask"])
    detector("detr", graph)([frame_of()])
    np.testing.assert_array_equal(graph.fed["pixel_mask"], np.ones((1, 32, 64)))


def test_a_half_precision_graph_is_fed_half_precision():
    graph = FakeGraph({n: a.astype(np.float16) for n, a in yolox(PERSON).items()}, dtype=np.float16)
    (boxes,) = detector("yolox", graph)([frame_of()])
    assert graph.fed["picture"].dtype == np.float16
    np.testing.assert_allclose(boxes.boxes, PERSON[None], atol=1)


def test_frames_of_other_sizes_and_strides():
    found = detector("yolox")
    wide = frame_of((602, 800))
    small = np.ascontiguousarray(wide[::2, ::2])
    first, strided, tiny = found([small, wide[::2, ::2], frame_of((1, 1))])
    np.testing.assert_array_equal(first.boxes, strided.boxes)
    assert isinstance(tiny, Boxes)
    assert found([]) == []


def test_thresholds_and_class():
    assert len(detector("yolox", score=0.75)([frame_of()])[0]) == 0
    both = detector("yolox", iou=1.0)([frame_of()])[0]
    np.testing.assert_allclose(both.scores, [0.72, 0.64], atol=1e-6)  # surest first
    other = detector("yolox", person_class=1)([frame_of()])[0]
    np.testing.assert_allclose(other.scores, [0.81], atol=1e-6)


def test_what_is_no_box_is_left_out():
    answer = dets_labels(PERSON)
    answer["dets"][0, 0] = (5, 5, 3, 9, 0.9)  # a negative width
    answer["labels"][:] = 0
    for bad in (np.nan, np.inf):
        answer["dets"][0, 2] = (bad, 0, 9, 9, 0.9)
        (boxes,) = detector("dets-labels", FakeGraph(answer))([frame_of()])
        np.testing.assert_allclose(boxes.scores, [0.72])
    answer["dets"][0, :, 4] = np.nan
    assert len(detector("dets-labels", FakeGraph(answer))([frame_of()])[0]) == 0


def test_nobody_found_is_a_result():
    (boxes,) = detector("yolox", FakeGraph({"output": np.zeros((1, CELLS, 8), F)}))([frame_of()])
    assert boxes.boxes.shape == (0, 4)


def test_closing_frees_the_graph():
    graph = FakeGraph(yolox(PERSON))
    detector("yolox", graph).close()
    assert graph.closed


@pytest.mark.parametrize(
    ("outputs", "layout", "expected"),
    [
        (
            {"prob": np.zeros((1, 1000), F)},
            None,
            r"made.onnx: its outputs prob \[1, 1000\] are not a",
        ),
        ({"maps": np.zeros((1, 17, 64, 48), F)}, None, "--detector-layout: yolox, .*, detr"),
        ({"output": np.zeros((1, 50, 85), F)}, None, "output"),
        (yolox(PERSON), "torchvision", r"not those of torchvision \(boxes \[N, 4\]"),
        (rtdetr(PERSON), "yolox", "not those of yolox"),
    ],
)
def test_a_graph_that_is_no_detector_is_refused(outputs, layout, expected):
    with pytest.raises(DetectorError, match=expected) as caught:
        detector(layout, FakeGraph(outputs))
    assert "\n" not in str(caught.value)


def test_rows_that_do_not_fit_the_input_are_refused_when_opened():
    graph = FakeGraph({"output": np.zeros((1, 50, 85), F)}, (1, 3, None, None))
    with pytest.raises(DetectorError, match=r"made.onnx as yolox: 8400 cells .* 640x640, got 50"):
        detector("yolox", graph)


@pytest.mark.parametrize(
    "graph",
    [
        FakeGraph(yolox(PERSON), (1, 1, SIDE, SIDE)),
        FakeGraph(yolox(PERSON), (8, 3, SIDE, SIDE)),
        FakeGraph(yolox(PERSON), (1, SIDE, SIDE, 3)),
        FakeGraph(yolox(PERSON), dtype=np.uint8),
        FakeGraph(yolox(PERSON), extras=["other"]),
    ],
)
def test_inputs_that_are_no_picture_are_refused(graph):
    with pytest.raises(DetectorError, match=r"expected one floating-point input .* got picture \["):
        detector("yolox", graph)


def test_a_class_that_is_not_there_is_refused_when_opened():
    with pytest.raises(DetectorError, match=r"made.onnx as yolox: no class 7 .* its 3 classes"):
        detector("yolox", person_class=7)
    with pytest.raises(DetectorError, match=r"no class 91 .* its 91 classes"):
        detector("detr", person_class=91)  # that is "no object"


def test_names_that_are_no_detector(tmp_path):
    wanted = r"nosuch\.onnx: no such file.*FILE\.onnx, .* none .*default"
    with pytest.raises(DetectorError, match=wanted):
        open_detector(str(tmp_path / "nosuch.onnx"))
    with pytest.raises(DetectorError, match=r"unknown layout 'yolo'; known: yolox, "):
        open_detector("none", layout="yolo")
    for what in ("default", "fpn-light", "none"):
        with pytest.raises(DetectorError, match=rf"^--detector-layout .* 'yolox' for {what}$"):
            open_detector(what, layout="yolox")
        with pytest.raises(DetectorError, match=rf"^person_class is for .*, got 0 for {what}$"):
            open_detector(what, person_class=0)
    text = tmp_path / "text.onnx"
    text.write_text("this is no graph")
    with pytest.raises(FastposeError, match=r"text.onnx"):
        open_detector(str(text))
    for options in ({"score": 1.5}, {"iou": -0.1}, {"person_class": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            open_detector("none", **options)


def test_beside_a_network_on_cuda_the_detector_runs_on_the_cpu(tmp_path):
    path = str(write_graph(tmp_path / "d.onnx", OUTPUTS["yolox"](PERSON), (1, 3, SIDE, SIDE)))
    found = open_detector(path, device="cuda:0")
    assert runtime_of(found) == {"engine": "openvino", "precision": "f32"}
    assert len(found([frame_of()])[0]) == 1
    found.close()
    with pytest.raises(BackendError, match="abacus"):  # any other name is the runtime's to know
        open_detector(path, device="abacus")


def test_none_is_the_whole_frame():
    (boxes,) = open_detector("none")([frame_of((120, 200))])
    np.testing.assert_array_equal(boxes.boxes, [[-0.5, -0.5, 199.5, 119.5]])
    np.testing.assert_array_equal(boxes.scores, [1])
