"""Agreement between workers. Several of them: test_multi_worker.py."""

from tests.conftest import strategy_of
from trainer.run.agreement import make_agreement


def test_one_worker_agrees_with_itself():
    assert make_agreement(strategy_of(1))([1.0, 0.5]) == [1.0, 0.5]
