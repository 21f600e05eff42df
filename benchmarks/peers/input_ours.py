"""Our input pipeline, the same as in training. `--variant` is the source: folder or tfrecord."""

from benchmarks.peers import protocol  # noqa: F401  # first: its clock starts  # isort: skip

import tensorflow as tf

from benchmarks.peers import input_files
from trainer.config import AugmentConfig, Config, DataConfig, ModelConfig
from trainer.data.pipeline import train_dataset
from trainer.data.source import open_source


def make_config(request: input_files.InputRequest) -> Config:
    layers, magnitude = input_files.RANDAUGMENT
    policy = "randaugment" if request.randaugment else "none"
    return Config(
        model=ModelConfig(num_classes=len(input_files.CLASSES)),
        data=DataConfig(
            name=request.variant,
            path="records" if request.variant == "tfrecord" else None,
            image_size=request.image_size,
            global_batch_size=request.batch,
            crop="random_resized",
            flip=True,
            mean=input_files.MEAN,
            std=input_files.STD,
        ),
        augment=AugmentConfig(policy=policy, num_layers=layers, magnitude=magnitude),
    )


def main() -> None:
    request = input_files.read_request()
    config = make_config(request)
    source = open_source(config, "train", str(request.data))
    dataset = train_dataset(config, source, 0, tf.distribute.InputContext())
    input_files.serve(iter(dataset), "tensorflow", "numpy")


if __name__ == "__main__":
    main()
