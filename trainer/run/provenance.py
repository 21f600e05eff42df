"""How a run came to be, as text: from its folder's files alone. No TensorFlow."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.run.best import Best
from trainer.run.history import read_history
from trainer.run.identity import read_metadata
from trainer.units import count

_SHOWN_CLASSES = 12
_INDENT = 10
_FIELDS = {
    "start": {"command", "cwd", "config_file", "versions", "machine", "pid"},
    "devices": {"strategy", "replicas", "devices"},
    "end": {"reason", "exit_code"},
}


def runs_in(folder: Path) -> list[Path]:
    """Returns the folders of runs in a folder, by name."""
    try:
        return sorted(path.parent for path in folder.glob("*/config.json"))
    except OSError:
        return []


def describe_run(folder: Path) -> str:
    """Returns how the run in a folder came to be, in lines.

    Raises:
        UserError: if there is no run, or its files cannot be read.
    """
    metadata, events = _read(folder)
    starts = [event for event in events if event["kind"] == "start"]
    rows: list[tuple[str, list[str]]] = [
        ("command", _commands(starts)),
        ("config", _config(folder, starts)),
        ("data", _data(metadata)),
        ("classes", [_classes(metadata)]),
        ("weights", _weights(metadata)),
        ("versions", _versions(starts)),
        ("machine", _machines(events)),
        ("history", _history(events)),
    ]
    lines = [f"{folder}: {_state(folder, events)}{_result(folder)}"]
    for name, texts in rows:
        for number, text in enumerate(texts):
            lines.append(f"  {name if number == 0 else '':{_INDENT}}{text}")
    return "\n".join(lines)


def summarize_run(folder: Path) -> str:
    """Returns a run in one line: its state, its best accuracy, and when it began.

    Raises:
        UserError: as `describe_run`.
    """
    _, events = _read(folder)
    began = f", began {_time(events[0])}" if events else ""
    return f"{folder}: {_state(folder, events)}{_result(folder)}{began}"


def _read(folder: Path) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    try:
        metadata = read_metadata(folder / "config.json")
    except FileNotFoundError:
        raise UserError(
            f"{folder}: is not the folder of a run: it has no config.json; python -m trainer.runs "
            f"lists those in runs/"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read ({error})") from None
    # Without lines that are not of a run, in a file that somebody has edited.
    events = read_history(folder)
    return metadata, [
        event for event in events if _FIELDS.get(event["kind"], set()) <= event.keys()
    ]


def _state(folder: Path, events: Sequence[Mapping[str, Any]]) -> str:
    if (folder / "DONE").exists():
        return "done"
    last = [event for event in events if event["kind"] in ("start", "end")][-1:]
    if not last:
        return "not done"
    if last[0]["kind"] == "end":
        return str(last[0]["reason"]).partition(":")[0]
    return "running, or killed"


def _result(folder: Path) -> str:
    """Returns the best evaluation, as in the run's records."""
    best = Best()
    try:
        with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
            # Most lines are steps, which need not be parsed.
            records = [json.loads(line) for line in lines if '"kind": "eval"' in line]
        for record in records:
            # null stands for a loss that is not finite.
            values = {name: math.inf if v is None else v for name, v in record.items()}
            found = Best.of(values, record["step"])
            best = found if found.beats(best) else best
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f", best accuracy {best.accuracy:.4f} at step {best.step}" if best.step else ""


def _commands(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the command that began the run; and later ones, if they differ."""
    found = [f"cd {shlex.quote(one['cwd'])} && {one['command']}" for one in starts]
    return list(dict.fromkeys(found)) or ["unknown: the run began with an earlier version"]


def _config(folder: Path, starts: Sequence[Mapping[str, Any]]) -> list[str]:
    resolved = f"resolved: {folder / 'config.json'}"
    return [f"{starts[0]['config_file']}; {resolved}" if starts else resolved]


def _data(metadata: Mapping[str, Any]) -> list[str]:
    if "data" not in metadata:
        return [f"{count(metadata.get('train_examples', 0), 'training image')}, place unknown"]
    lines = []
    for kind, split in metadata["data"].items():
        text = "none"
        if split is not None:
            images = count(split["examples"], "image")
            text = f"{images} of split {split['split']}"
            text += f" at {split['place']}" if split["place"] else ""
            text += f", fingerprint {split['fingerprint'] or 'unknown'}"
        lines.append(f"{kind}: {text}")
    return lines


def _classes(metadata: Mapping[str, Any]) -> str:
    names = metadata["class_names"]
    counts = ((metadata.get("data") or {}).get("train") or {}).get("class_counts")
    texts = (
        names if counts is None else [f"{n} ({c:,})" for n, c in zip(names, counts, strict=True)]
    )
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return f"{len(names)}: {', '.join(texts[:_SHOWN_CLASSES])}{more}"


def _weights(metadata: Mapping[str, Any]) -> list[str]:
    path = metadata["config"].get("model.weights")
    if path is None:
        return ["random, by the seed"]
    known = (metadata.get("weights") or {}).get("fingerprint")
    return [f"{path}, fingerprint {known or 'unknown'}"]


def _versions(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for start in starts:
        names = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        commit = f" (commit {start['commit']})" if start.get("commit") else ""
        found.append(f"{names}{commit}")
    return list(dict.fromkeys(found)) or ["unknown"]


def _machines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for event in events:
        if event["kind"] == "start":
            one = event["machine"]
            gpus = f", {', '.join(one['gpus'])}" if one["gpus"] else ""
            found.append(
                f"{one['host']}: {one['cpu']}, {count(one['cores'], 'core')}, {one['memory']}{gpus}"
            )
        elif event["kind"] == "devices":
            replicas = count(event["replicas"], "replica")
            found.append(f"{event['strategy']}, {replicas}: {', '.join(event['devices'])}")
    return list(dict.fromkeys(found)) or ["unknown"]


def _history(events: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    started = None  # a start whose end is not known yet
    for event in events:
        if event["kind"] == "start":
            if started is not None:
                lines.append(" " * len(_time(event)) + "  no record of its end: it was killed")
            started = event
            lines.append(f"{_time(event)}  started, process {event['pid']}")
        elif event["kind"] == "end":
            started = None
            lines.append(f"{_time(event)}  {event['reason']} (exit code {event['exit_code']})")
    return lines or ["unknown"]


def _time(event: Mapping[str, Any]) -> str:
    return str(event["time"]).replace("T", " ").replace("+00:00", " UTC")
