"""Slurm: a batch job whose one step is the group of workers, and which requeues itself.

The launcher's home, the code and the run's folder must be on storage that all nodes see. After each
end, the job's script applies the restart policy on the first node (`after_exit`): nobody has to
watch.
"""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from launch import logs, records, workdir
from launch.errors import EXIT_DONE, EXIT_FAILED, LaunchError
from launch.interface import Document, Observation
from launch.policy import Outcome, Restarts, State, outcome
from launch.records import Record
from launch.signals import Signals
from launch.spec import JobSpec, check_word, option

_COMMAND_S = 60.0  # a loaded controller answers late
_GONE_S = 300.0  # for a cancelled job to save, and its nodes to be cleaned up


# Set by the launcher itself, or they would turn one run into several jobs.
_OWN_FLAGS = {
    *("array", "chdir", "comment", "error", "job-name", "no-requeue", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "test-only"),
    *("wait", "wrap"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    partition: str = option("", "Partition to run in.")
    account: str = option("", "Account to charge.")
    qos: str = option("", "Quality of service.")
    time: str = option(
        "", "Time limit of one start, such as 24:00:00; the run saves first and is requeued."
    )
    constraint: str = option("", "Features that the nodes must have.")
    gpus_per_node: int = option(0, "GPUs per node.")
    cpus_per_node: int = option(0, "CPU cores per node.")
    mem: str = option("", "Memory per node, such as 64G.")
    sbatch: tuple[str, ...] = option((), "An additional flag for sbatch, such as --exclude=node7.")
    python: str = option("", "Path of Python on the nodes. Default: the path of this one.")
    save_s: int = option(
        120, "Seconds before the time limit at which the run is signalled to save."
    )


def check(spec: JobSpec) -> None:
    options = spec.options
    for name in ("partition", "account", "qos", "time", "constraint", "mem"):
        check_word(f"--{name}", getattr(options, name))
    for name in ("gpus_per_node", "cpus_per_node", "save_s"):
        if getattr(options, name) < 0:
            flag = "--" + name.replace("_", "-")
            raise LaunchError(f"{flag}={getattr(options, name)}: must be at least 0")
    for flag in options.sbatch:
        if not flag.startswith("--"):
            raise LaunchError(f"--sbatch={flag}: must be a flag of sbatch, such as --exclude=node7")
        if flag.partition("=")[0].removeprefix("--") in _OWN_FLAGS:
            raise LaunchError(f"--sbatch={flag}: set by the launcher; leave it out")


def render(spec: JobSpec) -> list[Document]:
    """Returns the sbatch command, and the script that it reads."""
    return [
        Document("command", shlex.join(_sbatch(spec)) + "\n"),
        Document("its standard input", _script(spec)),
    ]


def _sbatch(spec: JobSpec) -> list[str]:
    """Returns the command. Arbitrary text goes here: lines of #SBATCH cannot quote all of it."""
    output = f"{spec.record_dir}/logs/batch.log".replace("%", "%%")
    return [
        *("sbatch", "--parsable", f"--chdir={spec.folder}", f"--output={output}"),
        f"--comment={_comment(spec)}",
        *spec.options.sbatch,
    ]


def _comment(spec: JobSpec) -> str:
    """Returns a comment that identifies the job, even if its number was never saved."""
    return f"trainer-launch:{spec.run}"


def _script(spec: JobSpec) -> str:
    options, quote = spec.options, shlex.quote
    settings = {
        "job-name": spec.name,
        "nodes": spec.nodes,
        "ntasks-per-node": 1,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "constraint": options.constraint,
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_node,
        "mem": options.mem,
        "open-mode": "append",
        "signal": f"TERM@{options.save_s}",  # sent to the step's processes, not to this script
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in settings.items() if value]
    python = options.python or sys.executable
    env = [f"{name}={value}" for name, value in spec.env]  # for the trainer, not for this script
    command = shlex.join(["env", *env, python, *spec.trainer_args(workdir.name(spec))])
    output = f"{spec.record_dir}/logs/".replace("%", "%%")
    return f"""\
#!/bin/bash
{chr(10).join(lines)}
#SBATCH --requeue

trap : TERM  # the step saves first, and this script waits for it
cd {quote(spec.folder)} || exit 1
export LAUNCH_HOME={quote(str(Path(spec.record_dir).parent))} LAUNCH_NAME={spec.name}
export LAUNCH_START=${{SLURM_RESTART_COUNT:-0}} PYTHONUNBUFFERED=1

# Different ports at each start, below the range that the kernel hands out.
port=$((15000 + (SLURM_JOB_ID * 97 + LAUNCH_START * 31) % 15000))
workers=
rank=0
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    address=$(scontrol --oneliner show node "$node" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
    workers="$workers${{workers:+, }}\\"${{address:-$node}}:$((port + rank))\\""
    rank=$((rank + 1))
done
export LAUNCH_WORKERS=$workers

# The exit code and rank of the worker that ended first: the others end because of it.
export LAUNCH_FIRST="$LAUNCH_HOME/$LAUNCH_NAME/first-$LAUNCH_START"
rm -f "$LAUNCH_FIRST"
srun --kill-on-bad-exit=1 --open-mode=append --output={quote(output)}"$LAUNCH_START-%t.log" \\
    bash -c {quote(_task(spec))} launch {command}
code=$?
exec {quote(python)} -m launch.slurm "$code"
"""


def _task(spec: JobSpec) -> str:
    """Returns the script for each node; its arguments are the trainer's command."""
    cluster = r"{\"cluster\": {\"worker\": [$LAUNCH_WORKERS]}"
    task = r"\"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
    tf_config = f'export TF_CONFIG="{cluster}, {task}"' if spec.is_group else "unset TF_CONFIG"
    return f"""\
trap : TERM  # the trainer saves first
{tf_config}
"$@"
code=$?
if [ "$code" != 0 ]; then
    set -o noclobber
    echo "$code $SLURM_PROCID" 2>/dev/null >"$LAUNCH_FIRST"
fi
exit "$code"
"""


# On the first node, after the step has ended.


def after_exit(record: Record, code: int, job: str, start: int) -> int:
    """Requeues the job, or records how the run has ended.

    Args:
        code: srun's exit code, used only if that of the worker that ended first is unknown.
        job: the job's number.
        start: the number of restarts that Slurm has counted.

    Returns:
        The exit code for the batch job.
    """
    message = f"the step ended with {code}"
    first = record.path / f"first-{start}"
    if first.exists():
        found = re.fullmatch(r"(\d+) (\d+)\n", first.read_text(errors="replace"))
        if found:  # else the disk was full
            code, rank = int(found[1]), int(found[2])
            message = f"worker {rank} of {record.spec.nodes} ended first, with {code}"
    asks = outcome(code)
    if asks is Outcome.DONE:
        return _write_result(record, State.SUCCEEDED, "", EXIT_DONE)
    # Slurm itself is ending the job: after a preemption it requeues the job; after `scancel` nobody
    # may. SIGNALING: the signal before the time limit is still on its way to other nodes.
    shown = _slurm("scontrol", "show", "job", job)
    if record.is_cancelled or not re.search(r"\bJobState=(RUNNING|SIGNALING)\b", shown):
        print(f"launch {record.spec.name}: {message}, because Slurm ended the job", flush=True)
        return code
    if asks is not Outcome.FAIL:
        restarts = _restarts(record)
        charged = asks is Outcome.RESTART_CHARGED
        mark = workdir.checkpoint_mark(record.spec)
        refusal = restarts.refusal(charged, record.spec.max_restarts, mark)
        if not refusal:
            text = json.dumps(dataclasses.asdict(restarts)) + "\n"
            records.write_private(record.path / "restarts.json", text)
            print(f"launch {record.spec.name}: {message}; restart {restarts.attempt}", flush=True)
            _slurm("scontrol", "requeue", job)  # which also ends this script
            return code
        message += f"; not restarted: {refusal}"
    return _write_result(record, State.FAILED, message, code)


def _write_result(record: Record, state: State, message: str, code: int) -> int:
    result = {"state": state, "message": message, "exit_code": code}
    records.write_private(record.path / "result.json", json.dumps(result) + "\n")
    print(f"launch {record.spec.name}: {state}: {message}".removesuffix(": "), flush=True)
    return code


def _restarts(record: Record) -> Restarts:
    try:
        return Restarts(**json.loads((record.path / "restarts.json").read_text()))
    except FileNotFoundError:
        return Restarts()


# On the launcher's machine.


class Job:
    restarts_itself = True
    ends_with_watch = False
    poll_s = 5.0
    backoff_s = 0.0

    def __init__(self, record: Record, signals: Signals):
        self._record, self._spec, self._signals = record, record.spec, signals

    def create(self, attempt: int) -> None:
        folder = Path(self._spec.folder)
        if not (folder / "launch" / "__main__.py").exists():
            raise LaunchError(
                f"--folder={folder}: has no launch/, which the job's script runs; name the "
                f"repository's folder"
            )
        if self._job():
            return
        try:
            said = _slurm(*_sbatch(self._spec), stdin=_script(self._spec))
        except LaunchError:
            if not self._job():  # accepted, and only the answer was lost?
                raise
            return
        number = re.search(
            r"^(\d+)(;.*)?$", said, re.MULTILINE
        )  # "id;cluster", possibly after notes
        if number:
            self._save(number[1])
        elif not self._job():
            raise LaunchError(f"sbatch: printed no job number: {said[:200]!r}; see `squeue --me`")

    def _job(self) -> str:
        """Returns the job's number, or "" if Slurm has no job for this run."""
        job = self._record.handle.get("job", "")
        if not job:  # not submitted, or a launcher died before it saved the number
            listed = _slurm("squeue", "--noheader", "--me", "--format=%i %k").splitlines()
            ours = [line for line in listed if line.endswith(f" {_comment(self._spec)}")]
            if ours:
                job = self._save(ours[0].partition(" ")[0])
        return job

    def _save(self, job: str) -> str:
        self._record.handle["job"] = job
        self._record.save()
        return job

    def observe(self) -> Observation:
        record = self._record
        record.restarts = _restarts(record)
        result = record.path / "result.json"
        if result.exists():
            try:
                values = json.loads(result.read_text())
                state, code = State(values["state"]), values["exit_code"]
                return Observation(state, exit_code=code, message=values["message"])
            except (ValueError, KeyError, TypeError) as error:
                return Observation(State.UNKNOWN, message=f"{result}: cannot be read ({error})")
        try:
            state, _, reason = self._queued().partition(" ")
        except LaunchError as error:
            return Observation(State.UNKNOWN, message=str(error))
        if state in _STATES:
            why = "" if reason in ("", "None") else f"Slurm: {reason}"
            return Observation(_STATES[state], message=why)
        if state == "TIMEOUT":
            return Observation(State.FAILED, message="ended by its time limit; increase --time")
        # Its result may still be on its way through the shared storage.
        said = f"Slurm reports {state}" if state else "Slurm no longer knows the job"
        return Observation(State.UNKNOWN, gone=True, message=f"{said}, and the job left no result")

    def delete(self) -> None:
        self._record.cancel()  # first of all, so that the job's script does not requeue it
        job = self._job()
        if not job:
            return
        if _is_active(self._queued()):
            _slurm("scancel", job, allowed="Invalid job id")
        until = self._signals.now() + _GONE_S
        while _is_active(self._queued()):
            if self._signals.now() > until:
                raise LaunchError(f"job {job}: does not end; see `scontrol show job {job}`")
            self._signals.wait(0.5)

    def progress(self) -> str:
        return workdir.checkpoint_mark(self._spec)

    def logs(self, follow: bool) -> Iterator[str]:
        record = self._record

        def is_going() -> bool:  # does not ask Slurm: it is called several times a second
            return follow and not record.is_cancelled and not (record.path / "result.json").exists()

        return logs.of_starts(record, self._signals, is_going)

    def _queued(self) -> str:
        """Returns the job's state and reason, or "" if Slurm no longer knows the job."""
        job = self._job()
        if not job:
            return ""
        command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r"]
        return _slurm(*command, allowed="Invalid job id").strip()


_STATES = {
    "PENDING": State.QUEUED,
    "REQUEUED": State.QUEUED,
    "REQUEUE_HOLD": State.QUEUED,
    "SPECIAL_EXIT": State.QUEUED,
    "CONFIGURING": State.PROVISIONING,
    "RUNNING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "SUSPENDED": State.PREEMPTED,
    "PREEMPTED": State.PREEMPTED,
    "NODE_FAIL": State.PREEMPTED,
    "CANCELLED": State.CANCELLED,
}


_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}


def _is_active(queued: str) -> bool:
    return bool(queued) and queued.partition(" ")[0] not in _ENDED


def _environment() -> dict[str, str]:
    """Returns this process's environment without the variables of an enclosing job, and without
    those that would change sbatch's flags. SLURM_CONF, which names the cluster, stays."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "SLURM_RESTART_COUNT" and not name.startswith(("SBATCH_", "SLURM_JOB"))
    }


def _slurm(*command: str, stdin: str = "", allowed: str = "") -> str:
    """Runs a command of Slurm and returns its output.

    Args:
        allowed: an error text that counts as success.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_COMMAND_S,
            check=False,
            env=_environment(),
            start_new_session=True,  # Ctrl-C goes to the launcher alone
        )
    except FileNotFoundError:
        raise LaunchError(f"{command[0]}: not found; submit on a machine with Slurm") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"{command[0]}: no answer within {_COMMAND_S:.0f} s; is Slurm's controller up?"
        ) from None
    if done.returncode and not (allowed and allowed in done.stderr):
        said = " ".join(done.stderr.split())[-300:]
        raise LaunchError(f"{command[0]}: {said or f'ended with {done.returncode}'}")
    return done.stdout


def _main() -> int:
    record = records.read(os.environ["LAUNCH_NAME"])
    job, start = os.environ["SLURM_JOB_ID"], int(os.environ["LAUNCH_START"])
    return after_exit(record, int(sys.argv[1]), job, start)


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except LaunchError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(EXIT_FAILED)
