"""The start-up script of a TPU VM: a run's values, followed by launch/tpu/startup.sh."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.spec import JobSpec
from launch.tpu import storage

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
    """Returns a script for bash.

    Args:
        node: the TPU's name.
        workdir: gs://BUCKET/FOLDER.
        code: the address of a git repository if there is a `code_ref`, else gs://BUCKET/NAME of
            an archive.
    """
    bucket, folder = storage.split(workdir)
    if not code_ref:
        code_bucket, name = storage.split(code)
        code = f"{code_bucket}/o/{storage.encode(name)}?alt=media"
    # The trainer itself sets the environment that TensorFlow needs.
    strategy = () if spec.strategy else ("--strategy=tpu",)
    tpu = f"--tpu={node if hosts > 1 else 'local'}"
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
        "TRAINER_ENV": [f"{name}={value}" for name, value in spec.env],
        "TRAINER_ARGS": ["-m", "trainer.main", *strategy, tpu, *spec.args],
    }
    lines = ["#!/bin/bash"]
    lines += [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines += [f"{name}=({_words(words)})" for name, words in lists.items()]
    return "\n".join(lines) + "\n" + _BODY.read_text(encoding="utf-8")


def _words(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))
