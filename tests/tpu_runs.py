"""What tests of Cloud TPU runs share: the stand-in for Google's servers, and short commands.

A test module takes over the fixtures by their names.
"""

import pytest

from launch import cli as cli_lib
from launch import records
from launch.backends import tpu_vm
from launch.spec import JobSpec
from launch.watch import watch as watch_run
from tests.fake_tpu_api import FakeCloud

CODE = "--code=git+https://example.com/code@v1"


class FakeSignals:
    """Waiting takes no time, and the clock goes on.

    Attributes:
        then: called after each wait, by the number of waits so far.
    """

    def __init__(self, then=lambda waits: None):
        self.received: list[int] = []
        self.time = 0.0
        self.waits: list[float] = []
        self.then = then

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def now(self) -> float:
        return self.time

    def wait(self, seconds, others=()):
        assert len(self.waits) < 100_000, "it waits for ever"
        self.time += seconds
        self.waits.append(seconds)
        self.then(len(self.waits))
        return []


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """In the end nothing of ours is left, and no run was there twice at a time."""
    fake = FakeCloud(tmp_path / "objects", "p-trainer")
    monkeypatch.setenv("TPU_API_URL", fake.url)
    monkeypatch.setenv("STORAGE_API_URL", fake.url)
    monkeypatch.setenv("TPU_API_DISCOVERY_URL", fake.url + "/discovery/{api}/{apiVersion}")
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli_lib, "Signals", FakeSignals)
    yield fake
    fake.close()
    assert [name for name in fake.queued if not name.startswith("stranger")] == []
    assert [name for name in fake.nodes if not name.startswith("stranger")] == []
    assert fake.overlaps == []


def submit(*more: str, name: str = "run", code: str = CODE) -> int:
    where = ["--backend=tpu-vm", f"--name={name}", "--project=p", "--zone=z"]
    where += ["--accelerator=v5litepod-8", *([code] if code else [])]
    flags = [one for one in more if one != "--"]
    return cli_lib.main(["submit", *where, *flags, "--", "--config=configs/x.py"])


def watch(name: str = "run", signals: FakeSignals | None = None) -> int:
    """As `python -m launch watch`."""
    signals = signals or FakeSignals()
    record = records.read(name)
    with record.locked() as free:
        assert free
        return watch_run(record, tpu_vm.Job(record, signals), signals, print)


def record(name: str = "run") -> records.Record:
    return records.read(name)


@pytest.fixture
def folder(tmp_path):
    """Two files of code."""
    path = tmp_path / "code"
    (path / "trainer").mkdir(parents=True)
    (path / "trainer" / "main.py").write_text("print('x')\n")
    (path / "requirements-tpu.txt").write_text("# nothing\n")
    return path


def spec(*args: str, workdir: str = "", env=(), folder: str = ".", **options) -> JobSpec:
    options = {"project": "p", "zone": "z", "accelerator": "v5litepod-8", **options}
    return JobSpec(
        name="run",
        run="RUN",
        backend="tpu-vm",
        nodes=1,
        args=args,
        workdir=workdir,
        max_restarts=3,
        env=tuple(env),
        folder=folder,
        record_dir="/records/run",
        options=tpu_vm.Options(**options),
    )
