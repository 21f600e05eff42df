"""Groups of workers on this machine: real processes, on loopback."""

import json
import os
import socket
import subprocess
from collections.abc import Sequence


def tf_configs(number: int) -> list[str]:
    """Returns the TF_CONFIG of each worker of a group, with ports that were just free."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    addresses = [f"localhost:{a_socket.getsockname()[1]}" for a_socket in sockets]
    for a_socket in sockets:
        a_socket.close()
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index in range(number)
    ]


def start_workers(commands: Sequence[Sequence[str]]) -> list[subprocess.Popen]:
    """Starts a group, one command per worker."""
    return [
        subprocess.Popen(
            command,
            env=os.environ | {"TF_CONFIG": tf_config},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, tf_config in zip(commands, tf_configs(len(commands)), strict=True)
    ]


def finish(processes: Sequence[subprocess.Popen], code: int) -> list[str]:
    """Waits for all of them to end with this exit code, and returns their output."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), "\n".join(outputs)
    return outputs
