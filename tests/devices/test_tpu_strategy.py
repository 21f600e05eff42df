"""TensorFlow and a TPU that it sees, fails to initialise, or loses. There is no TPU here.

Where something is trained, MirroredStrategy on logical CPU devices stands in for TPUStrategy.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_model, with_optimizer
from tests.devices.common import message
from trainer.devices import strategy as strategy_lib
from trainer.errors import GroupError, UserError
from trainer.failures import lost_peers_reported
from trainer.run import train
from trainer.run.folder import RunFolder
from trainer.run.log import read_records
from trainer.step import build


class StandIn(tf.distribute.MirroredStrategy):
    """In TPUStrategy's place, over two of the CPU devices of tests/conftest.py."""

    def __init__(self, resolver):
        assert resolver.master() == ""  # of this machine
        tf.distribute.MirroredStrategy._collective_key_base = 900_000  # as conftest.strategy_of
        super().__init__(["/CPU:0", "/CPU:1"])
        self.extended.num_hosts = 1


@pytest.fixture
def machine(monkeypatch) -> list[Exception]:
    """A machine with a TPU of two cores, as far as strategy.py asks. An error in the list is raised
    when the TPU is initialised."""
    raises: list[Exception] = []

    def initialize(resolver):
        del resolver
        if raises:
            raise raises[0]

    real = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: ["one"] if kind == "TPU" else real(kind)
    )
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", initialize)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", StandIn)
    return raises


@functools.cache
def stand_in() -> tf.distribute.Strategy:
    """One for all tests, as in conftest.strategy_of; made with the fixture `machine`."""
    return strategy_lib.create_strategy("tpu", "local", 0)


def test_no_tpu_is_initialised_where_tensorflow_sees_none():
    """With tensorflow-tpu it would end the process by SIGSEGV."""
    with pytest.raises(UserError) as error:
        strategy_lib.create_strategy("tpu", "local", 0)
    assert message(error).startswith("--tpu=local: TensorFlow sees no TPU")


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            tf.errors.NotFoundError(
                None, None, "No OpKernel was registered to support Op 'ConfigureDistributedTPU'\nx"
            ),
            ["NotFoundError: No OpKernel", "must be tensorflow-tpu"],
        ),
        (
            tf.errors.NotFoundError(None, None, "… task:0/device:TPU_SYSTEM:0 unknown device."),
            ["must be tensorflow-tpu"],
        ),
        (
            tf.errors.NotFoundError(
                None,
                None,
                "'__inference__tpu_init_fn_4' is neither a type of a primitive operation nor a "
                "name of a function registered in binary running on n-3ea5ef93-w-0.",
            ),
            [f"a TensorFlow other than this machine's {tf.__version__}; the versions must be"],
        ),
        (
            tf.errors.InvalidArgumentError(
                None, None, "NodeDef expected inputs 'string' do not match 0 inputs specified"
            ),
            ["a TensorFlow other than"],
        ),
        (RuntimeError("TPU cores on each host is not same."), ["RuntimeError: TPU cores"]),
    ],
    ids=["plain TensorFlow", "no TPU there", "another version", "another signature", "other"],
)
def test_a_tpu_that_cannot_be_initialised(machine, error, parts):
    machine.append(error)
    with pytest.raises(UserError) as caught:
        strategy_lib.create_strategy("tpu", "local", 0)
    text = message(caught)
    assert text.startswith("--tpu=local: cannot be initialised (")
    assert [part for part in parts if part not in text] == []


GONE = [
    tf.errors.UnavailableError(None, None, "Socket closed"),
    tf.errors.AbortedError(
        None, None, "Unable to find a context_id matching …. Perhaps the worker was restarted, or …"
    ),
    tf.errors.InternalError(None, None, "failed to connect to all addresses; last error: …"),
]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_tpu_that_goes_away(machine, error):
    with pytest.raises(GroupError, match=r"^the TPU is gone"), lost_peers_reported("TPU"):
        raise error
    machine.append(error)  # also while it is initialised
    with pytest.raises(GroupError), lost_peers_reported("TPU"):
        strategy_lib.create_strategy("tpu", "local", 0)
    with pytest.raises(type(error)), lost_peers_reported(None):
        raise error


def test_what_is_no_loss_keeps_its_traceback():
    with pytest.raises(tf.errors.InternalError), lost_peers_reported("TPU"):
        raise tf.errors.InternalError(None, None, "a bug")


@pytest.fixture
def short(small_config):
    config = dataclasses.replace(small_config, num_epochs=0.5, steps_per_loop=4, ema_decay=None)
    return with_optimizer(config, warmup_epochs=0.0)


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Returns the last checkpoint's weights, read back without the trainer."""
    path = tf.train.latest_checkpoint(str(folder / "checkpoints"))
    reader = tf.train.load_checkpoint(path)
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith("state/")]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.usefixtures("machine")
def test_a_training_is_that_of_any_other_strategy(short, data_dir, tmp_path, capsys):
    strategies = {
        "tpu": stand_in(),
        "one": strategy_of(1),
    }
    assert strategy_lib.checkpoint_device(strategies["tpu"]) == "/job:localhost"
    assert strategy_lib.checkpoint_device(strategies["one"]) is None
    found, records = {}, {}
    for name, strategy in strategies.items():
        run = RunFolder(str(tmp_path / name), short)
        train.train_and_evaluate(short, strategy, run, data_dir)
        found[name] = weights(tmp_path / name)
        records[name] = read_records(run.metrics, "train")
        if name == "tpu":
            assert "XLA on: TPUStrategy compiles every step itself" in capsys.readouterr().out
    assert len(records["tpu"]) == len(records["one"]) == 11
    for name in found["tpu"]:
        np.testing.assert_allclose(found["tpu"][name], found["one"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("machine")
def test_a_run_whose_tpu_went_away_resumes(short, data_dir, tmp_path, monkeypatch):
    """The checkpoint before it stays, and the next start resumes from it and trains to the end."""
    short = with_model(dataclasses.replace(short, checkpoint_every_s=0.0), "linear")
    strategy = stand_in()
    make = build.make_train_loop

    def make_short_lived(*args):
        loop, calls = make(*args), iter([False, False, True])

        class Loop:
            get_concrete_function = loop.get_concrete_function
            experimental_get_tracing_count = loop.experimental_get_tracing_count

            def __call__(self, *args):
                if next(calls):
                    raise GONE[0]
                return loop(*args)

        return Loop()

    monkeypatch.setattr(build, "make_train_loop", make_short_lived)
    run = RunFolder(str(tmp_path), short)
    with pytest.raises(GroupError, match="Socket closed"), lost_peers_reported("TPU"):
        train.train_and_evaluate(short, strategy, run, data_dir)
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-8")
    monkeypatch.setattr(build, "make_train_loop", make)
    train.train_and_evaluate(short, strategy, run, data_dir)
    assert [record["step"] for record in read_records(run.metrics, "train")] == list(range(1, 12))
