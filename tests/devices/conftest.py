"""Stand-ins for installed packages."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Makes packages that this process, and others by PYTHONPATH, find: those that are named and a
    plain tensorflow."""

    def make(tensorflow="2.20.0", libtpu="0.0.29", body="", written_over=False) -> Path:
        folder = tmp_path / "packages"
        (folder / "tensorflow").mkdir(parents=True)
        (folder / "tensorflow" / "__init__.py").write_text(body)
        size = 5 if written_over else 7
        (folder / "tensorflow" / "libtensorflow_cc.so.2").write_bytes(b"x" * size)
        if libtpu:
            (folder / "libtpu").mkdir()
            (folder / "libtpu" / "__init__.py").write_text("raise ImportError('not needed')")
            (folder / "libtpu" / "libtpu.so").touch()
        versions = {"tensorflow": "2.21.0", "tensorflow_tpu": tensorflow, "libtpu": libtpu}
        for name, version in versions.items():
            info = folder / f"{name}-{version}.dist-info"
            if version:
                info.mkdir()
                (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
                (info / "RECORD").write_text("tensorflow/libtensorflow_cc.so.2,sha256=x,7\n")
        # In place of what is installed here: that may be any of these.
        others = [entry for entry in sys.path if not entry.endswith("site-packages")]
        monkeypatch.setattr(sys, "path", [str(folder), *others])
        return folder

    return make
