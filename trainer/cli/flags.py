"""Flags of several commands, each defined once. No TensorFlow.

A command declares those that it has: `flags.declare_key_flag`, so that its --help lists them.
"""

from absl import flags

CONFIG = flags.DEFINE_string(
    "config", "configs/digits_resnet20.py", "What is computed: a file with get_config()."
)
SET = flags.DEFINE_multi_string(
    "set", [], "FIELD=VALUE overrides a field of the config, as optimizer.learning_rate=0.8."
)
OUT = flags.DEFINE_string("out", "", "The file or folder to write.")
TPU = flags.DEFINE_string(
    "tpu", "", "The TPU's name or address, or local; of trainer.preflight a slice, as v5e:2x4."
)
