"""Checks of what lies on the disk: a bundle that does not fit is refused, and says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastpose.conformance.subject import NEAR, Failed, Skipped, Subject, answer, difference
from fastpose.engines import Manifest, load_engine, runtime_module, source
from fastpose.engines.manifest import file_hash
from fastpose.engines.verify import reference_engine
from fastpose.errors import BackendError, EngineError

ELSEWHERE = "nowhere:7"  # no runtime has such a device
CUTS = (0.0, 0.25, 0.5, 0.75)  # of a file, what is left of it
RUNS, REFUSED, SEVERAL, RAISES = OUTCOMES = (
    "is loaded and runs",
    "is refused in one line",
    "is refused in several",
    "raises",
)
CHANGED = 0.05  # of each weight, on the average, in another network
PATIENCE = 1800.0  # seconds for a process that builds or loads


def manifest(subject: Subject) -> str:
    """The manifest says what was built, and `fastpose inspect` reads it."""
    path = subject.need_bundle()
    found = Manifest.load(path)
    wanted: dict[str, Any] = {
        "kind": subject.kind,
        "precision_asked": subject.precision,
        "buckets": subject.buckets,
        "files": {name: file_hash(path.parent / name) for name in found.files},
    }
    for field, value in wanted.items():
        if getattr(found, field) != value:
            raise Failed(f"{field} is {getattr(found, field)!r}, not {value!r}")
    empty = [name for name in ("versions", "ties", "files", "report") if not getattr(found, name)]
    if empty:
        raise Failed(f"{', '.join(empty)}: nothing is said")
    with subject.opened() as engine:
        for field in ("spec", "kind", "precision", "buckets", "weights_hash"):
            ours, theirs = getattr(found, field), getattr(engine.manifest, field)
            if ours != theirs:
                raise Failed(f"{field} is {ours!r}, the engine says {theirs!r}")
    _inspect(path)
    size = sum((path.parent / name).stat().st_size for name in found.files)
    ties = ", ".join(f"{name} {value}" for name, value in found.ties.items())
    return f"{len(found.files)} files, {size / 1e6:.1f} MB, tied to {ties}"


def _inspect(path: Path) -> None:
    done = _python("from fastpose.cli import main; raise SystemExit(main())", "inspect", str(path))
    if done.returncode:
        raise Failed(f"`fastpose inspect` ended with {done.returncode}: {_last(done.stderr)}")


def wrong_device(subject: Subject) -> str:
    """A bundle of another GPU or processor is refused, naming what differs."""
    path = subject.need_bundle()
    built = Manifest.load(path)
    for name, value in built.ties.items():
        if name != subject.kind:
            other = f"not {value}"
            _check_tie(_changed(subject, "device", ties={**built.ties, name: other}), name, other)
    changed = _changed(subject, "device", device=ELSEWHERE)
    text = _refusal(changed, f"a bundle for the device {ELSEWHERE!r}")
    if ELSEWHERE.lower() not in text.lower():
        raise Failed(f"the device {ELSEWHERE!r} is not named: {text}")
    named = [name for name in built.ties if name != subject.kind]
    return f"refused by name: {', '.join([*named, 'device'])}"


def wrong_version(subject: Subject) -> str:
    """A bundle of another version of the runtime is refused, naming both."""
    path = subject.need_bundle()
    ties = Manifest.load(path).ties
    if subject.kind not in ties:
        raise Failed(f"the bundle is tied to no version of {subject.kind}: {ties}")
    other = f"99.{ties[subject.kind]}"
    _check_tie(
        _changed(subject, "version", ties={**ties, subject.kind: other}), subject.kind, other
    )
    return f"refused by name: {subject.kind} {other}, here {ties[subject.kind]}"


def _check_tie(path: Path, name: str, other: str) -> None:
    text = _refusal(path, f"a bundle with {name} {other!r}")
    if name not in text or other not in text:
        raise Failed(f"{name} {other!r} is not named: {text}")


def damaged_file(subject: Subject) -> str:
    """A file that was cut, or has one other byte, is refused by its hash."""
    path = subject.need_bundle()
    names = list(Manifest.load(path).files)
    for name in names:
        for what, content in _damages(path.parent / name):
            changed = _changed(subject, "damage")
            (changed.parent / name).write_bytes(content)
            text = _refusal(changed, f"{name} {what}")
            if name not in text:
                raise Failed(f"{name} {what}: it is not named: {text}")
    missing = _changed(subject, "damage")
    (missing.parent / names[0]).unlink()
    _refusal(missing, f"a bundle without {names[0]}")
    return f"{', '.join(names)}: cut at {len(CUTS) + 1} places, one byte other, missing"


def damage_unnoticed(subject: Subject) -> str:
    """A cut file that the manifest vouches for is refused by the runtime, which lives on."""
    path = subject.need_bundle()
    built = Manifest.load(path)
    cases = {str(_changed(subject, "whole")): "the whole bundle"}  # what was done, by the manifest
    for name in built.files:
        content = (path.parent / name).read_bytes()
        for cut in CUTS:
            case = _changed(subject, f"cut-{len(cases)}")
            (case.parent / name).write_bytes(content[: int(cut * len(content))])
            edit(case, files={**built.files, name: file_hash(case.parent / name)})
            cases[str(case)] = f"{name} cut to {100 * cut:.0f} %"
    code = "import sys; from fastpose.conformance.bundles import load_each; load_each(sys.argv[1:])"
    done = _python(code, *cases)
    found = [line for line in done.stdout.splitlines() if line.startswith(OUTCOMES)]
    for what, line in zip(cases.values(), found, strict=False):
        wanted = RUNS if what == "the whole bundle" else REFUSED
        if not line.startswith(wanted):
            raise Failed(f"{what}: {line}")
    if len(found) < len(cases):
        what = list(cases.values())[len(found)]
        raise Failed(f"{what}: the process ended with {done.returncode}: {_last(done.stderr)}")
    return f"{len(cases) - 1} cuts, each an error of one line in a living process"


def load_each(paths: list[str]) -> None:
    """Load and run bundles one after the other, printing a line behind each."""
    for path in paths:
        try:
            engine = load_engine(path)
            engine.run(1)
            engine.close()
            line = RUNS
        except EngineError as error:
            line = f"{SEVERAL if chr(10) in str(error) else REFUSED}: {error}"
        except Exception as error:
            line = f"{RAISES} {type(error).__name__}: {error}"
        sys.stdout.write(" ".join(line.splitlines()) + "\n")
        sys.stdout.flush()


def building_twice(subject: Subject) -> str:
    """Two processes that build the same engine of the cache at once get one sound bundle."""
    subject.need_bundle()
    cache = subject.folder / "cache"
    arguments = subject.arguments()
    options = arguments.pop("options").to_dict()
    del arguments["progress"]
    calibration = arguments["calibration"]
    arguments["calibration"] = None if calibration is None else str(calibration)
    code = (
        "import json, sys; from fastpose import Options, build_engine; "
        "given = json.loads(sys.argv[1]); "
        "print(build_engine(options=Options(**given.pop('options')), **given))"
    )
    given = json.dumps({**arguments, "options": options})
    build = partial(_python, code, given, environment={"XDG_CACHE_HOME": str(cache)})
    with ThreadPoolExecutor(2) as pool:
        both = [job.result() for job in [pool.submit(build) for _ in range(2)]]
    for done in both:
        if done.returncode:
            raise Failed(f"one of two ended with {done.returncode}: {_last(done.stderr)}")
    paths = {_last(done.stdout) for done in both}
    if len(paths) != 1:
        raise Failed(f"they built {len(paths)} bundles")
    path = Path(paths.pop())
    left = [p.name for p in path.parent.iterdir() if p.name.endswith(".part")]
    if left:
        raise Failed(f"they left {left[0]}")
    with subject.opened(bundle=path) as engine:
        engine.run(1)
    return "both end with the same bundle, which runs"


def refit(subject: Subject) -> str:
    """Other weights put into a built engine make it answer as the network with these weights."""
    if subject.kind != "tensorrt":
        raise Skipped("only TensorRT can put other weights into a built engine")
    if subject.precision == "int8":
        raise Skipped("the scales of int8 belong to the weights that it was built from")
    if find_spec("torch") is None:
        raise Skipped("other weights are made with torch, which is not installed")
    path = subject.build("refit", replace(subject.options, refit=True))
    assert path is not None, "every engine of TensorRT has a file"
    weights = subject.folder / "other.safetensors"
    _write_other_weights(subject, weights)
    windows = subject.windows(subject.buckets[-1])
    with subject.opened(bundle=path) as engine:
        before = answer(engine, windows)
    plan = path.parent / Manifest.load(path).file
    plan.write_bytes(runtime_module(subject.kind).refit(plan, weights, device=subject.device))
    edit(path, files={plan.name: file_hash(plan)}, weights_hash=file_hash(weights))
    with subject.opened(bundle=path) as engine:
        after = answer(engine, windows)
        reference = reference_engine(engine.manifest, weights=weights, threads=subject.threads)
        with closing(reference):
            wanted = answer(reference, windows)
    changed, apart = difference(after, before), difference(after, wanted)
    most = min(NEAR[subject.precision], changed / 2)
    if apart >= most:
        raise Failed(
            f"{apart:.1e} of the largest value from the network with these weights, "
            f"{changed:.1e} from before; at most {most:.1e} from the former"
        )
    return f"the answer changed by {changed:.1e}, and is {apart:.1e} from the network's"


def _write_other_weights(subject: Subject, path: Path) -> None:
    """The weights of the network, each a little other."""
    import torch

    from fastpose.engines.build import random_network
    from fastpose.models import create
    from fastpose.models.weights import save_weights

    name, weights = subject.spec.name, source.find_weights(subject.spec)
    network = random_network(name) if weights is None else create(name, weights=weights)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.mul_(1 + CHANGED * noise)  # whose results are of the same size
    save_weights(network.state_dict(), path)


def _damages(file: Path) -> Iterator[tuple[str, bytes]]:
    content = file.read_bytes()
    for cut in CUTS:
        yield f"cut to {100 * cut:.0f} %", content[: int(cut * len(content))]
    yield "without its last byte", content[:-1]
    other = bytearray(content)
    other[len(other) // 2] ^= 1
    yield "with one other bit", bytes(other)


def _changed(subject: Subject, name: str, **changes: Any) -> Path:
    """A copy of the bundle with other values in its manifest: where that lies."""
    path = subject.need_bundle()
    folder = subject.folder / name
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    shutil.copytree(path.parent, folder)
    changed = folder / path.name
    edit(changed, **changes)
    return changed


def edit(path: Path, **changes: Any) -> None:
    """Put other values into a manifest."""
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def _refusal(path: Path, what: str) -> str:
    """What an engine says that must not be opened.

    Raises:
        Failed: it is opened, or says something in more than one line.
    """
    try:
        load_engine(path).close()
    except (EngineError, BackendError) as error:
        text = str(error)
        if "\n" in text:
            raise Failed(f"{what}: its error has several lines: {text}") from None
        return text
    raise Failed(f"{what} was taken")


def _python(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python(code), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def python(code: str) -> list[str]:
    """The command of another process."""
    return [sys.executable, "-c", code]


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"
