"""The stand-in for Google's servers, and a folder of code."""

import pytest

from launch import cli as cli_lib
from tests.launch.tpu.fake_api import FakeCloud
from tests.launch.tpu.runs import FakeSignals


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Asserts at the end that nothing of ours is left, and that no run ever existed twice."""
    fake = FakeCloud(tmp_path / "objects", "p-trainer")
    monkeypatch.setenv("TPU_API_URL", fake.url)
    monkeypatch.setenv("STORAGE_API_URL", fake.url)
    monkeypatch.setenv("TPU_API_DISCOVERY_URL", fake.url + "/discovery/{api}/{apiVersion}")
    monkeypatch.setattr(cli_lib, "Signals", FakeSignals)
    yield fake
    fake.close()
    assert [name for name in fake.queued if not name.startswith("stranger")] == []
    assert [name for name in fake.nodes if not name.startswith("stranger")] == []
    assert fake.overlaps == []


@pytest.fixture
def folder(tmp_path):
    """A folder with two files of code."""
    path = tmp_path / "code"
    (path / "trainer").mkdir(parents=True)
    (path / "trainer" / "main.py").write_text("print('x')\n")
    (path / "requirements-tpu.txt").write_text("# nothing\n")
    return path
