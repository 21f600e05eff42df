"""Records: private, whole, and one run per name."""

import json
import os
import stat
import subprocess
import sys

import pytest

from launch import cli, records
from launch import spec as spec_lib
from launch.errors import LaunchError
from launch.policy import State
from tests.launch.runs import ROOT
from tests.launch.specs import made, spec


def test_a_record_is_private_and_comes_back(home):
    record = made()
    record.set_state(State.RUNNING, "with Bearer abc")
    record.restarts.attempt, record.handle = 3, {"job": "7"}
    record.save()
    again = records.read("digits")
    assert again == record
    assert again.message == "with [secret]"
    for path in (home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert records.names() == ["digits"]


def test_a_name_is_taken_until_its_run_has_ended(home):
    first = made()
    with pytest.raises(LaunchError, match="--name=digits: taken by a run that is queued"):
        made()
    first.set_state(State.FAILED)
    with (
        first.locked() as mine,
        pytest.raises(LaunchError, match="taken by a run that is failed"),
    ):
        assert mine
        made()  # another process is about to write it
    made()
    assert records.read("digits").state is State.QUEUED
    assert sorted(path.name for path in home.iterdir()) == [
        "digits"
    ]  # it never ran: nothing is kept
    again = records.read("digits")
    again.was_running = True
    again.set_state(State.FAILED)
    with records.create(spec()) as record:
        assert record.handle["before"] == again.spec.run != record.spec.run
    assert sorted(path.name for path in home.iterdir()) == ["digits", "digits~1"]


def test_only_one_of_two_at_once_gets_the_name(home):
    code = (
        "import sys, json\nfrom launch import records, spec\nfrom launch import local\n"
        "one = spec.from_dict(json.loads(sys.argv[1]), local.Options)\nsys.stdin.read()\n"
        "try:\n    with records.create(one):\n        pass\n"
        "except records.LaunchError:\n    sys.exit(2)\n"
    )
    text = json.dumps(spec_lib.to_dict(spec()))
    command = [sys.executable, "-c", code, text]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) for _ in range(4)]
    for process in both:
        assert process.stdin is not None
        process.stdin.close()  # now
    assert sorted(process.wait() for process in both) == [0, 2, 2, 2]
    assert records.read("digits").spec.name == "digits"
    assert [path.name for path in home.iterdir()] == ["digits"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 99}', '"x"'])
def test_a_record_that_cannot_be_read_is_named_and_kept(home, text, capsys):
    made()
    path = home / "digits" / "record.json"
    path.write_text(text)
    assert cli.main(["watch", "digits"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: cannot be read (")
    assert path.read_text() == text


def test_a_broken_record_does_not_hide_the_others(home, capsys):
    made()
    (home / "other").mkdir()
    (home / "other" / "record.json").write_text("{")
    for command in ("list", "status"):
        assert cli.main([command, "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["digits"]["state"] == "queued"
        assert rows["other"]["state"] == "unknown"
        assert "cannot be read" in rows["other"]["message"]


def test_the_home_has_one_name(home, tmp_path, monkeypatch):
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "link"))
    assert records.home() == home


def test_a_full_disk_is_one_line(home, capsys):
    made()
    (home / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUNCH_HOME", str(home / "file"))
        assert cli.main(["list"]) == 0
        assert cli.main(["submit", "--backend=local", "--name=a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {home}/file/a: cannot write the run's record (")


def test_a_crash_while_writing_leaves_the_old_record(home, monkeypatch):
    record = made()

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        record.set_state(State.RUNNING)
    assert records.read("digits").state is State.QUEUED
