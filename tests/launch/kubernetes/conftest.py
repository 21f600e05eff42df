import os

import pytest

from tests.launch.kubernetes.stand_in import Kubectl


@pytest.fixture
def kubectl(tmp_path, monkeypatch) -> Kubectl:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Kubectl(folder)
