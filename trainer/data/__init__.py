"""Images from a source to the device.

A source is one file with a function `open_source(config, split, data_dir) -> Source`, see
source.py, and one line in `trainer/registry.py`.
"""
