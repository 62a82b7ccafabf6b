"""A video from its first frame to the finished files, by people, precision and what is done.

The boxes of the first rows are placed, so that the number of people is what varies; those of the
others are found by the default detector.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from suite import Timed

from fastpose import Pose
from fastpose.bench.people import PEOPLE, measure_people
from fastpose.errors import BackendError

FRAMES, ROUNDS = 4, 5
FEW = (1, 8)  # people, where all numbers of them would tell nothing new

pytestmark = pytest.mark.threads


@pytest.mark.parametrize(
    ("precision", "people"),
    [("auto", PEOPLE), ("f32", FEW), ("int8", FEW)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def bench_people(
    timed: Timed,
    video: Path,
    threads: int,
    precision: str,
    people: tuple[int, ...],
    int8: Callable[[str], Path],
    request: pytest.FixtureRequest,
) -> None:
    model: str | Path = "default"
    if precision != "auto" and not request.config.getoption("--full"):
        pytest.skip("with --full")
    if precision == "int8":
        model = int8("cpn-light")
    with _open(model, threads, precision, detector="none") as pose:
        _keep(timed, pose, video, threads, people=people)


@pytest.mark.parametrize("every", [1, 5])
def bench_detector(timed: Timed, video: Path, threads: int, every: int) -> None:
    with _open("default", threads) as pose:
        _keep(timed, pose, video, threads, people=None, detect_every=every, track=True)


@pytest.mark.parametrize(
    ("draw", "write"), [(True, False), (False, True), (True, True)], ids=["draw", "write", "both"]
)
def bench_results(timed: Timed, video: Path, threads: int, draw: bool, write: bool) -> None:
    with _open("default", threads, detector="none") as pose:
        _keep(timed, pose, video, threads, people=(8,), draw=draw, write=write)


def _open(model: str | Path, threads: int, precision: str = "auto", **options: str) -> Pose:
    try:
        return Pose(model, precision=precision, threads=threads, **options)
    except BackendError as error:
        pytest.skip(str(error))


def _keep(timed: Timed, pose: Pose, video: Path, threads: int, **options: object) -> None:
    rows = measure_people(
        pose, video, frames=FRAMES, rounds=ROUNDS, threads=threads, take=timed.take, **options
    )
    for row in rows:
        timed.keep(row)
    if refused := [f"{row.key}: {row.refused}" for row in rows if row.refused]:
        pytest.skip(f"refused: {'; '.join(refused)}")
