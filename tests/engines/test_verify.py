"""An engine beside its reference: what passes, what fails, and what the report says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_network import TINY, make_tiny, write_card

from fastpose import build_engine, fixtures, verify_engine
from fastpose.engines import (
    Options,
    Statement,
    load_engine,
    open_engine,
    open_network,
    wrap_network,
)
from fastpose.engines import verify as verifying
from fastpose.engines.manifest import Manifest, file_hash
from fastpose.engines.verify import (
    BOUNDS,
    Verification,
    reference_engine,
    reference_halves,
    reference_spec,
    verify,
    verify_pictures,
)
from fastpose.errors import EngineError
from fastpose.models import MODELS, detector_spec, model_spec
from fastpose.models.spec import ModelSpec

SPEC = replace(model_spec("cpn-light"), method="argmax")
WINDOWS = np.zeros((4, 3, *SPEC.size), np.float32)
JOINTS, (HEIGHT, WIDTH) = len(SPEC.joints), SPEC.cells


class Known:
    """An engine whose joints are where it is told: cells [N, 14, 2] and heights [N, 14]."""

    def __init__(self, cells, heights, *, spec=SPEC, precision="f32", layers=None, kind="known"):
        self.manifest = SimpleNamespace(
            spec=spec,
            kind=kind,
            precision=precision,
            precision_asked=precision,
            layers=layers or {},
        )
        self.maps = np.zeros((len(cells), JOINTS, HEIGHT, WIDTH), np.float32)
        for n, k in np.ndindex(heights.shape):
            x, y = cells[n, k]
            self.maps[n, k, y, x] = heights[n, k]

    def __call__(self, batch):
        return self.maps[: len(batch)].copy()


def people(seed=0):
    """Cells and heights of four people's joints, all of them sure."""
    rng = np.random.default_rng(seed)
    cells = rng.integers((2, 2), (WIDTH - 2, HEIGHT - 2), (4, JOINTS, 2))
    return cells, rng.uniform(0.5, 1.0, (4, JOINTS)).astype(np.float32)


def compare(reference, engine, **options):
    return verify(reference, engine, [WINDOWS], source="made", **options)


def test_an_engine_is_as_its_own_reference():
    reference = Known(*people())
    found = compare(reference, reference)
    assert found.passed
    assert found.reasons == ()
    assert (found.reference, found.source, found.windows) == ("known f32", "made", 4)
    assert (found.shift.joints, found.shift.largest, found.shift.moved) == (4 * JOINTS, 0, 0)
    assert (found.score_change.median, found.score_change.largest) == (0, 0)


def test_shift_is_in_input_pixels():
    cells, heights = people()
    moved = cells.copy()
    moved[2, 5, 0] += 1
    shift = compare(Known(cells, heights), Known(moved, heights)).shift
    assert shift.largest == pytest.approx(SPEC.stride)
    assert shift.moved == pytest.approx(1 / (4 * JOINTS))
    assert shift.median == shift.p95 == 0


def test_joints_that_the_reference_is_not_sure_of_do_not_count():
    cells, heights = people()
    heights[:, 3:] = 0.3  # not above it
    other = cells.copy()
    other[:, 3:] += 1
    found = compare(Known(cells, heights), Known(other, heights))
    assert found.passed
    assert found.shift.joints == 4 * 3
    everywhere = compare(Known(cells, heights), Known(other, heights), random=True)
    assert everywhere.random
    assert everywhere.shift.joints == 4 * JOINTS
    assert not everywhere.passed


def test_half_a_cell_off_fails():
    """As by an engine of another grid convention."""
    cells, heights = people()
    engine = Known(cells, heights, spec=replace(SPEC, convention="msra"))
    found = compare(Known(cells, heights), engine)
    bound = BOUNDS["f32"].median
    assert found.shift.median == pytest.approx(np.hypot(1.5, 1.5), rel=0.01)
    assert f"median shift 2.121 px, at most {bound}" in found.reasons
    assert "100 % of 56 joints moved by more than 2 px, at most 0.5 %" in found.reasons


def test_swapped_joints_fail():
    cells, heights = people()
    swapped = cells.copy()
    swapped[:, [1, 4]] = cells[:, [4, 1]]  # the knees
    found = compare(Known(cells, heights), Known(swapped, heights))
    assert found.shift.median == 0
    assert found.reasons == ("14.29 % of 56 joints moved by more than 2 px, at most 0.5 %",)


@pytest.mark.parametrize(
    ("factor", "precision", "passes"),
    [
        (0.99, "f32", True),
        (0.97, "f32", False),
        (1.03, "bf16", False),
        (0.95, "int8", True),
        (0.9, "int8", False),
        (1.1, "int8", False),
        (0.01, "f32", False),
        (10.0, "f16", False),
    ],
)
def test_scaled_scores_fail(factor, precision, passes):
    cells, heights = people()
    engine = Known(cells, factor * heights, precision=precision)
    found = compare(Known(cells, heights), engine)
    assert found.shift.largest < 1e-3
    assert found.passed is passes
    assert found.score_change.largest == pytest.approx(abs(factor - 1) * heights.max(), rel=1e-3)
    middle = np.quantile(np.abs(factor - 1) * heights, 0.5, method="higher")
    bound = BOUNDS[precision].scores
    reason = f"median change of the scores {middle:.4g}, at most {bound:g}"
    assert passes or found.reasons[0].startswith(reason[:30])
    assert passes or found.reasons[0].endswith(f", at most {bound:g}")


def test_raised_scores_of_unsure_joints_fail():
    """As by an engine whose every joint is sure: none of them is among those that count."""
    cells, heights = people()
    heights[:, 3:5] = 0.2
    raised = heights.copy()
    raised[:, 3:5] = 0.95
    found = compare(Known(cells, heights), Known(cells, raised, precision="int8"))
    assert (found.score_change.largest, found.shift.joints) == (0, 4 * 12)
    assert found.rescored == pytest.approx(8 / 56)
    text = "the scores of 14.29 % of 56 joints changed by more than 0.1, at most 0.5 %"
    assert found.reasons == (text,)
    raised[:, 3:5] = 0.29  # as far as int8 may move a score
    assert compare(Known(cells, heights), Known(cells, raised, precision="int8")).passed


def test_scores_that_nobody_taught_are_compared_with_the_largest():
    cells, heights = people()
    for size in (1e-3, 1e3):
        reference = Known(cells, size * heights)
        same = compare(reference, Known(cells, 0.995 * size * heights), random=True)
        assert same.passed, same.reasons
        other = compare(reference, Known(cells, 0.8 * size * heights), random=True)
        assert len(other.reasons) == 2
    untaught = compare(reference, Known(cells, 0.995 * size * heights))  # a peak value of 1000
    assert untaught.passed


def test_a_lost_joint_moved_as_far_as_can_be():
    cells, heights = people()
    lost = heights.copy()
    lost[0, 0] = 0
    found = compare(Known(cells, heights), Known(cells, lost))
    assert found.shift.largest == np.inf
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["shift"]["largest"] is None
    assert Verification.from_dict(document).shift.largest == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_fail(value):
    reference, engine = Known(*people()), Known(*people())
    engine.maps[1, 0, 0, 0] = value
    text = "values that are not finite in the results for 1 of 4 windows, at most 0"
    assert text in compare(reference, engine).reasons
    with pytest.raises(EngineError, match="the reference, known f32, gives values that are not"):
        compare(engine, reference)


@pytest.mark.parametrize(
    ("precision", "distance", "moved", "passes"),
    [
        ("f32", 0.099, 1, True),
        ("bf16", 0.099, 1, True),
        ("bf16", 0.11, 1, False),
        ("f16", 0.11, 1, False),
        ("int8", 0.499, 1, True),
        ("int8", 0.51, 1, False),
        ("int8", 0.1, 2, False),
    ],
)
def test_bounds_of_each_precision(precision, distance, moved, passes):
    """Of 200 joints, `moved` go far, all others a little."""
    scores = np.ones((20, 10), np.float32)
    points = np.zeros((20, 10, 2), np.float32)
    points[..., 0] = distance
    points.reshape(-1, 2)[:moved] += 3
    spec = replace(SPEC, output="joints")
    reference, engine = (
        Answer(np.dstack((cells, scores)), spec=spec, precision=name)
        for cells, name in ((np.zeros_like(points), "f32"), (points / SPEC.stride, precision))
    )
    found = verify(reference, engine, [np.zeros((20, 3, *SPEC.size), np.float32)], source="made")
    assert found.passed is passes, found.reasons
    assert found.shift.median == pytest.approx(distance, abs=1e-5)


class Answer(Known):
    """An engine with decoding in its graph, of ten joints."""

    def __init__(self, rows, *, spec, precision):
        super().__init__(np.empty((0, 0, 2), int), np.empty((0, 0)), spec=spec, precision=precision)
        ten = replace(SPEC.joints, name="ten", joints=SPEC.joints.joints[:10])
        self.manifest.spec = replace(spec, skeleton="ten", custom=ten)
        self.maps = rows.astype(np.float32)


# What cannot be compared


def test_nothing_to_compare_is_told():
    cells, heights = people()
    reference = Known(cells, heights)
    with pytest.raises(ValueError, match="made: there is no window to compare the engines on"):
        verify(reference, reference, [], source="made")
    unsure = Known(cells, np.full_like(heights, 0.3))
    with pytest.raises(ValueError, match="made: the reference is sure of no joint in 4 windows"):
        compare(unsure, reference)


def test_another_number_of_results_is_told():
    class Short(Known):
        def __call__(self, batch):
            return super().__call__(batch)[1:]

    cells, heights = people()
    text = r"known f32 of cpn-light: the results for 4 windows must be \[4, 14, 48, 40\], got \[3, "
    with pytest.raises(EngineError, match=text):
        compare(Known(cells, heights), Short(cells, heights))


def test_another_network_is_told():
    reference = Known(*people())
    other = Known(*people(), spec=replace(SPEC, size=(256, 192)))
    with pytest.raises(ValueError, match=r"the engines differ: size \(192, 160\) in the reference"):
        compare(reference, other)
    mpii = Known(*people(), spec=model_spec("hourglass2"))
    mpii.manifest.spec = replace(mpii.manifest.spec, size=SPEC.size)
    with pytest.raises(
        ValueError, match="the engines differ: joints lsp14 in the reference, mpii16"
    ):
        compare(reference, mpii)


# Precision


@pytest.mark.parametrize(
    ("asked", "found", "layers", "reason"),
    [
        ("bf16", "bf16", {"bf16": 40, "f32": 12}, None),
        ("int8", "int8", {"int8": 30, "bf16": 29}, None),
        (
            "bf16",
            "bf16",
            {"bf16": 12, "f32": 40},
            "bf16 was asked for, 12 of 52 layers compute in it, at least 27 (bf16 12, f32 40)",
        ),
        (
            "int8",
            "f32",
            {"f32": 52},
            "int8 was asked for, 0 of 52 layers compute in it, at least 27 (f32 52)",
        ),
        ("int8", "f32", {}, "int8 was asked for, the engine computes in f32"),
        ("f32", "bf16", {"bf16": 2}, "f32 was asked for, 0 of 2 layers compute in it, at least 2"),
        ("auto", "bf16", {"bf16": 2}, None),
    ],
)
def test_the_precision_that_is_present_is_the_one_that_was_asked_for(asked, found, layers, reason):
    engine = Known(*people(), precision=found, layers=layers)
    engine.manifest.precision_asked = asked
    report = compare(Known(*people()), engine)
    assert report.passed is (reason is None)
    assert reason is None or report.reasons[0].startswith(reason)
    assert report.precision_asked == (found if asked == "auto" else asked)
    assert (report.precision_found, report.layers) == (found, layers)


def test_layers_that_can_be_counted_must_be():
    uncounted = "f32 was asked for, its layers could not be counted"
    for kind, reasons in (
        ("openvino", (uncounted,)),
        ("tensorrt", (uncounted,)),
        ("onnxruntime", ()),  # which cannot tell
    ):
        assert compare(Known(*people()), Known(*people(), kind=kind)).reasons == reasons


# Accuracy


def test_a_loss_of_accuracy_is_held_to_its_bound():
    cells, heights = people()
    reference, engine = Known(cells, heights), Known(cells, heights)
    figures = {}

    def truth(points, scores):
        figures["shapes"] = points.shape, scores.shape
        return "pck@0.2", figures["values"].pop(0)

    for precision, loss, passes in (
        ("f32", 0.29, True),
        ("f32", 0.31, False),
        ("int8", 0.99, True),
        ("int8", 1.01, False),
        ("bf16", -5.0, True),
    ):
        engine.manifest.precision = engine.manifest.precision_asked = precision
        figures["values"] = [80.0, 80.0 - loss]
        found = compare(reference, engine, truth=truth)
        assert found.passed is passes
        assert found.metric.loss == pytest.approx(loss)
        bound = BOUNDS[precision].loss
        assert passes or found.reasons == (f"pck@0.2 fell by {loss:.4g} points, at most {bound:g}",)
    assert figures["shapes"] == ((4, 14, 2), (4, 14))
    document = json.loads(json.dumps(found.to_dict()))
    assert document["metric"] == {"name": "pck@0.2", "before": 80, "after": 85, "loss": -5}
    figures["values"] = [float("nan"), float("nan")]  # nobody has a labelled joint
    assert compare(reference, engine, truth=truth).metric is None


def test_a_report_survives_json():
    cells, heights = people()
    found = compare(
        Known(cells, heights),
        Known(cells, heights, layers={"f32": 3}),
        truth=lambda points, scores: ("pck@0.2", 50.0),
    )
    document = json.loads(json.dumps(found.to_dict()))
    assert document["passed"] is True
    assert Verification.from_dict(document) == found
    for damage in ({}, {**document, "shift": None}, {**document, "more": 1}):
        with pytest.raises(EngineError, match="not the report of a verification"):
            Verification.from_dict(damage)


# Every kind of output


@pytest.mark.parametrize(
    "name",
    ["cpn50", "cpn-pin", "cpm-lsp", "structured-lsp", "adversarial-lsp", "tompson-mpii"],
)
def test_every_kind_of_result_is_read(name):
    """Seeded results of the right shape; those of one joint, moved, move that joint alone."""
    spec = model_spec(name)
    ((channels, *cells),) = spec.results
    faint = np.random.default_rng(1).uniform(0.001, 0.009, (2, channels, *cells))
    results = faint.astype(np.float32)
    if spec.output == "heatmap":
        results -= 1  # nobody taught them where 0 is

    class Fixed:
        def __init__(self, results):
            self.results = results
            self.manifest = SimpleNamespace(
                spec=spec, kind="fixed", precision="f32", precision_asked="f32", layers={}
            )

        def __call__(self, batch):
            return self.results[: len(batch)]

    windows = [np.zeros((2, 3, *spec.size), np.float32)]
    same = verify(Fixed(results), Fixed(results), windows, source="made", random=True)
    assert same.passed
    assert same.shift.joints == 2 * len(spec.joints)
    mirrored = verify(
        Fixed(results), Fixed(results[..., ::-1].copy()), windows, source="made", random=True
    )
    assert not mirrored.passed
    assert mirrored.shift.median > 2


def test_vectors_are_read_too():
    spec = replace(SPEC, output="simcc", method="argmax")
    first, second = (shape[-1] for shape in spec.results)
    vectors = np.zeros((1, JOINTS, first + second), np.float32)
    vectors[:, :, 100] = vectors[:, :, first + 60] = 1
    moved = vectors.copy()
    moved[0, 0] = np.roll(moved[0, 0], 4)  # two bins are a pixel; x and y both go
    engines = []
    for values in (vectors, moved):
        engine = Known(*people(), spec=spec)
        engine.maps = values
        engines.append(engine)
    found = verify(*engines, [WINDOWS[:1]], source="made")
    assert found.shift.largest == pytest.approx(np.hypot(2, 2), rel=1e-4)


# References and real engines


def edited(manifest: Manifest, **changes: object) -> Manifest:
    return replace(manifest, spec=replace(manifest.spec, **changes))


@pytest.mark.parametrize(
    "fault",
    [
        {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        {"rgb": False},
        {"padding": 2.2},
        {"peak_value": 10.0},
        {"convention": "msra"},
        {"method": "argmax"},
        {"sigma": 1.0},
        {"stride": 8},
        {"flip_inside": True},
        {"views": (0.5, 2.0)},
        {"output": "joints"},
        {"network": "cpn:CPN"},
    ],
)
def test_what_a_description_says_is_what_is_registered(fault):
    """Both engines would be fed and read by it, and be alike."""
    spec = model_spec("cpn-light")
    manifest = described(spec)
    assert reference_spec(manifest) == spec
    field, value = next(iter(fault.items()))
    has, registered = (
        re.escape(repr(list(one) if isinstance(one, tuple) else one))
        for one in (value, getattr(spec, field))
    )
    text = f"spec: {field}: the engine's description has {has}, cpn-light is registered with "
    with pytest.raises(EngineError, match=text + registered):
        reference_spec(edited(manifest, **fault))


def described(spec: ModelSpec, **values: object) -> Manifest:
    """What a bundle of it says of itself, as it is read from the file."""
    stated = {"kind": "openvino", "precision": "f32", "precision_asked": "f32", "device": "CPU"}
    manifest = Manifest(spec=spec, buckets=(1,), versions={}, **stated, **values)
    read = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    return replace(manifest, spec=read)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "default"])
def test_every_registered_network_is_what_its_bundle_says(name):
    spec = model_spec(name)
    assert reference_spec(described(spec)) == spec
    assert reference_spec(described(spec.single_view())) == spec
    assert reference_spec(described(replace(spec, paper="another edition"))) == spec


def test_the_graph_options_change_what_is_registered():
    spec = model_spec("cpn-light")
    both = Options(flip=True, joints=True)
    changed = described(replace(spec, flip_inside=True, output="joints"), options=both)
    assert reference_spec(changed) == replace(spec, flip_inside=True)
    with pytest.raises(EngineError, match=r"spec: output: .* has 'joints', .* with 'heatmap'"):
        reference_spec(replace(changed, options=Options(flip=True)))
    with pytest.raises(EngineError, match=r"spec: flip_inside: .* has True, .* with False"):
        reference_spec(replace(changed, options=Options(joints=True)))


def test_a_network_from_elsewhere_is_what_its_bundle_says():
    foreign = replace(model_spec("cpn-light"), network="", name="elsewhere", paper="")
    assert reference_spec(described(foreign)) == foreign


def test_no_edited_bundle_passes(released, tmp_path):
    path = build_engine("tiny", engine="openvino", threads=1, out=tmp_path / "a.onnx")
    document = json.loads(path.read_text())
    assert verify_engine(path, limit=3, threads=1).passed
    for field, value in (
        ("mean", [0, 0, 9]),
        ("rgb", False),
        ("padding", 2.5),
        ("peak_value", 10.0),
    ):
        spec = {**document["spec"], field: value}
        path.write_text(json.dumps({**document, "spec": spec}))
        with pytest.raises(EngineError, match=f"spec: {field}: the engine's description has"):
            verify_engine(path, limit=3, threads=1)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, *TINY.size)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("openvino", Options()),
        ("onnxruntime", Options()),
        ("torch", Options()),
        ("onnxruntime", Options(flip=True)),
        ("torch", Options(flip=True)),
        ("openvino", Options(joints=True)),
        ("torch", Options(joints=True)),
    ],
)
def test_engines_of_the_tiny_network_pass(released, kind, options):
    """Its reference takes the same graph options, but for the decoding."""
    engine = open_engine("tiny", kind=kind, precision="f32", threads=1, options=options)
    reference = reference_engine(engine.manifest, threads=1)
    assert (reference.manifest.kind, reference.manifest.precision) == ("torch", "f32")
    assert reference.manifest.spec.output == "heatmap"
    assert reference.manifest.weights_hash == engine.manifest.weights_hash
    found = verify(reference, engine, [images(8)], source="noise")
    assert found.passed, found.reasons
    assert found.reference == "torch f32"
    assert found.shift.joints > 8


@pytest.fixture
def released(tiny):
    """The tiny network as it would be released: the card knows its weights."""
    write_card(tiny, weights_sha256=file_hash(tiny / "tiny.safetensors"))
    return tiny


def altered(path: Path) -> Path:
    """Weights of the tiny network of which a few are others."""
    from fastpose.models.weights import save_weights

    network = make_tiny()
    network.deeper.weight.data += 0.5
    save_weights(network.state_dict(), path)
    return path


def test_other_weights_fail(released, tmp_path):
    engine = open_engine("tiny", kind="torch", precision="f32", threads=1)
    other = open_network(altered(tmp_path / "other.safetensors"), TINY, kind="torch", threads=1)
    found = verify(engine, other, [images(8)], source="noise")
    assert any("joints moved by more than 2 px" in reason for reason in found.reasons)


def test_pictures_of_a_bundle_are_compared_with_the_module(released):
    engine = open_engine("tiny", kind="openvino", precision="f32", threads=1)
    pictures = fixtures.windows(engine.manifest.spec, limit=6)
    found = verify_pictures(engine, pictures, threads=1)
    assert found.passed
    assert (found.reference, found.source, found.windows) == ("torch f32", "built-in", 6)
    assert found.random is False


def test_random_weights_are_compared_with_the_same_random_ones(registered):
    with pytest.warns(UserWarning, match="tiny has no trained weights"):
        engine = open_engine("tiny", kind="openvino", precision="f32", threads=1)
    assert engine.manifest.weights_hash == ""
    found = verify_pictures(engine, fixtures.windows(TINY, limit=6), threads=1)
    assert found.passed, found.reasons
    assert found.random is True
    assert found.shift.joints > 6


def test_the_reference_has_the_weights_of_the_engine(released, tmp_path):
    other = altered(tmp_path / "other.safetensors")
    manifest = open_engine("tiny", kind="torch", threads=1).manifest
    own = replace(manifest, weights_hash=file_hash(other))
    reference = reference_engine(own, weights=other, threads=1)
    assert reference.manifest.weights_hash == file_hash(other)
    wanted = open_network(other, TINY, kind="torch", threads=1)(images(2))
    np.testing.assert_allclose(reference(images(2)), wanted, rtol=0, atol=1e-5)
    first, second = manifest.weights_hash[:12], own.weights_hash[:12]
    for asked, weights, text in (
        (own, None, f"built from {second}, those of tiny here are {first}; give the weight file"),
        (manifest, other, f"built from {first}, {other} are {second}; give"),
        (replace(manifest, weights_hash=""), None, "built from random ones, those of tiny here"),
    ):
        with pytest.raises(EngineError, match=f"weights_hash: the engine was {text}"):
            reference_engine(asked, weights=weights)
    with pytest.raises(EngineError, match="weights_hash: the engine was built from abc"):
        reference_halves(detector_spec("fpn-light"), "abc", kind="openvino")


@pytest.mark.parametrize(
    ("kind", "other"), [("openvino", "onnxruntime"), ("onnxruntime", "openvino")]
)
def test_without_torch_the_reference_is_the_graph_in_another_runtime(
    released, monkeypatch, kind, other
):
    monkeypatch.setattr(verifying, "find_spec", lambda name: None)
    engine = open_engine("tiny", kind=kind, precision="f32", threads=1)
    reference = reference_engine(engine.manifest, threads=1)
    assert (reference.manifest.kind, reference.manifest.precision) == (other, "f32")
    assert verify(reference, engine, [images(8)], source="noise").passed


def test_a_network_from_elsewhere_is_compared_with_its_own_graph(graph, tmp_path):
    names = ("skeleton", "convention", "mean", "std", "rgb", "padding", "method", "sigma")
    stated = Statement(**{name: getattr(TINY, name) for name in names})
    path = wrap_network(graph, stated, engine="openvino", out=tmp_path / "b.onnx")
    engine = load_engine(path, threads=1)
    found = verify_pictures(engine, fixtures.windows(TINY, limit=6), folder=tmp_path, threads=1)
    assert found.passed
    assert (found.reference, found.random) == ("onnxruntime f32", False)
    with pytest.raises(EngineError, match="a network from elsewhere is compared with its own ONNX"):
        reference_engine(engine.manifest)
