"""Progress lines, with a clock that the test sets."""

import io

import pytest

from fastpose.cli.progress import Progress, Stages


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_a_log_gets_a_line_now_and_then_and_the_last_one_once(clock, capsys):
    progress = Progress("clip", 40, clock=clock)
    for _ in range(40):
        clock.now += 0.5
        progress.step("3 people")
    progress.finish("120 people in all")
    assert capsys.readouterr().err.splitlines() == [
        "clip: 20/40 frames, 2.0/s, 10 s left, 3 people",
        "clip: 40/40 frames, 2.0/s, 120 people in all",
    ]


@pytest.mark.parametrize("done", [0, 3])
def test_what_ends_early_has_nothing_left_to_wait_for(clock, capsys, done):
    progress = Progress("clip", 40, clock=clock)
    for _ in range(done):
        clock.now += 0.5
        progress.step()
    clock.now += 1
    progress.finish()
    line = capsys.readouterr().err
    assert line.startswith(f"clip: {done}/40 frames")
    assert "left" not in line


def test_a_screen_has_one_line_that_is_rewritten(clock, monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    progress = Progress("camera0", clock=clock)
    for _ in range(4):
        clock.now += 0.25
        progress.step()
    progress.finish()
    shown = screen.getvalue().split("\r\x1b[2K")[1:]
    assert len(shown) == 5
    assert shown[-1] == "camera0: 4 frames, 4.0/s\n"
    assert not any("\n" in line for line in shown[:-1])


@pytest.mark.parametrize(
    ("seconds", "text"), [(50, "50 s left"), (200, "3:20 min left"), (7500, "2:05 h left")]
)
def test_spans_are_for_people(clock, capsys, seconds, text):
    progress = Progress("clip", 1 + seconds // 10, clock=clock)
    clock.now = 10
    progress.step()
    assert text in capsys.readouterr().err


def test_a_resumed_run_reckons_with_its_own_time(clock, capsys):
    progress = Progress("model", 38, "epochs", clock=clock)
    progress.resume(34)
    clock.now += 240
    progress.step("loss 0.02")
    assert capsys.readouterr().err == "model: 35/38 epochs, 15.0/h, 12:00 min left, loss 0.02\n"


def test_a_stage_is_told_when_it_is_over(clock, capsys):
    stages = Stages(clock)
    for name, took in (("export", 3.14), ("compile", 10), ("export", 1)):
        stages.begin(name)
        assert name not in capsys.readouterr().err.splitlines()
        clock.now += took
    stages.finish()
    stages.finish()
    assert capsys.readouterr().err == "export 1.0 s\n"
    assert stages.seconds == {"export": pytest.approx(4.14), "compile": pytest.approx(10)}


def test_a_screen_shows_the_stage_that_runs(clock, monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    stages = Stages(clock)
    stages.begin("export")
    assert screen.getvalue() == "export ..."
    clock.now += 2
    stages.begin("load")
    assert screen.getvalue() == "export ...\r\x1b[2Kexport 2.0 s\nload ..."
