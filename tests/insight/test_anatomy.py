"""Shapes, counts and receptive fields, compared with values computed in another way."""

import numpy as np
import pytest
import tensorflow as tf

from tests.insight.models import build
from tests.small_models import (
    TINY_BOTTLENECK,
    TINY_RESNET,
    TINY_RESNEXT,
    TINY_RS,
    TINY_WRN,
)
from trainer.insight.anatomy import anatomy, watching
from trainer.models.build import build_model


def field_by_trial(model, name: str, size: int) -> int:
    """Counts the image rows on which the middle of a layer's output depends.

    There is one image per row, which is brighter in that row. With positive weights nothing
    cancels, no ReLU is off, and no maximum moves.
    """
    for variable in model.variables:
        variable.assign(tf.abs(variable) + 0.1)
    found = {}

    def watch(layer, output):
        if layer.name == name:
            middle = output.shape[1] // 2
            found["middle"] = output.numpy()[:, middle, middle]

    brighter = np.eye(size + 1, size)[:, :, None, None] * 100.0  # the last one is brighter nowhere
    with watching(watch):
        model(tf.cast(np.broadcast_to(1 + brighter, (size + 1, size, size, 1)), tf.float32))
    depends = np.flatnonzero((found["middle"][:-1] != found["middle"][-1]).any(axis=1))
    return int(depends[-1] - depends[0] + 1)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (TINY_RESNET, 128),
        (TINY_BOTTLENECK, 96),
        (TINY_RESNEXT, 96),
        (TINY_WRN, 64),
    ],
)
def test_receptive_fields_match_what_the_output_depends_on(name, size):
    config, _ = build(name, size)
    model = build_model(config, channels=1)
    rows = [row for row in anatomy(model, size, channels=1) if row.stage != "head"]
    for row in rows:
        assert row.receptive_field < size / 2  # no edge cuts it off
        assert row.receptive_field == field_by_trial(model, row.name, size), row.name


def test_the_field_leaves_gates_out_and_the_head_sees_the_whole_image():
    _, gated = build(TINY_RS, 64)
    fields = {row.name: row.receptive_field for row in anatomy(gated, 64, channels=3)}
    assert fields["head_pool"] is None
    assert fields["head"] is None
    assert all(pixels is not None for name, pixels in fields.items() if not name.startswith("head"))


def test_layers_without_effect_have_no_row():
    _, without = build(TINY_RESNET, 32)
    _, dropping = build(TINY_RESNET, 32, "model.dropout=0.5")
    names = [{row.name for row in anatomy(model, 32, 3)} for model in (without, dropping)]
    assert names[1] - names[0] == {"head_dropout"}
