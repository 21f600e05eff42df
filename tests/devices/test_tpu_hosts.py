"""The hosts of a TPU slice: their addresses, and whether they answer.

Hosts and Google's servers are stand-ins: sockets of this machine, and the servers of
tests/launch/tpu/fake_api.py.
"""

import socket

import pytest
import tensorflow as tf

from tests.devices.common import message
from tests.launch.tpu.fake_api import FakeCloud
from trainer.devices import tpu
from trainer.errors import GroupError, UserError


@pytest.fixture
def host():
    """An address that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def google(tmp_path, monkeypatch):
    """Google's servers, as a VM without a separate account sees them."""
    cloud_tpu_client = pytest.importorskip("cloud_tpu_client")
    from google.auth.credentials import AnonymousCredentials
    from oauth2client.client import GoogleCredentials

    fake = FakeCloud(tmp_path / "objects", "p-trainer")
    monkeypatch.setattr(cloud_tpu_client.client, "_GCE_METADATA_ENDPOINT", fake.url)
    monkeypatch.setenv("TPU_API_DISCOVERY_URL", fake.url + "/discovery/{api}/{apiVersion}")
    monkeypatch.setattr(GoogleCredentials, "get_application_default", AnonymousCredentials)
    yield fake
    fake.close()


def node(*hosts: str, state: str = "READY", version: str = f"tpu-vm-tf-{tf.__version__}-pod-pjrt"):
    ends = [dict(zip(("ipAddress", "port"), host.split(":"), strict=True)) for host in hosts]
    return {"state": state, "networkEndpoints": ends, "tensorflowVersion": version}


def test_a_name_becomes_the_addresses_of_its_hosts(google, host):
    google.nodes["a"] = node(host, host)
    environ = {"TF_CONFIG": "left over"}
    assert tpu.prepare("a", environ) == f"grpc://{host},{host}"
    assert environ == {"TPU_NAME": "a", "TPU_LOAD_LIBRARY": "0"}
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=f"grpc://{host},{host}")
    assert resolver.cluster_spec().as_dict() == {"worker": [host, host]}


@pytest.mark.parametrize(
    ("nodes", "parts"),
    [
        ({}, ["ValueError", "'a'"]),
        ({"a": node("127.0.0.1:1", state="CREATING")}, ["not yet ready", "CREATING"]),
    ],
    ids=["unknown", "not ready"],
)
def test_a_name_that_leads_nowhere(google, nodes, parts):
    google.nodes |= nodes
    with pytest.raises(UserError) as error:
        tpu.prepare("a", {})
    text = message(error)
    assert text.startswith("--tpu=a: cannot be looked up (")
    assert [part for part in parts if part not in text] == []


def test_servers_that_say_nothing_do_not_hang(google, host, monkeypatch):
    cloud_tpu_client = pytest.importorskip("cloud_tpu_client")
    monkeypatch.setattr(tpu, "_LOOK_UP_S", 0.2)
    for silent in (f"http://{host}", google.url):  # the metadata server, then the API
        monkeypatch.setattr(cloud_tpu_client.client, "_GCE_METADATA_ENDPOINT", silent)
        google.hangs.set()
        with pytest.raises(UserError) as error:
            tpu.prepare("a", {})
        assert "timed out" in message(error)
    assert socket.getdefaulttimeout() is None


def test_without_credentials_a_line_says_so(google, monkeypatch):
    from oauth2client.client import ApplicationDefaultCredentialsError, GoogleCredentials

    def none():
        raise ApplicationDefaultCredentialsError("The Application Default Credentials\nare not")

    google.nodes["a"] = node("127.0.0.1:1")
    monkeypatch.setattr(GoogleCredentials, "get_application_default", none)
    with pytest.raises(UserError) as error:
        tpu.prepare("a", {})
    assert "ApplicationDefaultCredentialsError: The Application Default" in message(error)


@pytest.mark.parametrize(
    ("runtime", "refused"),
    [
        ("tpu-vm-tf-2.16.1-pod-pjrt", True),
        ("2.12", True),
        ("tpu-vm-tf-2.20.3-pod-pjrt", False),
        ("2.20.0", False),
        ("v2-alpha-tpuv5-lite", False),  # says nothing of TensorFlow
        ("", False),
    ],
)
def test_another_version_of_tensorflow_there(google, packages, host, runtime, refused):
    packages(tensorflow="2.20.0")
    google.nodes["a"] = node(host, version=runtime)
    if not refused:
        assert tpu.prepare("a", {}) == f"grpc://{host}"
        return
    with pytest.raises(UserError) as error:
        tpu.prepare("a", {})
    text = message(error)
    assert f"({runtime}), this machine 2.20.0; create" in text


def test_a_host_that_does_not_answer_is_named(host, monkeypatch):
    """TensorFlow would try indefinitely."""
    monkeypatch.setattr(tpu, "_REACH_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(GroupError) as error:
        tpu.prepare(f"grpc://{host},127.0.0.1:{port}", {})
    assert f"no TensorFlow answers at 127.0.0.1:{port} (Connection refused)" in message(error)


@pytest.mark.parametrize("address", ["grpc://a:b", "grpc://127.0.0.1:"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match=r"is not HOST:PORT"):
        tpu.prepare(address, {})


def test_an_address_without_a_port_has_the_usual_one():
    assert tpu._look_up("grpc://1.2.3.4,grpc://b:5") == (["1.2.3.4:8470", "b:5"], "")
