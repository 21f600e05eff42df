"""Small models, one per module, for tests to which a large one would only add time."""

CONVNET = "tests.small_models.convnet"
KERAS_NORM = "tests.small_models.keras_norm"
ONE_BLOCK = "tests.small_models.one_block"
UNCONNECTED = "tests.small_models.unconnected"
TINY_BOTTLENECK = "tests.small_models.tiny_bottleneck"
TINY_RESNET = "tests.small_models.tiny_resnet"
TINY_RS = "tests.small_models.tiny_rs"
TINY_RESNEXT = "tests.small_models.tiny_resnext"
TINY_WRN = "tests.small_models.tiny_wrn"
TINY_VGG = "tests.small_models.tiny_vgg"
TINY_MOBILENETV2 = "tests.small_models.tiny_mobilenetv2"
TINY_MOBILENETV3 = "tests.small_models.tiny_mobilenetv3"

# One of each family; together they have each kind of layer.
FAMILIES = (
    *(TINY_RESNET, TINY_RS, TINY_RESNEXT, TINY_WRN),
    *(TINY_VGG, TINY_MOBILENETV2, TINY_MOBILENETV3),
)
