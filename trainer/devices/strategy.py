"""Where it runs: the `tf.distribute` strategy, and how much of a step XLA compiles there."""

import contextlib
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.devices.cluster import tf_config_cluster
from trainer.devices.tpu import LOCAL
from trainer.errors import GroupError, UserError
from trainer.step.train_step import Compiled


def create_strategy(name: str, tpu: str, virtual_devices: int) -> tf.distribute.Strategy:
    """The strategy that `--strategy` names; called once, before TensorFlow touches a device.

    Args:
        name: `auto` (no TPU: main resolves that), `one_device`, `mirrored`, `multi_worker`, `tpu`.
        tpu: what tpu.prepare returns, or "" for none.
        virtual_devices: split the CPU into this many logical devices; 0 leaves it whole.

    Raises:
        UserError: where this machine or environment cannot run it.
    """
    if virtual_devices:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * virtual_devices,
        )
    if name == "auto":
        name = _choose(virtual_devices)
    if name == "tpu":
        return _tpu(tpu)
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") and not virtual_devices else "CPU"
    # The physical list first: listing logical devices starts the runtime.
    devices = [f"/{kind}:{i}" for i in range(len(tf.config.list_logical_devices(kind)))]
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)


def _choose(virtual_devices: int) -> str:
    if tf_config_cluster():
        return "multi_worker"
    several = virtual_devices > 1 or len(tf.config.list_physical_devices("GPU")) > 1
    return "mirrored" if several else "one_device"


def _tpu(address: str) -> tf.distribute.Strategy:
    # Where there is none, initialising it ends the process by a signal (seen with 2.20).
    if address == LOCAL and not tf.config.list_physical_devices("TPU"):
        raise UserError(
            f"--tpu={address}: TensorFlow sees no TPU, though this machine has one: another "
            f"process may hold it, or have left /tmp/libtpu_lockfile behind; end it, remove that "
            f"file, and try again"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        if address != LOCAL:
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        if _is_loss(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--tpu={address}: cannot be initialised ({type(error).__name__}: {reason[:200]}); "
            f"{_advice(str(error))}"
        ) from None


def _advice(message: str) -> str:
    """What to do about what TensorFlow says where it initialises a TPU."""
    if "ConfigureDistributedTPU" in message or "TPU_SYSTEM" in message:
        return (
            "TensorFlow there knows no TPU: it must be tensorflow-tpu (requirements-tpu.txt), on a "
            "TPU VM"
        )
    # As users of TPUs met it: tensorflow's issues #35700, #40196.
    if any(text in message for text in ("registered", "NodeDef")):
        return (
            f"its hosts may run another TensorFlow than this {tf.__version__}, which must be the "
            f"same"
        )
    return "make the TPU anew, or see BUILD.md"


# What TensorFlow says where another process, or its machine, has gone.
_GONE = (
    "Socket closed",
    "Connection reset by peer",
    "failed to connect to all addresses",
    "worker was restarted",
)


def _is_loss(error: Exception) -> bool:
    kinds = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    return isinstance(error, tf.errors.OpError) and (
        isinstance(error, kinds) or any(text in error.message for text in _GONE)
    )


@contextlib.contextmanager
def losses_named(others: Literal["workers", "TPU"] | None) -> Iterator[None]:
    """What TensorFlow raises where what a run is made of went away in its midst, in one line.

    Args:
        others: what there is besides this process; None for nothing.

    Raises:
        GroupError: where it is so.
    """
    try:
        yield
    except tf.errors.OpError as error:
        aborted = others == "workers" and "Collective ops is aborted" in error.message
        if others is None or not (aborted or _is_loss(error)):
            raise
        # The first line of the innermost reason: they are quoted in one another.
        reasons = error.message.rpartition("aborted by:")[2].replace(r"\n", "\n").split("\n")
        reason = reasons[0].strip()
        if others == "TPU":
            raise GroupError(
                f"the TPU went away, or cannot be reached any more ({type(error).__name__}: "
                f"{reason}); start again: the run goes on from the last checkpoint"
            ) from None
        raise GroupError(
            f"another worker ended, or cannot be reached any more ({reason}); start "
            f"all workers again: they go on from the last checkpoint"
        ) from None


def checkpoint_device(strategy: tf.distribute.Strategy) -> str | None:
    """Where checkpoints are written from and read; None for where the variables are.

    The variables of a TPU slice are on its hosts, whose servers may see other files than this
    process, and of which each would write a part.
    """
    return "/job:localhost" if isinstance(strategy, tf.distribute.TPUStrategy) else None


def check_batch_size(config: Config, num_replicas: int) -> None:
    """The batch must be whole images, and pairs where it is mixed, for each replica and part.

    Raises:
        UserError: where it is not.
    """
    size, accumulation = config.data.global_batch_size, config.accumulation_steps
    parts = num_replicas * accumulation
    if size % parts == 0 and not (config.augment.mixes and size // num_replicas % 2):
        return
    pairs = ""
    if config.augment.mixes:
        pairs = ", with an even number of images for each replica for mixup and CutMix to pair"
        parts = math.lcm(parts, 2 * num_replicas)
    raise UserError(
        f"data.global_batch_size ({size}) must be divisible by the number of replicas "
        f"({num_replicas}) times accumulation_steps ({accumulation}){pairs}: the nearest is "
        f"--set data.global_batch_size={max(1, round(size / parts)) * parts}"
    )


def check_placement(strategy: tf.distribute.Strategy, config: Config, in_graph: bool) -> None:
    """The input of a TPU slice runs on its remote hosts, which run TensorFlow but no Python.

    Raises:
        UserError: for what needs Python there. Tested with a stand-in for the slice.
    """
    is_slice = isinstance(strategy, tf.distribute.TPUStrategy) and strategy.extended.num_hosts > 1
    if is_slice and not in_graph:
        raise UserError(
            f"data.name={config.data.name}: read from Python, which the "
            f"{strategy.extended.num_hosts} hosts of this TPU slice do not run: prepare the data "
            f"as TFRecord (TFDS with --file_format=tfrecord, or python -m trainer.prepare)"
        )
    if is_slice and config.data.on_bad_example == "skip":
        raise UserError(
            f"data.on_bad_example=skip: tells of bad examples from Python, which the "
            f"{strategy.extended.num_hosts} hosts of this TPU slice do not run: verify the data "
            f"with python -m trainer.prepare, and set it to fail"
        )


def check_tpu(config: Config) -> None:
    """Raises UserError for settings that no TPU runs."""
    if config.xla == "off":
        raise UserError("xla is 'off', but a TPU runs nothing else: --set xla=auto")
    if config.precision == "mixed_float16":
        raise UserError(
            "precision is 'mixed_float16', which TPUs do not compute in: --set "
            "precision=mixed_bfloat16"
        )


class Compilation(NamedTuple):
    """How much of the replica step XLA compiles, and the sentence for the log."""

    compiled: Compiled
    reason: str


def choose_compilation(config: Config, strategy: tf.distribute.Strategy) -> Compilation:
    """Resolves `xla: auto|on|off` for the devices of this strategy.

    Raises:
        UserError: where `on` cannot hold together with another field.
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
    # collective operations that wait for each other: outside of what is compiled.
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
        f"{strategy.num_replicas_in_sync} {place} (SyncBN reduces inside what XLA would compile): "
        f"--set xla=off or --set model.sync_batch_norm=false"
    )
