"""What the terminal shows: a bar that fits, phases, and plain lines without a terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from trainer.run.progress import Phase, Progress


class Clock:
    """A clock that stands still unless it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def cells(line: str) -> int:
    """Returns the length of the bar in a line such as ` 52%|███       | 292/561 …`."""
    found = re.match(r" *\d+%\|([^|]*)\|", line)
    assert found, line
    return len(found[1])


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(
    ("step", "total", "elapsed", "left"),
    [(0, 561, 0.0, float("nan")), (292, 561, 20.0, 19.2), (112_000, 112_590, 3e5, 1575.0)],
)
def test_the_line_fits_and_its_bar_has_ten_cells(width, step, total, elapsed, left):
    clock = Clock()
    progress = Progress(0, total, is_shown=False, clock=clock)
    clock.now = elapsed
    progress.step = step
    progress.show(("loss 6.912", "acc 0.001", "12345 img/s"), left)
    lines = {None: progress.line(width)}
    for phase in Phase:
        with progress.doing(phase):
            clock.now += 1234.0
            lines[phase] = progress.line(width)
    for line in lines.values():
        assert len(line) <= width
        assert cells(line) >= 10
    for phase in set(Phase) - {Phase.TRAINING}:
        assert lines[phase].endswith(f"{phase}, 1234 s")
    assert f" {step}/{total} [" in lines[None]
    if width >= 80:
        assert "loss 6.912, acc 0.001" in lines[None]


def test_the_time_left_is_unknown_at_first():
    clock = Clock()
    progress = Progress(0, 100, is_shown=False, clock=clock)
    clock.now = 65.0
    assert progress.line(80).endswith("| 0/100 [01:05<?]")
    progress.step = 50
    progress.show(("loss 1.000",), 3661.0)
    assert progress.line(80).endswith("| 50/100 [01:05<1:01:01] loss 1.000")
    assert progress.line(80).startswith(" 50%|")


def test_without_a_terminal_a_phase_that_lasts_gets_plain_lines(capsys):
    clock = Clock()
    progress = Progress(0, 100, is_shown=True, clock=clock)
    for phase in (Phase.TRAINING, Phase.EVALUATING):
        with progress.doing(phase):
            for _ in range(7):
                clock.now += 10
                progress.tick()
    captured = capsys.readouterr()
    assert captured.out == "evaluating: 30 s so far\nevaluating: 60 s so far\n"
    assert captured.err == ""


_PROGRAM = """
from tests.run.blocking import stay_in_c
from trainer.run.progress import Phase, Progress

with Progress(0, 10, is_shown=True) as progress:
    progress.say("first line")
    with progress.doing(Phase.EVALUATING):
        stay_in_c()
    progress.step = 5
    progress.show(("loss 1.000",), 3.0)
    progress.say("second line")
    with progress.doing(Phase.SAVING):
        raise RuntimeError("a full disk")
"""


def output_of(terminal: int) -> Iterator[str]:
    """Yields what is written to a terminal, until its last writer has ended."""
    while True:
        try:
            yield os.read(terminal, 2**16).decode()
        except OSError:  # Linux reports the end as an error
            return


@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_terminal_the_line_moves_while_the_main_thread_is_in_c(columns):
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)
    seen = ""
    output = output_of(terminal)
    while len(set(re.findall(r"evaluating, \d+ s", seen))) < 2:
        seen += next(output)
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.close()
    seen += "".join(output)
    os.close(terminal)
    assert process.wait() == 1

    before, _, traceback = seen.partition("Traceback")
    assert "\x1b" not in traceback
    assert "RuntimeError: a full disk" in traceback
    drawn = re.findall(r"\r([^\r]+)\x1b\[K", before)
    assert all(len(line) < columns and cells(line) >= 10 for line in drawn)
    assert re.fullmatch(r" 50%\|.*\| 5/10 \[00:0\d<00:03\] loss 1.000", drawn[-1])
    # What remains on the screen: a line is erased, or drawn over, or left by a newline.
    screen = [line.rpartition("\x1b[K")[2] for line in before.split("\r\n")]
    printed = [line for line in screen if line and line != "blocked"]
    assert printed == ["first line", "second line"]
