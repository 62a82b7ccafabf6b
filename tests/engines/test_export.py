from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from fastpose import ops
from fastpose.engines import open_graph, open_network
from fastpose.engines.options import Options
from fastpose.engines.source import find_graph
from fastpose.errors import EngineError, ModelError
from fastpose.models import create, model_spec
from fastpose.models.joints import locate_joints

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
nn = torch.nn

from seeded import seed_weights, uniform  # noqa: E402
from tiny_network import TINY, make_tiny  # noqa: E402

from fastpose.engines.build import (  # noqa: E402
    export_onnx,
    fold_batch_norm,
    graph_spec,
    input_type,
    predictor,
    random_network,
)
from fastpose.engines.manifest import replaced  # noqa: E402
from fastpose.models import cpn, pbn  # noqa: E402
from fastpose.models.predictor import Predictor  # noqa: E402
from fastpose.models.tompson import Widths  # noqa: E402


def norms(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]


def lively(module: nn.Module) -> nn.Module:
    """Statistics, scales and shifts far from those of a new norm; float64, so faults stand out."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            low = 0.3 if name.endswith("running_var") else -1.0
            tensor.uniform_(low, 2.0, generator=generator)
    return module.double().eval()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, bias=False),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 4, 2, padding=1),
        nn.ConvTranspose2d(6, 6, 4, 2, padding=1, bias=False),
        nn.ConvTranspose2d(4, 6, 4, 2, groups=2),
        nn.ConvTranspose2d(6, 6, 2, groups=6),
    ],
    ids=str,
)
def test_folded_layers_answer_as_before(conv):
    module = lively(nn.Sequential(conv, nn.BatchNorm2d(6, eps=1e-3)))
    image = torch.randn(2, conv.in_channels, 7, 9, dtype=torch.float64)
    folded = fold_batch_norm(module, image)
    assert norms(folded) == []
    assert norms(module) == ["1"], "the module itself must stay as it was"
    torch.testing.assert_close(folded(image), module(image), rtol=1e-10, atol=1e-10)


class Shared(nn.Module):
    """Pairs that must not be folded: a result used twice, a convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm_a, self.norm_b, self.norm_c = (nn.BatchNorm2d(3) for _ in range(3))
        self.alias = nn.ModuleList([self.norm_c])

    def forward(self, x):
        a = self.a(x)
        b = self.norm_b(self.b(x)) + self.b(x)
        return a + self.norm_a(a) + b + self.alias[0](self.c(x))


def test_only_pairs_that_belong_together_are_folded():
    module = lively(Shared())
    image = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    folded = fold_batch_norm(module, image)
    assert norms(folded) == ["norm_a", "norm_b"]
    torch.testing.assert_close(folded(image), module(image), rtol=1e-10, atol=1e-10)


def test_a_module_that_cannot_be_traced_is_named():
    class Refuses(nn.Module):
        def forward(self, x):
            raise ValueError("not today")

    with pytest.raises(EngineError, match="Refuses cannot be traced"):
        fold_batch_norm(Refuses(), torch.zeros(2, 3, 4, 4))


def test_same_network_same_bytes_without_traces_of_the_machine(tmp_path, graph):
    export_onnx(make_tiny(), TINY, tmp_path / "again.onnx", half=False)
    written = (tmp_path / "again.onnx").read_bytes()
    assert written == graph.read_bytes()
    model = onnx.load_from_string(written)
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        assert not part.metadata_props
        assert not part.doc_string
    for trace in (b".py", b"/home", __file__.encode(), b"Traceback", b"File "):
        assert trace not in written
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not list(tmp_path.glob("*.data"))


def test_only_the_final_maps_are_exported(graph):
    model = onnx.load(str(graph))
    assert [port.name for port in model.graph.input] == ["image"]
    assert [port.name for port in model.graph.output] == ["heatmaps"]
    assert not any("coarse" in tensor.name for tensor in model.graph.initializer)
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_half_weights_are_the_rounded_weights(tmp_path, kind):
    pytest.importorskip(kind)
    path = tmp_path / "half.onnx"
    export_onnx(make_tiny(), TINY, path)
    image = np.random.default_rng(0).normal(size=(3, 3, *TINY.size)).astype(np.float32)
    rounded = predictor(make_tiny(), TINY)
    for parameter in rounded.parameters():
        if parameter.ndim >= 2:
            parameter.data = parameter.data.half().float()
    with torch.inference_mode():
        expected = rounded(torch.from_numpy(image)).numpy()
    actual = open_graph(path, kind=kind)({"image": image})["heatmaps"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_weights_beyond_half_stay_float32(tmp_path):
    network = make_tiny()
    network.final.weight.data[0, 0, 0, 0] = 1e6
    export_onnx(network, TINY, tmp_path / "large.onnx")
    tensors = {t.name: t for t in onnx.load(str(tmp_path / "large.onnx")).graph.initializer}
    kinds = {name: onnx.TensorProto.DataType.Name(t.data_type) for name, t in tensors.items()}
    assert kinds["network.final.weight"] == "FLOAT"
    assert kinds["network.up.weight.half"] == "FLOAT16"
    assert kinds["network.final.bias"] == "FLOAT"


def test_no_half_file_is_left_after_a_fault(tmp_path):
    with pytest.raises(EngineError, match=r"missing.*cannot be written"):
        export_onnx(make_tiny(), TINY, tmp_path / "missing" / "tiny.onnx")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "tiny.onnx"
    with replaced(path) as first, replaced(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # it ended last
    assert list(tmp_path.iterdir()) == [path]


def test_random_weights_are_always_the_same(registered):
    state = torch.random.get_rng_state()
    first, second = random_network("tiny"), random_network("tiny")
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


# Flip test, stages and joints in the graph


class Plain(nn.Module):
    """A network whose result follows from the picture alone: channels of it, pooled."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, channels, stride, stride)
        generator = torch.Generator().manual_seed(channels)
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 0.4, generator=generator)

    def predict(self, image):
        return self.mix(image).sigmoid()


def windows(spec, count=3):
    return torch.from_numpy(
        np.random.default_rng(0).normal(size=(count, 3, *spec.size)).astype(np.float32)
    )


def affines(count):
    angle = np.linspace(0.2, 1.0, count)
    rows = np.stack((np.cos(angle), -np.sin(angle), 30 + angle), axis=1)
    columns = np.stack((np.sin(angle), np.cos(angle), 5 * angle), axis=1)
    return np.stack((rows, columns), axis=1)


PARTS = replace(model_spec("structured-lsp"), size=(32, 48), views=(1.0,), method="argmax")


@pytest.mark.parametrize(
    "spec",
    [
        TINY,
        replace(TINY, convention="msra"),
        replace(TINY, background=True),
        replace(TINY, peaks=2, method="argmax"),
        replace(TINY, views=(1.0, 1.25, 0.8), enlarge=2, background=True),
        PARTS,
    ],
    ids=["symmetric", "shifted", "background", "peaks", "views", "parts"],
)
def test_a_flip_test_inside_is_the_one_outside(spec):
    network = Plain(spec.results[0][0], spec.stride).eval()
    image = windows(spec, 3 * len(spec.views))
    options = Options(flip=True)
    changed = graph_spec(spec, options)
    assert changed.flip_inside
    assert changed == graph_spec(changed, options)
    with torch.inference_mode():
        straight, mirrored = network.predict(image).numpy(), network.predict(image.flip(3)).numpy()
        inside = predictor(network, spec, options)(image).numpy()
    places = affines(len(image))
    expected = locate_joints(straight, places, spec, flipped=mirrored)
    actual = locate_joints(inside, places, changed)
    assert np.abs(locate_joints(straight, places, spec)[1] - expected[1]).max() > 1e-3
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)
    with pytest.raises(ModelError, match="the graph itself averages the mirrored windows in"):
        locate_joints(inside, places, changed, flipped=inside)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("structured-lsp", Options(flip=True), "types of parts have no mirror twins"),
        ("tompson-mpii", Options(flip=True), "fine maps lie in windows of their own"),
        ("structured-lsp", Options(joints=True), "placed together, along a tree"),
        ("tompson-mpii", Options(joints=True), "fine maps lie in windows"),
        ("cpm-lsp", Options(joints=True), "several views joined"),
    ],
)
def test_what_a_graph_cannot_do_is_said_with_the_reason(name, options, reason):
    with pytest.raises(ModelError, match=f"{name}.*inside the graph: .*{reason}"):
        graph_spec(model_spec(name), options)


def test_a_graph_from_elsewhere_stays_as_it_is():
    spec = replace(TINY, network="")
    assert graph_spec(spec, Options()) == spec
    with pytest.raises(ModelError, match="tiny is a graph from elsewhere"):
        graph_spec(spec, Options(flip=True))


@pytest.fixture(scope="module")
def joints_graph(tmp_path_factory):
    """The tiny network, flipped and decoded inside."""
    path = tmp_path_factory.mktemp("joints") / "joints.onnx"
    export_onnx(make_tiny(), TINY, path, half=False, options=JOINTS)
    return path


JOINTS = Options(flip=True, joints=True)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_joints_from_the_graph_are_those_of_its_maps(joints_graph, kind):
    pytest.importorskip(kind)
    image, places = windows(TINY, 3), affines(3)
    with torch.inference_mode():
        straight, mirrored = (
            make_tiny().predict(x).numpy() for x in (image, image.flip(3).contiguous())
        )
    expected, scores = locate_joints(straight, places, TINY, flipped=mirrored)
    changed = graph_spec(TINY, JOINTS)
    assert changed.results == ((14, 3),)
    engine = open_network(joints_graph, changed, kind=kind, buckets=(1, 2), threads=1)
    results = engine(image.numpy())
    found, found_scores = locate_joints(results, places, engine.manifest.spec)
    engine.close()
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)
    np.testing.assert_allclose(found_scores, scores, atol=1e-5 * scores.max(), rtol=0)
    with pytest.raises(ModelError, match=r"tiny: the graph .* itself"):
        locate_joints(results, places, replace(changed, flip_inside=False), flipped=results)


class Stages(nn.Module):
    """A stage on what the one before says, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(cin, 14, kernel, stride)
            for cin, kernel, stride in ((3, 4, 4), (14, 1, 1), (14, 1, 1))
        )

    def forward(self, image):
        one = self.first(image)
        two = self.second(one)
        return [one, two, self.third(two)]

    def predict(self, image):
        return self(image)[-1]


@pytest.mark.parametrize("stages", ["last", "sum", "mean"])
def test_stages_are_joined_as_decode_joins_them(stages):
    network, image = Stages().eval(), windows(TINY)
    with torch.inference_mode():
        every = torch.stack(network(image)).numpy()
        maps = predictor(network, TINY, Options(stages=stages))(image).numpy()
    expected = ops.decode(every, stages=stages)
    for found, wanted in zip(ops.decode(maps), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_behind_the_chosen_stage_there_is_nothing(tmp_path):
    network, image, weights = Stages().eval(), windows(TINY), []
    for number in ("1", "2", "last"):
        path = tmp_path / f"{number}.onnx"
        export_onnx(network, TINY, path, half=False, options=Options(stages=number))
        model = onnx.load(str(path))
        assert len([n for n in model.graph.node if n.op_type == "Conv"]) == len(weights) + 1
        weights.append(sum(np.prod(tensor.dims) for tensor in model.graph.initializer))
    assert weights == [14 * 49, 14 * 49 + 14 * 15, 14 * 49 + 2 * 14 * 15]
    with torch.inference_mode():
        for number in (1, 2, 3):
            maps = predictor(network, TINY, Options(stages=str(number)))(image)
            torch.testing.assert_close(maps, network(image)[number - 1])
    with pytest.raises(ModelError, match="tiny: stages must be a number from 1 to 3, got 4"):
        predictor(network, TINY, Options(stages="4"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("hourglass2", 2),
        ("adversarial-lsp", 4),
        ("cpm-flic", 4),
        ("cpn50", 5),
        ("cpn50-global", 4),
        ("cpn-light", 5),
    ],
)
def test_every_system_has_its_stages(name, count):
    spec = model_spec(name)
    with torch.device("meta"):
        network, image = create(name), torch.empty(2, 3, *spec.size)
        for stages in (str(count), "mean"):
            result = Predictor(network, spec, stages=stages)(image)
            assert result.shape == (2, *spec.results[0])
        with pytest.raises(ModelError, match=f"from 1 to {count}, got {count + 1}"):
            Predictor(network, spec, stages=str(count + 1))(image)


@pytest.mark.parametrize("name", ["structured-lsp", "tompson-mpii"])
def test_a_system_without_stages_says_so(name):
    spec = model_spec(name)
    with torch.device("meta"), pytest.raises(ModelError, match="no stages to choose from"):
        Predictor(create(name), spec, stages="1")(torch.empty(2, 3, *spec.size))


# Half precision in the graph

# one model of each system, with all its kinds of layers and few channels
SYSTEMS = {
    "cpn50": ((32, 64), {"levels": 1}),
    "cpm-flic": ((32, 64), {"width": 8, "stages": 2}),
    "structured-flic": (
        (32, 64),
        {
            "fcn6_channels": 32, "part_channels": 8, "transform_mid_channels": 8,
            "num_transform_convs": 1,
        },
    ),
    "adversarial-lsp": ((16, 32), {"stacks": 1, "channels": 16, "stem": (8, 8), "depth": 1}),
    "pbn-lsp": ((16, 32), {"stacks": 1, "channels": 16, "width": 8}),
    "tompson-flic": ((80, 96), {"widths": Widths(8, 16, 8, 8), "banks": 2}),
}  # fmt: skip
LONG = ("cpn50", "structured-flic", "tompson-flic", "adversarial-lsp")


def small_system(name):
    size, kwargs = SYSTEMS[name]
    spec = model_spec(name)
    spec = replace(spec, size=size, kwargs=spec.kwargs | kwargs)
    module, _, builder = spec.network.partition(":")
    maps = len(spec.joints) // spec.peaks
    network = getattr(import_module(f"fastpose.models.{module}"), builder)(maps, **spec.kwargs)
    seed_weights(network)
    return spec, network.eval()


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    monkeypatch.setitem(cpn.BLOCKS, 50, (1, 1, 1, 1))
    monkeypatch.setattr(pbn, "DEPTH", 1)


@pytest.fixture(params=SYSTEMS)
def system(request):
    """Spec, network, three windows and its float32 results."""
    spec, network = small_system(request.param)
    image = 2 * uniform("picture", (3, 3, *spec.size)) - 1
    with torch.inference_mode():
        return spec, network, image, network.predict(image).numpy()


def relative_error(actual, expected, spec):
    """To the largest value; of a cascade, of the joints whose windows lie in the same place."""
    assert actual.dtype == np.float32
    if spec.output == "cascade":
        cells = spec.cells[0] * spec.cells[1]
        same = actual[..., :cells].argmax(axis=2) == expected[..., :cells].argmax(axis=2)
        assert same.mean() > 0.8
        actual, expected = actual[same], expected[same]
    return abs(actual - expected).max() / abs(expected).max()


def test_half_precision_is_in_the_graph(system, tmp_path, request):
    spec, network, image, expected = system
    if spec.name in LONG and not request.config.getoption("--full-size"):
        pytest.skip("many operators, which take long to trace: give --full-size")
    path = tmp_path / "half.onnx"
    export_onnx(network, spec, path, precision="f16")
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    (given,), (result,) = model.graph.input, model.graph.output
    types = onnx.TensorProto
    wide = spec.output == "cascade"  # its picture
    assert given.type.tensor_type.elem_type == (types.FLOAT if wide else types.FLOAT16)
    assert result.type.tensor_type.elem_type == types.FLOAT
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        weights = [kinds[name] for name in node.input[1:] if name in kinds]
        if node.op_type == "BatchNormalization":
            assert set(weights) == {types.FLOAT}
        if node.op_type == "Conv" and ".network." in f".{node.input[1]}":
            assert set(weights) == {types.FLOAT16}
    feed = image.numpy() if wide else image.half().numpy()
    for kind in ("onnxruntime", "openvino"):
        pytest.importorskip(kind)
        run = open_graph(path, kind=kind, threads=1)
        assert relative_error(run({"image": feed})["heatmaps"], expected, spec) < 5e-3
        run.close()


def test_bfloat16_is_near(system):
    """In torch: ONNX Runtime has no bfloat16 convolution on CPUs."""
    spec, network, image, expected = system
    module = predictor(network, spec, precision="bf16")
    kinds = {parameter.dtype for parameter in module.parameters()}
    assert torch.bfloat16 in kinds
    with torch.inference_mode():
        actual = module(image.to(input_type(network, "bf16"))).numpy()
    assert relative_error(actual, expected, spec) < 5e-2


def test_bfloat16_in_a_graph_is_read_by_openvino(tmp_path):
    openvino = pytest.importorskip("openvino")
    network, path = make_tiny(), tmp_path / "bf16.onnx"
    export_onnx(network, TINY, path, precision="bf16", options=Options(joints=True))
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 22
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    image = windows(TINY, 2).bfloat16()
    given = openvino.Tensor(openvino.Type.bf16, list(image.shape))
    given.data[...] = image.view(torch.int16).numpy().view(given.data.dtype)
    joints = compiled(given)[0]
    with torch.inference_mode():
        maps = network.predict(image.float())
    expected, scores = ops.decode(maps.numpy(), method=TINY.method)
    near = np.abs(joints[..., :2] - expected).max(axis=2) < 0.2
    assert near.mean() > 0.9
    np.testing.assert_allclose(joints[..., 2], scores, atol=0.03 * scores.max())


def test_a_faint_picture_is_not_rounded_away_before_its_contrast_is_taken():
    spec, network = small_system("tompson-flic")
    y, x = torch.meshgrid(*(torch.arange(side) / side for side in spec.size), indexing="ij")
    image = (0.7 + 0.002 * torch.sin(9 * x) * torch.cos(7 * y)).expand(1, 3, *spec.size)
    with torch.inference_mode():
        expected = network.predict(image).numpy()
        module = predictor(network, spec, precision="bf16")
        actual = module(image.to(input_type(network, "bf16"))).numpy()
    assert relative_error(actual, expected, spec) < 5e-2


def test_maps_keep_their_digits_in_bfloat16():
    module = predictor(make_tiny(), TINY, precision="bf16")
    wide = {n for n, p in module.named_parameters() if p.dtype == torch.float32}
    assert wide == {"network.final.weight", "network.final.bias"}
    module = predictor(make_tiny(), TINY, Options(stages="mean", joints=True), "bf16")
    wide = {n for n, p in module.named_parameters() if p.dtype == torch.float32}
    assert wide == {f"network.{at}.{of}" for at in ("coarse", "final") for of in ("weight", "bias")}


def test_norms_stay_float32():
    spec, network = small_system("pbn-lsp")
    module = predictor(network, spec, precision="f16")
    for part in module.modules():
        kind = torch.float32 if isinstance(part, nn.BatchNorm2d) else torch.float16
        assert {p.dtype for p in part.parameters(recurse=False)} <= {kind}


def test_layers_beyond_half_stay_float32():
    """Growth as of untrained stacks: the features leave the range, and come back."""
    network, image = make_tiny(), windows(TINY)
    network.down[1].weight.data *= 1e5
    network.deeper.weight.data *= 1e-5
    network.final.weight.data *= 1e-5
    network.up.weight.data *= 1e5
    with torch.inference_mode():
        expected = network.predict(image).numpy()
        module = predictor(network, TINY, precision="f16")
        actual = module(image.half()).numpy()
    assert np.isfinite(expected).all()
    assert abs(actual - expected).max() < 5e-3 * abs(expected).max()
    wide = {n for n, p in module.named_parameters() if p.dtype == torch.float32}
    assert wide == {
        f"network.{layer}.{kind}"
        for layer in ("down.0", "deeper", "up", "coarse", "final")
        for kind in ("weight", "bias")
    }
    normal = predictor(make_tiny(), TINY, precision="f16")
    assert {p.dtype for p in normal.parameters()} == {torch.float16}


# Where a graph comes from


def test_graphs_are_kept_by_options_and_precision(registered, monkeypatch):
    written = []

    def write(module, spec, path, **asked):
        written.append(asked)
        path.write_text("graph")

    monkeypatch.setattr("fastpose.engines.build.export_onnx", write)
    asked = [
        (Options(), "f32"),
        (Options(), "f16"),
        (Options(flip=True), "f32"),
        (Options(flip=True, stages="2"), "f32"),
        (Options(joints=True), "bf16"),
    ]
    paths = [find_graph(TINY, None, options, precision)[0] for options, precision in asked]
    assert len(set(paths)) == len(asked) == len(written)
    for (options, precision), path in zip(asked, paths, strict=True):
        again = find_graph(graph_spec(TINY, options), None, options, precision)
        assert again == (path, ""), "the changed network has the same graph"
    assert find_graph(TINY, None, Options(workspace=9))[0] == paths[0]
    assert len(written) == len(asked)
    with pytest.raises(ValueError, match="precision must be one of f32, bf16, f16, got 'int8'"):
        find_graph(TINY, None, Options(), "int8")


def test_the_trained_graph_is_taken_as_it_is(tiny):
    assert find_graph(TINY)[0] == tiny / "tiny.onnx"
    assert find_graph(TINY, None, Options(flip=True))[0].parent != tiny
