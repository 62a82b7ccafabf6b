"""Check the calls of TensorRT against its real bindings, on machines without its libraries.

The bindings are a small wheel of their own. They need nine functions of the libraries, so that an
empty library with these names lets the module be imported, nothing of it being able to run. From
the module come type stubs, one package `tensorrt` for each version that is supported, and mypy
holds the files that import tensorrt to them. A second look finds calls that tell by a bool whether
they worked, where nobody reads it.

The bindings and what is made from them are NVIDIA's: they stay in `build/`, which git ignores.

    python scripts/tensorrt_stubs.py            make the stubs of all versions, and check
    python scripts/tensorrt_stubs.py FILE ...   the same for other files

The interpreter needs pip, mypy and numpy; the machine a C compiler.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "tensorrt_stubs"
FILES = (ROOT / "fastpose" / "engines" / "tensorrt.py",)

VERSIONS = {"10.13": "==10.13.*", "10.16": ">=10.16,<11", "11": ">=11.4,<12"}
"""What each package of stubs is made from: the oldest that is supported, then the last of each
major version."""
STUBGEN = "pybind11-stubgen==3.0.0"

EXTERNAL = """
#define F(name) void *name(void) { return 0; }
F(createInferBuilder_INTERNAL) F(createInferRefitter_INTERNAL) F(createInferRuntime_INTERNAL)
F(createNvOnnxParserRefitter_INTERNAL) F(createNvOnnxParser_INTERNAL)
F(getBuilderPluginRegistry) F(getPluginRegistry)
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void *logger, const char *name) { return 0; }
"""
LIBRARIES = {"nvinfer": EXTERNAL, "nvinfer_plugin": "", "nvonnxparser": ""}

# What the stubs say wrongly: false alarms and, worse, faults that they would hide. Nothing that
# mypy finds is left out for any other reason.
WIDER = {  # of arguments
    "Dims": "Dims | collections.abc.Sequence[int]",  # pybind11 makes one of any tuple or list
}
NAMES = {  # of types, in arguments and results
    "bool": "builtins.bool",  # the module has a `bool` too, a DataType
    "buffer": "typing_extensions.Buffer",  # as older bindings spell it
    "capsule": "typing.Any",
}
UNKNOWN = {
    "OnnxParser.get_error": "ParserError",  # bound before its result is, hence spelt "..."
    "OnnxParserRefitter.get_error": "ParserError",  # the same
}
NULL = {  # a pointer, null where it fails: None in Python
    "Builder.build_serialized_network",
    "Builder.create_builder_config",
    "Builder.create_network",
    "Builder.create_optimization_profile",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "ICudaEngine.create_engine_inspector",
    "ICudaEngine.create_execution_context",
    "ICudaEngine.serialize",
    "ITimingCache.serialize",
    "Runtime.deserialize_cuda_engine",
}
MORE = {
    # the buffer protocol has no place in what the generator looks at
    "IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ...",
    # Python goes over what has __getitem__ and ends at its IndexError
    "Dims": "def __iter__(self) -> collections.abc.Iterator[int]: ...",
}
ADDED = "__version__: str\n"  # in the Python file round the module
IMPORTS = "import builtins, collections.abc, typing, typing_extensions\n"


class StubError(Exception):
    """The stubs cannot be made; the text is one line with the reason."""


def make(version: str) -> Path:
    """The folder that has the stub package `tensorrt` of a key of `VERSIONS`.

    Raises:
        StubError: the wheels cannot be had, or the module cannot be imported.
    """
    folder = FOLDER / version
    bindings, tools, libraries = folder / "bindings", FOLDER / "tools", folder / "lib"
    _install(f"tensorrt_cu13_bindings{VERSIONS[version]}", bindings)
    _install(STUBGEN, tools)
    _build_libraries(libraries, version.partition(".")[0])
    raw = folder / "raw"
    paths = {
        "PYTHONPATH": os.pathsep.join([str(bindings), str(tools)]),
        "LD_LIBRARY_PATH": str(libraries),
    }
    # what it cannot spell it writes as "..." and says so with a code of its own
    options = ["--ignore-all-errors", "-o", str(raw)]
    module = "tensorrt_bindings.tensorrt"
    done = _run([sys.executable, "-m", "pybind11_stubgen", module, *options], paths)
    path = raw / "tensorrt_bindings" / "tensorrt.pyi"
    if not path.is_file():
        raise StubError(f"stubs of {version}: {_last_line(done)}")
    package = folder / "stubs" / "tensorrt"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.pyi").write_text(clean(path.read_text(encoding="utf-8")), "utf-8")
    return package.parent


def clean(text: str) -> str:
    """Stubs that can be parsed, without docstrings, with the corrections above."""
    text = re.sub(r"\bin: ", "in_: ", text)  # a keyword as an argument
    # a default before arguments that have none
    text = re.sub(r"(channel_axis: [\w.]+)\)", r"\1 = 0)", text)
    tree = ast.parse(text)
    for name, node in _functions(tree):
        _correct(name, node)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in MORE:
            node.body += ast.parse(MORE[node.name]).body
        if isinstance(node, ast.AnnAssign):
            node.annotation = _typed(node.annotation)
    text = ast.unparse(tree)
    head = "from __future__ import annotations\n"
    return head + IMPORTS + ADDED + text.removeprefix(head)


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions, by class and name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}", member


def _correct(name: str, node: ast.FunctionDef) -> None:
    if ast.get_docstring(node) is not None:
        node.body = [ast.Expr(ast.Constant(...))]
    given = node.args
    for argument in given.args:
        if argument.annotation is not None:
            argument.annotation = _typed(argument.annotation, wider=True)
    for argument, default in zip(given.args[::-1], given.defaults[::-1], strict=False):
        if isinstance(default, ast.Constant) and default.value is None and argument.annotation:
            argument.annotation = _or_none(argument.annotation)
    if node.returns is not None:
        returns = ast.Name(UNKNOWN[name]) if name in UNKNOWN else _typed(node.returns)
        node.returns = _or_none(returns) if name in NULL else returns


def _or_none(annotation: ast.expr) -> ast.expr:
    return ast.BinOp(annotation, ast.BitOr(), ast.Constant(None))


def _typed(annotation: ast.expr, wider: bool = False) -> ast.expr:
    """The annotation as it is meant."""
    match annotation:
        case ast.Name(name) if name in NAMES:
            return _parsed(NAMES[name])
        case ast.Name(name) if wider and name in WIDER:
            return _parsed(WIDER[name])
        case ast.Constant(value) if value is ...:
            return _parsed("typing.Any")
    return annotation


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def find_faults(version: str, files: Sequence[Path]) -> list[str]:
    """What is wrong with these files by the stubs of a version that `make` has made.

    Raises:
        StubError: mypy itself fails.
    """
    found = _mypy(version, files)
    stubs = ast.parse((FOLDER / version / "stubs" / "tensorrt" / "__init__.pyi").read_text("utf-8"))
    results: dict[str, set[str]] = {}
    for _, node in _functions(stubs):
        results.setdefault(node.name, set()).add(ast.unparse(node.returns) if node.returns else "")
    telling = {name for name, kinds in results.items() if kinds == {NAMES["bool"]}}
    for path in files:
        found += _unread(path, telling)
    return found


def _mypy(version: str, files: Sequence[Path]) -> list[str]:
    """Its findings in these files by the project's own settings, but with tensorrt followed."""
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    opened = settings.replace(', "tensorrt.*"', "")
    if opened == settings:
        raise StubError("pyproject.toml: the list of packages without types has no tensorrt.*")
    config = FOLDER / "mypy.toml"
    config.write_text(opened, "utf-8")
    path = os.pathsep.join([str(FOLDER / version / "stubs"), str(ROOT)])
    options = ["--no-pretty", "--no-error-summary", "--cache-dir", str(FOLDER / "mypy")]
    options += ["--show-absolute-path", "--hide-error-context"]
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), *options]
    done = _run([*command, *map(str, files)], {"MYPYPATH": path})
    if done.returncode not in (0, 1):
        raise StubError(f"mypy: {_last_line(done)}")
    starts = tuple(f"{path}:" for path in files)
    lines = [line for line in done.stdout.splitlines() if line.startswith(starts)]
    return [line for line in lines if ": note: " not in line]


def _unread(path: Path, telling: set[str]) -> Iterator[str]:
    """Calls of methods that return whether they worked, as statements of their own."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Expr(ast.Call(func=ast.Attribute(attr=name))) if name in telling:
                yield f"{path}:{node.lineno}: error: nobody reads whether {name} worked"


def _install(requirement: str, folder: Path) -> None:
    stamp = folder / "requirement.txt"
    if stamp.is_file() and stamp.read_text("utf-8") == requirement:
        return
    command = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--no-deps"]
    done = _run([*command, "--target", str(folder), requirement])
    if done.returncode:
        raise StubError(f"{requirement}: {_last_line(done)}")
    stamp.write_text(requirement, "utf-8")


def _build_libraries(folder: Path, major: str) -> None:
    """Libraries that have the names the bindings ask for, and return null."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in LIBRARIES.items():
        source = folder / f"{name}.c"
        source.write_text(text, "utf-8")
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", str(source)]
        done = _run([*command, "-o", str(folder / f"lib{name}.so.{major}")])
        if done.returncode:
            raise StubError(f"{name}: {_last_line(done)}")


def _run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise StubError(f"{command[0]}: {error.strerror}") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"{done.args[0]} ended with {done.returncode}"


def main() -> int:
    """Check all versions; the exit code says whether nothing was found."""
    files = [Path(name).resolve() for name in sys.argv[1:]] or list(FILES)
    faults = 0
    for version in VERSIONS:
        try:
            make(version)
            found = find_faults(version, files)
        except StubError as error:
            print(f"tensorrt {version}: {error}")
            return 2
        for line in found:
            print(f"tensorrt {version}: {line}")
        print(f"tensorrt {version}: {len(found) or 'no'} faults in {len(files)} files")
        faults += len(found)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
