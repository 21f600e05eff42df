"""`python -m trainer.main`: flags, config, strategy, training, exit code.

TensorFlow is imported only once everything that needs no TensorFlow has been checked.
"""

import math
import os
import shlex

from absl import flags

from trainer import config as config_lib
from trainer.cli import command
from trainer.cli.flags import CONFIG, SET, TPU
from trainer.devices import cluster as cluster_lib
from trainer.devices import tpu as tpu_lib
from trainer.errors import EXIT_DONE, UserError
from trainer.run.folder import RunFolder, default_path
from trainer.run.stopwatch import Stopwatch

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")

_STRATEGY = flags.DEFINE_string("strategy", "auto", f"Where it runs: {', '.join(STRATEGIES)}.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Logs and checkpoints [runs/<config>-<hash of what is computed>]."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"),
    "Where prepared data sets lie.",
)
_VIRTUAL_DEVICES = flags.DEFINE_integer(
    "virtual_devices", 0, "Split the CPU into N logical devices.", lower_bound=0
)
_CLUSTER_TIMEOUT_S = flags.DEFINE_float(
    "cluster_timeout_s",
    cluster_lib.CLUSTER_TIMEOUT_S,
    "How long workers wait for each other at the start, in seconds.",
    lower_bound=0,
)

flags.declare_key_flag("config")
flags.declare_key_flag("set")
flags.declare_key_flag("tpu")


def train() -> int:
    """Trains what the flags say and returns the exit code."""
    stopwatch = Stopwatch()
    config = config_lib.override(config_lib.load(CONFIG.value), SET.value)
    strategy_name, tpu = _where()
    if _WORKDIR.value == "":
        raise UserError("--workdir=: must name a folder; leave it out for the default")
    workdir = _WORKDIR.value or default_path(CONFIG.value, config)
    # Only in a group of workers is there anybody else to write.
    alone = strategy_name in ("one_device", "mirrored", "tpu")
    cluster = None if alone else cluster_lib.tf_config_cluster()
    folder = RunFolder(workdir, config, is_chief=cluster is None or cluster.rank == 0)
    if folder.is_done:
        print(f"already done: {folder.path}; name another --workdir to train again")
        print(folder.read_done())
        return EXIT_DONE
    if cluster is not None:
        offer = cluster_lib.offer(config)
        cluster_lib.rendezvous(cluster, offer, _CLUSTER_TIMEOUT_S.value)
        stopwatch.lap("waiting for workers")

    command.quiet_libraries()
    if strategy_name == "tpu":
        tpu = tpu_lib.prepare(tpu, os.environ)
        stopwatch.lap("TPU")
    import tensorflow as tf

    from trainer.devices.strategy import create_strategy
    from trainer.failures import lost_peers_reported
    from trainer.run.train import train_and_evaluate

    stopwatch.lap("import")
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    others = "TPU" if strategy_name == "tpu" else "workers" if cluster is not None else None
    with lost_peers_reported(others):
        strategy = create_strategy(strategy_name, tpu, _VIRTUAL_DEVICES.value)
        stopwatch.lap("devices")
        summary = train_and_evaluate(config, strategy, folder, _DATA_DIR.value, stopwatch)
    # There is none where all steps were done before, or in one loop with the tracing.
    measured = math.isfinite(summary.images_per_second)
    rate = f" at {summary.images_per_second:.0f} images/s" if measured else ""
    text = (
        f"best accuracy {summary.best_accuracy:.4f}, last {summary.last_accuracy:.4f}; "
        f"trained {summary.train_seconds:.1f} s{rate}\n"
        f"logs and checkpoints: {folder.path}\n"
        f"tensorboard --logdir {shlex.quote(str(folder.path))}"
    )
    if folder.is_chief:
        folder.write_done(text)
        print(text)
    return EXIT_DONE


def _where() -> tuple[str, str]:
    """The strategy, `auto` resolved as far as it can be without TensorFlow, and the TPU's name.

    Raises:
        UserError: for what is wrong with them already.
    """
    name = _STRATEGY.value
    if name not in STRATEGIES:
        raise UserError(f"--strategy={name}: unknown; one of {', '.join(STRATEGIES)}")
    tpu = ""
    if name in ("auto", "tpu"):
        tpu = tpu_lib.name_of(TPU.value, os.environ)
    elif TPU.value:
        raise UserError(f"--tpu={TPU.value}: needs --strategy=tpu or auto, not {name}")
    # A flag says more than what an environment has left over.
    if name == "auto" and (TPU.value or (tpu and not cluster_lib.tf_config_cluster())):
        name = "tpu"
    if name == "multi_worker" and not cluster_lib.tf_config_cluster():
        raise UserError(
            "--strategy=multi_worker: TF_CONFIG is not set, and names the workers: set it for "
            "each process, as BUILD.md shows, or use --strategy=mirrored"
        )
    if name == "tpu":
        if not tpu:
            raise UserError(
                "--strategy=tpu: no TPU is named: give --tpu=NAME, or --tpu=local on a TPU VM, or "
                "use --strategy=auto"
            )
        tpu_lib.environment(tpu, os.environ)  # or says what contradicts it, before a folder is made
    if name not in ("auto", "mirrored") and _VIRTUAL_DEVICES.value:
        raise UserError(
            f"--virtual_devices={_VIRTUAL_DEVICES.value}: needs --strategy=mirrored or auto, "
            f"not {name}"
        )
    return name, tpu


if __name__ == "__main__":
    command.run(train)
