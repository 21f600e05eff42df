"""Where the training runs: the `tf.distribute` strategy."""

import tensorflow as tf

from trainer.devices.cluster import tf_config_cluster
from trainer.devices.tpu import LOCAL
from trainer.errors import UserError
from trainer.failures import is_loss_of_peer


def create_strategy(name: str, tpu: str, virtual_devices: int) -> tf.distribute.Strategy:
    """Creates the strategy that `--strategy` names. Called once, before TensorFlow uses a device.

    Args:
        name: `auto` (never a TPU: the command resolves that before), `one_device`, `mirrored`,
            `multi_worker` or `tpu`.
        tpu: the result of `tpu.prepare`; "" without a TPU.
        virtual_devices: splits the CPU into this many logical devices; 0 leaves it whole.

    Raises:
        UserError: if this machine or environment cannot run it.
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
    # List physical devices first: listing logical devices starts the runtime.
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
    # Without a TPU, initialising it ends the process by a signal (seen with 2.20).
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
        if is_loss_of_peer(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--tpu={address}: cannot be initialised ({type(error).__name__}: {reason[:200]}); "
            f"{_advice(str(error))}"
        ) from None


def _advice(message: str) -> str:
    """Returns advice for an error of TensorFlow's at the initialisation of a TPU."""
    if "ConfigureDistributedTPU" in message or "TPU_SYSTEM" in message:
        return (
            "TensorFlow there does not support TPUs: it must be tensorflow-tpu "
            "(requirements-tpu.txt), on a TPU VM"
        )
    # Reported by TPU users in tensorflow#35700 and #40196.
    if any(text in message for text in ("registered", "NodeDef")):
        return (
            f"its hosts may run a TensorFlow other than this machine's {tf.__version__}; the "
            f"versions must be equal"
        )
    return "create the TPU again, or see docs/tpu.md"


def checkpoint_device(strategy: tf.distribute.Strategy) -> str | None:
    """Returns the device that reads and writes checkpoints; None for the variables' own devices.

    The variables of a TPU slice are on its hosts. Their servers may see other files than this
    process, and each would write a part.
    """
    return "/job:localhost" if isinstance(strategy, tf.distribute.TPUStrategy) else None
