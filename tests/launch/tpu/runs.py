"""Short commands for runs on the stand-in for Cloud TPU, and signals that take no time."""

from launch import cli as cli_lib
from launch import records
from launch.spec import JobSpec
from launch.tpu import backend
from launch.watch import watch as watch_run

CODE = "--code=git+https://example.com/code@v1"


class FakeSignals:
    """Waiting takes no time, but the clock advances.

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


def submit(*more: str, name: str = "run", code: str = CODE) -> int:
    where = ["--backend=tpu-vm", f"--name={name}", "--project=p", "--zone=z"]
    where += ["--accelerator=v5litepod-8", *([code] if code else [])]
    flags = [one for one in more if one != "--"]
    return cli_lib.main(["submit", *where, *flags, "--", "--config=configs/x.py"])


def watch(name: str = "run", signals: FakeSignals | None = None) -> int:
    """Does what `python -m launch watch` does."""
    signals = signals or FakeSignals()
    record = records.read(name)
    with record.locked() as free:
        assert free
        return watch_run(record, backend.Job(record, signals), signals, print)


def record(name: str = "run") -> records.Record:
    return records.read(name)


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
        options=backend.Options(**options),
    )
