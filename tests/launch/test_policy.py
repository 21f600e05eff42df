"""The policy, compared with the table of exit codes in docs/launch.md."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.policy import (
    MAX_WITHOUT_PROGRESS,
    Outcome,
    Restarts,
    first_to_end,
    outcome,
    shell_code,
)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], Outcome.DONE),
        ([42, 143], Outcome.RESTART),
        ([129, 130, 134, 137, 142, 144, 200, 255], Outcome.RESTART_CHARGED),
        ([1, 2, 41, 43, 126, 127, 128], Outcome.FAIL),
    ],
)
def test_exit_codes_decide_the_outcome(codes, expected):
    assert {outcome(code) for code in codes} == {expected}


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ([None, 0, 0], None),
        ([None, 2, 42], 1),
        ([200, 1], 1),  # its own error, not a consequence of another's end
        ([1, 137], 1),
        ([200, 137, 1], 1),
        ([42, 200], 0),
        ([2, 43], 0),
    ],
)
def test_the_worker_that_brought_the_others_down(codes, rank):
    assert first_to_end(codes) == rank


def test_signals_are_codes_as_a_shell_has_them():
    reported = subprocess.check_output(["bash", "-c", "bash -c 'kill -9 $$'; echo $?"], text=True)
    assert shell_code(subprocess.call(["bash", "-c", "kill -9 $$"])) == int(reported) == 137
    assert shell_code(2) == 2


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab")), max_size=30), st.integers(0, 5))
def test_restarts_are_counted(ends, most):
    """Compares with a plain count over all earlier ends."""
    restarts, past = Restarts(), []
    for charged, progress in ends:
        refusal = restarts.refusal(charged, most, progress)
        counted = sum(was_charged for was_charged, _ in past)
        marks = ["", *(mark for _, mark in past), progress]
        same = next(
            i for i in range(len(marks)) if marks[-1 - i] != progress or i + 1 == len(marks)
        )
        stuck = same - 1 >= MAX_WITHOUT_PROGRESS
        assert bool(refusal) == ((charged and counted >= most) or stuck)
        if refusal:
            return
        past.append((charged, progress))
        assert (restarts.attempt, restarts.charged) == (len(past), counted + charged)
