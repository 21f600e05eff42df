"""Agreement between workers. Several of them: test_multi_worker.py."""

import contextlib

import pytest

from tests.conftest import strategy_of
from trainer.data.splits.split import Split
from trainer.errors import UserError
from trainer.run.agreement import Agreement, check_same_start

TRAIN = Split("train", "/a", "f00d", 80, ("cat", "dog"), None, 3, None, None)


def test_one_worker_agrees_with_itself():
    agreement = Agreement(strategy_of(1))
    assert agreement.mean([1.0, 0.5]) == [1.0, 0.5]
    assert agreement.gather([2**49, 3]) == [(2**49, 3)]
    check_same_start(agreement, 7, TRAIN, None)


class Group(Agreement):
    """Stands in for a group: it gathers what each of its workers would send."""

    def __init__(self, starts: list[tuple]):
        self._starts = starts
        self._rows: list[tuple[int, ...]] = []

    def gather(self, numbers):
        self._rows.append(tuple(numbers))
        return self._rows

    def check(self) -> None:
        for start in self._starts[:-1]:
            with contextlib.suppress(UserError):  # it sees only some of the group
                check_same_start(self, *start)
        check_same_start(self, *self._starts[-1])


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ((0, TRAIN, TRAIN), "step 0, not 7;"),
        ((7, TRAIN._replace(num_examples=79), TRAIN), "examples of the training data 79, not 80;"),
        ((7, TRAIN._replace(fingerprint="d00d"), TRAIN), "fingerprint of the training data;"),
        ((7, TRAIN, TRAIN._replace(fingerprint="d00d")), "fingerprint of the evaluation data;"),
        ((7, TRAIN._replace(class_names=("dog", "cat")), TRAIN), "classes;"),
    ],
)
def test_the_odd_worker_is_named_by_its_rank(odd, text):
    same = (7, TRAIN, TRAIN)
    Group([same, same, same]).check()
    with pytest.raises(UserError) as caught:
        Group([same, same, odd, same]).check()
    start = "worker 2 starts from something other than the others: "
    assert str(caught.value).startswith(f"{start}{text}")
