"""Checks of an engine at work: what it answers, how it takes input, and what it costs over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, cast

import numpy as np

from fastpose import fixtures
from fastpose.conformance.subject import (
    NEAR,
    Failed,
    Skipped,
    Subject,
    answer,
    check_same,
    difference,
)
from fastpose.direct import DeviceFrames, PointerEngine
from fastpose.engines import Engine, Options
from fastpose.engines.decoder import check_decoder
from fastpose.engines.memory import KINDS
from fastpose.engines.verify import BATCH, BOUNDS, CONFIDENT, verify
from fastpose.errors import BackendError, EngineError
from fastpose.graph import StreamEngine, capture, in_graphs, wait
from fastpose.machine import gpu_bytes, resident_bytes
from fastpose.pipeline import estimate
from fastpose.types import Boxes, Floats, People

RUNS, FULL_RUNS = 300, 10_000  # for the memory
SETTLING = 500  # runs before memory is looked at, at most half of all
SAMPLES = 20  # looks at the memory, spread over the runs
GROWTH = 4 << 20  # bytes: a leak of 1 kB a run makes more of them in 10,000
REPLAYS, FULL_REPLAYS = 50, 1000
PATIENCE = 300.0  # seconds: how far one thread may be behind the other, on a busy machine, too
ROUNDS = 20  # of two threads, and for the speed
WARM_UP = 5  # runs that are not timed
# windows that are cut on a GPU differ in their last bits: no more than a change of runtime may
SCORES_APART, JOINTS_APART = 0.05, BOUNDS["f32"].median


def build(subject: Subject) -> str:
    """The engine is built into a bundle, or where the runtime has no file, opened."""
    try:
        subject.bundle = subject.build()
        with subject.opened() as engine:
            engine.run(1)
            manifest = engine.manifest
    except BackendError as error:  # such as a precision that this machine does not compute in
        raise Skipped(str(error)) from None
    subject.built = True
    name = subject.bundle.parent.name if subject.bundle else "no file"
    sizes = ", ".join(map(str, manifest.buckets))
    return f"{manifest.versions.get(manifest.kind)} on {manifest.device}, batches {sizes}, {name}"


def precision(subject: Subject) -> str:
    """It computes in the precision that was asked for."""
    with subject.opened() as engine:
        manifest = engine.manifest
    layers = ", ".join(f"{count} {name}" for name, count in manifest.layers.items())
    text = f"asked {subject.precision}, found {manifest.precision}"
    text += f" ({layers})" if layers else " (the runtime does not tell of single layers)"
    if manifest.precision != subject.precision:
        raise Failed(text)
    most = max(manifest.layers, key=lambda name: manifest.layers[name], default=subject.precision)
    if most != subject.precision:
        raise Failed(f"{text}: most layers are {most}")
    return text


def accuracy(subject: Subject) -> str:
    """It answers as the network in f32 does: the values, and the joints in pixels."""
    with subject.opened() as engine, subject.reference() as reference:
        windows, apart = subject.windows(subject.buckets[-1]), 0.0
        if engine.manifest.spec.results == reference.manifest.spec.results:  # the same decoding
            apart = difference(answer(engine, windows), answer(reference, windows))
        pictures = subject.pictures
        found = verify(
            reference,
            engine,
            (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)),
            source=fixtures.BUILT_IN,
            random=bool(engine.manifest.spec.network) and not engine.manifest.weights_hash,
        )
    text = (
        f"{apart:.1e} of the largest value from {reference.manifest.kind} f32; "
        f"{found.shift.joints} joints: median {found.shift.median:.3f} px, "
        f"largest {found.shift.largest:.2f} px"
    )
    if apart > NEAR[subject.precision]:
        raise Failed(f"{text}; at most {NEAR[subject.precision]} of the largest value is allowed")
    if not found.passed:
        raise Failed(f"{text}; {'; '.join(found.reasons)}")
    return text


def ownership(subject: Subject) -> str:
    """What a call returns is the caller's, and the windows in the buffer stay as they are."""
    with subject.opened() as engine:
        windows = subject.windows(4)
        first = engine(windows[:2])
        kept = first.copy()
        engine(windows[2:])
        if not np.array_equal(first, kept):
            raise Failed("a later call changed what an earlier one had returned")
        buffer = engine.buffer(2)
        buffer[...] = windows[:2]
        engine.run(2)
        if not np.array_equal(engine.buffer(2), windows[:2]):
            raise Failed("a run changed the windows in the buffer")
    return "results belong to the caller, windows stay"


def batches(subject: Subject) -> str:
    """A window gets the same answer in every batch, from one window to the largest batch."""
    worst = 0.0
    with subject.opened() as engine:
        largest = engine.manifest.buckets[-1]
        windows = subject.windows(largest)
        alone = np.concatenate([answer(engine, windows[i : i + 1]) for i in range(largest)])
        for count in range(1, largest + 1):
            engine.buffer(count)[...] = windows[:count]
            found = np.array(engine.run(count))
            same = check_same(found, alone[:count], subject.precision, f"a batch of {count}")
            worst = max(worst, same)
    return f"1 to {largest} windows: at most {worst:.1e} of the largest value apart"


def splitting(subject: Subject) -> str:
    """More windows than the largest batch are run in parts."""
    with subject.opened() as engine:
        largest = engine.manifest.buckets[-1]
        windows = subject.windows(2 * largest + 1)
        parts = [windows[:largest], windows[largest : 2 * largest], windows[2 * largest :]]
        wanted = np.concatenate([answer(engine, part) for part in parts])
        found = answer(engine, windows)
        worst = check_same(found, wanted, subject.precision, f"{len(windows)} windows")
    return f"{len(windows)} windows in batches of {largest}: {worst:.1e} apart"


def nobody(subject: Subject) -> str:
    """No windows give an empty result, and a frame without people no run."""
    with subject.opened() as engine:
        spec = engine.manifest.spec
        found = engine(np.zeros((0, 3, *spec.size), np.float32))
        shape = (0, *answer(engine, subject.windows(1)).shape[1:])
        if found.shape != shape or found.dtype != np.float32:
            raise Failed(f"no windows give {found.dtype} {list(found.shape)}, not {list(shape)}")
        counted = _Counted(engine)
        frame = np.zeros((48, 64, 3), np.uint8)
        (people,) = estimate([frame], [Boxes.empty()], cast(Engine, counted))
        if len(people) or counted.runs:
            raise Failed(f"a frame without people gave {len(people)} in {counted.runs} runs")
    return "an empty result, and no run"


class _Counted:
    """An engine that counts its runs."""

    def __init__(self, engine: Engine) -> None:
        self.manifest, self.shareable, self._engine = engine.manifest, engine.shareable, engine
        self.buffer, self.close, self.runs = engine.buffer, engine.close, 0

    def run(self, count: int) -> Floats:
        self.runs += 1
        return self._engine.run(count)

    def __call__(self, batch: Floats) -> Floats:
        self.runs += 1
        return self._engine(batch)


def wrong_input(subject: Subject) -> str:
    """Input of another type, shape or number is refused with a ValueError, never converted."""
    with subject.opened() as engine:
        good, largest = subject.windows(1), engine.manifest.buckets[-1]
        uses: dict[str, Callable[[], Any]] = {
            "float64": lambda: engine(cast(Any, good.astype(np.float64))),
            "float16": lambda: engine(cast(Any, good.astype(np.float16))),
            "uint8": lambda: engine(cast(Any, good.astype(np.uint8))),
            "a list": lambda: engine(cast(Any, good.tolist())),
            "one row less": lambda: engine(good[:, :, 1:]),
            "one channel": lambda: engine(good[:, :1]),
            "three axes": lambda: engine(good[0]),
            "a buffer of 0": lambda: engine.buffer(0),
            "a run of 0": lambda: engine.run(0),
            "a run of -1": lambda: engine.run(-1),
            "a run over the largest batch": lambda: engine.run(largest + 1),
            "a buffer over the largest batch": lambda: engine.buffer(largest + 1),
        }
        for name, use in uses.items():
            try:
                use()
            except ValueError:
                continue
            raise Failed(f"{name} was taken")
    return f"{len(uses)} sorts of it are refused"


def strided_input(subject: Subject) -> str:
    """Windows that do not lie one after the other in memory are read as they are."""
    with subject.opened() as engine:
        windows = subject.windows(3)
        wanted = answer(engine, windows)
        turned = np.ascontiguousarray(windows[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1]
        images = np.ascontiguousarray(windows.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        for name, strided in {"reversed": turned, "channels last": images}.items():
            found = answer(engine, strided)
            check_same(found, wanted, subject.precision, f"windows in memory {name}")
    return "reversed axes and channels last"


def graph_replay(subject: Subject) -> str:
    """Replays of a CUDA graph answer as the engine does when it is asked directly."""
    with subject.opened() as engine:
        device = getattr(engine, "device", None)
        if not hasattr(engine, "enqueue") or device is None:
            raise Skipped(f"{subject.kind} enqueues no work on a stream here")
        if device.type != "cuda":
            raise Skipped(f"graphs are captured on CUDA, and this runs on {device}")
        replays = FULL_REPLAYS if subject.full else REPLAYS
        worst = check_replays(subject, cast(StreamEngine, engine), replays)
    sizes = ", ".join(map(str, subject.buckets))
    return f"batches {sizes}, {replays} replays each: at most {worst:.1e} apart"


def check_replays(subject: Subject, engine: StreamEngine, replays: int) -> float:
    """Capture each batch size, replay it with changing windows, compare every answer.

    Returns:
        The largest `difference`.

    Raises:
        Failed: an answer is not the engine's.
    """
    worst = 0.0
    for size in engine.manifest.buckets:
        windows = subject.windows(4 * size)
        inputs = [_placed(engine, part) for part in np.split(windows, 4)]
        wanted = [engine.enqueue(given).clone() for given in inputs]
        static, result = inputs[0].clone(), wanted[0].clone()
        replay = capture(partial(_into, engine, static, result), engine.device)
        for turn in range(replays):
            static.copy_(inputs[turn % 4])
            replay()
            wait(engine.device)
            found, direct = (x.float().cpu().numpy() for x in (result, wanted[turn % 4]))
            what = f"replay {turn + 1} of a batch of {size}"
            worst = max(worst, check_same(found, direct, subject.precision, what))
    return worst


def _into(engine: StreamEngine, given: Any, result: Any) -> None:
    result.copy_(engine.enqueue(given))


def _placed(engine: StreamEngine, windows: Floats) -> Any:
    """Windows as a tensor where and how the engine wants them."""
    import torch

    channels_last = engine.layout == "nhwc"
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.from_numpy(windows).to(engine.device, engine.type).contiguous(memory_format=form)


def frames(subject: Subject) -> str:
    """The whole path on the device, from frames to joints, finds what it finds on the host."""
    given = _frames(subject)
    boxes = [_one_box(frame) for frame in given]
    with subject.opened() as engine:
        wanted = estimate(given, boxes, engine)
    found = {}
    for name, options in _memories(subject).items():
        network = subject.open(options=options)
        path = in_graphs(network)
        with closing(path):
            if not isinstance(path, DeviceFrames):
                raise Skipped(f"frames are cut on the host for {network.manifest.device}")
            people = estimate(path.upload(given), boxes, path)
            kernel = getattr(network, "decoder", None)
            if kernel is not None and path.finds_joints:
                check_decoder(kernel, subject.spec, cast(PointerEngine, network).memory)
        found[f"{type(path).__name__} {name}".strip()] = compare_people(wanted, people)
    return "; ".join(f"{name}: {text}" for name, text in found.items())


def _memories(subject: Subject) -> dict[str, Options]:
    """The options with each device memory that is installed, where the runtime has a choice."""
    if subject.kind != "tensorrt":
        return {"": subject.options}
    choices = {name: replace(subject.options, memory=name) for name in KINDS}
    return {name: options for name, options in choices.items() if _opens(subject, options)}


def _opens(subject: Subject, options: Options) -> bool:
    try:
        subject.open(options=options).close()
    except BackendError:
        return False
    return True


def other_memory(subject: Subject) -> str:
    """Whatever package the device memory comes from, the answers are the same."""
    if subject.kind != "tensorrt":
        raise Skipped(f"{subject.kind} has its own memory")
    windows = subject.windows(subject.buckets[-1])
    with subject.opened() as engine:
        wanted = answer(engine, windows)
    choices = _memories(subject)
    for name, options in choices.items():
        with subject.opened(options=options) as engine:
            check_same(answer(engine, windows), wanted, subject.precision, f"memory of {name}")
    return f"of {', '.join(choices)}"


def compare_people(wanted: Sequence[People], found: Sequence[People]) -> str:
    """Joints of the same people, found in two ways.

    Raises:
        Failed: they are not the same.
    """
    scores = [
        np.abs(a.scores - b.scores).max(initial=0) for a, b in zip(wanted, found, strict=True)
    ]
    if max(scores) > SCORES_APART:
        raise Failed(f"scores are {max(scores):.3f} apart, at most {SCORES_APART}")
    moves = [
        np.linalg.norm(a.keypoints - b.keypoints, axis=2)[a.scores > CONFIDENT]
        for a, b in zip(wanted, found, strict=True)
    ]
    sure = np.concatenate(moves)
    middle = float(np.median(sure)) if len(sure) else 0.0
    if not middle <= JOINTS_APART:
        raise Failed(f"joints are {middle:.2f} px apart in the median, at most {JOINTS_APART:g}")
    return (
        f"scores at most {max(scores):.3f} apart, {len(sure)} joints {middle:.2f} px in the median"
    )


def _frames(subject: Subject) -> list[np.ndarray]:
    """The windows as pictures."""
    spec = subject.spec
    frames = []
    for window in subject.windows(subject.buckets[-1]):
        image = window.transpose(1, 2, 0) * np.asarray(spec.std) + np.asarray(spec.mean)
        image = image.clip(0, 255).astype(np.uint8)
        frames.append(np.ascontiguousarray(image[..., ::-1] if spec.rgb else image))
    return frames


def _one_box(frame: np.ndarray) -> Boxes:
    h, w = frame.shape[:2]
    box = np.array([[0.1 * w, 0.1 * h, 0.9 * w, 0.9 * h]], np.float32)
    return Boxes(box, np.ones(1, np.float32))


def throughput(subject: Subject) -> str:
    """Parts of a batch that run side by side give the answers of one after the other."""
    if subject.kind != "openvino":
        raise Skipped(f"{subject.kind} has no such mode")
    windows = subject.windows(2 * subject.buckets[-1])
    other = replace(subject.options, mode="throughput", requests=2)
    with subject.opened() as plain, subject.opened(options=other) as parallel:
        if parallel.manifest.options != other:
            raise Failed(f"it runs with {parallel.manifest.options}")
        wanted = answer(plain, windows)
        for turn in range(3):
            found = answer(parallel, windows)
            what = f"2 requests at once, turn {turn + 1}"
            worst = check_same(found, wanted, subject.precision, what)
    return f"2 requests at once: {worst:.1e} apart"


def two_threads(subject: Subject) -> str:
    """Two threads at once get the answers that each would get alone."""
    with ExitStack() as stack:
        first = stack.enter_context(subject.opened())
        second = first if first.shareable else stack.enter_context(subject.opened())
        windows = subject.windows(2 * subject.buckets[-1])
        halves = np.split(windows, 2)
        wanted = [answer(first, half) for half in halves]
        found: list[list[Floats]] = [[], []]

        def work(which: int) -> None:
            for _ in range(ROUNDS):
                barrier.wait(timeout=PATIENCE)
                found[which].append(answer((first, second)[which], halves[which]))

        barrier = threading.Barrier(2)
        _run_threads([partial(work, 0), partial(work, 1)], barrier)
        for which in range(2):
            for turn, result in enumerate(found[which]):
                what = f"thread {which + 1}, run {turn + 1}"
                check_same(result, wanted[which], subject.precision, what)
    return f"{'one engine' if first.shareable else 'an engine each'}, {ROUNDS} runs at once"


def _run_threads(works: list[Callable[[], None]], barrier: threading.Barrier) -> None:
    """Run them all at once.

    Raises:
        The first error of one of them.
    """
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # told by the thread that waits
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )


def speed(subject: Subject) -> str:
    """How long a run takes, windows and results on the host; whatever it is, it passes."""
    texts = []
    with subject.opened() as engine:
        for size in engine.manifest.buckets:
            engine.buffer(size)[...] = subject.windows(size)
            took = []
            for _ in range(WARM_UP + ROUNDS):
                start = time.perf_counter()
                engine.run(size)
                took.append(time.perf_counter() - start)
            texts.append(f"{size}: {1e3 * median(took[WARM_UP:]):.2f}")
    return f"ms a run by batch: {', '.join(texts)}"


def memory(subject: Subject) -> str:
    """Memory of the process, and of the GPU, stays the same over many runs."""
    if resident_bytes() is None:
        raise Skipped("this system does not tell how much memory a process has")
    runs = FULL_RUNS if subject.full else RUNS
    with subject.opened() as engine:
        windows = subject.windows(2)
        for turn in range(min(SETTLING, runs // 2)):
            engine(windows[: 1 + turn % 2])
        looks: list[tuple[int, ...]] = []
        for turn in range(runs):
            engine(windows[: 1 + turn % 2])
            if turn % (runs // SAMPLES) == 0:
                looks.append(_memory_used(engine))
    return check_flat(looks, runs)


def check_flat(looks: list[tuple[int, ...]], runs: int) -> str:
    """Whether memory is at the end what it was at the beginning.

    Args:
        looks: bytes of the process, and of the GPU if there is one, at equal distances.
        runs: how many there were.

    Raises:
        Failed: there is more.
    """
    quarter = max(1, len(looks) // 4)
    found = []
    for name, values in zip(("process", "GPUs"), zip(*looks, strict=True), strict=False):
        grown = median(values[-quarter:]) - median(values[:quarter])
        text = f"{name} {values[-1] / 2**20:.0f} MiB, {grown / 2**20:+.1f} MiB"
        if grown > GROWTH:
            raise Failed(f"{text} over {runs} runs: {grown / runs:.0f} bytes a run")
        found.append(text)
    return f"{'; '.join(found)} over {runs} runs"


def _memory_used(engine: Engine) -> tuple[int, ...]:
    """Bytes of the process, and of the GPUs where the engine runs on one."""
    resident = resident_bytes() or 0
    gpu = gpu_bytes() if engine.manifest.device.startswith("cuda") else None
    return (resident,) if gpu is None else (resident, gpu)


def close(subject: Subject) -> str:
    """A closed engine says so whatever is asked of it, and may be closed again."""
    engine = subject.open()
    windows = subject.windows(1)
    engine.close()
    engine.close()
    uses: dict[str, Callable[[], Any]] = {
        "buffer": lambda: engine.buffer(1),
        "run": lambda: engine.run(1),
        "call": lambda: engine(windows),
    }
    for name, use in uses.items():
        try:
            use()
        except EngineError as error:
            if "closed" not in str(error):
                raise Failed(f"{name} does not say that it is closed: {error}") from None
        else:
            raise Failed(f"{name} of a closed engine works")
    return "buffer, run and call raise"
