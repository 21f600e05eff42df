"""Images from a source to the device: `SOURCES` names what there is to train on.

A source is one file with a function `open_source(config, split, data_dir) -> Source` and one line
here. The values are module names, loaded on demand: reading the dict imports no TensorFlow.
"""

SOURCES: dict[str, str] = {
    "digits": "trainer.data.tfds_source",
    "cifar10": "trainer.data.tfds_source",
    "imagenet2012": "trainer.data.tfds_source",
    "tfds": "trainer.data.tfds_source",
    "folder": "trainer.data.folder",
    "tfrecord": "trainer.data.tfrecord",
    "arrays": "trainer.data.arrays",
    "synthetic": "trainer.data.synthetic",
}
