"""The flags that say what is computed, for all commands that take a config. No TensorFlow."""

from absl import flags

CONFIG = flags.DEFINE_string(
    "config", "configs/digits_resnet20.py", "What is computed: a file with get_config()."
)
SET = flags.DEFINE_multi_string(
    "set", [], "FIELD=VALUE overrides a field of the config, as optimizer.learning_rate=0.8."
)
