"""The tiny network, registered and trained for the length of a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fastpose import models
from fastpose.models import trained

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from tiny_network import TINY, Tiny, make_tiny, write_card  # noqa: E402


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    torch.set_num_threads(1)  # more of them only wait for each other on networks of this size


@pytest.fixture(autouse=True, scope="package")
def _plain_wrappers() -> Iterator[None]:
    """A package's wrapper, which calls its kernels, is not optimised: that is half of its build."""
    import torch._inductor.config as settings

    with settings.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        yield


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as ONNX, in float32."""
    from fastpose.engines.build import export_onnx

    path = tmp_path_factory.mktemp("graph") / "tiny.onnx"
    export_onnx(make_tiny(), TINY, path, half=False)
    return path


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny network has a name, and an empty folder stands for `trained/`: the folder."""
    module = ModuleType("fastpose.models.tiny")
    module.Tiny = Tiny
    monkeypatch.setitem(sys.modules, "fastpose.models.tiny", module)
    monkeypatch.setitem(models.MODELS, "tiny", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "trained"
    folder.mkdir()
    monkeypatch.setattr(trained, "folder", lambda: folder)
    return folder


@pytest.fixture
def tiny(registered: Path, graph: Path) -> Path:
    """`registered`, with the network's graph, weights and card in the folder."""
    from fastpose.models.weights import save_weights

    (registered / "tiny.onnx").write_bytes(graph.read_bytes())
    save_weights(make_tiny().state_dict(), registered / "tiny.safetensors")
    write_card(registered)
    return registered
