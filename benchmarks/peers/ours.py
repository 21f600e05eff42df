"""Our train loop, as in trainer/run/train.py, on one batch of bytes repeated indefinitely."""

from benchmarks.peers import protocol  # first: its clock starts at import  # isort: skip

import numpy as np
import tensorflow as tf

from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig
from trainer.data.pipeline import distribute
from trainer.devices.compilation import choose_compilation
from trainer.step.build import build_training

STEPS_PER_LOOP = 100
_OURS = {"dense": "benchmarks.peers.dense_model"}  # models that trainer/ does not have


def make_config(
    request: protocol.Request, num_replicas: int = 1, sync_batch_norm: bool = True
) -> Config:
    """Builds the config, with `request.batch` images on each replica."""
    return Config(
        precision="float32" if request.precision == "float32" else "mixed_bfloat16",
        label_smoothing=protocol.LABEL_SMOOTHING,
        model=ModelConfig(
            name=_OURS.get(request.model, request.model),
            num_classes=request.classes,
            sync_batch_norm=sync_batch_norm,
            batch_norm_momentum=protocol.BN_MOMENTUM,
            batch_norm_epsilon=protocol.BN_EPSILON,
        ),
        data=DataConfig(
            image_size=request.image_size, global_batch_size=request.batch * num_replicas
        ),
        optimizer=OptimizerConfig(
            learning_rate=protocol.LEARNING_RATE,
            momentum=protocol.MOMENTUM,
            weight_decay=protocol.WEIGHT_DECAY,
            schedule="constant",
        ),
    )


def make_dataset(request: protocol.Request) -> tf.data.Dataset:
    """Repeats one batch of random bytes and labels indefinitely."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, request.image_shape, np.uint8)
    labels = random.integers(0, request.classes, request.batch, np.int32)
    return tf.data.Dataset.from_tensors((images, labels)).repeat()


class Loop:
    """State, compiled loop and input under a strategy, as train_and_evaluate builds them."""

    def __init__(
        self,
        request: protocol.Request,
        strategy: tf.distribute.Strategy,
        sync_batch_norm: bool = True,
    ):
        config = make_config(request, strategy.num_replicas_in_sync, sync_batch_norm)
        compiled = choose_compilation(config, strategy).compiled
        self.state, _, self.train_loop = build_training(
            config, strategy, request.channels, 1000.0, 1000, compiled
        )
        self.parameters = sum(int(tf.size(w)) for w in self.state.model.trainable_variables)
        self.iterator = iter(distribute(strategy, lambda context: make_dataset(request)))

    def run(self, num_steps: int) -> tuple[int, float]:
        """Trains in loops of STEPS_PER_LOOP; reads every loop's metrics, as training does."""
        loss = 0.0
        for start in range(0, num_steps, STEPS_PER_LOOP):
            steps = min(STEPS_PER_LOOP, num_steps - start)
            metrics = self.train_loop(self.iterator, tf.constant(steps))
            metrics = [values.numpy() for values in metrics]
            loss = float(metrics[0][-1])
        return num_steps, float(loss)


def main() -> None:
    request = protocol.read_request()
    tf.config.threading.set_intra_op_parallelism_threads(request.threads)
    tf.config.threading.set_inter_op_parallelism_threads(request.threads)
    loop = Loop(request, tf.distribute.OneDeviceStrategy("/CPU:0"))
    versions = protocol.versions("tensorflow", "tf-keras", "numpy")
    protocol.serve(loop.run, loop.parameters, versions)


if __name__ == "__main__":
    main()
