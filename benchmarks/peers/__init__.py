"""The contenders of benchmarks/step.py: one process each, which speak benchmarks/peers/protocol.py.

Each file imports only what its own environment has (benchmarks/requirements-*.txt).
"""
