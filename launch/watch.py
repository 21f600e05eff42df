"""Follows a run until it ends, and restarts it if needed: one state machine for all back ends."""

import random
import signal
from collections.abc import Callable

from launch.errors import (
    EXIT_CANCELLED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_PREEMPTED,
    LaunchError,
    redacted,
)
from launch.interface import Job, Observation
from launch.policy import Outcome, State, outcome
from launch.records import Record
from launch.signals import Signals

_LOOKS_UNTIL_GONE = 3  # a stale answer or list is not the end of a run
_SLICE_S = 1.0  # a cancel by another process is seen within this time


def watch(record: Record, job: Job, signals: Signals, say: Callable[[str], None]) -> int:
    """Looks at the run, reports changes and restarts it, until it ends or a signal arrives.

    The caller holds the record's lock.

    Returns:
        The exit code of `python -m launch`: 0 if the run is done, the trainer's own if it failed
        (1 if unknown), 42 or 130 after a signal.
    """
    return _Watch(record, job, signals, say).run()


def exit_code(record: Record) -> int:
    """Returns the exit code for a run that has ended."""
    if record.state is State.SUCCEEDED:
        return EXIT_DONE
    if record.state is State.CANCELLED:
        return EXIT_CANCELLED
    if record.exit_code in (None, 42, 143):  # these mean: start me again
        return EXIT_FAILED
    return record.exit_code


class _Watch:
    def __init__(self, record: Record, job: Job, signals: Signals, say: Callable[[str], None]):
        self._record, self._job, self._signals = record, job, signals
        self._say = say
        self._gone = 0  # looks in a row that found nothing

    def run(self) -> int:
        record, job = self._record, self._job
        while not record.state.is_final:
            if record.is_cancelled:
                self._cancel()
                break
            if self._signals.received:
                return self._leave()
            self._act(job.observe())
            if not record.state.is_final:
                self._wait(job.poll_s)
        return exit_code(record)

    def _act(self, seen: Observation) -> None:
        """Does what one look calls for."""
        record = self._record
        self._gone = self._gone + 1 if seen.gone else 0
        state = seen.state
        if seen.gone:  # a back end that restarts runs itself has lost it
            lost = State.FAILED if self._job.restarts_itself else State.PREEMPTED
            state = lost if self._gone >= _LOOKS_UNTIL_GONE else State.UNKNOWN
        record.was_running |= state is State.RUNNING
        if (state, seen.message) != (record.state, record.message) and not state.is_final:
            self._set(state, seen.message)
        if self._job.restarts_itself:
            if state.is_final:
                self._set(state, seen.message, seen.exit_code)
        elif state in (State.SUCCEEDED, State.CANCELLED):
            self._end(state, seen.message, seen.exit_code)
        elif state is State.PREEMPTED:
            self._restart(False, seen)
        elif state is State.FAILED:
            # A failure without an exit code before the run ever ran: the config or a quota.
            asks = Outcome.FAIL if not record.was_running else Outcome.RESTART
            if seen.exit_code is not None:
                asks = outcome(seen.exit_code)
            if asks in (Outcome.RESTART, Outcome.RESTART_CHARGED):
                self._restart(asks is Outcome.RESTART_CHARGED, seen)
            else:
                self._end(State.FAILED, seen.message, seen.exit_code)

    def _restart(self, charged: bool, seen: Observation) -> None:
        record, job = self._record, self._job
        restarts, most = record.restarts, record.spec.max_restarts
        refusal = restarts.refusal(charged, most, job.progress())
        if refusal:
            self._end(State.FAILED, f"{seen.message}; not restarted: {refusal}", seen.exit_code)
            return
        count = f", {restarts.charged} of {most} charged" if charged else ""
        self._set(State.PREEMPTED, f"{seen.message}; restart {restarts.attempt}{count}")
        try:
            job.delete()  # leftovers hold quota, ports, or the run's folder
        except LaunchError:
            if self._signals.received:
                return  # a signal ended the wait: the loop handles it
            raise
        backoff_s = job.backoff_s * 2 ** min(restarts.without_progress, 5)
        self._wait(backoff_s * random.uniform(0.5, 1.0))
        if record.is_cancelled or self._signals.received:
            return  # the loop handles it
        job.create(restarts.attempt)
        self._gone = 0
        self._set(State.QUEUED, f"restart {restarts.attempt}")

    def _wait(self, seconds: float) -> None:
        until = self._signals.now() + seconds
        while not self._record.is_cancelled and not self._signals.received:
            left = until - self._signals.now()
            if left <= 0:
                return
            self._signals.wait(min(left, _SLICE_S))

    def _leave(self) -> int:
        """Handles a signal: local processes end with this one; elsewhere the run continues."""
        name = self._record.spec.name
        by_user = self._signals.received[0] == signal.SIGINT
        if not self._job.ends_with_watch:
            is_down = self._record.state is State.PREEMPTED
            goes_on = "is not restarted until it is watched again" if is_down else "continues"
            self._say(
                f"the run {goes_on}; `python -m launch watch {name}` follows it, `python -m launch "
                f"cancel {name}` ends it"
            )
            return EXIT_CANCELLED if by_user else EXIT_PREEMPTED
        self._say("stopping once the run has saved; a second signal stops it at once")
        self._job.delete()
        if by_user:
            self._set(State.CANCELLED, "stopped by Ctrl-C; the same command resumes it")
            return EXIT_CANCELLED
        self._set(
            State.PREEMPTED, f"stopped by a signal; `python -m launch watch {name}` resumes it"
        )
        return EXIT_PREEMPTED

    def _cancel(self) -> None:
        self._job.delete()
        self._set(State.CANCELLED, "on request")

    def _end(self, state: State, message: str, code: int | None) -> None:
        self._job.delete()  # or it costs money and holds quota forever
        self._set(state, message, code)

    def _set(self, state: State, message: str, code: int | None = None) -> None:
        self._record.set_state(state, message, code)
        attempt = self._record.restarts.attempt
        self._say(
            f"{state}"
            + (f" (start {attempt + 1})" if attempt else "")
            + (f": {redacted(message)}" if message else "")
        )
