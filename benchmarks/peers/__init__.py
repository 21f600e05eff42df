"""The contenders of the benchmarks, one process each. They use the protocol in protocol.py.

Each file imports only packages of its own environment (benchmarks/requirements-*.txt).
"""
