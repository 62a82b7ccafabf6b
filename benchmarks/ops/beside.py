"""What stands beside a kernel: its reference, the instruction sets, and other projects."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peers import mmpose
from suite import Beside, WrongAnswerError

from fastpose.bench.rows import commit_of
from fastpose.ops import cpp

# Turns of calls that take milliseconds; shorter ones have the default.
FEW = 12
# Repeats in a turn of calls that take microseconds, each on inputs that were written anew: the
# first finds the caches full of another's code.
SHORT = 8


def within(apart: float, bound: float, unit: str) -> str:
    """How far two answers are apart, in words.

    Raises:
        WrongAnswerError: more than the bound, or not a number.
    """
    if not apart <= bound:
        raise WrongAnswerError(f"{apart:.3g} {unit} apart, at most {bound:g}")
    return f"within {apart:.1g} {unit}" if apart else "equal"


def instruction_sets() -> tuple[str, ...]:
    """The values of `isa=` that this processor can run, narrowest first."""
    names = ("scalar", "avx2", "avx512")
    return names[: names.index(cpp.best_isa()) + 1]


@contextmanager
def forced(kernel: str, isa: str) -> Iterator[None]:
    """Inside, the C++ kernel of that name runs with that instruction set."""
    original = getattr(cpp, kernel)
    setattr(cpp, kernel, functools.partial(original, isa=isa))
    try:
        yield
    finally:
        setattr(cpp, kernel, original)


def scalar_twin(
    kernel: str, call: Callable[[], object], check: Callable[[], str], at_least: float | None
) -> Beside:
    """The same call with the C++ kernel that has no vectors.

    Its work and its memory are alike, so that this ratio holds on a busy machine; that to a
    reference in numpy rests on what fresh memory takes just then.

    Args:
        kernel: name in `fastpose.ops.cpp`.
        call: of the public op.
        check: as in `Beside`.
        at_least: as there.
    """

    def run() -> object:
        with forced(kernel, "scalar"):
            return call()

    return Beside(run, check, at_least)


def obstacle(module: str) -> str:
    """Why a module does not load here, in one line; "" where it does."""
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed here"
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a wheel made for another torch
        return f"{module} does not load: {str(error).splitlines()[0]}"
    return ""


def of_mmpose(make: Callable[[], Beside]) -> Beside:
    """The way of mmpose as `make` finds it, or why there is none."""
    if why := mmpose.missing():
        return Beside(absent=why)
    return make()


def mmpose_version() -> str:
    """The commit of the checkout."""
    return commit_of(Path(os.environ[mmpose.VARIABLE]))
