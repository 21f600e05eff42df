"""The workers of a group (`TF_CONFIG`), and their meeting before the training. No TensorFlow.

If a worker is missing, TensorFlow waits silently, for an hour by default; if two workers compute
different things, it waits forever. So they meet here first (`rendezvous`): each tells rank 0 what
it is about to do, and either all continue or all end with the same reason.
"""

import contextlib
import json
import os
import selectors
import socket
import time
from importlib import metadata
from typing import Any, NamedTuple

from trainer import config as config_lib
from trainer.errors import GroupError, UserError

CLUSTER_TIMEOUT_S = 60.0
_RETRY_S = 0.2  # between two tries to reach a worker that does not listen yet
_HELLO_S = 2.0  # for a message that a worker sends at once; a stranger may not
_VERDICT_S = 30.0  # for rank 0, after its time is up, to reach and inform all
_MAX_MESSAGE = 2**20


class Cluster(NamedTuple):
    """The group as this process sees it. Rank 0 is the chief, which writes."""

    addresses: tuple[str, ...]  # "host:port", by rank
    rank: int


def tf_config_cluster() -> Cluster | None:
    """Returns the group that `TF_CONFIG` describes, or None if it describes none.

    Raises:
        UserError: if it is not JSON of the form that TensorFlow reads, or names processes other
            than workers (`ps`, `evaluator`).
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
    """Returns when all workers are present, reachable, and about to compute the same.

    Rank 0 listens at its address. The others bind theirs, connect to rank 0, and send their rank
    and their offer. When all have come, or its time is up, rank 0 compares the offers with its own,
    connects back to each address, asks each worker whether it is still there, and sends all of them
    the same verdict. All sockets are closed on return, so that TensorFlow can bind the ports.

    Args:
        offer: `config.to_dict` and all else that must be equal, as JSON values.
        timeout_s: how long rank 0 waits for the others, and they for it to listen, in seconds.

    Raises:
        GroupError: if a port is taken, or a worker is missing after `timeout_s` or unreachable.
        UserError: if a worker offers something else.
    """
    address = cluster.addresses[cluster.rank]
    port = _split(address)[1]
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise GroupError(
            f"TF_CONFIG: worker {cluster.rank} cannot listen at {address} "
            f"({os.strerror(error.errno or 0)}); stop the process that uses that port, or choose "
            f"another port"
        ) from None
    with listener:
        if cluster.rank == 0:
            verdict = _gather(cluster, offer, listener, timeout_s)
        else:
            verdict = _report(cluster, offer, timeout_s)
    if verdict is not None:
        raise verdict


def _gather(
    cluster: Cluster, offer: dict[str, Any], listener: socket.socket, timeout_s: float
) -> UserError | None:
    """Rank 0's part: waits for all and informs all. Returns the error, or None."""
    deadline = time.monotonic() + timeout_s
    members: dict[int, socket.socket] = {}
    verdicts: dict[int, str] = {}  # by rank; the last one counts if a worker came again
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(members) + 1 < len(cluster.addresses) and time.monotonic() < deadline:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                if key.data is not None:  # members send nothing, so this one has left
                    if members.get(key.data) is key.fileobj:  # and has not reconnected just now
                        selector.unregister(key.fileobj)
                        members.pop(key.data).close()
                    continue
                connection = stack.enter_context(listener.accept()[0])
                message = _receive(connection, _HELLO_S)
                if message is None or not _is_hello(cluster, message):
                    continue  # a stranger, such as a port scan or a health check
                rank = message["rank"]
                if rank in members:  # it was started again
                    selector.unregister(members[rank])
                    members[rank].close()
                members[rank] = connection
                selector.register(connection, selectors.EVENT_READ, rank)
                verdicts[rank] = _compare(cluster, rank, offer, message)
        # Report a difference before an absence: it is more informative.
        different = next(filter(None, verdicts.values()), "")
        broken = different or _missing(cluster, {0, *members})
        # The roll is called twice: a worker that has left is missing, not unreachable, and reaching
        # out takes time.
        broken = broken or _call_roll(cluster, members)
        broken = broken or _reach(cluster, deadline)
        broken = broken or _call_roll(cluster, members)
        for connection in members.values():
            with contextlib.suppress(OSError):
                _send(connection, {"verdict": broken, "different": bool(different)})
    return _error(broken, bool(different))


def _report(cluster: Cluster, offer: dict[str, Any], timeout_s: float) -> UserError | None:
    """Another rank's part: informs rank 0 and returns its verdict."""
    first = cluster.addresses[0]
    why = "no answer"
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection(_split(first), timeout=_HELLO_S) as connection:
                _send(connection, {"rank": cluster.rank, "offer": offer, "of": cluster.addresses})
                reply = _receive(connection, timeout_s + _VERDICT_S)
                while reply == {"still": "there?"}:
                    _send(connection, {"still": "here"})
                    reply = _receive(connection, timeout_s + _VERDICT_S)
            if reply is not None and isinstance(reply.get("verdict"), str):
                return _error(reply["verdict"], reply.get("different") is True)
            why = "it left without a verdict"
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() >= deadline:
            return GroupError(
                f"TF_CONFIG: worker {cluster.rank} cannot agree with worker 0 at {first} ({why}); "
                f"start it, or fix the address or the firewall"
            )
        time.sleep(_RETRY_S)  # another process: there is nothing to wait on


def _error(verdict: str, different: bool) -> UserError | None:
    """Returns a UserError for a difference, which a restart would not cure, else a GroupError."""
    if not verdict:
        return None
    return UserError(verdict) if different else GroupError(verdict)


def _is_hello(cluster: Cluster, message: dict[str, Any]) -> bool:
    rank = message.get("rank")
    return (
        type(rank) is int
        and 0 < rank < len(cluster.addresses)
        and isinstance(message.get("offer"), dict)
        and isinstance(message.get("of"), list)
    )


def _call_roll(cluster: Cluster, members: dict[int, socket.socket]) -> str:
    """Names the workers that have left since they came."""
    present = {0}
    for rank, connection in members.items():
        with contextlib.suppress(OSError):
            _send(connection, {"still": "there?"})
            if _receive(connection, _HELLO_S) == {"still": "here"}:
                present.add(rank)
    return _missing(cluster, present)


def _missing(cluster: Cluster, present: set[int]) -> str:
    missing = [r for r in range(len(cluster.addresses)) if r not in present]
    if not missing:
        return ""
    named = ", ".join(f"worker {rank} ({cluster.addresses[rank]})" for rank in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return (
        f"TF_CONFIG: the group of {len(cluster.addresses)} did not form: {named}{more} did not "
        f"come; start the missing ones, or name only the workers that exist"
    )


def _compare(cluster: Cluster, rank: int, offer: dict[str, Any], message: dict[str, Any]) -> str:
    if tuple(message["of"]) != cluster.addresses:
        return (
            f"TF_CONFIG: worker {rank} has a list of workers other than worker 0's "
            f"({cluster.addresses[0]}); give all the same 'cluster'"
        )
    theirs = message["offer"]
    # Through JSON like theirs: it turns tuples into lists.
    ours = json.loads(json.dumps(offer))
    different = [
        f"{name} is {theirs.get(name)!r}, worker 0 has {ours.get(name)!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if different:
        return (
            f"worker {rank} ({cluster.addresses[rank]}) was started with something else: "
            f"{'; '.join(different)}; start all workers with the same command, on "
            f"the same data"
        )
    return ""


def _reach(cluster: Cluster, deadline: float) -> str:
    """Names the first worker that rank 0 cannot reach: the others hardly could, either.

    Tries until the deadline: a machine's name may become known only after its start.
    """
    for rank, address in enumerate(cluster.addresses[1:], start=1):
        while True:
            try:
                socket.create_connection(_split(address), timeout=_HELLO_S).close()
                break
            except OSError as error:
                if time.monotonic() < deadline:
                    time.sleep(_RETRY_S)  # as above
                    continue
                return (
                    f"TF_CONFIG: worker 0 cannot reach worker {rank} at {address} "
                    f"({error.strerror or error}), although that worker runs; fix the address or "
                    f"the firewall"
                )
    return ""


def _split(address: str) -> tuple[str, int]:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not 0 < int(port) < 2**16:
        raise ValueError(address)
    host.encode("idna")  # raises ValueError if it cannot be the name of a machine
    return host.strip("[]"), int(port)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """Returns one line of JSON; None if the peer sends anything else, or nothing in time."""
    deadline = time.monotonic() + seconds
    data = b""
    with contextlib.suppress(OSError, ValueError):
        while not data.endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(2**16)
            if not part or len(data) > _MAX_MESSAGE or time.monotonic() > deadline:
                return None
            data += part
        message = json.loads(data)
        return message if isinstance(message, dict) else None
    return None


def offer(config: config_lib.Config) -> dict[str, Any]:
    """Returns what workers must have in common: all fields of the config, and TensorFlow's version.

    Even fields that do not change results count: with other loop lengths or evaluation intervals,
    the workers would wait for each other.
    """
    versions = {"tensorflow": "unknown"}
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-tpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions["tensorflow"] = metadata.version(name)
            break
    return config_lib.to_dict(config) | versions
