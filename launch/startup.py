"""The start-up script of a TPU VM: a run's values, and launch/startup.sh behind them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from launch import storage
from launch.spec import JobSpec

_BODY = Path(__file__).with_name("startup.sh")


def render(
    spec: JobSpec,
    *,
    attempt: int,
    node: str,
    hosts: int,
    workdir: str,
    code: str,
    code_ref: str = "",
    code_sha256: str = "",
) -> str:
    """A script for bash.

    Args:
        node: the TPU's name.
        workdir: gs://BUCKET/FOLDER.
        code: the address of a git repository where there is a `code_ref`, or gs://BUCKET/NAME of
            an archive.
    """
    bucket, folder = storage.split(workdir)
    if not code_ref:
        code_bucket, name = storage.split(code)
        code = f"{code_bucket}/o/{storage.encode(name)}?alt=media"
    args = spec.args if spec.strategy else ("--strategy=tpu", *spec.args)
    values = {
        "RUN": spec.run,
        "ATTEMPT": str(attempt),
        "NODE": node,
        "HOSTS": str(hosts),
        "BUCKET": bucket,
        "FOLDER": folder,
        "FOLDER_URL": storage.encode(f"{folder}/"),
        "CODE": code,
        "CODE_REF": code_ref,
        "CODE_SHA256": code_sha256,
    }
    lists = {
        "TPU_ENV": _tpu_environment(node, hosts),
        "TRAINER_ENV": [f"{name}={value}" for name, value in spec.env],
        "TRAINER_ARGS": ["-m", "trainer.main", *args],
    }
    lines = ["#!/bin/bash"]
    lines += [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines += [f"{name}=({_words(words)})" for name, words in lists.items()]
    return "\n".join(lines) + "\n" + _BODY.read_text(encoding="utf-8")


def _words(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _tpu_environment(node: str, hosts: int) -> list[str]:
    """What TensorFlow must find before it is imported; of libtpu's path only the VM knows."""
    if hosts > 1:  # TensorFlow's servers on the VMs have the chips, this process has none
        return ["TPU_LOAD_LIBRARY=0", f"TPU_NAME={node}"]
    return ["TPU_NAME=local", "PJRT_DEVICE=TPU", "NEXT_PLUGGABLE_DEVICE_USE_C_API=true"]
