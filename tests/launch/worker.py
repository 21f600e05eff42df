"""A stand-in for the trainer: follows a plan, without TensorFlow.

`write(folder)` writes a program for --python. Its flag --plan=PATH names a JSON object that maps
"start-rank" or "rank" to a list of actions; an empty list succeeds. Each start of a rank adds a
line to PATH.seen, a JSON object with start, rank, arguments, environment and cores.
"""

import contextlib
import json
import os
import signal
import stat
import sys
from pathlib import Path


def write(folder: Path) -> str:
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def seen(plan: Path) -> list[dict]:
    path = Path(f"{plan}.seen")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _main() -> None:
    if sys.argv[1:3] != ["-m", "trainer.main"]:  # the launcher itself runs Python here
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    flags = {a.partition("=")[0]: a.partition("=")[2] for a in sys.argv[1:] if a.startswith("--")}
    plan, workdir = Path(flags["--plan"]), Path(flags["--workdir"])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the action `wait`
    rank = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
    start = sum(earlier["rank"] == rank for earlier in seen(plan))
    environment = {**os.environ}
    record = {"start": start, "rank": rank, "arguments": sys.argv[1:], "environment": environment}
    record["cores"] = sorted(os.sched_getaffinity(0))
    with open(f"{plan}.seen", "a") as file:
        file.write(json.dumps(record) + "\n")
    todo = json.loads(plan.read_text())
    for act in todo.get(f"{start}-{rank}", todo.get(str(rank), [])):
        word, _, rest = act.partition(" ")
        if word == "say":
            print(rest, flush=True)
        elif word == "checkpoint":
            (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
            (workdir / "checkpoints" / "checkpoint").write_text(f"{start} {rest}")
        elif word == "done":
            (workdir / "DONE").write_text("done\n")
        elif word == "exit":
            sys.exit(int(rest))
        elif word == "die":
            os.kill(os.getpid(), signal.Signals[rest])
        elif word == "wait":  # for a signal, then save
            print("waiting", flush=True)
            signal.sigwait({signal.SIGTERM})
            print("saved", flush=True)
            sys.exit(42)
        elif word == "stay":  # whatever signal arrives
            print("waiting", flush=True)
            while True:
                signal.pause()
        elif word in ("tell", "hear"):  # both wait for each other
            with contextlib.suppress(FileExistsError):
                os.mkfifo(f"{plan}.{rest}")
            os.close(os.open(f"{plan}.{rest}", os.O_WRONLY if word == "tell" else os.O_RDONLY))
        else:
            raise ValueError(act)


if __name__ == "__main__":
    _main()
