"""What a run is: what it computes, on which data, from which weights. No TensorFlow.

A run that resumes must be the same run, or its result is not what its folder says. The metadata
here are in `config.json` and in every checkpoint. docs/training.md has a table of what is refused,
what is noted, and what is free.
"""

import json
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainer import config as config_lib
from trainer.config import Config
from trainer.data.splits.split import Split, fingerprint
from trainer.errors import UserError
from trainer.models.weights.identity import weights_identity
from trainer.units import count

# Fields that are paths: what lies there counts, and not the path.
_PATHS = ("data.path", "model.weights")

Metadata = Mapping[str, Any]


def run_metadata(
    config: Config,
    train: Split,
    evaluation: Split | None,
    weights: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns what a run is, ready for JSON, and with it what the use of its weights needs.

    Args:
        config: as it was given: `model.num_classes` may be none.
        evaluation: None if the run evaluates nothing.
        weights: of `weights_identity`; None if the run starts from random weights.
    """
    return {
        "config": config_lib.to_dict(config),
        "class_names": list(train.class_names),
        "channels": train.channels,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "data": {"train": _described(train), "eval": evaluation and _described(evaluation)},
        "weights": dict(weights) if weights else None,
    }


def metadata_of_found(config: Config, splits: Mapping[str, Split]) -> dict[str, Any] | None:
    """Returns `run_metadata` before the data are opened, or None if only that tells what they are.

    Args:
        splits: of `find_splits`.
    """
    train, name = splits.get(config.data.train_split), config.data.eval_split
    evaluation = None if name is None else splits.get(name)
    if train is None or (name is not None and evaluation is None):
        return None
    return run_metadata(config, train, evaluation, weights_identity(config.model.weights))


def data_offer(splits: Mapping[str, Split]) -> dict[str, str]:
    """Returns what workers must have in common of their data, wherever they lie."""
    return {
        f"the data of split {name}": (
            f"{count(split.num_examples, 'example')} of {count(len(split.class_names), 'class')}, "
            f"fingerprint {fingerprint([split.fingerprint, *split.class_names])}"
        )
        for name, split in splits.items()
    }


def _described(split: Split) -> dict[str, Any]:
    counts = split.class_counts
    return {
        "split": split.name,
        "place": _absolute(split.place),
        "fingerprint": split.fingerprint,
        "examples": split.num_examples,
        "class_counts": None if counts is None else list(counts),
    }


def _absolute(place: str) -> str:
    """Returns a place that means the same in another folder, if it is a path and no address."""
    if not place or "://" in place:
        return place
    return os.path.abspath(place)  # noqa: PTH100  # keeps links


def read_metadata(file: Path) -> dict[str, Any]:
    """Reads a run's config.json.

    Raises:
        OSError: if it cannot be read.
        ValueError, KeyError, TypeError: if it is not a run's.
    """
    saved = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(saved["config"], dict):
        raise TypeError("its 'config' is not an object")
    if not isinstance(saved["class_names"], list):
        raise TypeError("its 'class_names' is not a list")
    return saved


def config_differences(config: Config, saved: Metadata) -> list[str]:
    """Returns a text for each field that changes what is computed and differs from the saved one.

    Fields that are paths don't count: `differences` compares what lies there.
    """
    return config_lib.differences(config_lib.to_dict(config), saved["config"], _PATHS)


def differences(now: Metadata, saved: Metadata) -> list[str]:
    """Returns a text for each difference that makes this another run than the saved one.

    Args:
        saved: of this version, or of an earlier one, which has no `data` and no `weights`.
    """
    found = config_lib.differences(now["config"], saved["config"], _PATHS)
    found += _class_differences(now["class_names"], saved["class_names"])
    for kind in ("train", "eval"):
        found += _split_differences(kind, now, saved)
    if _path_differs("data.path", now, saved) and not (
        _fingerprint(now, "train") and _fingerprint(saved, "train")
    ):
        found.append(_path_text("data.path", now, saved))
    if _path_differs("model.weights", now, saved) and not _same_weights(now, saved):
        found.append(_path_text("model.weights", now, saved))
    return found


def notes(now: Metadata, saved: Metadata) -> list[str]:
    """Returns a line for each thing that has changed, and that leaves the run what it is."""
    lines = []
    for kind in ("train", "eval"):
        is_now, was = (one.get("data", {}).get(kind) for one in (now, saved))
        if is_now and was and is_now["place"] != was["place"]:
            lines.append(
                f"the same data at another place: {was['place']} before, {is_now['place']} now"
            )
    if now["weights"] and saved.get("weights"):
        path, was = now["weights"]["path"], saved["weights"]["path"]
        if not now["weights"]["fingerprint"]:
            lines.append(f"model.weights ({path}): is not there any more, and is not needed")
        elif not _same_weights(now, saved):
            lines.append(f"model.weights ({path}): has changed since the run began with it")
        elif path != was:
            lines.append(f"model.weights: the same weights at {path}, {was} when the run began")
    return lines


def as_it_began(now: Metadata, saved: Metadata) -> dict[str, Any]:
    """Returns the metadata of a run that resumes: its weights are those that it began with, and so
    are its data, if a source of the user's own has stopped telling what they are."""
    weights, data = now["weights"], dict(now["data"])
    if weights and saved.get("weights"):
        weights = {**weights, "fingerprint": saved["weights"]["fingerprint"]}
    for kind, split in now["data"].items():
        if split and not split["fingerprint"]:
            data[kind] = {**split, "fingerprint": _fingerprint(saved, kind)}
    return {**now, "weights": weights, "data": data}


def refuse_another_run(now: Metadata, saved: Metadata, where: str, advice: str) -> None:
    """Raises UserError if the saved metadata are those of another run.

    Args:
        where: what holds the saved run, for the message.
        advice: what to do about it.
    """
    if found := differences(now, saved):
        more = f"; and {len(found) - 3} more differences" if len(found) > 3 else ""
        raise UserError(f"{where}: holds another run: {'; '.join(found[:3])}{more}; {advice}")


def _class_differences(now: Sequence[str], saved: Sequence[str]) -> list[str]:
    # In order: class 3 must stay class 3.
    return [
        f"class {number} is {is_now!r}, was {was!r}"
        for number, (is_now, was) in enumerate(zip_longest(now, saved))
        if is_now != was
    ][:1]


def _split_differences(kind: str, now: Metadata, saved: Metadata) -> list[str]:
    is_now = now["data"][kind]
    if "data" not in saved:  # a run of an earlier version
        if kind == "train" and now["config"].get("data.eval_fraction") is not None:
            return ["data.eval_fraction holds out other images than in the version that began it"]
        examples = saved.get("train_examples")
        if kind == "eval" or examples is None or examples == is_now["examples"]:
            return []
        return [f"{examples} training examples when it began, {is_now['examples']} now"]
    was = saved["data"][kind]
    if is_now is None or was is None:  # data.eval_split, which is a field, tells the difference
        return []
    same_files = is_now["fingerprint"] == was["fingerprint"]
    unknown = not (is_now["fingerprint"] and was["fingerprint"])
    if is_now["examples"] == was["examples"] and (same_files or unknown):
        return []
    what = "" if kind == "train" else " to evaluate"
    classes = len(now["class_names"])
    text = (
        f"{count(was['examples'], 'image')}{what} in {count(len(saved['class_names']), 'class')}"
        f"{_at(was)} when it began, {is_now['examples']:,} in {classes}{_at(is_now)} now"
    )
    if is_now["examples"] == was["examples"]:
        text += ", with other names or contents"
    return [text]


def _at(split: Mapping[str, Any]) -> str:
    return f" at {split['place']}" if split["place"] else ""


def _fingerprint(metadata: Metadata, kind: str) -> str:
    split = metadata.get("data", {}).get(kind)
    return split["fingerprint"] if split else ""


def _path_differs(field: str, now: Metadata, saved: Metadata) -> bool:
    return now["config"][field] != saved["config"].get(field)


def _path_text(field: str, now: Metadata, saved: Metadata) -> str:
    return f"{field} is {now['config'][field]!r}, was {saved['config'].get(field)!r}"


def _same_weights(now: Metadata, saved: Metadata) -> bool:
    is_now, was = now.get("weights"), saved.get("weights")
    return bool(is_now and was and is_now["fingerprint"] == was["fingerprint"] != "")
