"""A loss or gradient that is not finite: reported, and the run stopped or rolled back."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_data, with_model, with_optimizer
from tests.step_runs import Poisoned
from trainer.data.pipeline import batch_indices, train_dataset
from trainer.errors import DivergedError
from trainer.run import data as run_data
from trainer.run import divergence, train
from trainer.run.folder import RunFolder
from trainer.run.log import read_records
from trainer.step.schedules import make_schedule
from trainer.step.state import TrainState
from trainer.step.train_step import TrainMetrics

_POISON = 700  # the index of the example on which Fragile fails


@pytest.fixture
def fragile_config(digits_config):
    config = with_data(
        with_model(digits_config, "fragile"),
        global_batch_size=96,
        image_size=8,
        mean=(0.3,),
        std=(0.4,),
        crop="none",
        pad=0,
    )
    config = with_optimizer(config, warmup_epochs=0.0)
    return dataclasses.replace(config, num_epochs=3.0, checkpoint_every_s=0.0, steps_per_loop=4)


@pytest.fixture
def poisoned(monkeypatch):
    """Poisons only the training split."""
    original = run_data.open_split

    def open_split(config, split, data_dir, found):
        opened = original(config, split, data_dir, found)
        if split != "train":
            return opened
        return opened._replace(source=Poisoned(opened.source, _POISON))

    monkeypatch.setattr(run_data, "open_split", open_split)


def _poisoned_steps(config, num_examples: int) -> list[int]:
    """Returns the steps, counted from 1, whose batches hold the poison: from the order itself."""
    total = round(config.num_epochs * num_examples / config.data.global_batch_size)
    source = np.zeros(num_examples)  # only its length matters
    return [s + 1 for s in range(total) if _POISON in batch_indices(config, source, s)]


def _run(config, folder, data_dir, num_replicas=1):
    run = RunFolder(str(folder), config)
    return train.train_and_evaluate(config, strategy_of(num_replicas), run, data_dir)


def test_the_indices_are_those_that_the_pipeline_feeds(fragile_config, digits):
    """Compares with the images themselves, on two workers' shares."""
    for step in (0, 7, 14, 15, 40):  # 14 and 15: around the end of the first epoch
        parts = []
        for worker in range(2):
            context = tf.distribute.InputContext(2, worker, 2)
            dataset = train_dataset(fragile_config, digits, step, context)
            parts += [images.numpy() for images, _ in dataset.take(1)]
        indices = batch_indices(fragile_config, digits, step)
        images, _ = digits.fetch(tf.constant(indices))
        np.testing.assert_array_equal(np.concatenate(parts), images)


def test_a_divergence_stops_with_a_full_report(fragile_config, poisoned, data_dir, tmp_path):
    first = _poisoned_steps(fragile_config, 1437)[0]
    with pytest.raises(DivergedError) as caught:
        _run(fragile_config, tmp_path, data_dir)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"step {first}: the loss is nan and the gradient's norm nan, at ")
    records = read_records(tmp_path / "metrics.jsonl", "train")
    rate = records[first - 1]["learning_rate"]
    assert f"at learning rate {rate:.6g} and loss scale 1;" in message
    assert "first layer in the backward pass without a finite gradient: head/bias;" in message
    assert "--set on_divergence=rollback" in message
    (record,) = read_records(tmp_path / "metrics.jsonl", "divergence")
    assert record["step"] == first
    assert _POISON in record["examples"]
    assert len(record["examples"]) == 96
    # The last checkpoint is that of the previous loop, and can be read.
    checkpoint = tf.train.latest_checkpoint(str(tmp_path / "checkpoints"))
    assert checkpoint.endswith(f"ckpt-{(first - 1) // 4 * 4}") or first <= 4


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_rollback_leaves_the_batch_out_and_lowers_the_rate(
    fragile_config, poisoned, data_dir, tmp_path, num_replicas
):
    config = dataclasses.replace(fragile_config, on_divergence="rollback", rollback_factor=0.25)
    poisoned_steps = _poisoned_steps(config, 1437)
    assert len(poisoned_steps) == 3  # once per epoch
    summary = _run(config, tmp_path, data_dir, num_replicas)
    assert summary.last_accuracy > 0.8  # it has learned nevertheless
    records = read_records(tmp_path / "metrics.jsonl", "train")
    assert [r["step"] for r in records] == list(range(1, 46))  # each step once
    assert [r["step"] for r in records if not r["applied"]] == poisoned_steps
    diverged = read_records(tmp_path / "metrics.jsonl", "divergence")
    assert [r["step"] for r in diverged] == poisoned_steps
    # The rate falls at the checkpoint before each: after a loop of four steps or an evaluation.
    schedule = make_schedule(config, 1437 / 96, 45)
    factors = [r["learning_rate"] / float(schedule(r["step"] - 1)) for r in records[:-1]]
    for step, factor in enumerate(factors, start=1):
        passed = sum(step >= bad for bad in poisoned_steps)
        soon = sum(step + 4 > bad for bad in poisoned_steps)
        assert factor in [pytest.approx(0.25**n, rel=1e-4) for n in range(passed, soon + 1)]
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(tmp_path / "checkpoints")))
    kept = {n: reader.get_tensor(f"state/{n}/.ATTRIBUTES/VARIABLE_VALUE") for n in _KEPT}
    assert kept["rollbacks"] == 3
    assert kept["rate_factor"] == pytest.approx(0.25**3)
    assert kept["left_out"].tolist() == [s - 1 for s in poisoned_steps] + [-1] * 13


_KEPT = ("rollbacks", "rate_factor", "left_out")


def test_gives_up_after_max_rollbacks(fragile_config, poisoned, data_dir, tmp_path):
    stops = fragile_config
    goes_back = dataclasses.replace(stops, on_divergence="rollback", max_rollbacks=2)
    with pytest.raises(DivergedError, match="rollback"):
        _run(stops, tmp_path, data_dir)
    # A stopped run resumes with the other setting, as its message suggests.
    with pytest.raises(
        DivergedError, match=r"rolled back 2 times already \(max_rollbacks\), to 0.25"
    ):
        _run(goes_back, tmp_path, data_dir)
    diverged = read_records(tmp_path / "metrics.jsonl", "divergence")
    first, *others = _poisoned_steps(stops, 1437)
    assert [r["step"] for r in diverged] == [first, first, *others]


def test_a_divergence_before_any_checkpoint_rolls_back_to_the_start(
    fragile_config, poisoned, data_dir, tmp_path
):
    config = dataclasses.replace(
        fragile_config, on_divergence="rollback", checkpoint_every_s=1e6, eval_every_epochs=100.0
    )
    _run(config, tmp_path, data_dir)
    records = read_records(tmp_path / "metrics.jsonl", "train")
    assert [r["step"] for r in records] == list(range(1, 46))
    assert records[0]["learning_rate"] == pytest.approx(0.1 * 0.5**3)


def _metrics(**columns) -> TrainMetrics:
    number = len(columns["applied"])
    defaults = dict.fromkeys(TrainMetrics._fields, [1.0] * number)
    return TrainMetrics(**{n: np.array(v) for n, v in (defaults | columns).items()})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"applied": [1, 1, 1]}, None),
        # float16: the scale can still fall …
        ({"applied": [1, 0, 1], "loss_scale": [8, 8, 4]}, None),
        # … and now it cannot, …
        ({"applied": [1, 0, 0], "loss_scale": [2, 2, 1]}, 13),
        # … and would not help, since the loss is not scaled.
        ({"applied": [1, 0, 1], "loss": [1, np.inf, 1], "loss_scale": [8, 8, 4]}, 12),
        ({"applied": [0, 0, 1]}, 11),
    ],
)
def test_find_returns_the_first_divergence(fragile_config, digits, columns, expected):
    with strategy_of(1).scope():
        state = TrainState(fragile_config, 1)
    metrics = _metrics(**columns)
    found = divergence.find(fragile_config, state, digits, 13, metrics)
    assert (found and found.step) == expected
    if found:
        state.left_out.assign([found.step - 1] + [-1] * 15)  # known, and left out since
        later = divergence.find(fragile_config, state, digits, 13, metrics)
        assert later is None or later.step > found.step
        json.dumps(found._asdict())
