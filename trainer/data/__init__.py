"""The input: from a source's files to batches on the device.

A source is a module with a function `open_source(config, split, data_dir) -> Source`, see
source.py. `data.name` names the module itself, or an alias from `trainer/registry.py`.
"""
