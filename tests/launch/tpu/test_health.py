"""A TPU's health by API v1."""

import functools
import json

from launch import cli as cli_lib
from launch.tpu import health
from tests.launch.tpu.runs import record, submit


def test_health_is_a_second_opinion(cloud, capsys, monkeypatch):
    monkeypatch.setattr(health, "of", functools.partial(health.of, limit_s=60))
    cloud.plans = [("ACTIVE", "ACTIVE")]
    submit()
    assert cli_lib.main(["status", "run", "--health", "--json"]) == 0
    (row,) = json.loads("[" + capsys.readouterr().out.partition("\n[")[2])
    assert row["health"] == {"source": "API v1", "state": "READY", "health": "HEALTHY"}
    cli_lib.main(["cancel", "run"])
    assert "HttpError 404" in health.of(record(), limit_s=60)["error"]


def test_health_has_a_limit(cloud):
    submit()
    cloud.hangs.set()
    assert health.of(record(), limit_s=0.2)["error"] == "no answer within 0.2 s"
    cli_lib.main(["cancel", "run"])


def test_health_of_other_back_ends(cloud, tmp_path):
    cli_lib.main(["submit", "--backend=local", "--name=here", "--python=false", "--", "--x"])
    assert health.of(record("here")) == {}
