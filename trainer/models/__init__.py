"""Model families, one file each.

A file has `build(config: Config) -> tf_keras.Model`, and its models have a line each in
`trainer/registry.py`. It may have

- `SETTINGS`: which of `model.blur_pool`, `stochastic_depth` and `dropout` its models support; the
  others are refused;
- `NAMES`: what other libraries call the layers, for weights from there: see weights/names.py.

The direct layers of a model are named after their stage, `stem`, `stage1_block1`, `head_pool`:
what stands before the first underscore. The layer `head` makes the logits.
"""
