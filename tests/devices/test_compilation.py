"""What XLA compiles: the choice, and that it computes the same."""

import dataclasses

import numpy as np
import pytest

from tests.conftest import strategy_of
from tests.step_runs import Run, furthest, with_sync_batch_norm
from trainer.devices.compilation import choose_compilation
from trainer.errors import UserError


@pytest.mark.usefixtures("xla")
@pytest.mark.parametrize(
    ("num_replicas", "sync_batch_norm", "accumulation_steps", "expected"),
    [
        pytest.param(1, True, 1, "step", marks=pytest.mark.slow),
        (1, True, 2, "step"),
        pytest.param(2, False, 1, "forward_backward", marks=pytest.mark.slow),
    ],
)
def test_xla_on_cpu_computes_the_same(
    small_config, digits, num_replicas, sync_batch_norm, accumulation_steps, expected
):
    config = dataclasses.replace(
        with_sync_batch_norm(small_config, sync_batch_norm),
        xla="on",
        accumulation_steps=accumulation_steps,
    )
    compiled = choose_compilation(config, strategy_of(num_replicas)).compiled
    assert compiled == expected
    plain, run = (
        Run(config, digits, strategy_of(num_replicas)),
        Run(config, digits, strategy_of(num_replicas), compiled),
    )
    np.testing.assert_allclose(run.train(3).loss, plain.train(3).loss, rtol=1e-4)
    assert furthest(run, plain) < 1e-3


def test_xla_is_chosen_and_refused_with_a_reason(small_config):
    config = small_config
    one, two = strategy_of(1), strategy_of(2)
    auto = choose_compilation(config, one)
    assert auto.compiled == "nothing"
    assert "oneDNN" in auto.reason
    assert choose_compilation(dataclasses.replace(config, xla="off"), two).compiled == "nothing"
    with pytest.raises(
        UserError, match=r"xla is 'on' and model\.sync_batch_norm is true.*2 CPU replicas"
    ):
        choose_compilation(dataclasses.replace(config, xla="on"), two)
