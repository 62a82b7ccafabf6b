"""The peers of the benchmarks: workers in other processes, their environments, and their absence.

The worker of these tests runs in this very Python, in an environment that only looks like one.
"""

from __future__ import annotations

import gc
import os
import re
import stat
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastpose.measure import Elsewhere, take_turns

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from peers import AbsentError, PeerError, PeerProcess, Peers, install  # noqa: E402
from suite import WrongAnswerError  # noqa: E402

WORKERS = BENCHMARKS / "peers" / "workers"
HEAD = f"import sys; sys.path.insert(0, {str(WORKERS)!r})\n"
TASKS = HEAD + textwrap.dedent(
    """
    import os, time
    import numpy as np
    from serve import Task, serve

    print("loading a peer", flush=True)

    def double(values, by=2):
        laps = []
        def call():
            print("a peer says something")
            os.write(1, b"{ and so does its C++\\n")
            laps[:] = [0.25, 0.5]
            return values * by
        return Task(call, lambda found: {"values": found}, laps=laps)

    def spoil(values):
        scratch = np.ones_like(values)
        def call():
            if scratch.any():
                raise RuntimeError("not put back")
            scratch[:] += 1
            return scratch.copy()
        return Task(call, lambda found: {"values": found}, lambda: np.copyto(scratch, values))

    def rest(seconds):
        return Task(lambda: time.sleep(seconds), lambda found: {})

    def surroundings(file):
        names = ["PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
        return Task(lambda: [os.environ.get(n, "") for n in names] + [file], lambda f: {"found": f})

    def fail():
        raise RuntimeError("of its\\nown kind")

    def die():
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)

    tasks = (double, spoil, rest, surroundings, fail, die)
    serve("1.2", {task.__name__: task for task in tasks})
    """
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> install.Environment:
    """An environment that is ready: its interpreter is this one."""
    folder = tmp_path_factory.mktemp("env")
    peer = environment(folder)
    (peer.home / "bin").mkdir(parents=True)
    peer.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    peer.python.chmod(peer.python.stat().st_mode | stat.S_IXUSR)
    peer.marker.write_text(peer.hash)
    (folder / "fake_worker.py").write_text(TASKS)
    return peer


def environment(folder: Path) -> install.Environment:
    requirements = folder / "requirements-fake.txt"
    requirements.write_text("fake==1.2\n")
    return install.Environment("fake", ("json",), ((3, 0), (3, 99)), folder, requirements)


@pytest.fixture(scope="module")
def peers(known: install.Environment) -> Iterator[Peers]:
    with Peers({"fake": known}, known.folder) as own:
        yield own


@pytest.fixture
def fresh(known: install.Environment) -> Iterator[Callable[..., Peers]]:
    """Makes peers that a test may break."""
    made = []

    def make(worker: str = TASKS, **limits: float) -> Peers:
        folder = known.folder / f"workers{len(list(known.folder.iterdir()))}"
        folder.mkdir()
        (folder / "fake_worker.py").write_text(worker)
        made.append(Peers({"fake": known}, folder, **limits))
        return made[-1]

    yield make
    for own in made:
        own.close()


def test_arrays_go_there_and_back_past_what_a_peer_prints(peers):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = peers.prepare("fake", "double", {"values": values}, by=3)
    assert found.version == "1.2"
    assert found.answer["values"].dtype == np.float32
    np.testing.assert_array_equal(found.answer["values"], values * 3)
    np.testing.assert_array_equal(found.seconds, (0.25, 0.5))


def test_it_takes_turns_as_any_call(peers):
    found = peers.prepare("fake", "double", {"values": np.ones(3)})
    found.seconds = None
    assert isinstance(found, Elsewhere)
    times = take_turns({"ours": lambda: None, "theirs": found}, rounds=3)
    assert len(times["theirs"].seconds) == 3
    assert min(times["theirs"].seconds) > 0
    np.testing.assert_array_equal(found.seconds, (0.25, 0.5))  # of the last turn


def test_a_turn_is_all_of_its_repeats(peers):
    found = peers.prepare("fake", "rest", clock="wall", seconds=0.01)
    assert found.turn(3) >= 0.03


def test_the_clock_is_the_chosen_one(peers):
    """Sleeping takes no time of a processor."""
    found = peers.prepare("fake", "rest", clock="thread", seconds=0.2)
    assert found.turn(1) < 0.1
    with pytest.raises(ValueError, match="clock must be one of wall, thread, got 'sun'"):
        peers.prepare("fake", "rest", clock="sun", seconds=0)


def test_inputs_that_a_call_writes_over_are_put_back(peers):
    found = peers.prepare("fake", "spoil", {"values": np.zeros(2)})
    np.testing.assert_array_equal(found.answer["values"], (1, 1))
    found.turn(2)
    found.turn(2)


def test_surroundings_are_its_own(known, fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    own = fresh()
    for threads in (1, 3):
        answer = own.prepare("fake", "surroundings", threads=threads, file=Path("a.mp4")).answer
        expected = ["", str(threads), str(threads), str(tmp_path / "a.mp4")]
        assert answer["found"].tolist() == expected


def test_a_failing_task_is_told_and_the_worker_goes_on(peers):
    with pytest.raises(PeerError, match=r"^fake: RuntimeError: of its own kind$"):
        peers.prepare("fake", "fail")
    with pytest.raises(PeerError, match=r"^fake: KeyError: 'no such'$"):
        peers.prepare("fake", "no such")
    with pytest.raises(TypeError, match="expected what JSON can say, or a Path, got set"):
        peers.prepare("fake", "rest", seconds={1})
    assert peers.prepare("fake", "rest", seconds=0).answer == {}


def test_what_nobody_holds_is_forgotten(known):
    with PeerProcess("fake", known.python, known.folder / "fake_worker.py") as process:
        first = process.prepare("rest", seconds=0)
        second = process.prepare("rest", seconds=0)
        handle = first._handle
        del first
        gc.collect()
        assert second.turn(1) >= 0
        third = process.prepare("rest", seconds=0)
        assert second.turn(1) >= 0
        assert third.turn(1) >= 0
        with pytest.raises(PeerError, match=f"KeyError: {handle}"):
            process.turn(handle, 1)


def test_a_dead_worker_leaves_its_last_words(fresh):
    own = fresh()
    kept = own.prepare("fake", "rest", seconds=0)
    with pytest.raises(AbsentError, match=r"^fake: .* ended with status 3: out of memory$"):
        own.prepare("fake", "die")
    with pytest.raises(AbsentError, match="fake: its process was ended before"):
        kept.turn(1)
    with pytest.raises(AbsentError, match="fake: its process was ended before"):
        own.prepare("fake", "rest", seconds=0)


def test_a_peer_that_does_not_load_is_absent(fresh):
    own = fresh("raise ImportError('libGL.so.1: not found')")
    for _ in range(2):  # it is not started again
        with pytest.raises(own.AbsentError, match=r"status 1: ImportError: libGL.so.1: not found"):
            own.prepare("fake", "double")


def test_an_interpreter_that_is_gone_is_absent(known):
    with pytest.raises(AbsentError, match="fake: cannot be started: No such file"):
        PeerProcess("fake", known.folder / "gone", known.folder / "fake_worker.py")


def test_a_worker_that_is_silent_is_ended(fresh):
    own = fresh(timeout=0.2)
    with pytest.raises(AbsentError, match=r"fake: no answer within 0.2 s"):
        own.prepare("fake", "rest", seconds=60)
    with pytest.raises(AbsentError, match="its process was ended before"):
        own.prepare("fake", "rest", seconds=0)
    late = fresh("import time; time.sleep(60)", start=0.2)
    with pytest.raises(AbsentError, match=r"fake: no answer within 0.2 s"):
        late.prepare("fake", "rest", seconds=0)


def test_closing_leaves_nothing_behind(known):
    process = PeerProcess("fake", known.python, known.folder / "fake_worker.py")
    process.prepare("double", {"values": np.ones(2)})
    folder, number = process.folder, process._process.pid
    assert [f.name for f in folder.iterdir()] == ["said"]  # arrays are removed as they are read
    process.close()
    process.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_beside_compares_and_says_what_is_absent(peers, known, tmp_path):
    def compare(answer: dict[str, np.ndarray]) -> str:
        apart = np.abs(answer["values"] - 2).max()
        if apart > 1:
            raise WrongAnswerError(f"{apart} apart")
        return f"{apart:.0f} apart"

    near = peers.beside(
        "fake", "double", {"values": np.ones(3)}, compare=compare, at_least=2.0, clock="wall"
    )
    assert (near.check(), near.at_least, near.version) == ("0 apart", 2.0, "1.2")
    assert near.call.turn(1) > 0
    far = peers.beside("fake", "double", {"values": np.ones(3)}, compare=compare, by=9)
    with pytest.raises(WrongAnswerError, match=r"7.0 apart"):
        far.check()
    gone = Peers({"fake": environment(tmp_path)}).beside("fake", "double", compare=compare)
    assert gone.call is None
    assert gone.absent == "not installed: python benchmarks/peers/install.py fake"


class Steps:
    """Stands for the commands of an installation; fails at one of them."""

    def __init__(self, peer: install.Environment, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peer, self.done, self.failing = peer, [], {}
        monkeypatch.setattr(install, "_run", self)

    def __call__(self, words: list[object], what: str) -> None:
        self.done.append(what)
        assert not self.peer.ready()  # nothing is ready before all is done
        if what in self.failing:
            raise self.failing[what]
        if what == "venv":
            self.peer.python.parent.mkdir(parents=True)
            self.peer.python.write_text("")


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(environment(tmp_path), monkeypatch)


def test_installing_again_does_nothing_until_the_pins_change(steps):
    peer, all_steps = steps.peer, ["venv", "pip", "import"]
    install.install(peer)
    assert (peer.ready(), steps.done) == (True, all_steps)
    install.install(peer)
    assert steps.done == all_steps
    install.install(peer, force=True)
    assert steps.done == 2 * all_steps
    peer.requirements.write_text("fake==1.3\n")
    assert not peer.ready()
    install.install(peer)
    assert (peer.ready(), steps.done) == (True, 3 * all_steps)


@pytest.mark.parametrize("step", ["venv", "pip", "import"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), install.InstallError("pip ended")])
def test_an_environment_half_made_is_not_ready(steps, step, error):
    for force in (False, True):
        install.install(steps.peer, force=True)
        steps.failing[step] = error
        with pytest.raises(type(error)):
            install.install(steps.peer, force=True)
        assert not steps.peer.ready()
        steps.failing.clear()
        install.install(steps.peer, force=force)
        assert steps.peer.ready()


def test_the_command_says_a_line_for_each(steps, monkeypatch, capsys):
    monkeypatch.setattr(install, "PEERS", {"fake": steps.peer})
    assert install.main([]) == 0
    assert re.fullmatch(r"fake: ready, \d+ MB\n", capsys.readouterr().out)
    steps.failing["pip"] = install.InstallError("pip ended with 1: ERROR: no wheel")
    assert install.main(["--force", "fake"]) == 1
    assert capsys.readouterr().out == "fake: not ready: pip ended with 1: ERROR: no wheel\n"
    with pytest.raises(SystemExit):
        install.main(["nobody"])
    assert "no environment is known for nobody" in capsys.readouterr().err


def test_a_step_that_fails_is_told_in_one_line():
    words = [sys.executable, "-c", "import sys; sys.exit('ERROR: No wheel\\nWARNING: too old')"]
    with pytest.raises(install.InstallError, match=r"^pip ended with 1: ERROR: No wheel$"):
        install._run(words, "pip")
    with pytest.raises(install.InstallError, match=r"^venv: No such file or directory$"):
        install._run([Path("no such python")], "venv")


def test_a_python_is_found_by_its_version(tmp_path):
    assert install.version_of(sys.executable) == sys.version_info[:2]
    assert install.version_of(str(tmp_path / "none")) == (0, 0)
    assert install.find_python(environment(tmp_path)) == sys.executable
    old = install.Environment("old", (), ((3, 1), (3, 2)))
    with pytest.raises(install.InstallError, match=r"needs a Python of 3.1 to 3.2, found none"):
        install.find_python(old)


@pytest.mark.parametrize("peer", install.PEERS.values(), ids=install.PEERS)
def test_every_peer_is_pinned_and_has_a_worker(peer):
    lines = peer.requirements.read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    for line in pins:
        assert re.match(r"[a-z][a-z-]*==\d+(\.\d+)+(; python_version [<>]=? \"3\.\d+\")?$", line)
    worker = (WORKERS / f"{peer.name}_worker.py").read_text()
    assert "fastpose" not in worker + (WORKERS / "serve.py").read_text()
