"""A run, whose weights the tests here read."""

from pathlib import Path

import pytest

from tests.conftest import strategy_of
from tests.step_runs import Run
from trainer.run.checkpoint import Checkpoints, run_metadata


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, small_config, digits) -> Path:
    """The folder of a run of a few steps, whose last and best checkpoint differ."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(small_config, digits, strategy_of(1))
    checkpoints = Checkpoints(
        folder / "checkpoints", run.state, run_metadata(small_config, digits), 3, is_chief=True
    )
    run.train(2)
    checkpoints.save_best(2)
    run.train(2)
    checkpoints.save(4)
    return folder
