"""Who may import whom, read from the syntax tree; and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# top to bottom: a layer imports from those below it alone; on one line nobody imports another
LAYERS = [
    {"__main__"},
    {"cli"},
    {"train"},
    {"__init__"},
    {"bench"},
    {"conformance", "pose"},
    {"bundles", "detectors"},
    {"fixtures"},
    {"evaluate"},
    {"pipeline"},
    {"detect", "people", "smooth", "track"},
    {"graph"},
    {"direct"},
    {"engines", "frames", "sinks"},
    {"models"},
    {"crop"},
    {"geometry", "ops", "datasets"},
    {"machine", "measure"},
    {"types"},
    {"skeleton"},
    {"errors"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

COMPILED = ("_C", "_C_cuda")
RUNTIMES = {"openvino", "onnxruntime", "tensorrt"}
VIDEO = {"VideoCapture", "VideoWriter", "VideoWriter_fourcc"}
DRAWING = {
    "arrowedLine", "circle", "drawContours", "drawMarker", "ellipse", "fillConvexPoly", "fillPoly",
    "line", "polylines", "putText", "rectangle",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import: `fastpose.ops.warp` for both ways of writing it.

    Attributes:
        target: the whole dotted name.
        line: where.
        at_load: it is done when the module is loaded, not when a function of it is called.
        typing: it stands under `if TYPE_CHECKING:` and is never done.
    """

    target: str
    line: int
    at_load: bool
    typing: bool

    @property
    def parts(self) -> list[str]:
        return self.target.split(".")


def imports(tree: ast.AST, module: list[str]) -> Iterator[Import]:
    """All imports of a module, `import_module("...")` included."""

    def visit(node: ast.AST, at_load: bool, typing: bool) -> Iterator[Import]:
        for target in targets(node, module):
            yield Import(target, node.lineno, at_load and not typing, typing)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for name, value in ast.iter_fields(node):
            guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    never = typing or (guarded and name == "body")
                    yield from visit(child, at_load and not inside, never)

    yield from visit(tree, True, False)


def targets(node: ast.AST, module: list[str]) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=source, names=names, level=level):
            base = module[: len(module) - level] if level else []
            base = [*base, *(source.split(".") if source else [])]
            return [".".join([*base, alias.name]) for alias in names]
        case ast.Call(
            func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
    return []


def violations(package: Path) -> list[str]:
    """Every breach of the rules under `package`, as file:line: what."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        tree = ast.parse(path.read_text(), str(path))
        breaches = [*layer_breaches(tree, place), *call_breaches(tree, place)]
        for item in imports(tree, ["fastpose", *place.with_suffix("").parts]):
            found_here = [*library_breaches(item, place), *triton_breaches(item, place)]
            breaches += [(item.line, text) for text in found_here]
        found += [f"{place.as_posix()}:{line}: {text}" for line, text in breaches]
    return found


def layer(place: Path) -> str:
    """The module or package right under fastpose that holds a file."""
    return place.with_suffix("").parts[0]


def layer_breaches(tree: ast.AST, place: Path) -> Iterator[tuple[int, str]]:
    here = layer(place)
    if here not in LEVEL:
        yield 1, f"{here} has no place in the layers"
        return
    for item in imports(tree, ["fastpose", *place.with_suffix("").parts]):
        if item.parts[0] in ("tests", "benchmarks"):
            yield item.line, f"imports {item.target}"
        there = item.parts[1] if len(item.parts) > 1 else "__init__"
        if item.parts[0] != "fastpose" or there in (here, *COMPILED, "__version__"):
            continue
        there = there if there in LEVEL else "__init__"  # a name that the package itself offers
        if LEVEL[there] <= LEVEL[here]:
            yield item.line, f"{here} imports {there}, which is not below it"


def library_breaches(item: Import, place: Path) -> Iterator[str]:
    here, top, under = layer(place), item.parts[0], item.parts[1:3]
    if here != "ops" and item.target.startswith("fastpose._C"):
        yield f"only ops imports {item.target}"
    if here != "ops" and top == "fastpose" and under in (["ops", "cpp"], ["ops", "triton"]):
        yield f"{here} imports a kernel: {item.target}"
    if here not in ("frames", "sinks") and top == "av":
        yield "only frames and sinks import a video library"
    if top in RUNTIMES and not item.typing and place != Path("engines", f"{top}.py"):
        yield f"only engines/{top}.py imports {top}"
    files = [["engines", name] for name in (*RUNTIMES, "torch")]
    if top == "fastpose" and under in files:
        if ["engines", place.stem] in files and here == "engines":
            yield f"one runtime imports another: {item.target}"
        elif item.at_load:
            yield f"{item.target} loads a runtime: to be imported when it is needed"


def triton_breaches(item: Import, place: Path) -> Iterator[str]:
    if place.parts[:2] == ("ops", "triton"):
        return
    if item.parts[0] == "triton" and place != Path("ops", "choose.py"):
        yield f"only ops/triton imports {item.target}, and ops/choose.py, to see whether it loads"
    if layer(place) == "ops" and item.parts[:3] == ["fastpose", "ops", "triton"] and item.at_load:
        yield f"{item.target} loads triton: to be imported when it is needed"


def call_breaches(tree: ast.AST, place: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="cv2"), attr=name):
                if name in VIDEO and layer(place) not in ("frames", "sinks"):
                    yield node.lineno, f"only frames and sinks use cv2.{name}"
                if name in DRAWING and layer(place) != "sinks":
                    yield node.lineno, f"only sinks draw: cv2.{name}"


def test_the_package_keeps_the_rules():
    assert violations(ROOT / "fastpose") == []


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("ops/a.py", "from fastpose.crop import Window", "ops imports crop"),
        ("ops/a.py", "from fastpose import crop", "ops imports crop"),
        ("ops/a.py", "import fastpose.crop", "ops imports crop"),
        ("ops/a.py", "from ..crop import Window", "ops imports crop"),
        ("ops/a.py", "def f():\n    from fastpose.crop import Window", "ops imports crop"),
        ("geometry.py", "from fastpose.ops import warp", "geometry imports ops"),
        ("ops/a.py", "from fastpose import Pose", "ops imports __init__"),
        ("ops/a.py", "import fastpose", "ops imports __init__"),
        ("pose.py", "if TYPE_CHECKING:\n    from fastpose.cli import main", "pose imports cli"),
        ("pose.py", "import_module('fastpose.cli')", "pose imports cli"),
        ("stray.py", "", "stray has no place in the layers"),
        ("crop.py", "from tests.kernels import kernels", "imports tests.kernels"),
        ("crop.py", "import benchmarks", "imports benchmarks"),
        ("crop.py", "from fastpose import _C", "only ops imports fastpose._C"),
        ("crop.py", "from fastpose._C import warp", "only ops imports fastpose._C"),
        ("models/a.py", "import triton.language as tl", "only ops/triton imports triton"),
        ("ops/a.py", "def f():\n    import triton", "only ops/triton imports triton"),
        ("ops/a.py", "from fastpose.ops.triton.render import render", "when it is needed"),
        ("models/a.py", "from fastpose.ops.cpp import warp", "models imports a kernel"),
        ("models/a.py", "from fastpose.ops.triton.render import render", "imports a kernel"),
        ("detect.py", "def f():\n    import openvino", "only engines/openvino.py imports openvino"),
        ("engines/build.py", "import openvino", "only engines/openvino.py imports openvino"),
        ("engines/a.py", "from fastpose.engines.openvino import A", "when it is needed"),
        ("engines/__init__.py", "from .torch import A", "when it is needed"),
        ("pose.py", "class A:\n    from fastpose.engines import torch", "when it is needed"),
        ("engines/torch.py", "from fastpose.engines.openvino import A", "imports another"),
        ("engines/torch.py", "from .openvino import A", "imports another"),
        ("pose.py", "import av", "import a video library"),
        ("detect.py", "def f():\n    cv2.VideoCapture(0)", "use cv2.VideoCapture"),
        ("pose.py", "cv2.circle(image)", "only sinks draw"),
    ],
)
def test_a_breach_is_found(tmp_path, file, source, message):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("crop.py", "from fastpose import ops\nfrom fastpose.geometry import invert"),
        ("ops/a.py", "from fastpose import _C\nfrom fastpose.ops.cpp import warp"),
        ("ops/a.py", "def f():\n    from fastpose.ops.triton.render import render"),
        ("ops/choose.py", "import_module('triton')"),
        ("ops/triton/a.py", "import triton\nfrom fastpose.ops.triton.aot import Instance"),
        ("engines/openvino.py", "import openvino as ov\nfrom fastpose import models"),
        ("engines/a.py", "if TYPE_CHECKING:\n    import openvino"),
        ("engines/__init__.py", "def f():\n    from fastpose.engines.openvino import A"),
        ("engines/__init__.py", "if TYPE_CHECKING:\n    from fastpose.engines.torch import A"),
        ("sinks/a.py", "import av\ncv2.VideoWriter()\ncv2.circle(image)"),
        ("cli/__init__.py", "from fastpose import __version__\nfrom fastpose import Pose"),
        ("__init__.py", "from fastpose.pose import Pose"),
    ],
)
def test_what_is_allowed_is_not_a_breach(tmp_path, file, source):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("use", ["", "from fastpose.cli import parser; parser()"])
def test_importing_loads_no_runtime(use):
    heavy = ["torch", "cv2", "openvino", "onnxruntime", "av", "pyarrow", "triton", "onnx", "scipy"]
    code = f"import sys, fastpose; {use}\nprint([m for m in {heavy} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_importing_takes_under_300_ms():
    # of the processor: what else a busy machine does is not ours
    code = "import time; t = time.process_time(); import fastpose; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(5)) < 0.3
