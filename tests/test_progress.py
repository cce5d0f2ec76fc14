"""Progress: counts, the last note, plain lines where there is no terminal."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from starling import progress
from starling.progress import RichProgress, Silent


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_plain_lines_tell_share_rate_time_left_and_note(clock: Clock) -> None:
    out = io.StringIO()
    bar = RichProgress(out, every_s=5)
    bar.start("respond", 400)
    clock.now += 4
    bar.advance(40)
    assert out.getvalue() == ""
    clock.now += 6
    bar.advance(60, "3 failed")
    # 100 of 400 in 10 s: 10 per second, 300 left are 30 s.
    assert out.getvalue() == "respond: 100/400 (25 %) · 10/s · 30 s left · 3 failed\n"
    clock.now += 90
    bar.advance(300)
    bar.finish()
    bar.finish()
    assert out.getvalue().splitlines()[-1] == "respond: 400/400 (100 %) · 4/s · in 1:40 min · 3 failed"
    assert len(out.getvalue().splitlines()) == 3


def test_starting_another_work_finishes_the_first(clock: Clock) -> None:
    out = io.StringIO()
    bar = RichProgress(out)
    bar.start("rank", 2)
    bar.advance(1)
    bar.start("reward", 0)
    bar.finish()
    assert [line.split(" · ")[0] for line in out.getvalue().splitlines()] == ["rank: 1/2 (50 %)"]


def test_advancing_without_a_start_does_nothing(clock: Clock) -> None:
    out = io.StringIO()
    bar = RichProgress(out, every_s=0)
    bar.advance(5)
    bar.finish()
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    bar = RichProgress(out)
    bar.start("rank", 3)
    bar.advance(3, "0 failed [x]")
    bar.finish()
    assert "rank" in out.getvalue()
    assert "3/3" in out.getvalue()
    assert "[x]" in out.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3:05 min"), (7440, "2:04 h")])
def test_durations(seconds: float, said: str) -> None:
    assert progress._seconds(seconds) == said


def test_silent_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Silent()
    bar.start("x", 1)
    bar.advance()
    bar.finish()
    assert capsys.readouterr() == ("", "")


def test_rich_is_not_imported_before_a_bar_is_drawn() -> None:
    code = "import sys, starling.progress as p; p.RichProgress(); sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_work_that_turned_out_to_be_none_leaves_no_line(clock: Clock) -> None:
    out = io.StringIO()
    bar = RichProgress(out, every_s=5)
    bar.start("judge again", 0)
    bar.finish()
    assert out.getvalue() == ""
    bar.start("read", 0)  # nobody knew how many
    bar.advance(3)
    bar.finish()
    assert out.getvalue().startswith("read: 3 ")
