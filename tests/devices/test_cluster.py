"""The workers of a group: TF_CONFIG, and the meeting before TensorFlow, over real sockets."""

import errno
import json
import os
import re
import socket
import threading

import pytest

from trainer.config import Config, override
from trainer.devices.cluster import Cluster, offer, rendezvous, tf_config_cluster
from trainer.errors import GroupError, UserError


def as_task(monkeypatch, kind: str, index: object, *others: str) -> None:
    groups = {"worker": ["b:1", "c:1"]} | {other: ["a:1"] for other in others}
    value = {"cluster": groups, "task": {"type": kind, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))


@pytest.mark.parametrize("text", [None, "", "{}", '{"cluster": {}}', '{"task": {"index": 3}}'])
def test_a_process_without_a_cluster_is_alone(monkeypatch, text):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    assert tf_config_cluster() is None


@pytest.mark.parametrize(
    ("kind", "index", "others", "expected"),
    [
        ("worker", 0, (), Cluster(("b:1", "c:1"), 0)),
        ("worker", "0", (), Cluster(("b:1", "c:1"), 0)),
        ("worker", 1, (), Cluster(("b:1", "c:1"), 1)),
        ("chief", 0, ("chief",), Cluster(("a:1", "b:1", "c:1"), 0)),
        ("worker", 0, ("chief",), Cluster(("a:1", "b:1", "c:1"), 1)),
        ("worker", 1, ("chief",), Cluster(("a:1", "b:1", "c:1"), 2)),
    ],
)
def test_ranks_count_the_chief_first(monkeypatch, kind, index, others, expected):
    as_task(monkeypatch, kind, index, *others)
    assert tf_config_cluster() == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        "worker",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "one"}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:port"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a..b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:99999"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": 0}',
        '{"cluster": [1], "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_broken_tf_config_is_shown(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=re.escape(f"TF_CONFIG={text}: must be JSON")):
        tf_config_cluster()


# --- meeting ----------------------------------------------------------------------------------


def free_addresses(number: int) -> tuple[str, ...]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    addresses = tuple(f"localhost:{a_socket.getsockname()[1]}" for a_socket in sockets)
    for a_socket in sockets:
        a_socket.close()
    return addresses


def meet(
    clusters: list[Cluster], offers: list[dict], timeout_s: float = 20.0, again: bool = True
) -> list[str]:
    """Runs each member in a thread, and returns each one's error, or "" if all is well.

    Args:
        again: whether starting the group again would help; the class of each error must match.
    """
    verdicts = ["no end"] * len(clusters)

    def member(index: int) -> None:
        try:
            rendezvous(clusters[index], offers[index], timeout_s)
            verdicts[index] = ""
        except UserError as error:
            verdicts[index] = str(error) if isinstance(error, GroupError) == again else repr(error)

    threads = [threading.Thread(target=member, args=(i,)) for i in range(len(clusters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return verdicts


def group(number: int) -> list[Cluster]:
    addresses = free_addresses(number)
    return [Cluster(addresses, rank) for rank in range(number)]


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_all_continue_once_all_have_arrived(number):
    clusters = group(number)
    assert meet(clusters, [{"seed": 0, "mean": (1.0, 2.0)}] * number) == [""] * number
    for address in clusters[0].addresses:  # TensorFlow listens there next
        host, port = address.split(":")
        socket.create_server((host, int(port))).close()


def test_every_worker_that_came_names_the_missing_one():
    clusters = group(4)
    verdicts = meet([clusters[0], clusters[1], clusters[3]], [{}] * 3, timeout_s=1.0)
    assert set(verdicts) == {verdicts[0]}
    missing = clusters[0].addresses[2]
    expected = f"TF_CONFIG: the group of 4 did not form: worker 2 ({missing}) did not come; "
    assert verdicts[0].startswith(expected)


def test_a_missing_first_worker_is_named():
    clusters = group(2)
    (verdict,) = meet(clusters[1:], [{}], timeout_s=0.5)
    first = clusters[0].addresses[0]
    assert verdict.startswith(f"TF_CONFIG: worker 1 cannot agree with worker 0 at {first} (")


@pytest.mark.parametrize("number", [2, 4])
def test_a_different_config_is_refused_by_all(number):
    """Members that come after the difference is known refuse as well."""
    offers = [offer(Config())] * number
    offers[1] = offer(override(Config(), ["seed=1", "steps_per_loop=7"]))
    clusters = group(number)
    verdicts = meet(clusters, offers, again=False)
    assert set(verdicts) == {verdicts[0]}
    assert verdicts[0].startswith(
        f"worker 1 ({clusters[0].addresses[1]}) was started with something else: "
        f"seed is 1, worker 0 has 0; steps_per_loop is 7, worker 0 has 'auto'; "
    )


def test_a_different_list_of_workers_is_refused_by_all():
    clusters = group(2)
    other = Cluster((*clusters[0].addresses, "localhost:2"), 1)
    verdicts = meet([clusters[0], other], [{}, {}], again=False)
    assert verdicts[0] == verdicts[1]
    assert "worker 1 has a list of workers other than worker 0" in verdicts[0]


def test_a_port_that_is_taken_is_named():
    clusters = group(2)
    host, port = clusters[1].addresses[1].split(":")
    with socket.create_server((host, int(port))):
        (verdict,) = meet(clusters[1:], [{}], timeout_s=0.5)
    why = os.strerror(errno.EADDRINUSE)
    assert verdict.startswith(
        f"TF_CONFIG: worker 1 cannot listen at {clusters[1].addresses[1]} ({why}); "
    )


def test_a_worker_that_cannot_be_reached_is_named():
    """It runs, and reports, under a name that nobody can look up."""
    first, second = free_addresses(2)
    address = f"no-such-host.invalid:{second.rpartition(':')[2]}"
    clusters = [Cluster((first, address), rank) for rank in range(2)]
    verdicts = meet(clusters, [{}, {}], timeout_s=1.0)
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].startswith(f"TF_CONFIG: worker 0 cannot reach worker 1 at {address} (")


def test_a_worker_that_left_is_missing():
    """If a member ended while the others were awaited, TensorFlow would wait for it."""
    clusters = group(3)
    verdicts: list[str] = []
    thread = threading.Thread(
        target=lambda: verdicts.extend(meet([clusters[0], clusters[2]], [{}, {}], timeout_s=3.0))
    )
    thread.start()
    hello = {"rank": 1, "offer": {}, "of": clusters[0].addresses}
    with connected(clusters[0].addresses[0]) as member:
        member.sendall(json.dumps(hello).encode() + b"\n")
    thread.join(60)
    missing = f"worker 1 ({clusters[0].addresses[1]}) did not come; "
    assert [missing in verdict for verdict in verdicts] == [True, True]


def test_a_worker_that_returns_with_the_right_config_is_accepted():
    clusters = group(3)  # the third comes last, so that the others are still awaited
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.extend(meet(clusters[:1], [{}])))
    thread.start()
    wrong = {"rank": 1, "offer": {"seed": 1}, "of": clusters[0].addresses}
    with connected(clusters[0].addresses[0]) as member:
        member.sendall(json.dumps(wrong).encode() + b"\n")
    assert meet(clusters[1:], [{}, {}]) == ["", ""]
    thread.join(60)
    assert verdicts == [""]


def connected(address: str) -> socket.socket:
    """Connects to a port on which another process is about to listen."""
    host, port = address.split(":")
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=10)
        except ConnectionRefusedError:
            continue


@pytest.mark.parametrize(
    "noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 7}\n', b'{"rank": 1}\n', b"[1]\n"]
)
def test_strangers_are_ignored(noise):
    clusters = group(2)
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.extend(meet(clusters[:1], [{}])))
    thread.start()
    with connected(clusters[0].addresses[0]) as stranger:
        stranger.sendall(noise)
        stranger.shutdown(socket.SHUT_WR)
        assert meet(clusters[1:], [{}]) == [""]
    thread.join(60)
    assert verdicts == [""]


def test_the_offer_has_every_field_and_the_version():
    import tensorflow as tf

    config = override(Config(), ["seed=3"])
    values = offer(config)
    assert values["seed"] == 3
    assert values["keep_checkpoints"] == 3
    assert values["tensorflow"] == tf.__version__
