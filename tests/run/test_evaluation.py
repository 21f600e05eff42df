"""The names of an evaluation's metrics."""

import dataclasses

import pytest

from tests.conftest import strategy_of, with_data, with_model
from trainer.data.bad_examples import BadExamples
from trainer.data.synthetic import SyntheticSource
from trainer.run.evaluation import make_evaluate
from trainer.step.state import TrainState


@pytest.mark.parametrize(("num_classes", "has_top5"), [(5, False), (6, True)])
def test_the_top_5_of_five_classes_are_not_reported(digits_config, tmp_path, num_classes, has_top5):
    config = with_data(with_model(digits_config, "linear"), image_size=8, eval_batch_size=16)
    model = dataclasses.replace(config.model, num_classes=num_classes)
    config = dataclasses.replace(config, model=model)
    source = SyntheticSource(config, 40)
    state = TrainState(config, source.channels)
    bad_examples = BadExamples(tmp_path, print)
    values = make_evaluate(
        config, strategy_of(1), state, source, bad_examples, has_checkpoint=lambda: False
    )()
    assert ("top5_accuracy" in values) == has_top5
    assert {"top1_accuracy", "loss"} <= values.keys()
