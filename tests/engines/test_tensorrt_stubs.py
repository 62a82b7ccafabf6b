"""The check of the calls of TensorRT: it finds what the real bindings do not have."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stubs() -> ModuleType:
    """The script, where its stubs have been made."""
    path = ROOT / "scripts" / "tensorrt_stubs.py"
    spec = importlib.util.spec_from_file_location("tensorrt_stubs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for version in module.VERSIONS:
        if not (module.FOLDER / version / "stubs").is_dir():
            pytest.skip("needs stubs of TensorRT: run python scripts/tensorrt_stubs.py")
    pytest.importorskip("mypy")
    return module


def plant(folder: Path, *lines: str) -> Path:
    """A file with these lines in a function that has one of everything."""
    path = folder / "planted.py"
    given = ("context: trt.IExecutionContext", "config: trt.IBuilderConfig", "builder: trt.Builder")
    head = ["import tensorrt as trt", "", "", f"def planted({', '.join(given)}) -> None:"]
    path.write_text("\n".join([*head, *(f"    {line}" for line in lines), ""]))
    return path


CLEAN = (
    'if not context.set_input_shape("image", (1, 3, 256, 192)):',
    "    raise RuntimeError",
    "shape = tuple(context.get_tensor_shape('image'))",
    "profile = builder.create_optimization_profile()",
    "if profile is not None:",
    "    profile.set_shape('image', shape, (1, 2), [1, 2])",
    "config.set_flag(trt.BuilderFlag.REFIT)",
)


REMOVED = "config.set_flag(trt.BuilderFlag.FP16)"  # by version 11
FAULTS = {
    "context.set_binding_shape(0, (1, 3))": 'no attribute "set_binding_shape"',
    "builder.max_batch_size = 8": 'no attribute "max_batch_size"',
    "context.execute_async_v3(0)": "nobody reads whether execute_async_v3 worked",
    "builder.create_network('typed')": "incompatible type",
    "builder.create_optimization_profile().set_shape": 'Item "None"',
    'bool(context.set_input_shape("image", 3))': "No overload variant",
    "trt.Runtime()": "Missing positional argument",
    REMOVED: 'no attribute "FP16"',
}


@pytest.mark.parametrize("version", ["10.13", "10.16", "11"])
def test_planted_faults_are_found_and_nothing_else(stubs, version, tmp_path) -> None:
    path = plant(tmp_path, *CLEAN, *FAULTS)
    found = sorted(stubs.find_faults(version, [path]), key=lambda line: int(line.split(":")[1]))
    wanted = [fault for line, fault in FAULTS.items() if version == "11" or line != REMOVED]
    assert len(found) == len(wanted), found
    for number, (line, fault) in enumerate(zip(found, wanted, strict=True)):
        assert f":{5 + len(CLEAN) + number}: " in line
        assert fault in line


def test_the_script_fails_where_something_is_found(stubs, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(stubs, "make", lambda version: None)  # they are there
    monkeypatch.setattr(stubs, "VERSIONS", {"11": ""})
    for line, code in (("context.execute_async_v3(0)", 1), (*CLEAN[-1:], 0)):
        monkeypatch.setattr(sys, "argv", ["tensorrt_stubs.py", str(plant(tmp_path, line))])
        assert stubs.main() == code
        assert ("execute_async_v3" in capsys.readouterr().out) == bool(code)


def test_the_engine_itself_passes(stubs) -> None:
    assert len(stubs.FILES) == 1
    for version in stubs.VERSIONS:
        assert stubs.find_faults(version, stubs.FILES) == []


def test_the_engine_is_what_graphs_and_direct_frames_take(stubs, tmp_path) -> None:
    path = tmp_path / "protocols.py"
    path.write_text(
        "from fastpose.direct import PointerEngine\n"
        "from fastpose.engines import Engine\n"
        "from fastpose.engines.tensorrt import TensorRTEngine\n"
        "from fastpose.graph import StreamEngine\n\n\n"
        "def taken(one: TensorRTEngine) -> tuple[Engine, PointerEngine, StreamEngine]:\n"
        "    return one, one, one\n"
    )
    assert stubs.find_faults("11", [path]) == []


def test_what_cannot_be_had_is_one_line(stubs, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(stubs, "STUBGEN", "no-such-name-anywhere[")
    monkeypatch.setattr(stubs, "FOLDER", tmp_path)
    monkeypatch.setitem(stubs.VERSIONS, "11", "is-not-a-version")
    with pytest.raises(stubs.StubError) as raised:
        stubs.make("11")
    assert "\n" not in str(raised.value)
