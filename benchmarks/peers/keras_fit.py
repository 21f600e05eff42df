"""Keras 3 `Model.fit`.

Variants: `xla` sets jit_compile=True (the default, "auto", leaves XLA off if there is only a CPU);
`loop100` sets steps_per_execution=100.
"""

from benchmarks.peers import protocol  # first: its clock starts at import  # isort: skip

from benchmarks.peers import keras_model


def main() -> None:
    request = protocol.read_request()
    steps_per_execution = 100 if request.variant == "loop100" else 1
    keras_model.setup(request)
    model = keras_model.make_model(request)
    # Keras' optimizer applies decay more cheaply than a regulariser in the loss would.
    optimizer = keras_model.make_optimizer(protocol.WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(
        optimizer,
        keras_model.make_loss(),
        metrics=["accuracy"],
        jit_compile=True if request.variant == "xla" else "auto",
        steps_per_execution=steps_per_execution,
    )
    dataset = keras_model.make_dataset(request)

    def run(num_steps: int) -> tuple[int, float]:
        executions = -(-num_steps // steps_per_execution)
        steps = executions * steps_per_execution
        history = model.fit(dataset, epochs=1, steps_per_epoch=steps, verbose=0)
        return steps, history.history["loss"][-1]

    versions = protocol.versions("tensorflow", "keras", "numpy")
    protocol.serve(run, keras_model.count_parameters(model), versions)


if __name__ == "__main__":
    main()
