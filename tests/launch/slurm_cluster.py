"""A real Slurm on this machine: one controller, two nodes of one core that are both this machine.

Needs Debian's slurm-wlm, and root: without munge, Slurm accepts nobody else.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")

_CONFIG = """\
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SwitchType=switch/none
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000
KillWait=30
ReturnToService=2
PluginDir=/usr/lib/x86_64-linux-gnu/slurm-wlm
NodeName=n0 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=1000
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=1000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Returns the programs that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Runs a cluster until the block ends; clients find it through SLURM_CONF."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(3)]
        ports = [a_socket.getsockname()[1] for a_socket in sockets]
    names = dict(zip(("controller", "first", "second"), ports, strict=True))
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(folder=folder, **names))
    (folder / "state").mkdir()
    old = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    daemons = []
    try:
        for command in (["slurmctld"], ["slurmd", "-N", "n0"], ["slurmd", "-N", "n1"]):
            with open(folder / f"{'-'.join(command)}.out", "w") as log:
                in_front = [*command, "-D", "-c"]
                daemons.append(subprocess.Popen(in_front, stdout=log, stderr=subprocess.STDOUT))
        _wait_until_idle()
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if old is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = old


def _wait_until_idle() -> None:
    """Waits for a queued job that needs both nodes: it ends once they are up."""
    subprocess.run(
        ["srun", "--nodes=2", "--immediate=60", "true"], check=True, capture_output=True, timeout=90
    )
