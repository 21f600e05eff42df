"""Activations and their picture."""

import numpy as np
import pytest
import tensorflow as tf

from tests.insight.models import build
from tests.small_models import TINY_RESNET
from trainer.insight.feature_maps import Activations, activations, grid


def test_activations_of_an_image_are_the_stages_outputs():
    _, model = build(TINY_RESNET, 32)
    image = tf.random.stateless_normal([32, 32, 3], [1, 2])
    found = {one.stage: one for one in activations(model, image)}
    assert list(found) == ["stem", "stage1", "stage2", "head"]
    np.testing.assert_allclose(found["head"].values, model(image[None])[0], rtol=1e-5)
    x = model.stages[0][0](
        model.pool(tf.pad(model.stem(image[None]), [[0, 0], [1, 1], [1, 1], [0, 0]]))
    )
    np.testing.assert_allclose(found["stage1"].values, x[0], rtol=1e-5, atol=1e-6)
    statistics = found["stage1"].statistics
    assert statistics["zeros"] == pytest.approx(np.mean(x == 0))
    assert statistics["mean"] == pytest.approx(np.mean(x), rel=1e-4)
    assert statistics["std"] == pytest.approx(np.std(x), rel=1e-4)


def test_the_picture_has_the_most_varied_maps_each_from_black_to_white():
    values = np.zeros((2, 2, 10), np.float32)
    for channel in range(10):
        values[0, 0, channel] = channel  # the last one varies most, channel 0 not at all
    picture = grid([Activations("a", values), Activations("head", np.zeros(5, np.float32))])
    assert picture.shape == (116, 8 * 116)  # no row for a stage without height
    assert picture.dtype == np.uint8
    tiles = picture.reshape(116, 8, 116).transpose(1, 0, 2)
    assert [tile[2, 2] for tile in tiles] == [255] * 8  # the greatest pixel
    assert [tile[60, 60] for tile in tiles] == [0] * 8
    constant = grid([Activations("a", np.ones((2, 2, 1), np.float32))])
    assert constant[60, 60] == 0  # a single number has no contrast
    assert (constant[:, 116:] == 255).all()  # no maps here
