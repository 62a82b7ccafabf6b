"""Instructions of the C++ kernels: a gate that no other work on the machine moves.

    pytest benchmarks/counts
    pytest benchmarks/counts --update-counts    # what is counted now becomes the baseline

The counts of one binary repeat exactly, so a kernel fails that executes 1.05 times as many
instructions as its baseline; 1.5 times where another compiler made it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from callgrind import Counts, count, obstacle
from kernel_cases import KernelCase, kernel_cases
from suite import WrongAnswerError

from fastpose import _C
from fastpose.bench.rows import Row

CASES = kernel_cases()


def compiler(binary: Path) -> str:
    """Which one made a binary, by its own note there: "GCC 12"."""
    found = re.findall(rb"(GCC|clang version)[^\0]*? (\d+)\.\d+\.\d+", binary.read_bytes())
    makers = {(name.decode().split()[0], int(major)) for name, major in found}
    # Startup files of the C library may carry the note of an older one.
    return " ".join(map(str, max(makers, key=lambda maker: maker[1]))) if makers else "unknown"


@pytest.fixture(scope="module")
def counts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Counts]:
    """Of all cases that were selected, in one run of the simulator."""
    if why := obstacle():
        pytest.skip(why)
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    selected = {call.params.get("key") for call in calls if call is not None}
    folder = tmp_path_factory.mktemp("callgrind")
    return count([key for key in CASES if key in selected], folder)


def compared(case: KernelCase) -> str:
    """The answer that is counted is the reference's, in words.

    Raises:
        WrongAnswerError: it is another one.
    """
    pairs = zip(case.answer(), case.answer("reference"), strict=True)
    worst = max(float(np.abs(a.astype(float) - b).max(initial=0)) for a, b in pairs)
    if not worst <= case.tolerance:
        raise WrongAnswerError(f"{case.key}: {worst:.3g} from the reference")
    return f"within {worst:.1g} of the reference" if worst else "equal to the reference"


@pytest.mark.parametrize("key", CASES)
def bench_instructions(key: str, counts: dict[str, Counts], counted: Callable[..., Row]) -> None:
    case, found = CASES[key], counts[key]
    counted(
        case.name,
        {**case.case, "backend": "cpp", **({"isa": case.isa} if case.isa else {})},
        {"instructions": found.instructions, "allocations": found.allocations},
        check=compared(case),
        held="instructions",
        tools=compiler(Path(_C.__file__)),
        key=key,
    )
