"""TensorFlow's Model Garden: its Trainer (an orbit.StandardTrainer) and image classification task.

ResNet-50 is its own model. It has no ResNet-20, so one is built here from its residual blocks.
Images arrive normalised, which favours it.
"""

from benchmarks.peers import protocol  # first: its clock starts at import  # isort: skip

import numpy as np
import orbit  # pyright: ignore[reportMissingImports]
import tensorflow as tf
import tf_keras
from official.core import base_trainer, config_definitions  # pyright: ignore[reportMissingImports]
from official.modeling import optimization, performance  # pyright: ignore[reportMissingImports]
from official.vision.configs import (  # pyright: ignore[reportMissingImports]
    common,
)
from official.vision.configs import (  # pyright: ignore[reportMissingImports]
    image_classification as configs,
)
from official.vision.modeling import factory  # pyright: ignore[reportMissingImports]
from official.vision.modeling.layers import nn_blocks  # pyright: ignore[reportMissingImports]
from official.vision.tasks import image_classification  # pyright: ignore[reportMissingImports]

STEPS_PER_LOOP = 100
NORM = {"norm_momentum": protocol.BN_MOMENTUM, "norm_epsilon": protocol.BN_EPSILON}


class Task(image_classification.ImageClassificationTask):
    """Counts only top-1 accuracy, like the other contenders, and has two more models."""

    def build_metrics(self, training: bool = True):
        del training
        return [tf_keras.metrics.CategoricalAccuracy("accuracy")]

    def build_small_model(self, request: protocol.Request) -> tf_keras.Model:
        inputs = tf_keras.Input(request.image_shape[1:])
        if request.model == "dense":
            x = tf_keras.layers.Flatten()(inputs)
            return tf_keras.Model(inputs, tf_keras.layers.Dense(request.classes)(x))
        l2 = tf_keras.regularizers.l2(self.task_config.losses.l2_weight_decay / 2)
        backbone = tf_keras.Model(inputs, {"4": resnet20_backbone(inputs, l2)})
        return factory.build_classification_model(
            tf_keras.layers.InputSpec(shape=[None, *request.image_shape[1:]]),
            self.task_config.model,
            l2,
            backbone=backbone,
        )


def resnet20_backbone(x, l2):
    x = tf_keras.layers.Conv2D(16, 3, padding="same", use_bias=False, kernel_regularizer=l2)(x)
    x = tf_keras.layers.BatchNormalization(
        momentum=protocol.BN_MOMENTUM, epsilon=protocol.BN_EPSILON
    )(x)
    x = tf_keras.layers.ReLU()(x)
    for width in (16, 32, 64):
        for index in range(3):
            first = width > 16 and index == 0
            x = nn_blocks.ResidualBlock(
                width, 2 if first else 1, use_projection=first, kernel_regularizer=l2, **NORM
            )(x)
    return x


def make_dataset(request: protocol.Request) -> tf.data.Dataset:
    """Repeats one batch indefinitely."""
    random = np.random.default_rng(0)
    images = random.normal(size=request.image_shape).astype(np.float32)
    labels = random.integers(0, request.classes, request.batch, np.int32)
    return tf.data.Dataset.from_tensors((images, labels)).repeat()


def make_config(request: protocol.Request) -> config_definitions.ExperimentConfig:
    optimizer = {
        "optimizer": {
            "type": "sgd",
            "sgd": {"momentum": protocol.MOMENTUM, "nesterov": True},
        },
        "learning_rate": {
            "type": "constant",
            "constant": {"learning_rate": protocol.LEARNING_RATE},
        },
    }
    return config_definitions.ExperimentConfig(
        task=configs.ImageClassificationTask(
            model=configs.ImageClassificationModel(
                num_classes=request.classes,
                input_size=list(request.image_shape[1:]),
                norm_activation=common.NormActivation(use_sync_bn=False, **NORM),
            ),
            losses=configs.Losses(
                label_smoothing=protocol.LABEL_SMOOTHING, l2_weight_decay=protocol.WEIGHT_DECAY
            ),
        ),
        trainer=config_definitions.TrainerConfig(
            steps_per_loop=STEPS_PER_LOOP,
            optimizer_config=optimization.OptimizationConfig(optimizer),
        ),
    )


def main() -> None:
    request = protocol.read_request()
    tf.config.threading.set_intra_op_parallelism_threads(request.threads)
    tf.config.threading.set_inter_op_parallelism_threads(request.threads)
    tf_keras.utils.set_random_seed(0)
    performance.set_mixed_precision_policy(tf.as_dtype(request.precision))
    config = make_config(request)
    strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
    with strategy.scope():
        task = Task(config.task)
        is_theirs = request.model == "resnet50"
        model = task.build_model() if is_theirs else task.build_small_model(request)
        trainer = base_trainer.Trainer(
            config,
            task,
            model,
            task.create_optimizer(config.trainer.optimizer_config),
            evaluate=False,
            train_dataset=orbit.utils.make_distributed_dataset(strategy, make_dataset(request)),
        )

        def run(num_steps: int) -> tuple[int, float]:
            loss = 0.0
            for start in range(0, num_steps, STEPS_PER_LOOP):
                steps = min(STEPS_PER_LOOP, num_steps - start)
                logs = trainer.run.train(tf.constant(steps))
                values = {name: orbit.utils.get_value(value) for name, value in logs.items()}
                loss = float(values["training_loss"])
            return num_steps, loss

        parameters = sum(int(np.prod(w.shape)) for w in model.trainable_variables)
        versions = protocol.versions("tf-models-official", "tensorflow", "tf-keras", "numpy")
        protocol.serve(run, parameters, versions)


if __name__ == "__main__":
    main()
