"""`python -m trainer.main`: trains an image classifier.

    python -m trainer.main --config=configs/digits_resnet20.py --set num_epochs=10
    python -m trainer.main --config=configs/photos_resnet18.py --data_dir=photos

The config defines the computation; the flags choose where it runs. The same command resumes a run
that was stopped.
"""

import os

from absl import flags

from trainer.cli import command
from trainer.cli.flags import ConfigFlags
from trainer.cli.quiet import quiet_start
from trainer.config import recipes
from trainer.data.splits.find import find_splits
from trainer.devices import choice
from trainer.devices import cluster as cluster_lib
from trainer.devices import tpu as tpu_lib
from trainer.errors import EXIT_DONE, UserError
from trainer.run import identity
from trainer.run.folder import RunFolder, default_path
from trainer.run.history import recorded
from trainer.run.stopwatch import Stopwatch

FLAGS = flags.FlagValues()
_CONFIG = ConfigFlags(FLAGS)
_STRATEGY = flags.DEFINE_string(
    "strategy", "auto", f"Where to run: {', '.join(choice.STRATEGIES)}.", flag_values=FLAGS
)
_TPU = flags.DEFINE_string(
    "tpu", "", "The TPU: its name or address, or local on a TPU VM.", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The run's folder, for logs and checkpoints. Default: runs/CONFIG-HASH, with a hash of the "
    "fields that change the result.",
    flag_values=FLAGS,
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"),
    "The folder of the data: prepared TFDS data sets, or your own images.",
    flag_values=FLAGS,
)
_VIRTUAL_DEVICES = flags.DEFINE_integer(
    "virtual_devices",
    0,
    "Split the CPU into this many logical devices; 0: don't.",
    lower_bound=0,
    flag_values=FLAGS,
)
_CLUSTER_TIMEOUT_S = flags.DEFINE_float(
    "cluster_timeout_s",
    cluster_lib.CLUSTER_TIMEOUT_S,
    "Seconds that workers wait for each other at the start.",
    lower_bound=0,
    flag_values=FLAGS,
)


def train() -> int:
    """Trains according to the flags and returns the exit code.

    Imports TensorFlow after all checks that don't need it.
    """
    stopwatch = Stopwatch()
    config = _CONFIG.resolve()
    strategy_name, tpu = choice.choose(_STRATEGY.value, _TPU.value, _VIRTUAL_DEVICES.value)
    if _WORKDIR.value == "":
        raise UserError("--workdir=: must name a folder; leave it out for the default")
    workdir = _WORKDIR.value or default_path(_CONFIG.path.value, config)
    splits = find_splits(config, _DATA_DIR.value)
    stopwatch.lap("data")
    # Only a group of workers has other processes that write.
    alone = strategy_name in ("one_device", "mirrored", "tpu")
    cluster = None if alone else cluster_lib.tf_config_cluster()
    folder = RunFolder(workdir, config, is_chief=cluster is None or cluster.rank == 0)
    metadata = identity.metadata_of_found(config, splits)
    # Workers meet first: they name the one whose data differ, and all end together.
    if metadata and (cluster is None or folder.is_done):
        folder.refuse_another_run(metadata)
        if folder.is_done and folder.is_known:
            return _tell_again(folder)
    with recorded(folder, str(recipes.find(_CONFIG.path.value))) as history:
        if config.model.weights and not folder.is_resumed:
            from trainer.models.weights.early import check_weights

            check_weights(config)
        if cluster is not None:
            offer = cluster_lib.offer(config) | identity.data_offer(splits)
            cluster_lib.rendezvous(cluster, offer, _CLUSTER_TIMEOUT_S.value)
            stopwatch.lap("waiting for workers")
        if strategy_name == "tpu":
            tpu = tpu_lib.prepare(tpu, os.environ)
            stopwatch.lap("TPU")
        peers = "TPU" if strategy_name == "tpu" else "workers" if cluster is not None else None
        with quiet_start():
            import tensorflow as tf

            from trainer.devices.strategy import create_strategy
            from trainer.failures import lost_peers_reported
            from trainer.run.train import train_and_evaluate

            stopwatch.lap("import")
            if config.deterministic:
                tf.config.experimental.enable_op_determinism()
            with lost_peers_reported(peers):
                strategy = create_strategy(strategy_name, tpu, _VIRTUAL_DEVICES.value)
        stopwatch.lap("devices")
        history.add_devices(strategy)
        with lost_peers_reported(peers):
            summary = train_and_evaluate(
                config, strategy, folder, _DATA_DIR.value, stopwatch, splits, history.changes()
            )
    if folder.is_done:  # known only now: the user's own module, or the checkpoints, tell its data
        return _tell_again(folder)
    text = summary.text(folder.path)
    if folder.is_chief:
        folder.write_done(text)
        print(text)
    return EXIT_DONE


def _tell_again(folder: RunFolder) -> int:
    print(f"already done: {folder.path}; name another --workdir to train again")
    print(folder.read_done())
    return EXIT_DONE


def main() -> None:
    """Runs the verb and exits."""
    command.run("trainer.main", train, FLAGS)


if __name__ == "__main__":
    main()
