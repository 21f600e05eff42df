"""Files that are whole or not there, and locks that die with their process."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainer.files import locked, replacing, write_atomically


def test_a_reader_sees_the_old_text_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    seen = []
    rename = os.replace

    def watched(source, target):
        # Both files are whole when one replaces the other, and in one folder: a rename is atomic
        # only there.
        seen.append([Path(path).read_text(encoding="utf-8") for path in (source, target)])
        assert Path(source).parent == Path(target).parent
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_atomically(path, "new ä")
    assert seen == [["new ä", "old"]]
    assert path.read_text(encoding="utf-8") == "new ä"
    assert list(tmp_path.iterdir()) == [path]


def test_the_text_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a power cut could leave an empty file with the right name."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a)))
    write_atomically(tmp_path / "file", "text")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_a_half_written_file_of_a_killed_process_is_overwritten(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    (tmp_path / ".file.tmp").write_text("half of a much longer text")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("unique", [False, True])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, unique):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path, unique=unique) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once(tmp_path):
    path = tmp_path / "file"
    with replacing(path, unique=True) as first, replacing(path, unique=True) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which ended last
    assert list(tmp_path.iterdir()) == [path]


def test_a_unique_write_leaves_another_one_in_progress_alone(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as other:
        other.write_text("half")
        write_atomically(path, "whole", unique=True)
        assert (path.read_text(), other.read_text()) == ("whole", "half")


def test_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "open", "")
        write_atomically(tmp_path / "private", "", mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "private")]
    assert modes == [0o640, 0o600]


def test_a_library_does_not_choose_the_permissions(tmp_path):
    """safetensors gives its files to their owner alone."""
    save_file({"a": np.zeros(1)}, tmp_path / "alone")
    before = os.umask(0o027)
    try:
        for name, options in (("file", {}), ("private", {"mode": 0o600})):
            with replacing(tmp_path / name, **options) as temporary:
                save_file({"a": np.zeros(1)}, temporary)
    finally:
        os.umask(before)
    names = ("alone", "file", "private")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names]
    assert modes == [0o600, 0o640, 0o600]


def test_a_name_that_is_not_text(tmp_path):
    write_atomically(tmp_path / "list", "a\udcff\n", errors="surrogateescape")
    assert (tmp_path / "list").read_bytes() == b"a\xff\n"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "list", "a\udcff\n")
    assert (tmp_path / "list").read_bytes() == b"a\xff\n"


def test_a_lock_is_held_until_its_process_dies(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from trainer.files import locked\n"
        "with locked(Path(sys.argv[1])) as file:\n"
        "    file.write('owner'); file.flush(); print(flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout and owner.stdout.readline()
    for shared in (False, True):
        with pytest.raises(BlockingIOError), locked(path, wait=False, shared=shared):
            pass
    owner.kill()
    owner.wait()
    with locked(path, wait=False) as file:
        assert file.read() == "owner"


def test_shared_locks(tmp_path):
    path = tmp_path / "lock"
    with (
        locked(path, shared=True),
        locked(path, wait=False, shared=True),
        pytest.raises(BlockingIOError),
        locked(path, wait=False),
    ):
        pass
    with locked(path, wait=False) as file:
        file.write("again")
    assert path.read_text() == "again"
