"""The workers of a group: who they are (`TF_CONFIG`), and that all are there. No TensorFlow.

TensorFlow waits without a word, for an hour by default, where a worker is missing, and for ever
where two workers compute different things. So they meet here first (`rendezvous`): each tells the
first one what it is about to do, and either all go on or all end, with the same reason.
"""

import contextlib
import json
import os
import selectors
import socket
import time
from typing import Any, NamedTuple

from trainer import config as config_lib
from trainer.errors import UserError

CLUSTER_TIMEOUT_S = 60.0
_RETRY_S = 0.2  # between two tries to reach a worker that does not listen yet
_REPLY_S = 10.0  # how much longer than the first one the others wait for what it has to say
_MAX_MESSAGE = 2**20


class Cluster(NamedTuple):
    """The group as this process sees it. Rank 0 is the chief: it writes."""

    addresses: tuple[str, ...]  # "host:port", by rank
    rank: int


def tf_config_cluster() -> Cluster | None:
    """The group that `TF_CONFIG` describes; None where it describes none.

    Raises:
        UserError: where it is not JSON of the form that TensorFlow reads, or names what is no
            worker (`ps`, `evaluator`).
    """
    text = os.environ.get("TF_CONFIG", "")
    try:
        value = json.loads(text or "{}")
        if not value.get("cluster"):
            return None
        groups = value["cluster"]
        addresses = [(kind, a) for kind in ("chief", "worker") for a in groups.get(kind, ())]
        kind, index = value["task"]["type"], int(value["task"]["index"])
        if not 0 <= index < len(groups[kind]):
            raise ValueError("a task outside the cluster")
        if set(groups) - {"chief", "worker"}:
            raise ValueError("parameter servers or evaluators")
        for _, address in addresses:
            _split(address)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"TF_CONFIG={text[:200]}: must be JSON with a 'cluster' of 'worker' addresses "
            f"(host:port), and a 'task' of this process that is in it"
        ) from None
    rank = index + (len(groups.get("chief", ())) if kind == "worker" else 0)
    return Cluster(tuple(address for _, address in addresses), rank)


def rendezvous(
    cluster: Cluster, offer: dict[str, Any], timeout_s: float = CLUSTER_TIMEOUT_S
) -> None:
    """Returns when all workers of the group are there, reachable, and about to compute the same.

    Rank 0 listens at its address. The others bind theirs, connect to rank 0 and say who they are
    and what they offer; rank 0 compares that with its own offer, connects back to each address,
    and at the end tells all the same verdict. All sockets are closed on return, so that TensorFlow
    can bind the ports.

    Args:
        offer: `config.to_dict` and whatever else must be equal, as JSON values.

    Raises:
        UserError: where a port is taken, a worker is missing after `timeout_s`, cannot be
            reached, or offers something else.
    """
    address = cluster.addresses[cluster.rank]
    port = _split(address)[1]
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"TF_CONFIG: worker {cluster.rank} cannot listen at {address} "
            f"({os.strerror(error.errno or 0)}); "
            f"stop what uses that port, or name another one"
        ) from None
    deadline = time.monotonic() + timeout_s
    with listener:
        if cluster.rank == 0:
            verdict = _gather(cluster, offer, listener, deadline)
        else:
            verdict = _report(cluster, offer, deadline)
    if verdict:
        raise UserError(verdict)


def _gather(cluster: Cluster, offer: dict[str, Any], listener: socket.socket, deadline: float):
    """Rank 0: waits for all, tells all. Returns what is wrong, "" for nothing."""
    members: dict[int, socket.socket] = {}
    verdict = ""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(members) + 1 < len(cluster.addresses) and not verdict:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                verdict = _missing(cluster, set(members) | {0})
                break
            connection = stack.enter_context(listener.accept()[0])
            connection.settimeout(_REPLY_S)
            message = _receive(connection)
            rank = message.get("rank") if message else None
            if not isinstance(rank, int) or not 0 < rank < len(cluster.addresses):
                continue  # somebody else: a port scan, a health check
            members[rank] = connection
            verdict = _compare(cluster, rank, offer, message) or _reach(cluster, rank)
        for connection in members.values():
            with contextlib.suppress(OSError):
                _send(connection, {"verdict": verdict})
    return verdict


def _report(cluster: Cluster, offer: dict[str, Any], deadline: float) -> str:
    """Another rank: tells rank 0, and returns its verdict."""
    first = cluster.addresses[0]
    why = "nobody answers"
    while time.monotonic() < deadline:
        left = max(deadline - time.monotonic(), _RETRY_S)
        try:
            with socket.create_connection(_split(first), timeout=left) as connection:
                _send(connection, {"rank": cluster.rank, "offer": offer, "of": cluster.addresses})
                connection.settimeout(left + _REPLY_S)
                reply = _receive(connection)
            if reply is not None and isinstance(reply.get("verdict"), str):
                return reply["verdict"]
            why = "it answers something else"
        except OSError as error:
            why = error.strerror or str(error)
        time.sleep(_RETRY_S)  # a peer in another process: there is nothing to wait on
    return (
        f"TF_CONFIG: worker {cluster.rank} cannot reach worker 0 at {first} ({why}); start it, or "
        f"mend the address or the firewall"
    )


def _missing(cluster: Cluster, present: set[int]) -> str:
    missing = [r for r in range(len(cluster.addresses)) if r not in present]
    named = ", ".join(f"worker {rank} ({cluster.addresses[rank]})" for rank in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return (
        f"TF_CONFIG: the group of {len(cluster.addresses)} did not form: {named}{more} did not "
        f"come; start what is missing, or name only the workers that there are"
    )


def _compare(cluster: Cluster, rank: int, offer: dict[str, Any], message: dict[str, Any]) -> str:
    if tuple(message.get("of", ())) != cluster.addresses:
        return (
            f"TF_CONFIG: worker {rank} has another list of workers than worker 0 "
            f"({cluster.addresses[0]}); give all the same 'cluster'"
        )
    theirs = message["offer"]
    # As JSON brings it back: tuples are lists there.
    ours = json.loads(json.dumps(offer))
    different = [
        f"{name} is {theirs.get(name)!r}, worker 0 has {ours.get(name)!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if different:
        return (
            f"worker {rank} ({cluster.addresses[rank]}) was started with something else: "
            f"{'; '.join(different)}; start all workers with the same command"
        )
    return ""


def _reach(cluster: Cluster, rank: int) -> str:
    """Workers will send to each other: what rank 0 cannot reach, others hardly can."""
    address = cluster.addresses[rank]
    try:
        socket.create_connection(_split(address), timeout=_REPLY_S).close()
    except OSError as error:
        return (
            f"TF_CONFIG: worker 0 cannot reach worker {rank} at {address} "
            f"({error.strerror or error}), although that worker runs; mend the address or the "
            f"firewall"
        )
    return ""


def _split(address: str) -> tuple[str, int]:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not 0 < int(port) < 2**16:
        raise ValueError(address)
    return host.strip("[]"), int(port)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """One line of JSON; None where the peer says anything else, or nothing."""
    data = b""
    with contextlib.suppress(OSError, ValueError):
        while not data.endswith(b"\n"):
            part = connection.recv(2**16)
            if not part or len(data) > _MAX_MESSAGE:
                return None
            data += part
        message = json.loads(data)
        return message if isinstance(message, dict) else None
    return None


def offer(config: config_lib.Config) -> dict[str, Any]:
    """What workers must have in common: every field (also the length of a loop, or the interval of
    evaluation, in whose midst they would wait for each other), and TensorFlow's version."""
    from importlib import metadata

    try:
        version = metadata.version("tensorflow")
    except metadata.PackageNotFoundError:  # tensorflow-cpu, tensorflow-tpu
        version = "unknown"
    return config_lib.to_dict(config) | {"tensorflow": version}
