"""Trains image classifiers with TensorFlow; `python -m trainer.main` is the command."""
