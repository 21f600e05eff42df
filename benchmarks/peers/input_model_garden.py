"""TensorFlow Model Garden's classification parser, on the same records as ours."""

from benchmarks.peers import protocol  # noqa: F401  # first: its clock starts  # isort: skip

import tensorflow as tf
from official.vision.configs import common  # pyright: ignore[reportMissingImports]
from official.vision.dataloaders import (  # pyright: ignore[reportMissingImports]
    classification_input,
)

from benchmarks.peers import input_files


def main() -> None:
    request = input_files.read_request()
    augmentation = None
    if request.randaugment:
        layers, magnitude = input_files.RANDAUGMENT
        # Its magnitudes range to 10, ours to 30.
        randaugment = common.RandAugment(num_layers=layers, magnitude=magnitude / 3)
        augmentation = common.Augmentation(type="randaug", randaug=randaugment)
    decoder = classification_input.Decoder("image/encoded", "image/class/label")
    parser = classification_input.Parser(
        [request.image_size, request.image_size],
        num_classes=len(input_files.CLASSES),
        image_field_key="image/encoded",
        label_field_key="image/class/label",
        aug_rand_hflip=True,
        aug_type=augmentation,
        dtype="float32",
    )
    parse = parser.parse_fn(is_training=True)
    shards = sorted(str(path) for path in (request.data / "records").glob("train-*"))
    # In memory after the first pass, as in its configuration for small data sets.
    records = tf.data.TFRecordDataset(shards).cache().repeat()
    examples = records.map(
        lambda record: parse(decoder.decode(record)), num_parallel_calls=tf.data.AUTOTUNE
    )
    batches = examples.batch(request.batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    input_files.serve(iter(batches), "tf-models-official", "tensorflow", "numpy")


if __name__ == "__main__":
    main()
