"""Runs the trainer on this machine, Slurm, Kubernetes and Cloud TPUs: `python -m launch`.

Imports the standard library and `trainer.files`; a back end imports its client library when it is
used. So it starts at once, on a machine without TensorFlow.
"""
