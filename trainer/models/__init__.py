"""Model families, one file each.

A file defines `build(config: ModelConfig) -> tf_keras.Model`; `trainer/registry.py` maps the short
names of its models to it. A user's own module does the same, under its dotted name. A file may
define

- `SETTINGS`: which of `model.blur_pool`, `stochastic_depth` and `dropout` its models support; the
  others are refused;
- `NAMES`: the layers' names in other libraries, to load their weights: see weights/names.py;
- `EPSILONS`: libraries' batch norm epsilons that differ from `model.batch_norm_epsilon`'s default.

A model maps normalised images `[batch, height, width, channels]` to float32 logits
`[batch, classes]`. Its direct layers are named after their stage, the part before the first
underscore: `stem`, `stage1_block1`, `head_pool`. The layer `head` makes the logits.
"""
