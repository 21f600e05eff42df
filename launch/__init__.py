"""Puts the trainer's command on processes of this machine, Slurm, Kubernetes and Cloud TPUs.

Imports neither TensorFlow nor trainer: it starts in a blink, and on a machine that has neither.
"""
