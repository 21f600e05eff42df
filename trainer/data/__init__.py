"""The input: from a source's files to batches on the device.

splits/ finds what the data are, without TensorFlow; a source fetches the examples, see source.py.
`data.name` names an alias from `trainer/registry.py`, or a module of the user's own with a function
`open_source(config, split, data_dir) -> Source`.
"""
