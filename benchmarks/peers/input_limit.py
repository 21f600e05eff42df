"""The limit of any input: `decode_and_crop_jpeg` of our input's crops, in parallel, nothing else.

Files and crop windows are in memory before the clock starts. Nothing is resized or flipped, and
batches hold only the crops' shapes.
"""

from benchmarks.peers import protocol  # noqa: F401  # first: its clock starts  # isort: skip

import numpy as np
import tensorflow as tf

from benchmarks.peers import input_files
from trainer.data.images import _random_window
from trainer.data.streams import Stream

_CROPS = 2048


def main() -> None:
    request = input_files.read_request()
    files = sorted((request.data / "train").glob("*/*.jpg"))
    encoded = [path.read_bytes() for path in files]

    @tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)])
    def window(image: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([tf.constant(Stream.RANDOM_RESIZED_CROP, tf.int64), position])
        return _random_window(tf.io.extract_jpeg_shape(image), seed)

    windows = np.stack([window(encoded[n % len(encoded)], n).numpy() for n in range(_CROPS)])
    images = tf.constant(encoded)

    def decode(n: tf.Tensor) -> tf.Tensor:
        image = tf.gather(images, n % len(encoded))
        crop = tf.io.decode_and_crop_jpeg(image, tf.gather(windows, n), channels=3)
        return tf.shape(crop)

    crops = tf.data.Dataset.range(_CROPS).repeat()
    crops = crops.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    batches = crops.batch(request.batch).prefetch(tf.data.AUTOTUNE)
    input_files.serve(iter(batches), "tensorflow", "numpy")


if __name__ == "__main__":
    main()
