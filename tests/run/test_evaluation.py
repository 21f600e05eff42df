"""The names of an evaluation's metrics."""

import dataclasses

import numpy as np
import pytest

from tests.conftest import strategy_of, with_data, with_model
from trainer.data.bad_examples import BadExamples
from trainer.data.source import open_source
from trainer.run.evaluation import make_evaluate
from trainer.step.state import TrainState


@pytest.mark.parametrize(("num_classes", "has_top5"), [(5, False), (6, True)])
def test_the_top_5_of_five_classes_are_not_reported(digits_config, tmp_path, num_classes, has_top5):
    images, labels = np.zeros((12, 8, 8), np.uint8), np.arange(12) % num_classes
    np.savez(tmp_path / "images.npz", x_val=images, y_val=labels)
    config = with_data(
        with_model(digits_config, "linear"),
        name="arrays",
        path="images.npz",
        eval_split="val",
        image_size=8,
    )
    model = dataclasses.replace(config.model, num_classes=num_classes)
    config = dataclasses.replace(config, model=model)
    source = open_source(config, "val", str(tmp_path))
    state = TrainState(config, source.channels)
    bad_examples = BadExamples(tmp_path, print)
    values = make_evaluate(
        config, strategy_of(1), state, source, bad_examples, has_checkpoint=lambda: False
    )()
    assert ("top5_accuracy" in values) == has_top5
    assert {"top1_accuracy", "loss"} <= values.keys()
