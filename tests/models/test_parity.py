"""Every family, compared with timm's and torchvision's results (tests/parity/reference.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.parity.cases import CASES, CLASSES, LABELS, Case, images, tensor
from trainer import config as config_lib
from trainer.config import Config
from trainer.models.build import build_model
from trainer.models.weights.names import libraries, named_variables

GOLDEN = json.loads((Path(__file__).parents[1] / "parity" / "golden.json").read_text())
TOLERANCE = 1e-4  # of the largest logit, and of the gradient's norm


def config_of(case: Case) -> Config:
    settings = [
        f"model.name={case.name}",
        f"model.num_classes={CLASSES}",
        f"data.image_size={case.image_size}",
        *case.settings,
    ]
    return config_lib.override(Config(), settings)


def model_of(case: Case):
    """Builds the model with the reference's weights, by their names there."""
    config = config_of(case)
    model = build_model(config, channels=3)
    library = libraries(case.name).get(case.reference) or next(iter(libraries(case.name).values()))
    for name, named in named_variables(model, library).items():
        named.assign_from_torch(tensor(name, named.torch_shape))
    return model


def distance(ours: tf.Tensor, reference: list[list[float]]) -> float:
    expected = np.array(reference)
    return float(np.abs(ours.numpy() - expected).max() / np.abs(expected).max())


LARGE = {"resnet101", "seresnet50", "wide_resnet50_2", "vgg13_bn", "mobilenetv2_140", "resnet34"}
LARGE |= {"resnet50d", "resnetrs50"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.key, marks=[pytest.mark.slow] if case.name in LARGE else [])
        for case in CASES
    ],
)
def test_logits_and_gradients_are_those_of_the_reference(case):
    golden, model, x = GOLDEN["cases"][case.key], model_of(case), tf.constant(images(case))
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == golden["parameters"]
    assert distance(model(x, training=False), golden["evaluation"]) < TOLERANCE
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits)
        loss = tf.reduce_mean(losses)
    assert distance(logits, golden["training"]) < TOLERANCE
    norm = tf.linalg.global_norm(tape.gradient(loss, model.trainable_variables)).numpy()
    assert norm == pytest.approx(golden["gradient_norm"], rel=TOLERANCE)


def test_the_cases_are_those_of_the_golden_file():
    assert list(GOLDEN["cases"]) == [case.key for case in CASES]
