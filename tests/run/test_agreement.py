"""Agreement between workers. Several of them: test_multi_worker.py."""

from tests.conftest import strategy_of
from trainer.run.agreement import Agreement


def test_one_worker_agrees_with_itself():
    agreement = Agreement(strategy_of(1))
    assert agreement.mean([1.0, 0.5]) == [1.0, 0.5]
    assert agreement.gather([2**49, 3]) == [(2**49, 3)]
