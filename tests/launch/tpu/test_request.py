"""The request for a TPU, and refusals before it is sent."""

import copy
import json

import pytest

from launch import cli as cli_lib
from launch.errors import LaunchError
from launch.spec import JobSpec
from launch.tpu import api, backend, rest
from tests.launch.runs import check_golden
from tests.launch.tpu.runs import record, spec, submit

QUEUED = "/v2/projects/p/locations/z/queuedResources"


def golden(name: str, rendered: JobSpec) -> None:
    backend.check(rendered)
    check_golden(name, backend.render(rendered))


@pytest.fixture
def no_overrides(monkeypatch):
    monkeypatch.delenv("TPU_API_URL", raising=False)
    monkeypatch.delenv("STORAGE_API_URL", raising=False)


def test_golden_spot(no_overrides, folder):
    args = ("--config=configs/x.py", "--set", "optimizer.learning_rate=0.8")
    env = [("GREETING", "it's $(late)")]
    golden("tpu-vm-spot", spec(*args, env=env, folder=str(folder), spot=True, zone="us-west4-a"))


def test_golden_slice(no_overrides):
    options = {
        "accelerator": "v4-32",
        "reserved": True,
        "code": "git+https://example.com/code@v1.0",
        "network": "net",
        "subnetwork": "sub",
        "service_account": "trainer@p.iam.gserviceaccount.com",
        "valid_until_s": 3600,
    }
    golden("tpu-vm-slice", spec("--strategy=tpu", workdir="gs://b-1/my runs/é", **options))


def test_render_needs_no_network_and_is_pure(no_overrides, folder, monkeypatch):
    monkeypatch.setattr(rest.Api, "_open", lambda self: pytest.fail("asks the network"))
    first = backend.render(spec("--x", folder=str(folder)))
    assert backend.render(spec("--x", folder=str(folder))) == first


def test_the_rendered_request_is_sent(cloud, folder, capsys):
    submit(f"--folder={folder}", "--dry-run", code="")
    shown = capsys.readouterr().out
    submit(f"--folder={folder}", code="")
    run = record().spec.run
    sent = copy.deepcopy({"tpu": cloud.queued["run"]["tpu"]})
    node = sent["tpu"]["nodeSpec"][0]["node"]
    assert node["labels"].pop("trainer-run") == run
    node["labels"] = {"trainer-run": "run", **node["labels"]}
    script = node["metadata"]["startup-script"] = node["metadata"]["startup-script"].replace(
        run, "RUN"
    )
    assert script in shown
    request = shown.partition("--- request for the TPU\n")[2]
    assert request.startswith(f"POST {cloud.url}{QUEUED}?queuedResourceId=run&requestId=")
    assert request.partition("\n\n")[2] == json.dumps(sent, indent=2) + "\n"
    (posted,) = [line for line in cloud.requests if "upload/storage" in line]
    assert posted.replace("POST ", f"POST {cloud.url}") in shown
    cli_lib.main(["cancel", "run"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"project": ""}, "--project: required"),
        ({"zone": ""}, "--zone: required"),
        ({"accelerator": ""}, "--accelerator: required"),
        ({"accelerator": "v9-8"}, "--accelerator=v9-8: unknown"),
        ({"spot": True, "reserved": True}, "exclude"),
        ({"workdir": "runs/x"}, "lost with the VM's disk"),
        ({"workdir": "gs://bucket"}, "gs://BUCKET/FOLDER"),
        ({"workdir": "gs://bucket/a/../b"}, "'..'"),
        ({"workdir": "gs://bucket/a\nb"}, "line breaks"),
        ({"workdir": "gs://Bucket!/a"}, "not a valid bucket name"),
        ({"code": "https://example.com/code"}, "must be git+https"),
        ({"code": "git+https://example.com/code"}, "must be git+https"),
        ({"code": "git+https://example.com/code@-x"}, "must be git+https"),
        ({"network": "a b"}, "--network=a b"),
        ({"valid_until_s": -1}, "at least 0"),
    ],
)
def test_check(changes, words):
    with pytest.raises(LaunchError) as error:
        backend.check(spec("--x", **changes))
    assert words in str(error.value)


def test_check_of_the_trainers_flags():
    with pytest.raises(LaunchError, match="must be tpu on a TPU"):
        backend.check(spec("--strategy=mirrored"))
    with pytest.raises(LaunchError, match="start-up script larger than"):
        backend.check(spec("--set=" + "x" * 300_000))


@pytest.mark.parametrize(
    ("accelerator", "number"),
    [
        *[("v2-8", 1), ("v3-32", 4), ("v4-8", 1), ("v4-16", 2), ("v5p-8", 1), ("v5p-128", 16)],
        *[("v5litepod-1", 1), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v6e-256", 64)],
        *[("v6e", 0), ("v6e-", 0), ("h100-8", 0), ("v6e-x", 0)],
    ],
)
def test_hosts(accelerator, number):
    assert api.hosts(accelerator) == number


def test_secrets_are_refused_and_none_is_printed(cloud, capsys):
    assert submit("--env=TOKEN=x") == 2
    assert submit("--env=A=ya29.abcdefghij") == 2
    said = capsys.readouterr()
    assert "ya29" not in said.out + said.err
    assert not cloud.requests
