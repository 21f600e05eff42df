"""How much of a train step XLA compiles on the devices of a strategy."""

from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.devices.checks import check_tpu
from trainer.errors import UserError
from trainer.step.train_step import CompiledPart


class Compilation(NamedTuple):
    """How much of the replica step XLA compiles, and the sentence for the log."""

    compiled: CompiledPart
    reason: str


def choose_compilation(config: Config, strategy: tf.distribute.Strategy) -> Compilation:
    """Resolves `xla: auto|on|off` for the devices of this strategy.

    Raises:
        UserError: if `on` contradicts another field.
    """
    if isinstance(strategy, tf.distribute.TPUStrategy):
        check_tpu(config)
        return Compilation("tpu", "XLA on: TPUStrategy compiles every step itself")
    gpus = all("GPU" in device for device in strategy.extended.worker_devices)
    if config.xla == "off":
        return Compilation("nothing", "XLA off, as set")
    if config.xla == "auto" and not gpus:
        return Compilation(
            "nothing", "XLA off (auto): on a CPU, oneDNN's convolutions are faster than XLA's"
        )
    why = "as set" if config.xla == "on" else "auto: on a GPU"
    several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if strategy.num_replicas_in_sync == 1 or (gpus and not several_workers):
        return Compilation("step", f"XLA on ({why}): the whole step is compiled")
    # Between CPU replicas, TensorFlow reduces from Python threads, and between workers through
    # collective operations that wait for each other. Neither can be in the compiled part.
    if not config.model.sync_batch_norm:
        return Compilation(
            "forward_backward",
            f"XLA on ({why}): forward and backward are compiled, the reduction between replicas "
            f"and the update are not",
        )
    place = "workers" if several_workers else "CPU replicas"
    if config.xla == "auto":
        return Compilation(
            "nothing", f"XLA off (auto): model.sync_batch_norm reduces between {place} inside"
        )
    raise UserError(
        f"xla is 'on' and model.sync_batch_norm is true, which exclude each other on "
        f"{strategy.num_replicas_in_sync} {place} (SyncBN reduces inside the code that XLA would "
        f"compile): --set xla=off or --set model.sync_batch_norm=false"
    )
