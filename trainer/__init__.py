"""Trains image classifiers with TensorFlow; `python -m trainer.main` is the command."""

__version__ = "0.2.0"
