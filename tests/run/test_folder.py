"""A run's folder: its owner, its contents, who writes, and refusals."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import config as config_lib
from trainer.config import Config, override
from trainer.errors import UserError
from trainer.run.folder import (
    RunFolder,
    default_path,
)

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from trainer.config import Config
from trainer.run.folder import RunFolder
folder = RunFolder(sys.argv[1], Config())
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


@contextlib.contextmanager
def another_owner(path: Path) -> Iterator[subprocess.Popen]:
    """Starts another process that holds the folder until its stdin is closed or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "owned\n"
            yield process
        finally:
            process.kill()


# --- its owner --------------------------------------------------------------------------------


def test_a_second_process_is_refused_naming_the_first(tmp_path):
    with another_owner(tmp_path) as owner:
        for _ in range(2):  # the refused process left the owner's number there
            with pytest.raises(UserError) as caught:
                RunFolder(str(tmp_path), Config())
            message = str(caught.value)
            assert message.startswith(f"--workdir={tmp_path}: in use by process {owner.pid};")
            assert len(message.splitlines()) == 1


def test_a_killed_process_releases_the_folder(tmp_path):
    with another_owner(tmp_path) as owner:
        owner.kill()  # SIGKILL
        assert owner.wait() == -9
    folder = RunFolder(str(tmp_path), Config())
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    del folder


def test_a_process_that_ends_releases_the_folder(tmp_path):
    with another_owner(tmp_path) as owner:
        owner.communicate()
        assert owner.returncode == 0
    assert RunFolder(str(tmp_path), Config()).is_chief


def test_two_folders_have_two_owners(tmp_path):
    with another_owner(tmp_path / "one"):
        assert RunFolder(str(tmp_path / "two"), Config()).path == tmp_path / "two"


def test_a_worker_that_does_not_write_needs_no_lock(tmp_path):
    with another_owner(tmp_path):
        assert not RunFolder(str(tmp_path), Config(), is_chief=False).is_chief


def test_a_worker_that_does_not_write_makes_no_folder(tmp_path):
    RunFolder(str(tmp_path / "run"), Config(), is_chief=False)
    assert list(tmp_path.iterdir()) == []


# --- its place --------------------------------------------------------------------------------


def test_the_default_is_named_after_the_config_and_its_hash():
    before = Config()
    path = default_path("some/where/my_recipe.py", before)
    assert re.fullmatch(r"runs/my_recipe-[0-9a-f]{8}", path)
    assert default_path("my_recipe.py", override(before, ["keep_checkpoints=9"])) == path
    assert default_path("my_recipe.py", override(before, ["seed=1"])) != path


def test_missing_parents_are_made(tmp_path):
    RunFolder(str(tmp_path / "a" / "b" / "c"), Config())
    assert (tmp_path / "a" / "b" / "c").is_dir()


@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_a_folder_where_a_file_is(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    path = tmp_path / "file" / below
    with pytest.raises(UserError, match=re.escape(f"--workdir={path}: cannot be written (")):
        RunFolder(str(path), Config())
    assert (tmp_path / "file").read_text() == "kept"


# --- its config -------------------------------------------------------------------------------


def test_a_new_folder_is_empty(tmp_path):
    folder = RunFolder(str(tmp_path), Config())
    assert folder.read_config() is None
    assert not folder.is_done


def test_a_written_config_is_read_back(tmp_path):
    folder = RunFolder(str(tmp_path), Config())
    metadata = {"config": config_lib.to_dict(Config()), "class_names": ["ä", "b"]}
    folder.write_config(metadata)
    folder.write_done("best accuracy 0.99\nlogs: here")
    assert folder.read_config() == metadata
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == metadata
    assert folder.is_done
    assert (tmp_path / "DONE").read_text() == "best accuracy 0.99\nlogs: here\n"
    assert folder.read_done() == "best accuracy 0.99\nlogs: here"


def start(path: Path, config: Config) -> None:
    """Writes the folder of a run of `config`, with a checkpoint, that no process owns."""
    folder = RunFolder(str(path), config)
    folder.write_config({"config": config_lib.to_dict(config), "class_names": []})
    folder.checkpoints.mkdir()
    (folder.checkpoints / "ckpt-1.index").touch()


def test_a_run_resumes_with_its_config(tmp_path):
    config = override(Config(), ["data.mean=0.25", "ema_decay=0.99", "num_epochs=3"])
    start(tmp_path, config)
    RunFolder(str(tmp_path), config)
    RunFolder(str(tmp_path), override(config, ["steps_per_loop=7", "checkpoint_every_s=1"]))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "checkpoints", "config.json"}


def test_a_run_without_a_checkpoint_may_become_another(tmp_path):
    """Its first steps showed a mistake in the config, and there is nothing to lose."""
    folder = RunFolder(str(tmp_path), Config())
    folder.write_config({"config": config_lib.to_dict(Config()), "class_names": []})
    folder._locks.close()
    assert RunFolder(str(tmp_path), override(Config(), ["seed=3"])).is_resumed


@pytest.mark.parametrize("is_chief", [True, False])
def test_a_config_with_other_results_is_refused_naming_the_fields(tmp_path, is_chief):
    before = Config()
    start(tmp_path, before)
    after = override(before, ["optimizer.learning_rate=0.8", "seed=3", "steps_per_loop=7"])
    with pytest.raises(UserError) as caught:
        RunFolder(str(tmp_path), after, is_chief)
    assert str(caught.value).startswith(
        f"--workdir={tmp_path}: holds a run that computes something else "
        f"(optimizer.learning_rate is 0.8, was 0.1; seed is 3, was 0); "
    )
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "nonsense\n"])
def test_a_broken_config_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.json"))):
        RunFolder(str(tmp_path), Config())


@pytest.mark.parametrize("text", ["{}", "[]", '{"config": 3}', '{"config": null}'])
def test_a_config_file_of_something_else_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        RunFolder(str(tmp_path), Config())
