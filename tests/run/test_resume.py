"""A run killed anywhere ends like an undisturbed one: bit-identical state, and the same logs."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of
from trainer import config as config_lib
from trainer.data.splits.split import Split
from trainer.errors import UserError
from trainer.run.best import Best
from trainer.run.checkpoint import Checkpoints
from trainer.run.identity import run_metadata
from trainer.run.log import read_records
from trainer.step.state import TrainState

_EPOCHS, _BATCH, _EXAMPLES = 8, 128, 1437
_STEPS = round(_EPOCHS * _EXAMPLES / _BATCH)
_EVALS = [round(n * _EXAMPLES / _BATCH) for n in range(1, _EPOCHS + 1)]
_FLAGS = (
    "--strategy=mirrored",
    "--virtual_devices=2",
    "--set=deterministic=true",
    f"--set=num_epochs={_EPOCHS}",
    f"--set=data.global_batch_size={_BATCH}",
    "--set=model.name=tests.small_models.resnet8",
    "--set=ema_decay=0.9",
    "--set=eval_every_epochs=1",
    "--set=checkpoint_every_s=0",  # a checkpoint after each loop: most random kills hit a write
    "--set=steps_per_loop=3",
)
# float16 has the most state; its first scales overflow here, so the scale changes.
_FLOAT16 = ("--set=precision=mixed_float16", "--set=initial_loss_scale=1e9")


def _start(workdir: Path, data_dir: str, *flags: str, where="never", count=0) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.trainer_dying", where, str(count)]
    return subprocess.Popen(
        [*command, *_FLAGS, *flags, f"--workdir={workdir}", f"--data_dir={data_dir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen, code: int) -> str:
    # On TensorFlow 2.20, float16 on a CPU is ten times slower.
    output, errors = process.communicate(timeout=900)
    assert process.returncode == code, output + errors
    return output


def _wait_for_evaluation(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if "evaluated" in line:
            return
    raise AssertionError(f"ended early: {process.communicate()}")


def _tensors(workdir: Path) -> dict[str, np.ndarray]:
    """Returns the last checkpoint's tensors, except this process's save count and the metadata."""
    path = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    assert path.endswith(f"ckpt-{_STEPS}")
    reader = tf.train.load_checkpoint(path)
    names = [
        n for n in reader.get_variable_to_shape_map() if not n.startswith(("save_c", "_CHECK"))
    ]
    return {name: reader.get_tensor(name) for name in names}


def _curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Returns the points that TensorBoard reads, in its order."""
    points = []
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            points += [
                (event.step, value.simple_value)
                for value in event.summary.value
                if value.tag == tag
            ]
    return points


def _assert_ended_the_same(workdir: Path, reference: Path) -> None:
    tensors, expected = _tensors(workdir), _tensors(reference)
    assert tensors.keys() == expected.keys()
    kinds = ("moving_variance", "momenta", "ema_model", "applied_steps")
    for kind in kinds:
        assert any(kind in name for name in tensors), kind
    for name, value in expected.items():
        assert np.asarray(tensors[name]).tobytes() == np.asarray(value).tobytes(), name

    rates = ("images_per_second", "steps_per_second")
    for kind, steps in (("train", list(range(1, _STEPS + 1))), ("eval", _EVALS)):
        records, others = (
            [{k: v for k, v in r.items() if k not in rates} for r in read_records(path, kind)]
            for path in (workdir / "metrics.jsonl", reference / "metrics.jsonl")
        )
        assert [record["step"] for record in records] == steps
        assert records == others
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    starts = read_records(workdir / "metrics.jsonl", "startup")  # one per start
    assert len(lines) == _STEPS + _EPOCHS + len(starts)
    for folder, tag, steps in (
        ("train", "accuracy", range(1, _STEPS + 1)),
        ("eval", "ema_accuracy", _EVALS),
    ):
        curve = _curve(workdir / folder, tag)
        assert [step for step, _ in curve] == list(steps)  # one curve: each step once, in order
        assert curve == _curve(reference / folder, tag)
    assert (workdir / "DONE").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    """Returns a function that makes undisturbed runs, one of each precision."""
    made = {}

    def run(*flags: str) -> Path:
        if flags not in made:
            made[flags] = tmp_path_factory.mktemp("undisturbed")
            _finish(_start(made[flags], data_dir, *flags), 0)
        return made[flags]

    return run


@pytest.mark.slow
def test_killed_and_stopped_it_ends_the_same(undisturbed, data_dir, tmp_path):
    """SIGKILL at a random moment after the first evaluation, SIGTERM after the second."""
    seed = random.randrange(10**6)
    print(f"the kill's moment is random: seed {seed}")
    process = _start(tmp_path, data_dir, *_FLOAT16)
    _wait_for_evaluation(process)
    try:  # not synchronised: any moment will do
        process.wait(random.Random(seed).uniform(0, 0.5))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _finish(process, -signal.SIGKILL)

    process = _start(tmp_path, data_dir, *_FLOAT16)
    _wait_for_evaluation(process)
    process.send_signal(signal.SIGTERM)
    output = _finish(process, 42)
    assert "the same command resumes from there" in output
    step = int(output.partition("saved at step ")[2].split()[0])

    output = _finish(_start(tmp_path, data_dir, *_FLOAT16), 0)
    assert f"from step {step} of {_STEPS}" in output
    assert f"tensorboard --logdir {tmp_path}" in output
    _assert_ended_the_same(tmp_path, undisturbed(*_FLOAT16))
    scales = [r["loss_scale"] for r in read_records(tmp_path / "metrics.jsonl", "train")]
    assert scales[0] > scales[-1] > 1  # it has skipped steps, and the state has followed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "count"),
    [("checkpoint", 4), ("checkpoint", 1), ("half", 5), ("best", 2), ("metrics", 6)],
)
def test_killed_in_a_write_it_ends_the_same(undisturbed, data_dir, tmp_path, where, count):
    _finish(_start(tmp_path, data_dir, where=where, count=count), -signal.SIGKILL)
    _finish(_start(tmp_path, data_dir), 0)
    _assert_ended_the_same(tmp_path, undisturbed())


@pytest.mark.slow
def test_killed_while_resuming_it_ends_the_same(undisturbed, data_dir, tmp_path):
    _finish(_start(tmp_path, data_dir, where="metrics", count=7), -signal.SIGKILL)
    _finish(_start(tmp_path, data_dir, where="resume", count=1), -signal.SIGKILL)
    _finish(_start(tmp_path, data_dir), 0)
    _assert_ended_the_same(tmp_path, undisturbed())


@pytest.mark.slow
def test_killed_at_many_random_moments_it_ends_the_same(undisturbed, data_dir, tmp_path):
    seed = random.randrange(10**6)
    print(f"the kills' moments are random: seed {seed}")
    moments = random.Random(seed)
    for _ in range(5):
        process = _start(tmp_path, data_dir)
        try:
            process.wait(moments.uniform(6, 25))  # from the import of TensorFlow to the end
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    _finish(_start(tmp_path, data_dir), 0)
    _assert_ended_the_same(tmp_path, undisturbed())


_NO_DATA = Split("train", "/data", "", 1, (), None, 1, None, None)


@pytest.fixture(scope="module")
def linear():
    """A small state, its config, and a function that opens a folder of its checkpoints."""
    config = config_lib.override(
        config_lib.load("configs/digits_resnet20.py"), ["model.name=tests.small_models.linear"]
    )
    with strategy_of(2).scope():
        state = TrainState(config, 1)

    def checkpoints(folder: Path, other: config_lib.Config = config) -> Checkpoints:
        metadata = run_metadata(other, _NO_DATA, None)
        return Checkpoints(folder, state, metadata, 3, is_chief=True)

    return config, state, checkpoints


def test_the_best_outlives_a_rollback_and_a_resume(linear, tmp_path):
    """Both restore an earlier state; a worse model must not replace a better one then."""
    _, state, checkpoints = linear
    first = checkpoints(tmp_path)
    assert first.read_best() == Best()
    state.global_step.assign(10)
    first.save(10)
    state.global_step.assign(20)
    best = Best(0.75, 0.5, 20, "average")
    first.save_best(best)
    assert first.restore() == 10
    assert first.read_best() == checkpoints(tmp_path).read_best() == best
    first.save_best(Best(0.75, 0.25, 30))
    assert checkpoints(tmp_path).read_best() == Best(0.75, 0.25, 30)
    for file in (tmp_path / "best").glob("*.index"):
        file.write_bytes(b"")
    assert checkpoints(tmp_path).read_best() == Best()


def test_a_damaged_checkpoint_is_skipped(linear, tmp_path):
    """A run resumes from the newest checkpoint that can be read."""
    _, state, checkpoints = linear
    first = checkpoints(tmp_path)
    assert first.restore() is None
    for step in (10, 20, 30, 40):
        state.global_step.assign(step)
        first.save(step)
    assert [p.stem for p in sorted(tmp_path.glob("*.index"))] == ["ckpt-20", "ckpt-30", "ckpt-40"]
    assert checkpoints(tmp_path).restore() == 40
    for step, expected in ((40, 30), (30, 20)):
        (data,) = tmp_path.glob(f"ckpt-{step}.data*")
        data.write_bytes(data.read_bytes()[:100])
        assert checkpoints(tmp_path).restore() == expected
    (index,) = tmp_path.glob("ckpt-20.index")
    index.unlink()
    with pytest.raises(UserError, match=r"no checkpoint can be read: .*ckpt-20"):
        checkpoints(tmp_path).restore()


@pytest.mark.parametrize("steps", [(10,), (9, 10), (90, 100, 110)])
@pytest.mark.parametrize("damage", [None, b"\xff\xfe\x00", b"model_checkpoint_path: {"])
def test_a_lost_or_damaged_pointer_does_not_start_over(linear, tmp_path, steps, damage):
    _, state, checkpoints = linear
    first = checkpoints(tmp_path)
    for step in steps:
        state.global_step.assign(step)
        first.save(step)
    pointer = tmp_path / "checkpoint"
    pointer.unlink()
    if damage is not None:
        pointer.write_bytes(damage)
    again = checkpoints(tmp_path)
    assert again.restore() == steps[-1]
    for step in (200, 201, 202):  # older checkpoints are known again, so they are deleted
        again.save(step)
    kept = sorted(path.stem for path in tmp_path.glob("*.index"))
    assert kept == ["ckpt-200", "ckpt-201", "ckpt-202"]


def test_a_torn_first_checkpoint_starts_over(linear, tmp_path):
    """A kill during the first save leaves one that nothing points to yet."""
    _, _, checkpoints = linear
    checkpoints(tmp_path).save(10)
    (tmp_path / "checkpoint").unlink()
    (data,) = tmp_path.glob("ckpt-10.data*")
    data.write_bytes(data.read_bytes()[:100])
    assert checkpoints(tmp_path).restore() is None


def test_a_checkpoint_of_another_run_is_refused(linear, tmp_path):
    """Its shapes are the same, so it would fit if it were copied here."""
    config, state, checkpoints = linear
    state.global_step.assign(10)
    checkpoints(tmp_path).save(10)
    other = config_lib.override(config, ["seed=1"])
    with pytest.raises(UserError, match=r"ckpt-10: holds another run: seed is 1, was 0;"):
        checkpoints(tmp_path, other).restore()
    watched = config_lib.override(config, ["eval_every_epochs=3"])  # with the same results
    assert checkpoints(tmp_path, watched).restore() == 10


@pytest.mark.slow
def test_a_checkpoint_has_everything_a_reader_needs(undisturbed):
    workdir = undisturbed(*_FLOAT16)
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(workdir / "checkpoints")))
    text = reader.get_tensor("metadata/.ATTRIBUTES/py_state").decode()
    metadata = json.loads(text)
    assert metadata == json.loads((workdir / "config.json").read_text())
    assert metadata["class_names"] == list("0123456789")
    assert metadata["config"]["precision"] == "mixed_float16"
    best = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(workdir / "checkpoints/best")))
    saved = json.loads(best.get_tensor("best/.ATTRIBUTES/py_state"))
    evaluations = read_records(workdir / "metrics.jsonl", "eval")
    accuracies = [max(r["top1_accuracy"], r["ema_top1_accuracy"]) for r in evaluations]
    assert saved["accuracy"] == max(accuracies)
