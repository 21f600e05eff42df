"""Launching groups in tests: what is submitted, and a launcher in a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from launch import cli
from launch.backends.interface import Document
from tests import launch_worker
from trainer.run.log import read_records

ROOT = Path(__file__).parents[1]


class Group:
    """What a test submits: workers that play a plan (tests/launch_worker.py)."""

    def __init__(self, folder: Path, backend: str):
        self.backend = backend
        self.plan, self.workdir = folder / "plan", folder / "run"
        self._python = launch_worker.write(folder)

    def arguments(self, plan: dict[str, list[str]], *flags: str, nodes: int = 2) -> list[str]:
        self.plan.write_text(json.dumps(plan))
        own = [f"--nodes={nodes}", f"--python={self._python}", *flags]
        trainer = ["--strategy=multi_worker", f"--plan={self.plan}", f"--workdir={self.workdir}"]
        return ["submit", f"--backend={self.backend}", "--name=a", *own, "--", *trainer]

    def submit(self, plan: dict[str, list[str]], *flags: str, nodes: int = 2) -> int:
        return cli.main(self.arguments(plan, *flags, nodes=nodes))

    @property
    def seen(self) -> list[dict]:
        return launch_worker.seen(self.plan)

    @contextlib.contextmanager
    def submitted(self, plan: dict[str, list[str]], *flags: str, until: int) -> Iterator:
        """A launcher of its own, once `until` workers wait."""
        with launcher(self.arguments(plan, *flags)) as process:
            lines: list[str] = []
            while (
                sum("waiting" in line for line in lines) < until or "launch a: running" not in lines
            ):
                lines += read_until(process, "")
            yield process


@contextlib.contextmanager
def launcher(arguments: list[str]) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "launch", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True) as p:
        try:
            yield p
        finally:
            p.kill()


def read_until(process: subprocess.Popen, text: str, times: int = 1) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        times -= text in line
        if not times:
            return lines
    raise AssertionError("\n".join(lines))


SMALL = (
    *("--set=data.global_batch_size=66", "--set=num_epochs=4"),
    *("--set=eval_every_epochs=1", "--set=steps_per_loop=5", "--set=data.eval_batch_size=100"),
    "--set=checkpoint_every_s=0",
)


def as_undisturbed(workdir: Path, undisturbed: Path) -> None:
    """Every step once, with the batches and the weights of a run that nothing interrupted.

    Training magnifies rounding (tests/test_steps.py), which differs between one process and
    several; a batch or a slot of another step would differ by far more.
    """
    for kind, key in (("train", "loss"), ("eval", "loss")):
        values, expected = (read_records(p / "metrics.jsonl", kind) for p in (workdir, undisturbed))
        assert [record["step"] for record in values] == [record["step"] for record in expected]
        losses, others = ([record[key] for record in records] for records in (values, expected))
        if kind == "train":
            np.testing.assert_allclose(losses, others, rtol=0.03)
            np.testing.assert_allclose(losses[:12], others[:12], rtol=1e-4)
        else:
            np.testing.assert_allclose(losses[-1], others[-1], rtol=0.1)


def undisturbed_run(workdir: Path) -> None:
    """What one process computes."""
    command = [sys.executable, "-m", "trainer.main", "--strategy=one_device", *SMALL]
    subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True, capture_output=True)


def check_golden(name: str, documents: Sequence[Document]) -> None:
    """Against tests/golden/launch/NAME.txt; UPDATE_GOLDEN=1 writes it anew."""
    path = ROOT / "tests" / "golden" / "launch" / f"{name}.txt"
    text = "".join(f"--- {document.title}\n{document.text}\n" for document in documents)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
