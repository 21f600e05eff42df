"""Puts the trainer's command on processes of this machine, Slurm, Kubernetes and Cloud TPUs.

Imports the standard library and `trainer.files`; a back end imports its client library when it is
used. So it starts at once, on a machine without TensorFlow.
"""
