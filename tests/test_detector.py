"""The two-stage detector at work, between graphs whose answers are known."""

from __future__ import annotations

import json
import warnings
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fastpose.detect import open_detector, runtime_of
from fastpose.detect.fpn import MOST, TwoStageDetector
from fastpose.errors import BackendError, DetectorError, EngineError, ModelError, WeightsError
from fastpose.models import DETECTORS, trained
from fastpose.models.anchors import HEAD_WEIGHTS, anchors, encode, overlaps

SPEC = replace(DETECTORS["fpn-light"], size=(128, 192), canonical=40.0, width=2, batch=4)
TWO = replace(SPEC, classes=("dog", "person"))
F = np.float32
FRAMES = [(300, 400), (400, 300), (128, 192), (9, 7), (1, 40), (1080, 1920), (50, 2000)]


def pytest_generate_tests(metafunc):
    if "tiny" not in metafunc.fixturenames:  # those open it as anybody does
        metafunc.parametrize("way", ["host", "graphs"], indirect=True)


@pytest.fixture(autouse=True)
def way(request, monkeypatch):
    """How the halves run: "graphs" as on CUDA, though here on the CPU nothing is captured."""
    if getattr(request, "param", "host") == "graphs":
        pytest.importorskip("torch")
        monkeypatch.setattr("fastpose.detect.fpn.goes_in_graphs", lambda graph: True)


class FakeGraph:
    """A graph that is a function."""

    def __init__(self, answer):
        self.answer, self.runs, self.closed = answer, [], False
        self.inputs, self.outputs = {}, {}

    def __call__(self, feeds):
        self.runs.append({name: array.copy() for name, array in feeds.items()})
        return self.answer(feeds)

    @property
    def device(self):
        import torch

        return torch.device("cpu")

    @property
    def type(self):
        import torch

        return torch.float32

    def enqueue(self, given):
        import torch

        name = "image" if given.shape[1] == 3 else "windows"
        return tuple(torch.from_numpy(a) for a in self({name: given.numpy()}).values())

    def close(self):
        self.closed = True


def coordinates(spec=SPEC):
    """A pyramid whose features are the place in the input: x and y of the cells' centres."""
    levels = {}
    for index, stride in enumerate(spec.strides):
        y, x = np.indices((spec.size[0] // stride, spec.size[1] // stride)).astype(F)
        levels[f"p{index}"] = np.stack(((x + 0.5) * stride, (y + 0.5) * stride))[None]
    return levels


def proposing(boxes, promise=8.0, spec=SPEC):
    """The first half, which proposes these boxes: each moves another anchor of the first level."""
    around, _ = anchors(spec, spec.size)
    logits, deltas = np.full(len(around), -20, F), np.zeros((len(around), 4), F)
    places = 3 + 5 * np.arange(len(boxes))
    logits[places] = promise - 0.001 * np.arange(len(boxes))  # in their order
    if len(boxes):
        deltas[places] = encode(np.asarray(boxes, F), around[places])
    answer = {**coordinates(spec), "objectness": logits[None], "deltas": deltas[None]}
    return FakeGraph(lambda feeds: answer)


def judging(function, spec=SPEC):
    """The second half: (x, y) of each window's centre -> its logits and deltas."""

    def answer(feeds):
        windows = feeds["windows"]
        assert windows.shape == (spec.batch, spec.width, spec.pool, spec.pool)
        logits = np.zeros((spec.batch, len(spec.classes) + 1), F)
        deltas = np.zeros((spec.batch, len(spec.classes), 4), F)
        for row, window in enumerate(windows):
            logits[row], deltas[row] = function(*window[:, spec.pool // 2, spec.pool // 2])
        return {"logits": logits, "deltas": deltas}

    return FakeGraph(answer)


def certain(x, y):
    return (0.0, 6.0), 0.0


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def make_detector(proposer, head, spec=SPEC, score=0.1):
    detector = TwoStageDetector(spec, proposer, head, score=score)
    for graph in (proposer, head):
        graph.runs.clear()  # what goes before a capture
    return detector


def detect(proposer, head, frame=(128, 192), spec=SPEC, score=0.1):
    image = np.zeros((*frame, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = make_detector(proposer, head, spec, score)([image])
    return found


def into_input(boxes, frame, size=SPEC.size):
    """Boxes of a frame where it is fitted into the middle of the input; edges onto edges."""
    scale = min(size[0] / frame[0], size[1] / frame[1])
    left, top = (size[1] - frame[1] * scale) / 2, (size[0] - frame[0] * scale) / 2
    return np.asarray(boxes, np.float64) * scale + (left, top, left, top)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_box_comes_back_in_the_pixels_of_its_frame(frame):
    height, width = frame
    truth = np.array([0.25 * width, 0.1 * height, 0.75 * width, 0.85 * height])
    target = into_input(truth, frame)
    middle = np.tile((target[:2] + target[2:]) / 2, 2)
    proposal = 0.8 * target + 0.2 * middle + (1, -2, 3, 1)  # and the head moves it back
    steps = encode(target.astype(F), proposal.astype(F), HEAD_WEIGHTS)
    found = detect(proposing([proposal]), judging(lambda x, y: ((0.0, 2.0), steps)), frame)
    np.testing.assert_allclose(found.boxes, [truth], atol=0.01)
    np.testing.assert_allclose(found.scores, [sigmoid(2)], rtol=1e-5)
    assert found.boxes.dtype == found.scores.dtype == F


@pytest.mark.parametrize("frame", FRAMES)
def test_no_box_reaches_out_of_its_frame(frame):
    whole = (0, 0, SPEC.size[1], SPEC.size[0])
    found = detect(proposing([whole]), judging(certain), frame)
    np.testing.assert_allclose(found.boxes, [[0, 0, frame[1], frame[0]]], atol=0.01)


def test_what_lies_wholly_beside_the_frame_is_nobody():
    beside = (2, 20, 20, 100)  # a tall frame leaves both sides of the input empty
    assert len(detect(proposing([beside]), judging(certain), (400, 100))) == 0


@pytest.mark.parametrize("frame", [(300, 400), (400, 300), (64, 64), (720, 1280)])
def test_the_frame_lies_in_the_input_where_boxes_are_taken_from(frame):
    """The first half measures a bright patch in the image that it is given."""
    height, width = frame
    truth = np.array([width // 4, height // 3, width // 2, height // 3 + height // 2])
    image = np.zeros((*frame, 3), np.uint8)
    image[truth[1] : truth[3], truth[0] : truth[2]] = 255
    spec = replace(SPEC, mean=(0.0,) * 3, std=(255.0,) * 3)

    def look(feeds):
        seen = feeds["image"][0].mean(0) + 1e-9  # there is a mean of nothing, too
        rows, columns = seen.sum(1), seen.sum(0)
        at = [np.average(np.arange(len(v)) + 0.5, weights=v) for v in (columns, rows)]
        half = [v.sum() / v.max() / 2 for v in (columns, rows)]
        box = np.array([*np.subtract(at, half), *np.add(at, half)])
        return proposing([box], spec=spec).answer(feeds)

    (found,) = make_detector(FakeGraph(look), judging(certain), spec)([image])
    scale = max(width / SPEC.size[1], height / SPEC.size[0])
    np.testing.assert_allclose(found.boxes, [truth], atol=0.1 * max(scale, 1))


def test_colours_go_in_as_the_spec_says():
    image = np.zeros((128, 192, 3), np.uint8)
    image[:] = (10, 100, 200)  # blue, green, red
    proposer = proposing([])
    make_detector(proposer, judging(certain))([image])
    given = proposer.runs[0]["image"]
    assert given.shape == (1, 3, 128, 192)
    expected = (np.array([200, 100, 10]) - SPEC.mean) / SPEC.std
    np.testing.assert_allclose(given[0, :, 60, 90], expected, atol=1e-4)


def test_nobody_is_an_ordinary_answer():
    head = judging(certain)
    found = detect(proposing([]), head)
    assert (found.boxes.shape, found.scores.shape) == ((0, 4), (0,))
    assert head.runs == []  # nothing promising, nothing asked
    unsure = detect(proposing([(10, 10, 60, 90)]), judging(lambda x, y: ((6.0, 0.0), 0.0)))
    assert (unsure.boxes.shape, unsure.scores.shape) == ((0, 4), (0,))


def test_no_frames_give_no_answers_and_each_frame_has_its_own():
    detector = make_detector(proposing([(96, 20, 120, 90)]), judging(certain))
    assert detector([]) == []
    frames = [np.zeros((128, 192, 3), np.uint8), np.zeros((256, 384, 3), np.uint8)]
    small, large = detector(frames)
    np.testing.assert_allclose(small.boxes * 2, large.boxes, atol=0.01)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_any_number_of_proposals_goes_through_the_head_in_runs_of_its_batch(count):
    """Each window's answer is its own box's: scores and steps depend on where the window lies."""
    left = 4 + 16 * np.arange(count)
    boxes = np.stack((left, 0 * left + 40, left + 10, 0 * left + 60), 1).astype(F)
    head = judging(lambda x, y: ((0.0, x / 100), (0, x / 50, 0, 0)))
    found = detect(proposing(boxes), head)
    assert len(head.runs) == -(-count // SPEC.batch)
    centre = boxes[:, 0] + 5
    order = np.argsort(-centre)
    np.testing.assert_allclose(found.scores, sigmoid(centre[order] / 100), rtol=1e-4)
    moved = boxes + np.outer(20 * centre / 50 / 10, (0, 1, 0, 1))
    np.testing.assert_allclose(found.boxes, moved[order], atol=0.02)


def test_no_more_proposals_are_classified_than_the_spec_allows():
    left = 4 + 16 * np.arange(11)
    boxes = np.stack((left, 0 * left + 40, left + 10, 0 * left + 60), 1)
    few = replace(SPEC, proposals=6)
    found = detect(proposing(boxes), judging(certain), spec=few)
    assert sorted(found.boxes[:, 0].round()) == left[:6].tolist()  # those of the surest anchors


def test_a_hopeless_proposal_is_not_asked_about():
    head = judging(certain)
    assert len(detect(proposing([(10, 10, 60, 90)], promise=-0.5), head)) == 0
    assert head.runs == []
    assert len(detect(proposing([(10, 10, 60, 90)], promise=-0.3), head)) == 1


def test_persons_are_picked_when_the_classes_have_competed():
    boxes = [(10, 10, 40, 90), (80, 10, 120, 90), (140, 10, 180, 90)]
    steps = np.zeros((2, 4), F)
    steps[0] = (5, 0, 0, 0)  # a dog's box is another than a person's

    def judge(x, y):
        known = {25: (0, 4, 1), 100: (0, 1, 3), 160: (0, 2, 2)}
        return known.get(round(float(x)), (9, 0, 0)), steps

    found = detect(proposing(boxes), judging(judge, TWO), spec=TWO, score=0.01)
    powers = np.exp([[0, 4, 1], [0, 1, 3], [0, 2, 2]])
    shares = (powers / powers.sum(1, keepdims=True))[:, 2]
    order = np.argsort(-shares)
    np.testing.assert_allclose(found.boxes, np.array(boxes)[order], atol=0.01)
    np.testing.assert_allclose(found.scores, shares[order], rtol=1e-4)


def test_the_best_boxes_of_all_classes_are_kept_and_then_persons_picked():
    """Two thirds dogs of higher scores leave the persons the places that are left."""
    spec = replace(TWO, proposals=200, per_level=400)
    row, column = np.divmod(np.arange(144), 18)
    boxes = np.stack((column * 10 + 2, row * 14 + 2, column * 10 + 10, row * 14 + 14), 1)
    dogs = np.arange(144) < 80

    def judge(x, y):
        place = int((x - 2) // 10) + 18 * int((y - 2) // 14)
        return ((0, 9, -9) if dogs[place] else (0, -9, 2 + 0.01 * place)), 0.0

    found = detect(proposing(boxes, spec=spec), judging(judge, spec), spec=spec)
    assert len(found) == MOST - 80
    np.testing.assert_allclose(found.boxes, boxes[:123:-1], atol=0.01)  # the 20 surest persons


def test_duplicates_fade_as_soft_nms_has_it():
    # proposals that overlap by more than 0.7 are one: the head brings these together
    sure, apart, far = (20, 20, 60, 100), (32, 20, 72, 100), (120, 20, 160, 100)
    other = (26, 20, 66, 100)
    known = {40: (3.0, 0.0), 52: (2.0, -1.5), 140: (1.0, 0.0)}  # x: logit, step in x

    def judge(x, y):
        logit, step = known.get(round(float(x)), (-9.0, 0.0))
        return (0.0, logit), (step, 0, 0, 0)

    found = detect(proposing([sure, apart, far]), judging(judge))
    table, _ = overlaps(np.array([sure], F), np.array([other], F))
    faded = sigmoid(2) * np.exp(-(float(table[0, 0]) ** 2) / 0.5)
    assert faded < sigmoid(1)  # so that the order changes
    np.testing.assert_allclose(found.scores, [sigmoid(3), sigmoid(1), faded], rtol=1e-4)
    np.testing.assert_allclose(found.boxes, [sure, far, other], atol=0.01)


def test_the_least_score_counts_after_fading():
    boxes = [(20, 20, 60, 100), (32, 20, 72, 100), (120, 20, 160, 100)]
    head = judging(lambda x, y: ((0.0, 3.0 if x < 45 else 1.0), 0.0))
    table, _ = overlaps(np.array(boxes[:1], F), np.array(boxes[1:2], F))
    faded = sigmoid(1) * np.exp(-(float(table[0, 0]) ** 2) / 0.5)
    for score, count in ((faded - 0.01, 3), (faded + 0.01, 2), (0.74, 1), (0.96, 0)):
        assert len(detect(proposing(boxes), head, score=score)) == count


@pytest.mark.parametrize("where", ["objectness", "deltas", "pyramid", "logits", "steps"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_not_finite_find_nobody(where, value):
    proposer, head = proposing([(10, 10, 60, 90)]), judging(certain)
    given = proposer.answer(None)
    if where in given:
        given[where][:] = value
    elif where == "pyramid":
        given["p0"][:] = given["p1"][:] = given["p2"][:] = value
        head = FakeGraph(
            lambda feeds: {  # as any network: what comes in is in all that goes out
                "logits": feeds["windows"].sum((1, 2, 3))[:, None] + np.zeros((4, 2), F),
                "deltas": np.zeros((4, 1, 4), F),
            }
        )
    else:
        name = "logits" if where == "logits" else "deltas"
        answer = head.answer

        def broken(feeds):
            result = answer(feeds)
            result[name][:] = value
            return result

        head = FakeGraph(broken)
    found = detect(FakeGraph(lambda feeds: given), head)
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()
    assert len(found) == 0


def test_one_wild_row_does_not_touch_the_others():
    boxes = [(10, 10, 40, 90), (80, 10, 120, 90)]
    head = judging(lambda x, y: ((0.0, 6.0), np.nan if x < 50 else 0.0))
    found = detect(proposing(boxes), head)
    np.testing.assert_allclose(found.boxes, boxes[1:], atol=0.01)


def test_close_frees_both_graphs():
    proposer, head = proposing([]), judging(certain)
    detector = make_detector(proposer, head)
    assert [proposer.closed, head.closed] == [False, False]
    detector.close()
    assert [proposer.closed, head.closed] == [True, True]


# `open_detector`


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The tiny detector under its name, and an empty folder that stands for `trained/`."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from tiny_detector import register

    register(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "trained"
    folder.mkdir()
    monkeypatch.setattr(trained, "folder", lambda: folder)
    return folder


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """The tiny detector's weights, graphs and card."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from tiny_detector import TINY, make_tiny, register

    from fastpose.engines.manifest import file_hash
    from fastpose.train.release import release_detector
    from fastpose.train.tasks import DetectorRecipe

    folder = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        recipe = DetectorRecipe(schedule=((TINY.size, 1),))
        card = release_detector(make_tiny(), TINY, folder, sets=[], recipe=recipe, command="none")
    assert card["graph_sha256"]["rpn"] == file_hash(folder / "fpn-tiny.rpn.onnx")
    return folder


def put(released, folder, *names, **changes):
    """Files of the release into the folder, and its card with changes."""
    for name in names:
        (folder / name).write_bytes((released / name).read_bytes())
    card = json.loads((released / "fpn-tiny.json").read_text())
    (folder / "fpn-tiny.json").write_text(json.dumps(card | changes))


GRAPHS = ("fpn-tiny.rpn.onnx", "fpn-tiny.head.onnx")
WEIGHTS = "fpn-tiny.safetensors"
PICTURE = np.random.default_rng(0).integers(0, 255, (90, 150, 3), np.uint8)


def people(**options):
    detector = open_detector("fpn-tiny", score=0.0, **options)
    (found,) = detector([PICTURE])
    detector.close()
    return found


def test_trained_graphs_find_the_same_in_every_runtime(tiny, released):
    put(released, tiny, *GRAPHS, WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, *others = (people(kind=kind) for kind in ("openvino", "onnxruntime", "torch"))
    assert len(first) > 5
    assert not list((tiny.parent / "cache").rglob("*.onnx"))  # nothing had to be exported
    for other in others:
        # weights are folded and rounded in another order: of near duplicates, either may fade
        np.testing.assert_allclose(other.scores[:5], first.scores[:5], atol=0.01)
        np.testing.assert_allclose(other.boxes[0], first.boxes[0], atol=1)


def test_the_trained_graphs_need_no_weights_but_torch_does(tiny, released):
    put(released, tiny, *GRAPHS)
    assert len(people(kind="openvino"))
    with pytest.raises(WeightsError, match=r"its graph but not fpn-tiny\.safetensors"):
        people(kind="torch")


def test_trained_weights_alone_are_exported_once(tiny, released):
    put(released, tiny, WEIGHTS)
    first = people()
    cache = tiny.parent / "cache" / "fastpose"
    written = sorted(cache.glob("*.onnx"))
    assert [path.name.rpartition("-")[2].split(".")[1] for path in written] == ["head", "rpn"]
    times = [path.stat().st_mtime_ns for path in written]
    again = people()
    assert times == [path.stat().st_mtime_ns for path in sorted(cache.glob("*.onnx"))]
    np.testing.assert_array_equal(first.boxes, again.boxes)


@pytest.mark.parametrize("hashes", ["gone", "text", "swapped", "head"])
def test_graphs_that_the_card_does_not_describe_are_refused(hashes, tiny, released):
    put(released, tiny, *GRAPHS)
    path = tiny / "fpn-tiny.json"
    card = json.loads(path.read_text())
    told = card.pop("graph_sha256")
    if hashes == "text":
        card["graph_sha256"] = told["rpn"]
    elif hashes == "swapped":
        card["graph_sha256"] = {"rpn": told["head"], "head": told["rpn"]}
    elif hashes == "head":
        card["graph_sha256"] = told | {"head": "ab" * 32}
    path.write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=r"onnx: not the graph that fpn-tiny\.json describes"):
        people()


def test_weights_of_another_network_are_refused(tiny, released):
    from fastpose.models import create_detector

    DETECTORS["fpn-tiny"] = replace(DETECTORS["fpn-tiny"], classes=("cat", "person"))
    with pytest.raises(WeightsError, match=r"safetensors: (logits|deltas)\..* must be"):
        create_detector("fpn-tiny", released / WEIGHTS)


def test_random_weights_are_said_and_are_the_same_every_time(tiny):
    with pytest.warns(UserWarning, match="fpn-tiny has no trained weights here: random ones"):
        first = people(kind="torch")
    with pytest.warns(UserWarning, match="random ones are used"):
        again = people(kind="torch")
    np.testing.assert_array_equal(first.boxes, again.boxes)


def test_the_published_detector_runs_with_random_weights(tiny, monkeypatch):
    """At a size that a test has time for."""
    small = replace(DETECTORS["fpn50"], size=(64, 128), per_level=20, proposals=9, batch=4)
    monkeypatch.setitem(DETECTORS, "fpn50", small)
    with pytest.warns(UserWarning, match="fpn50 has no trained weights here: random ones"):
        detector = open_detector("fpn50", kind="torch")
    (found,) = detector([PICTURE])
    assert len(found) == 0  # no class of 81 is sure
    detector.close()


def test_default_is_the_default_detector(tiny, monkeypatch):
    monkeypatch.setattr("fastpose.models.DEFAULT_DETECTOR", "fpn-tiny")
    with pytest.warns(UserWarning, match="fpn-tiny has no trained weights"):
        detector = open_detector("default", kind="torch")
    assert isinstance(detector, TwoStageDetector)


@pytest.mark.parametrize("precision", ["f16", "f8"])
def test_a_precision_that_is_not_there_is_refused(precision, tiny, released):
    put(released, tiny, *GRAPHS, WEIGHTS)
    with pytest.raises(BackendError, match=precision):
        people(kind="torch", precision=precision)


def test_a_low_precision_runs_where_the_card_records_a_pass(tiny, released, monkeypatch):
    opened = []
    real = open_detector.__globals__["open_halves"].__globals__["_open_halves"]

    def note(kind, spec, weights, device, precision, threads):
        opened.append(precision)
        if precision == "f16":
            raise BackendError("not on this machine")
        return real(kind, spec, weights, device, precision, threads)

    monkeypatch.setattr("fastpose.engines._open_halves", note)
    record = {"f16": {"passed": True}, "bf16": {"passed": False}}
    put(released, tiny, *GRAPHS, low_precision=record)
    people()
    assert opened == ["f16", "f32"]
    opened.clear()
    with pytest.raises(BackendError, match="not on this machine"):
        people(precision="f16")
    assert opened == ["f16"]


def test_threads_and_devices_are_checked(tiny, released):
    put(released, tiny, *GRAPHS, WEIGHTS)
    assert len(people(threads=1)) == len(people(threads=2))
    with pytest.raises(ValueError, match="threads"):
        people(threads=0)
    with pytest.raises(BackendError, match="device"):
        people(kind="torch", device="abacus")
    with pytest.raises(BackendError, match="tensorrt"):
        people(kind="tensorrt")


def test_a_closed_detector_does_not_run(tiny, released):
    put(released, tiny, *GRAPHS, WEIGHTS)
    for kind in ("openvino", "onnxruntime", "torch"):
        detector = open_detector("fpn-tiny", kind=kind)
        detector.close()
        with pytest.raises(EngineError, match="closed"):
            detector([PICTURE])


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime", "torch"])
def test_it_tells_what_it_runs_in(kind, tiny, released):
    put(released, tiny, *GRAPHS, WEIGHTS)
    with closing(open_detector("fpn-tiny", kind=kind)) as detector:
        assert runtime_of(detector) == {"engine": kind, "precision": "f32"}
    assert runtime_of(open_detector("none")) == {}


def test_halves_that_differ_are_both_told():
    halves = proposing([]), judging(certain)
    halves[0].kind, halves[0].precision, halves[1].precision = "openvino", "bf16", "f32"
    found = runtime_of(make_detector(*halves))
    assert found == {"engine": "openvino", "precision": "bf16/f32"}


def test_half_a_detector_does_not_stay_open(tiny, released, monkeypatch):
    put(released, tiny, *GRAPHS)
    opened = []

    def open_graph(path, **options):
        if opened:
            raise EngineError(f"{path}: no memory")
        opened.append(FakeGraph(None))
        return opened[0]

    monkeypatch.setattr("fastpose.engines.open_graph", open_graph)
    with pytest.raises(EngineError, match=r"head\.onnx: no memory"):
        people(kind="openvino")
    assert opened[0].closed


def test_a_detector_of_no_persons_is_refused(tiny):
    DETECTORS["fpn-tiny"] = replace(DETECTORS["fpn-tiny"], classes=("cat", "dog"))
    with pytest.raises(DetectorError, match="fpn-tiny finds no persons; it finds: cat, dog"):
        open_detector("fpn-tiny")


def test_unknown_names_are_told_the_known():
    with pytest.raises(DetectorError, match=r"fpn51: no such file; .*default, fpn-light, fpn50"):
        open_detector("fpn51")
    from fastpose.models import detector_spec

    with pytest.raises(ModelError, match=r"unknown detector 'fpn51'; known: default, fpn-light"):
        detector_spec("fpn51")
