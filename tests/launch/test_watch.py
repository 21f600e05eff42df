"""The state machine, with a scripted back end and a simulated clock."""

from collections.abc import Callable

import pytest

from launch import records
from launch import watch as watch_lib
from launch.interface import Observation
from launch.policy import MAX_WITHOUT_PROGRESS, State
from tests.launch.specs import made


class Clock:
    """Stands in for launch.signals.Signals; waiting takes no time."""

    def __init__(self):
        self.received: list[int] = []
        self.time = 0.0

    def wait(self, seconds, others=()):
        self.time += seconds
        return []

    def now(self):
        return self.time

    hurry = False


class Played:
    """A back end that reports scripted observations, and notes the calls."""

    ends_with_watch = False
    poll_s, backoff_s = 1.0, 10.0

    def __init__(self, shows, restarts_itself=False, on_look: Callable[[int], None] | None = None):
        self._shows, self.restarts_itself = list(shows), restarts_itself
        self._on_look = on_look
        self.asked: list[str] = []
        self.mark = ""

    def observe(self):
        seen = self._shows.pop(0)
        if self._on_look:
            self._on_look(len(self._shows))
        return seen

    def create(self, attempt):
        self.asked.append(f"create {attempt}")

    def delete(self):
        self.asked.append("delete")

    def progress(self):
        return self.mark


QUEUED, RUNNING = Observation(State.QUEUED), Observation(State.RUNNING)
PREEMPTED, GONE = Observation(State.PREEMPTED), Observation(State.UNKNOWN, gone=True)
UNKNOWN, DONE = Observation(State.UNKNOWN), Observation(State.SUCCEEDED, 0)


def ended(code: int | None) -> Observation:
    return Observation(State.FAILED, code, message="why")


@pytest.mark.parametrize(
    ("shows", "asked", "state", "code"),
    [
        ([QUEUED, RUNNING, DONE], ["delete"], "succeeded", 0),
        ([RUNNING, ended(2)], ["delete"], "failed", 2),
        ([RUNNING, ended(43)], ["delete"], "failed", 43),
        ([RUNNING, ended(137), RUNNING, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        ([RUNNING, PREEMPTED, QUEUED, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        # Preempted before it ever ran: not the config's fault.
        ([QUEUED, PREEMPTED, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        # A failure without a code: the config's or a quota's before it ran, the machine's after.
        ([QUEUED, ended(None)], ["delete"], "failed", 1),
        ([RUNNING, ended(None), DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        # One or two looks prove nothing; nor does any number of looks without an answer.
        ([RUNNING, GONE, GONE, RUNNING, DONE], ["delete"], "succeeded", 0),
        ([RUNNING, GONE, GONE, GONE, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        ([RUNNING, *[UNKNOWN] * 50, DONE], ["delete"], "succeeded", 0),
        ([RUNNING, Observation(State.CANCELLED)], ["delete"], "cancelled", 130),
    ],
)
def test_observations_and_their_consequences(shows, asked, state, code):
    record, job = made(), Played(shows)
    assert watch_lib.watch(record, job, Clock(), lambda text: None) == code
    assert job.asked == asked
    assert records.read("digits").state == state


@pytest.mark.parametrize(
    ("shows", "state", "code"),
    [
        ([RUNNING, PREEMPTED, QUEUED, RUNNING, DONE], "succeeded", 0),
        ([RUNNING, ended(137)], "failed", 137),
        ([RUNNING, GONE, GONE, GONE], "failed", 1),
        ([RUNNING, ended(42)], "failed", 1),  # a trainer's 42 would mean: start me again
    ],
)
def test_a_back_end_that_restarts_runs_is_only_observed(shows, state, code):
    record, job = made(), Played(shows, restarts_itself=True)
    assert watch_lib.watch(record, job, Clock(), lambda text: None) == code
    assert job.asked == []
    assert records.read("digits").state == state


def test_pauses_grow_without_progress():
    record, clock = made(), Clock()
    times: list[float] = []
    job = Played([PREEMPTED] * 10)
    job.create = lambda attempt: times.append(clock.time)
    assert watch_lib.watch(record, job, clock, lambda text: None) == 1
    assert len(times) == MAX_WITHOUT_PROGRESS - 1
    pauses = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    for number, pause in enumerate(pauses):  # plus one second between two looks
        assert 10 * 2 ** (number + 1) * 0.5 <= pause <= 10 * 2 ** (number + 1) + 1


def test_nothing_is_created_after_a_cancel():
    record = made()
    job = Played([RUNNING, PREEMPTED], on_look=lambda left: None if left else record.cancel())
    assert watch_lib.watch(record, job, Clock(), lambda text: None) == 130
    assert set(job.asked) == {"delete"}
    assert records.read("digits").state is State.CANCELLED


def test_ctrl_c_leaves_the_run_alone_and_reports_it():
    record, clock, said = made(), Clock(), []
    job = Played([RUNNING, RUNNING], on_look=lambda left: left or clock.received.append(2))
    assert watch_lib.watch(record, job, clock, said.append) == 130
    assert job.asked == []
    assert said[-1].startswith("the run continues; `python -m launch watch digits` follows it")
    assert records.read("digits").state is State.RUNNING
