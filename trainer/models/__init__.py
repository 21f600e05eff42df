"""Model families, one file each: `MODELS` maps a name to the file that builds it.

A model is a function of its name's in that file, `resnet50(config: Config) -> tf_keras.Model`,
and one line here. The values are module names, loaded on demand: reading the dict imports no
TensorFlow.
"""

MODELS: dict[str, str] = {
    "resnet18": "trainer.models.resnet",
    "resnet34": "trainer.models.resnet",
    "resnet50": "trainer.models.resnet",
    "resnet101": "trainer.models.resnet",
    "resnet152": "trainer.models.resnet",
    "resnet20": "trainer.models.resnet",
    "resnet32": "trainer.models.resnet",
    "resnet44": "trainer.models.resnet",
    "resnet56": "trainer.models.resnet",
    "resnet110": "trainer.models.resnet",
}
