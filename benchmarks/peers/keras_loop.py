"""Keras 3 in a custom loop: many steps per call of one tf.function, no XLA.

The fastest loop possible with Keras' layers, loss, metrics and optimizer.
"""

from benchmarks.peers import protocol  # first: its clock starts at import  # isort: skip

import keras  # pyright: ignore[reportMissingImports]
import tensorflow as tf

from benchmarks.peers import keras_model

STEPS_PER_LOOP = 100


def main() -> None:
    request = protocol.read_request()
    keras_model.setup(request)
    model = keras_model.make_model(request)
    weights = model.trainable_variables
    optimizer = keras_model.make_optimizer(weight_decay=None)
    optimizer.build(weights)
    loss_function = keras_model.make_loss()
    accuracy = keras.metrics.CategoricalAccuracy()

    @tf.function
    def train_loop(iterator, num_steps):
        last_loss = tf.constant(0.0)
        for _ in tf.range(num_steps):
            images, labels = next(iterator)
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                loss = loss_function(labels, logits)
            gradients = tape.gradient(loss, [weight.value for weight in weights])
            gradients = [
                gradient + protocol.WEIGHT_DECAY * weight if len(weight.shape) > 1 else gradient
                for gradient, weight in zip(gradients, weights, strict=True)
            ]
            optimizer.apply(gradients, weights)
            accuracy.update_state(labels, logits)
            last_loss = loss
        return last_loss

    iterator = iter(keras_model.make_dataset(request))

    def run(num_steps: int) -> tuple[int, float]:
        loss = 0.0
        for start in range(0, num_steps, STEPS_PER_LOOP):
            steps = min(STEPS_PER_LOOP, num_steps - start)
            loss = float(train_loop(iterator, tf.constant(steps)))
            accuracy.result()
            accuracy.reset_state()
        return num_steps, loss

    versions = protocol.versions("tensorflow", "keras", "numpy")
    protocol.serve(run, keras_model.count_parameters(model), versions)


if __name__ == "__main__":
    main()
