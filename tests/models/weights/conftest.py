"""A run, whose weights the tests here read."""

from pathlib import Path

import pytest

from tests.conftest import strategy_of
from tests.step_runs import Run
from trainer.data.source import open_split
from trainer.run.best import Best
from trainer.run.checkpoint import Checkpoints
from trainer.run.identity import run_metadata


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, small_config, digits, data_dir) -> Path:
    """The folder of a run of a few steps, whose last and best checkpoint differ."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(small_config, digits, strategy_of(1))
    metadata = run_metadata(small_config, open_split(small_config, "train", data_dir).split, None)
    checkpoints = Checkpoints(folder / "checkpoints", run.state, metadata, 3, is_chief=True)
    run.train(2)
    checkpoints.save_best(Best(0.5, 1.0, step=2))
    run.train(2)
    checkpoints.save(4)
    return folder
