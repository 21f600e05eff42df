"""The command: `python -m launch submit`, then status, logs, watch, cancel, list, render."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from launch import backends, records
from launch import spec as spec_lib
from launch import watch as watch_lib
from launch.errors import (
    EXIT_CANCELLED,
    EXIT_DONE,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    LaunchError,
    redacted,
)
from launch.interface import Document, Job
from launch.output import show
from launch.policy import State
from launch.records import Record
from launch.signals import Signals
from launch.spec import JobSpec

_DESCRIPTION = """\
Runs the trainer on this machine, Slurm, Kubernetes or Cloud TPUs: starts its processes, follows
them, and restarts them if a machine fails.

  python -m launch submit --backend=local --name=digits --nodes=2 -- --strategy=multi_worker
  python -m launch status | logs | watch | cancel | render NAME
  python -m launch list

`submit --backend=slurm --help` also lists that back end's flags. docs/launch.md shows each back end
from setup to a finished run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0 done, 2 a user error, 42 or 130 after a signal, or the trainer's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # workers may print bytes that are not text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(arguments)
    except LaunchError as error:
        message = str(error)
    except BrokenPipeError:  # for example by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:  # a full disk, a missing folder
        message = (
            f"{error.filename or 'a file'}: {error.strerror}; check the disk space and permissions"
        )
    print("error:", " ".join(redacted(message).split()), file=sys.stderr)  # one line
    return EXIT_USER_ERROR


def _run(arguments: list[str]) -> int:
    for_launch, for_trainer = _split(arguments)
    flags = _parse(for_launch)
    if flags.command == "submit":
        return _submit(flags, for_trainer)
    if for_trainer:
        raise LaunchError(f"{for_trainer[0]}: only `submit` takes trainer flags after `--`")
    return _COMMANDS[flags.command](flags)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


# Commands.


def _submit(flags: argparse.Namespace, trainer_flags: list[str]) -> int:
    spec = _spec(flags, trainer_flags)
    module = backends.load(spec.backend)
    module.check(spec)
    if flags.dry_run:
        _print_documents(module.render(spec), flags.json)
        return EXIT_DONE
    with records.create(spec) as record, Signals() as signals:
        job = module.Job(record, signals)
        try:
            job.create(0)
        except (LaunchError, OSError) as error:
            record.set_state(State.FAILED, str(error))
            raise
        if not job.ends_with_watch:
            show(f"submitted; follow it with `python -m launch watch {spec.name}`")
            return EXIT_DONE
        return _follow(record, job, signals)


def _follow(record: Record, job: Job, signals: Signals) -> int:
    try:
        return watch_lib.watch(record, job, signals, _say(record))
    except BaseException:  # a full disk, a bug: local processes would be left unattended
        if job.ends_with_watch:
            with contextlib.suppress(Exception):
                job.delete()
        raise


def _watch(flags: argparse.Namespace) -> int:
    with Signals() as signals:
        shown = None
        while True:
            record = records.read(flags.name)
            with record.locked() as free:
                if free:
                    record = records.read(flags.name)  # the previous watcher may have written it
                    job = backends.load(record.spec.backend).Job(record, signals)
                    return _follow(record, job, signals)
            if shown != (shown := (record.state, record.message)):
                _say(record)(f"{record.state}: {record.message}".removesuffix(": "))
            signals.wait(1.0)  # another process acts on the run: only look
            if signals.received:
                by_user = signals.received[0] == signal.SIGINT
                return EXIT_CANCELLED if by_user else EXIT_PREEMPTED


def _status(flags: argparse.Namespace) -> int:
    for name in flags.names:
        records.check_exists(name)
    with Signals() as signals:
        rows = [_row(name, signals) for name in flags.names or records.names()]
        if flags.health:
            from launch.tpu import health

            for row in rows:
                row["health"] = health.of(records.read(row["name"])) if row["backend"] else {}
    _print_rows(rows, flags.json)
    return EXIT_DONE


def _logs(flags: argparse.Namespace) -> int:
    record = records.read(flags.name)
    with Signals() as signals:
        job = backends.load(record.spec.backend).Job(record, signals)
        for line in job.logs(flags.follow):
            print(line, flush=True)
    return EXIT_DONE


def _cancel(flags: argparse.Namespace) -> int:
    record = records.read(flags.name)
    if record.state.is_final:
        print(f"{flags.name}: already {record.state}")
        return EXIT_DONE
    record.cancel()
    with Signals() as signals:
        while not signals.received:
            with record.locked() as free:  # else the process that watches the run ends it
                if free:
                    record = records.read(flags.name)
                    if not record.state.is_final:
                        job = backends.load(record.spec.backend).Job(record, signals)
                        job.delete()
                        record.set_state(State.CANCELLED, "on request")
                    print(f"{flags.name}: {record.state}")
                    return EXIT_DONE
            signals.wait(0.2)
    print(f"{flags.name}: not ended yet; the process that watches it is ending it")
    return EXIT_DONE


def _list(flags: argparse.Namespace) -> int:
    _print_rows([_row(name, None) for name in records.names()], flags.json)
    return EXIT_DONE


def _render(flags: argparse.Namespace) -> int:
    spec = records.read(flags.name).spec
    _print_documents(backends.load(spec.backend).render(spec), flags.json)
    return EXIT_DONE


_COMMANDS = {
    "watch": _watch,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "list": _list,
    "render": _render,
}

# What other programs call them.
_OTHER_COMMANDS = {
    **dict.fromkeys(("run", "start", "create", "apply", "train"), "submit"),
    **dict.fromkeys(("stop", "kill", "delete", "rm", "scancel", "terminate"), "cancel"),
    **dict.fromkeys(("ls", "ps", "squeue", "get", "runs"), "list"),
    **dict.fromkeys(("show", "info", "describe"), "status"),
    **dict.fromkeys(("attach", "follow", "wait"), "watch"),
    **dict.fromkeys(("tail", "output"), "logs"),
}


# Flags.

_ENV_HELP = "An environment variable for the trainer. May be repeated."
_FOLDER_HELP = (
    "Folder with the code: the trainer starts in it, or it is uploaded. Default: this one."
)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, with the nearest flag."""

    flags: ClassVar[set[str]] = (
        set()
    )  # of all commands: argparse reports unknown flags to the top parser

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        self.flags.update(arg for arg in args if arg.startswith("--"))
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        words = message.partition("unrecognized arguments: ")[2].split()
        if words and not words[0].startswith("-"):
            message = f"{words[0]}: one word too many (trainer flags go after `--`)"
        elif words:
            flag = words[0].partition("=")[0]
            near = difflib.get_close_matches(flag, sorted(self.flags), 1, cutoff=0.8)
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"{flag}: unknown{hint} (trainer flags go after `--`)"
        if command := re.match(r"argument COMMAND: invalid choice: '?([^' ]*)", message):
            message = f"{command[1]}: unknown command; {_right_command(command[1])}"
        if "expected one argument" in message:
            message += "; write a value that starts with - as --flag=-VALUE"
        raise LaunchError(f"{message}; --help lists all flags")


def _right_command(name: str) -> str:
    """Returns which command is meant by a name, if it is like one or another program's."""
    known = ["submit", *_COMMANDS]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.7)
    right = near[0] if near else _OTHER_COMMANDS.get(name)
    return f"did you mean {right}?" if right else f"one of {', '.join(known)}"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m launch",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    submit = command("submit", "Starts a run. The trainer's flags follow `--`.")
    _add_submit_flags(submit, _backend_of(arguments))
    status = command("status", "Shows the current state of runs, as their back ends report it.")
    status.add_argument("names", nargs="*", metavar="NAME", help="Runs to show. Default: all.")
    status.add_argument(
        "--health", action="store_true", help="For TPUs, also show state and health from API v1."
    )
    logs = command("logs", "Prints the output of the run's processes.")
    logs.add_argument("--follow", action="store_true", help="Keep printing until the run ends.")
    watch = command("watch", "Follows a run until it ends, and restarts it if needed.")
    cancel = command("cancel", "Ends a run and deletes what was created for it; its folder stays.")
    listed = command("list", "Lists all runs as last recorded, without asking their back ends.")
    render = command("render", "Prints what `submit` sends to start a run.")
    for one in (logs, watch, cancel, render):
        one.add_argument("name", metavar="NAME", help="Name of the run.")
    for one in (submit, status, listed, render):
        one.add_argument("--json", action="store_true", help="Print JSON.")
    flags = parser.parse_args(arguments)
    return flags


def _backend_of(arguments: list[str]) -> str:
    """Returns the value of --backend, which decides what other flags there are; "" without it."""
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--backend", default="")
    return first.parse_known_args(arguments)[0].backend


def _add_submit_flags(submit: argparse.ArgumentParser, backend: str) -> None:
    add = submit.add_argument
    add("--backend", required=True, help=f"Where to run: {', '.join(backends.BACKENDS)}.")
    add("--name", required=True, help="Name of the run, and of everything created for it.")
    add(
        "--nodes",
        type=int,
        default=1,
        help="Number of workers; on a cluster, one per host. Default: 1.",
    )
    add(
        "--max-restarts",
        type=int,
        default=10,
        help="How often a killed run is restarted. Default: 10.",
    )
    add("--env", action="append", default=[], metavar="NAME=VALUE", help=_ENV_HELP)
    add("--folder", default=".", help=_FOLDER_HELP)
    add(
        "--dry-run", action="store_true", help="Print exactly what would be sent, and send nothing."
    )
    if not backend:
        return
    group = submit.add_argument_group(f"flags of --backend={backend}")
    options = backends.load(backend).Options
    types = spec_lib.option_types(options)
    for field in dataclasses.fields(options):
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        kind = types[field.name]
        _Parser.flags.add(flag)  # argument groups bypass _Parser.add_argument
        if kind is bool:
            group.add_argument(flag, action="store_true", help=text)
        elif kind is tuple:
            group.add_argument(flag, action="append", default=None, help=f"{text} May be repeated.")
        else:
            shown = f"{text} Default: {field.default}." if field.default else text
            group.add_argument(
                flag, type=kind, default=field.default, help=shown.replace("%", "%%")
            )


def _spec(flags: argparse.Namespace, trainer_flags: list[str]) -> JobSpec:
    options = backends.load(flags.backend).Options
    own = {field.name: getattr(flags, field.name) for field in dataclasses.fields(options)}
    own = {k: tuple(v or ()) if isinstance(v, list) or v is None else v for k, v in own.items()}
    env = []
    for text in flags.env:
        name, separator, value = text.partition("=")
        if not separator:
            raise LaunchError(f"--env={name}: must be NAME=VALUE")
        env.append((name, value))
    folder = Path(flags.folder).absolute()
    if not folder.is_dir():
        raise LaunchError(
            f"--folder={flags.folder}: not a folder; name the folder that contains trainer/"
        )
    args, workdir = spec_lib.split_workdir(trainer_flags)
    return JobSpec(
        name=flags.name,
        run="RUN",
        backend=flags.backend,
        nodes=flags.nodes,
        args=args,
        workdir=workdir,
        max_restarts=flags.max_restarts,
        env=tuple(env),
        folder=str(folder),
        record_dir=str(records.home() / flags.name),
        options=options(**own),
    )


# Output.


def _say(record: Record):
    return lambda text: show(f"launch {record.spec.name}: {text}")


def _row(name: str, signals: Signals | None) -> dict[str, Any]:
    """Returns what is known about a run; with `signals`, as its back end reports it now.

    If the run's record cannot be read or its back end does not answer, the row says why: the other
    rows are still shown.
    """
    row: dict[str, Any] = {"name": name, "backend": "", "state": State.UNKNOWN, "restarts": 0}
    row |= {"created": "", "watched": False, "exit_code": None, "message": ""}
    try:
        record = records.read(name)
        row |= {"backend": record.spec.backend, "created": record.created}
        row |= {"state": record.state, "watched": record.is_watched}
        row |= {"exit_code": record.exit_code, "message": record.message}
        if signals is not None and not record.state.is_final:
            job = backends.load(record.spec.backend).Job(record, signals)
            if not job.ends_with_watch:
                seen = job.observe()
                row["state"] = State.UNKNOWN if seen.gone else seen.state
                row |= {"exit_code": seen.exit_code, "message": redacted(seen.message)}
        row["restarts"] = record.restarts.attempt  # after the look, which may update it
    except LaunchError as error:
        row |= {"state": State.UNKNOWN, "message": redacted(str(error))}
    return row


def _print_rows(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print("no runs")
        return
    shown = [{**row, "watched": "yes" if row["watched"] else "no"} for row in rows]
    titles = [title for title in shown[0] if title != "exit_code"]
    cells = [titles, *([str(row[title]) for title in titles] for row in shown)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _print_documents(documents: Iterable[Document], as_json: bool) -> None:
    shown = [{"title": d.title, "text": redacted(d.text)} for d in documents]
    if as_json:
        print(json.dumps(shown, indent=1))
        return
    for document in shown:
        print(f"--- {document['title']}")
        print(document["text"], end="" if document["text"].endswith("\n") else "\n")
