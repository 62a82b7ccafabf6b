from __future__ import annotations

import numpy as np
import pytest

from fastpose.engines import open_graph
from fastpose.errors import EngineError

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
nn = torch.nn

from tiny_network import TINY, make_tiny  # noqa: E402

from fastpose.engines.build import (  # noqa: E402
    export_onnx,
    fold_batch_norm,
    predictor,
    random_network,
)
from fastpose.engines.manifest import replaced  # noqa: E402


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
