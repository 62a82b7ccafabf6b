"""Reading and pose of a video: CPN-50 on placed boxes, beside rtmlib's own loop.

Both run the same graph with random weights on the same boxes and as many threads. Joints that
random weights find mean nothing, so what is checked is the path, against `Pose.batch`, and the
network, against ONNX Runtime on the same windows; of rtmlib that it finds as many joints.

In throughput mode, which is in --full, our stream takes as many frames at once as there are
requests, so that the first answer of such a group waits for the last.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from peers import Peers, Prepared
from suite import Timed, WrongAnswerError, assert_limits

from fastpose import Pose
from fastpose.bench.engines import FAITHFUL, difference
from fastpose.bench.people import Clip, Loop, Run, place_boxes, read_clip
from fastpose.bench.rows import Peer, Row, load
from fastpose.bench.rows import timed as figures_of
from fastpose.crop import crop_people
from fastpose.engines import Engine, Options, open_engine, source
from fastpose.errors import BackendError
from fastpose.machine import machine
from fastpose.measure import Times, steady
from fastpose.models import model_spec

MODEL = "cpn50"
FRAMES, ROUNDS = 3, 5
SETTLE = 0.1  # seconds until the threads of the runtime before have stopped spinning
NAME, PEER = "reading and pose", "rtmlib"
SAME_WORK = (
    "as many joints of as many people; those of random weights are not compared. It refines by "
    "DARK with UDP's blur, ours as the CPN's authors do"
)
# Half of the margins that are aimed at, 4 and 7, where the processor has AMX; elsewhere half of
# what bf16 has on a Zen 4, and int8 no slower.
LIMITS = {True: {"bf16": 2.0, "int8": 3.5}, False: {"bf16": 1.25, "int8": 1.0}}

pytestmark = pytest.mark.threads


@dataclass(frozen=True)
class Poses:
    """Ours.

    Attributes:
        opened: by precision and mode.
        absent: why a precision does not run here.
    """

    opened: dict[str, Pose]
    absent: dict[str, str]


@pytest.fixture(scope="module")
def poses(
    threads: int, int8: Callable[[str], Path], request: pytest.FixtureRequest
) -> Iterator[Poses]:
    """In each precision, by default in latency mode alone."""
    modes = ("latency", "throughput") if request.config.getoption("--full") else ("latency",)
    with ExitStack() as stack:
        found = Poses({}, {})
        for precision, mode in itertools.product(("f32", "bf16", "int8"), modes):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of random weights
                try:
                    pose = Pose(
                        int8(MODEL) if precision == "int8" else MODEL,
                        detector="none",
                        engine="openvino",
                        precision=precision,
                        threads=threads,
                        options=Options(mode=mode),
                    )
                except (BackendError, pytest.skip.Exception) as error:
                    found.absent[precision] = str(error)
                    continue
            found.opened[f"{precision} {mode}"] = stack.enter_context(pose)
        yield found


@pytest.fixture(scope="module")
def truth() -> Iterator[Engine]:
    """The network in ONNX Runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of random weights
        opened = open_engine(MODEL, kind="onnxruntime", precision="f32", buckets=(2,))
    with closing(opened):
        yield opened


@pytest.mark.parametrize("people", [1, 8, 32])
def bench_reading_and_pose(
    timed: Timed,
    peers: Peers,
    poses: Poses,
    truth: Engine,
    video: Path,
    threads: int,
    people: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if people != 8 and not request.config.getoption("--full"):
        pytest.skip("with --full")
    clip = read_clip(video, FRAMES)
    for precision, why in poses.absent.items():
        case = {"people": people, "model": MODEL, "engine": "openvino", "precision": precision}
        timed.keep(Row("pipeline", NAME, case, threads=threads, absent=why, load=load()))
    runs = {n: Run(pose, clip, people, Loop(), tmp_path) for n, pose in poses.opened.items()}
    checks = {name: _check(run, truth) for name, run in runs.items()}
    theirs = _theirs(peers, clip, people, threads)
    calls = {**runs, **({} if isinstance(theirs, str) else {PEER: theirs})}

    def take() -> dict[str, Times]:
        return timed.take(calls, rounds=ROUNDS, repeats=1, warm_up=1, before=_settle)

    times = steady(take)
    rows = [
        _row(run, checks[name], _of_frames(times, name, clip.frames), theirs, threads)
        for name, run in runs.items()
    ]
    kept = [timed.keep(row, _limits(row)) for row in rows]
    for row in kept:
        assert_limits(row)
    if refused := [f"{row.key}: {row.refused}" for row in kept if row.refused]:
        pytest.skip(f"refused: {'; '.join(refused)}")


def _limits(row: Row) -> dict[str, float]:
    precision = str(row.case["precision"])
    least = LIMITS["amx_bf16" in machine()["instruction_sets"]].get(precision)
    return {PEER: least} if least else {}


def _settle() -> None:
    time.sleep(SETTLE)


def _check(run: Run, truth: Engine) -> str:
    """The path as `Run.check` looks at it, and the network beside ONNX Runtime's.

    Raises:
        WrongAnswerError: the results differ by more than the precision does.
    """
    engine, spec = run.pose.engine, model_spec(MODEL)
    boxes = place_boxes(run.clip.width, run.clip.height, 2)
    windows, _ = crop_people(run.clip.first[:1], boxes, spec.window)
    off = difference(truth, engine, [windows])
    bound = FAITHFUL[engine.manifest.precision]
    if not off <= bound:
        raise WrongAnswerError(f"results differ by {off:.2g} of how much they vary, over {bound:g}")
    return f"{run.check()}; results of the network {off:.2g} of how much they vary from onnxruntime"


def _theirs(peers: Peers, clip: Clip, people: int, threads: int) -> Prepared | str:
    """Their loop over the same graph and boxes, done once; or why there is none."""
    spec = model_spec(MODEL)
    graph, _ = source.find_graph(spec)
    try:
        done = peers.prepare(
            PEER,
            "loop",
            {"boxes": place_boxes(clip.width, clip.height, people)},
            clock="wall",
            threads=threads,
            video=Path(clip.source),
            graph=graph,
            frames=clip.frames,
            size=spec.size,
            mean=spec.mean[::-1],
            std=spec.std,
        )
    except peers.AbsentError as error:
        return str(error)
    expected = (clip.frames, people, len(spec.joints), 2)
    if done.answer["keypoints"].shape != expected:
        raise WrongAnswerError(f"rtmlib's joints are {done.answer['keypoints'].shape}")
    return done


def _of_frames(times: dict[str, Times], name: str, frames: int) -> dict[str, Times]:
    """Ours and rtmlib's, of a frame instead of a pass."""
    both = {"ours": times[name], **({PEER: times[PEER]} if PEER in times else {})}
    return {key: Times(tuple(s / frames for s in own.seconds)) for key, own in both.items()}


def _row(
    run: Run, check: str, times: dict[str, Times], theirs: Prepared | str, threads: int
) -> Row:
    time_, peers, refused = figures_of(times)
    if isinstance(theirs, str):
        peers = {PEER: Peer(absent=theirs)}
    elif refused:
        peers = {PEER: Peer(absent=refused)}
    elif not peers[PEER].absent:
        peers = {PEER: replace(peers[PEER], version=theirs.version, difference=SAME_WORK)}
    fps = {"fps": round(1e3 / time_["median_ms"], 2)} if time_ else {}
    return Row(
        "pipeline",
        NAME,
        run.case,
        check=check,
        threads=threads,
        clock="wall",
        time=time_,
        figures={**fps, **run.split()},
        peers=peers,
        refused=refused,
        load=load(),
    )
