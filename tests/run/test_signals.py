"""Ctrl-C and SIGTERM: the answer comes at once, whatever the main thread does."""

import signal
import subprocess
import sys

import pytest

from tests.run.test_progress import Clock
from trainer.run.progress import Phase, Progress
from trainer.run.signals import advice

_PROGRAM = """
import os, signal
from tests.run.blocking import stay_in_c
from trainer.run.progress import Phase, Progress
from trainer.run.signals import StopRequest

StopRequest()  # of an earlier run in this process
stop = StopRequest()
if not (child := os.fork()):  # such as a worker of a user's own source
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
os.waitpid(child, 0)
with Progress(0, 10, is_shown=True) as progress:
    stop.progress = progress
    with progress.doing(Phase.FIRST_LOOP):
        stay_in_c()
print("requested:", stop.requested)
"""
_FIRST_LOOP = (
    "stopping after the first loop of steps, once it is compiled; {} ends at once, and loses "
)
_FIRST_LOOP += "nothing: no step is trained yet\n"


@pytest.fixture
def blocked():
    """A process whose main thread is in C, and stays there until it is sent a line."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "blocked\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGINT, "Ctrl-C again"), (signal.SIGTERM, "Ctrl-C")]
)
def test_the_answer_does_not_wait_for_the_main_thread(blocked, number, how):
    blocked.send_signal(number)
    assert blocked.stdout.readline() == _FIRST_LOOP.format(how)
    if number == signal.SIGTERM:
        blocked.send_signal(number)  # a second one changes nothing
    output, _ = blocked.communicate("\n")
    assert output == "requested: True\n"
    assert blocked.returncode == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_the_process_though_it_is_in_c(blocked, first):
    blocked.send_signal(first)
    assert blocked.stdout.readline().startswith("stopping after")
    blocked.send_signal(signal.SIGINT)
    assert blocked.wait() == -signal.SIGINT


def test_two_at_once_end_the_process(blocked):
    """The second may arrive before the first is answered.

    The kernel makes one of two that are pending, so that two calls may be one Ctrl-C.
    """
    while blocked.poll() is None:
        blocked.send_signal(signal.SIGINT)
    assert blocked.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("phase", "step", "saved", "expected"),
    [
        (Phase.TRAINING, 4, True, "this loop of steps; … what was trained since the last checkpo"),
        (Phase.TRAINING, 4, False, "this loop of steps; … what was trained since this start, of w"),
        (Phase.TRACING, 0, False, "the first loop of steps, once it is compiled; … nothing: no st"),
        (Phase.EVALUATING, 4, True, "one more loop of steps; … what was trained since the last ch"),
        (Phase.SAVING, 4, False, "one more loop of steps; … what was trained since this start, of"),
        (Phase.EVALUATING, 9, True, "the last evaluation, as it would anyway; … what was trained "),
    ],
)
def test_the_answer_tells_when_the_run_stops_and_what_would_be_lost(phase, step, saved, expected):
    clock = Clock()
    progress = Progress(0, 9, is_shown=False, clock=clock)
    if saved:
        with progress.doing(Phase.SAVING):
            pass
    progress.step = step
    clock.now = 12.0
    with progress.doing(phase):
        line = advice(signal.SIGINT, progress)
    until = f"stopping after {expected}".replace("…", "Ctrl-C again ends at once, and loses")
    assert line.startswith(until)
    assert ("checkpoint (12 s ago)" in line) == saved


def test_before_the_log_is_open_nothing_can_be_lost():
    line = advice(signal.SIGTERM, None)
    assert line == _FIRST_LOOP.format("Ctrl-C").strip()
