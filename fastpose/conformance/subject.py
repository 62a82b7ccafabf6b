"""What the checks examine: an engine that they may build and open as often as they like."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastpose import fixtures
from fastpose.bundles import build_engine
from fastpose.engines import Engine, Options, load_engine, open_engine, runtime_module
from fastpose.engines.verify import reference_engine
from fastpose.models.spec import ModelSpec
from fastpose.types import Floats

BUCKETS, FULL_BUCKETS = (1, 2, 4), (1, 2, 4, 8, 16, 32)

# Largest difference between results, relative to the largest absolute one.
NEAR = {"f32": 1e-3, "f16": 2e-2, "bf16": 8e-2, "int8": 0.25}  # from the module in f32
SAME = {"f32": 5e-4, "f16": 1e-2, "bf16": 4e-2, "int8": 5e-2}  # of one window in other batches


class Failed(Exception):  # noqa: N818 (an outcome)
    """The engine does not do what it should; the text says what it does, in one line."""


class Skipped(Exception):  # noqa: N818 (an outcome)
    """There is nothing to examine here; the text says why, in one line."""


@dataclass
class Subject:
    """One engine under examination.

    Attributes:
        kind, model, precision, device, options: as in `fastpose.build_engine`.
        folder: empty; everything is built here.
        full: with the large numbers of runs, as a release needs them.
        threads: of the runtime.
        calibration: folder of the images that int8 is calibrated with.
        tell: names the stage that begins.
        bundle: the manifest that the first check wrote; None where the runtime has no file.
        built: the first check has passed.
    """

    kind: str
    model: str
    precision: str
    device: str
    options: Options
    folder: Path
    full: bool = False
    threads: int | None = None
    calibration: Path | None = None
    tell: Callable[[str], None] = field(default=lambda stage: None)
    bundle: Path | None = None
    built: bool = False

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that are compiled."""
        return FULL_BUCKETS if self.full else BUCKETS

    def suffix(self, options: Options) -> str:
        """Of the runtime's file; "" where it has none."""
        return str(runtime_module(self.kind).suffix(self.precision, options))

    def build(self, name: str = "engine", options: Options | None = None) -> Path | None:
        """Build the engine into the folder: its manifest, or None where the runtime has no file.

        Raises:
            BackendError, EngineError: it cannot be built.
        """
        options = options or self.options
        suffix = self.suffix(options)
        if not suffix:
            return None
        out = self.folder / name / f"engine{suffix}"
        out.parent.mkdir()
        return build_engine(out=out, **self.arguments(options))

    def arguments(self, options: Options | None = None) -> dict[str, Any]:
        """Of `build_engine`, which leaves it to the checks to say what is too far off."""
        return {
            "model": self.model,
            "engine": self.kind,
            "precision": self.precision,
            "device": self.device,
            "buckets": self.buckets,
            "options": options or self.options,
            "calibration": self.calibration,
            "threads": self.threads,
            "allow": True,
            "progress": self.tell,
        }

    @contextmanager
    def opened(self, **changes: Any) -> Iterator[Engine]:
        """The engine, closed behind the block.

        Args:
            changes: of the arguments it is opened with: `bundle`, `device`, `options`.
        """
        with closing(self.open(**changes)) as engine:
            yield engine

    def open(self, **changes: Any) -> Engine:
        """As `opened`, for who closes it."""
        options = changes.pop("options", self.options)
        device = changes.pop("device", self.device)
        bundle = changes.pop("bundle", self.bundle)
        if bundle is not None:
            return load_engine(bundle, device=device, threads=self.threads, options=options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # random weights serve here, too
            return open_engine(
                self.model,
                kind=self.kind,
                device=device,
                precision=self.precision,
                buckets=self.buckets,
                threads=self.threads,
                options=options,
            )

    @contextmanager
    def reference(self) -> Iterator[Engine]:
        """The network in f32."""
        with self.opened() as engine:
            manifest = engine.manifest
        with closing(reference_engine(manifest, threads=self.threads)) as engine:
            yield engine

    @cached_property
    def spec(self) -> ModelSpec:
        """The network, as the graph options change it."""
        with self.opened() as engine:
            return engine.manifest.spec

    @cached_property
    def pictures(self) -> Floats:
        """The built-in windows [N, 3, h, w]."""
        return fixtures.windows(self.spec).windows

    def windows(self, count: int) -> Floats:
        """Different windows [count, 3, h, w], as the network sees people."""
        known = self.pictures
        rounds = -(-count // len(known))
        shifted = [np.roll(known, 3 * step, axis=3) for step in range(rounds)]
        return np.concatenate([known[:0], *shifted])[:count]

    def need_bundle(self) -> Path:
        """The manifest.

        Raises:
            Skipped: the runtime has no file here.
        """
        if self.bundle is None:
            raise Skipped(f"{self.kind} keeps no file of this kind of engine")
        return self.bundle


def answer(engine: Engine, windows: Floats) -> Floats:
    """What it says of these windows, kept from whatever it does later."""
    return np.array(engine(windows))


def difference(found: Floats, wanted: Floats) -> float:
    """The largest, relative to the largest absolute value wanted.

    Raises:
        Failed: the shapes differ, or something is no number.
    """
    if found.shape != wanted.shape:
        raise Failed(f"a result has the shape {list(found.shape)} instead of {list(wanted.shape)}")
    if not np.isfinite(found).all():
        raise Failed("a result holds what is no number")
    if not found.size:
        return 0.0
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def check_same(found: Floats, wanted: Floats, precision: str, what: str) -> float:
    """Compare two answers of one engine to the same windows.

    Returns:
        Their `difference`.

    Raises:
        Failed: it is more than rounding.
    """
    apart = difference(found, wanted)
    if apart > SAME[precision]:
        raise Failed(f"{what}: {apart:.1e} of the largest value apart, at most {SAME[precision]}")
    return apart
