"""The code of a run, packed as one file."""

import os
import subprocess
import tarfile

import pytest

from launch.errors import LaunchError
from launch.tpu import archive


def test_an_archive_is_the_same_each_time(folder):
    data = archive.pack(str(folder))
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    (folder / "runs").mkdir()
    (folder / "runs" / "checkpoint").write_text("x")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "pip").write_text("x")
    assert archive.pack(str(folder)) == data


def test_an_archive_of_a_checkout_has_what_git_tracks(folder):
    (folder / "notes").write_text("not for git")
    (folder / "gone").write_text("x")
    (folder / "link").symlink_to("trainer")
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "trainer", "gone", "link"], check=True)
    (folder / "gone").unlink()
    (folder / "packed.tar.gz").write_bytes(archive.pack(str(folder)))
    with tarfile.open(folder / "packed.tar.gz") as tar:
        assert tar.getnames() == ["link", "trainer/main.py"]
        assert tar.getmember("link").linkname == "trainer"


def test_an_archive_has_limits(folder, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 10)
    with pytest.raises(LaunchError, match=r"--folder=.*MiB.*--code=git"):
        archive.pack(str(folder))
    empty = folder / "runs"
    empty.mkdir()
    with pytest.raises(LaunchError, match="no code to upload"):
        archive.pack(str(empty))
