"""Which strategy and which TPU: decided by flags and environment, without TensorFlow."""

import os
from typing import NamedTuple

from trainer.devices import cluster, tpu
from trainer.errors import UserError

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


class Choice(NamedTuple):
    """Where to run.

    Attributes:
        strategy: one of `STRATEGIES`; `auto` if only TensorFlow can tell, by the devices it finds.
        tpu: the TPU's name or address, or "".
    """

    strategy: str
    tpu: str


def choose(strategy: str, tpu_flag: str, virtual_devices: int) -> Choice:
    """Resolves `--strategy`, `--tpu` and the environment, as far as possible without TensorFlow.

    Raises:
        UserError: for flags that are wrong, or contradict each other or the environment.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"--strategy={strategy}: unknown; one of {', '.join(STRATEGIES)}")
    name = ""
    if strategy in ("auto", "tpu"):
        name = tpu.name_of(tpu_flag, os.environ)
    elif tpu_flag:
        raise UserError(f"--tpu={tpu_flag}: needs --strategy=tpu or auto, not {strategy}")
    # A flag was meant; the environment may be left over from another program.
    if strategy == "auto" and (tpu_flag or (name and not cluster.tf_config_cluster())):
        strategy = "tpu"
    if strategy == "multi_worker" and not cluster.tf_config_cluster():
        raise UserError(
            "--strategy=multi_worker: TF_CONFIG is not set; it names the workers. Set it for each "
            "process (docs/distributed.md), or use --strategy=mirrored"
        )
    if strategy == "tpu":
        if not name:
            raise UserError(
                "--strategy=tpu: no TPU is named: give --tpu=NAME, or --tpu=local on a TPU VM, or "
                "use --strategy=auto"
            )
        tpu.environment(name, os.environ)  # refuses contradictions, before a folder is made
    if strategy not in ("auto", "mirrored") and virtual_devices:
        raise UserError(
            f"--virtual_devices={virtual_devices}: needs --strategy=mirrored or auto, "
            f"not {strategy}"
        )
    return Choice(strategy, name)
