"""What a run is: each row of the table in docs/training.md, changed between two starts."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from trainer import config as config_lib
from trainer.config import Config
from trainer.data.splits.split import Split
from trainer.errors import UserError
from trainer.models.weights.identity import weights_identity
from trainer.run.folder import RunFolder
from trainer.run.history import History
from trainer.run.identity import run_metadata

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
CONFIG = config_lib.override(Config(), ["model.weights=/w/first.safetensors", "data.path=here"])
TRAIN = Split("train", "/a/train", "f00d", 80, ("cat", "cow", "dog"), (30, 30, 20), 3, None, None)
EVAL = TRAIN._replace(name="val", place="/a/val", fingerprint="beef", num_examples=9)
WEIGHTS = {"path": "/w/first.safetensors", "fingerprint": "cafe"}
EVENTS = {
    "start": {
        "versions": {"trainer": "1", "tensorflow": "2", "nvidia driver": "3"},
        "commit": "abc",
        "variables": {"XLA_FLAGS": "", "TF_CONFIG": "{}"},
        "command": "python -m trainer.main",
        "cwd": "/home",
        "machine": {"host": "one"},
    },
    "devices": {"strategy": "MirroredStrategy", "replicas": 2, "devices": ["GPU:0", "GPU:1"]},
}


@dataclasses.dataclass
class Start:
    """A start of a run: what it is, and what is recorded of it."""

    config: Config = CONFIG
    train: Split = TRAIN
    evaluation: Split | None = EVAL
    weights: dict[str, str] | None = dataclasses.field(default_factory=WEIGHTS.copy)
    events: dict[str, Any] = dataclasses.field(
        default_factory=lambda: json.loads(json.dumps(EVENTS))
    )

    def metadata(self) -> dict[str, Any]:
        return run_metadata(self.config, self.train, self.evaluation, self.weights)


def leave_checkpoint(path: Path) -> None:
    """Leaves something to lose: without a checkpoint, a run starts anew on other data."""
    (path / "checkpoints").mkdir(exist_ok=True)
    (path / "checkpoints" / "ckpt-1.index").touch()


def second(path: Path, first: Start, start: Start) -> list[str]:
    """Starts a run twice, and returns the second start's lines."""
    lines = []
    for one in (first, start):
        folder = RunFolder(str(path), one.config)
        history = History(folder)
        for kind, values in one.events.items():
            history.add(kind, values)
        lines = [*history.changes(), *folder.refuse_another_run(one.metadata())]
        folder.write_config(one.metadata())
        leave_checkpoint(path)
        folder._locks.close()
    return lines


def changed(path: str, value: Any) -> Start:
    """A start with one thing changed: `config.FIELD`, `train.FIELD`, `events.KIND.KEY…`."""
    start = Start()
    what, _, rest = path.partition(".")
    if what == "config":
        start.config = config_lib.override(start.config, [f"{rest}={value}"])
    elif what in ("train", "evaluation"):
        setattr(start, what, getattr(start, what)._replace(**{rest: value}))
    elif what == "weights":
        assert start.weights is not None
        start.weights[rest] = value
    else:
        *parents, name = rest.split(".")
        place = start.events
        for parent in parents:
            place = place[parent]
        place[name] = value
    return start


def moved_weights(path: str) -> Start:
    """Another `model.weights`, of the same content."""
    start = changed("config.model.weights", path)
    start.weights = {**WEIGHTS, "path": path}
    return start


def moved(what: str, place: str) -> Start:
    """The same data or weights at another place."""
    if what == "weights":
        start = changed("config.model.weights", place)
        start.weights = {**WEIGHTS, "path": place}
    else:
        start = changed("config.data.path", place)
        start.train = TRAIN._replace(place=f"{place}/train")
        start.evaluation = EVAL._replace(place=f"{place}/val")
    return start


def other_weights(path: str) -> Start:
    start = moved("weights", path)
    start.weights = {"path": path, "fingerprint": "deaf"}
    return start


def no_weights() -> Start:
    start = changed("config.model.weights", "none")
    start.weights = None
    return start


def grown() -> Start:
    start = moved("data", "/b")
    start.train = start.train._replace(num_examples=91, fingerprint="d00d")
    return start


# For each row of the table: what its third column says, and starts with a part of the message.
ROWS: dict[str, tuple[str, list[tuple[Start, str]]]] = {
    "fields of the config": (
        "refused",
        [
            (changed("config.seed", 3), "seed is 3, was 0"),
            (changed("config.data.eval_split", "none"), "data.eval_split is None, was 'test'"),
        ],
    ),
    "training images": (
        "refused",
        [
            (
                grown(),
                "80 images in 3 classes at /a/train when it began, 91 in 3 at /b/train now;",
            ),
            (changed("train.fingerprint", "d00d"), "80 in 3 at /a/train now, with other names"),
        ],
    ),
    "evaluation images": (
        "refused",
        [(changed("evaluation.fingerprint", "d00d"), "9 images to evaluate in 3 classes")],
    ),
    "classes and their order": (
        "refused",
        [
            (changed("train.class_names", ("cat", "dog", "cow")), "class 1 is 'dog', was 'cow'"),
            (changed("train.class_names", ("cat", "cow")), "class 2 is None, was 'dog'"),
        ],
    ),
    "`model.weights`": (
        "refused",
        [
            (no_weights(), "model.weights is None, was '/w/first"),
            (other_weights("/w/other"), "model.weights is '/w/other', was '/w/first"),
        ],
    ),
    "place of the data": (
        "a line",
        [(moved("data", "/b"), "the same data at another place: /a/train before, /b/")],
    ),
    "place of the weights": (
        "a line",
        [(moved("weights", "/v/copy"), "the same weights at /v/copy, /w/first.safetensors when")],
    ),
    "content of the weights' file": (
        "a line",
        [(changed("weights.fingerprint", "deaf"), "(/w/first.safetensors): has changed since")],
    ),
    "versions": (
        "a line",
        [
            (changed("events.start.versions.tensorflow", "4"), "tensorflow: 4 now, 2 when the run"),
            (changed("events.start.versions.trainer", "4"), "version of trainer: 4 now, 1 when"),
            (changed("events.start.commit", "abc+"), "commit: abc+ now, abc when the run began"),
        ],
    ),
    "replicas": (
        "a line",
        [
            (changed("events.devices.replicas", 4), "replicas: 4 now, 2 when the run began"),
            (changed("events.devices.strategy", "TPUStrategy"), "strategy: TPUStrategy now, Mirr"),
        ],
    ),
    "environment variables": (
        "a line",
        [(changed("events.start.variables.TF_XLA_FLAGS", "-"), "TF_XLA_FLAGS: - now, none when")],
    ),
    "fields with a *": (
        "nothing",
        [(changed("config.keep_checkpoints", 9), ""), (changed("config.steps_per_loop", 9), "")],
    ),
    "command, machine, devices": (
        "nothing",
        [
            (changed("events.start.command", "python -m trainer.main --data_dir=x"), ""),
            (changed("events.start.cwd", "/elsewhere"), ""),
            (changed("events.start.machine.host", "two"), ""),
            (changed("events.start.variables.TF_CONFIG", "{...}"), ""),
            (changed("events.devices.devices", ["GPU:2", "GPU:3"]), ""),
        ],
    ),
}


def documented() -> dict[str, str]:
    """The rows of the table in docs/training.md: the first words, and what happens."""
    text = DOCS.read_text(encoding="utf-8").partition("## What a run is")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", text, re.MULTILINE)
    return {what.partition(":")[0]: outcome for what, outcome in rows[1:]}


def test_the_table_is_what_is_tested():
    assert documented() == {what: outcome for what, (outcome, _) in ROWS.items()}


@pytest.mark.parametrize(
    ("outcome", "start", "text"),
    [(outcome, *case) for outcome, cases in ROWS.values() for case in cases],
    ids=[f"{what}-{n}" for what, (_, cases) in ROWS.items() for n in range(len(cases))],
)
def test_what_happens_if_it_differs_when_a_run_resumes(tmp_path, outcome, start, text):
    if outcome == "refused":
        with pytest.raises(UserError, match=re.escape(text)) as caught:
            second(tmp_path, Start(), start)
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(f"--workdir={tmp_path}: holds ")
    else:
        lines = second(tmp_path, Start(), start)
        assert bool(lines) == (outcome == "a line")
        assert all(len(line.splitlines()) == 1 for line in lines)
        assert text in "; ".join(lines)


def test_a_field_is_refused_or_free_as_its_mark_says(tmp_path):
    """Every field of the config, by its own mark."""
    first = config_lib.to_dict(Config())
    paths = {"data.path", "model.weights"}  # of what lies there, see above
    refused = {
        path
        for path in first
        if path not in paths and config_lib.differences({**first, path: "other"}, first)
    }
    marked = re.findall(r"^\| `([\w.]+)` \|", (DOCS.parent / "config.md").read_text(), re.MULTILINE)
    assert refused == set(marked) - paths


def test_data_without_a_fingerprint_are_compared_by_counts_and_path(tmp_path):
    """As of the user's own source that gives none."""
    first = Start(train=TRAIN._replace(fingerprint=""), evaluation=EVAL._replace(fingerprint=""))
    assert second(tmp_path / "same", first, first) == []
    with pytest.raises(UserError, match=r"data\.path is 'there', was 'here'"):
        other = dataclasses.replace(first, config=changed("config.data.path", "there").config)
        second(tmp_path / "path", first, other)
    with pytest.raises(UserError, match=r"80 images in 3 classes .* 81 in 3"):
        other = dataclasses.replace(first, train=first.train._replace(num_examples=81))
        second(tmp_path / "count", first, other)


def test_a_run_of_an_earlier_version_resumes_on_as_many_images(tmp_path):
    old = {**Start().metadata(), "train_examples": 80}
    del old["data"], old["weights"]
    RunFolder(str(tmp_path), CONFIG).write_config(old)
    leave_checkpoint(tmp_path)
    folder = RunFolder(str(tmp_path), CONFIG, is_chief=False)
    assert folder.refuse_another_run(Start().metadata()) == []
    with pytest.raises(UserError, match="80 training examples when it began, 91 now"):
        folder.refuse_another_run(changed("train.num_examples", 91).metadata())


def test_a_run_of_an_earlier_version_held_other_images_out(tmp_path):
    config = config_lib.override(CONFIG, ["data.name=folder", "data.eval_fraction=0.1"])
    old = {**Start(config=config).metadata(), "train_examples": 80}
    del old["data"], old["weights"]
    RunFolder(str(tmp_path), config).write_config(old)
    leave_checkpoint(tmp_path)
    folder = RunFolder(str(tmp_path), config, is_chief=False)
    with pytest.raises(UserError, match=r"data\.eval_fraction holds out other images than"):
        folder.refuse_another_run(Start(config=config).metadata())


def test_a_run_keeps_what_its_first_weights_were(tmp_path):
    folder = RunFolder(str(tmp_path), CONFIG)
    folder.write_config(Start().metadata())
    leave_checkpoint(tmp_path)
    for fingerprint in ("other", ""):  # another file under the name; none
        now = Start(weights={**WEIGHTS, "fingerprint": fingerprint}).metadata()
        folder.write_config(folder.as_it_began(now))
        saved = folder.read_config()
        assert saved is not None
        assert saved["weights"] == WEIGHTS


def test_a_relative_place_is_the_same_as_an_absolute_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    start = Start(train=TRAIN._replace(place="a"), evaluation=EVAL._replace(place="gs://b"))
    data = start.metadata()["data"]
    assert (data["train"]["place"], data["eval"]["place"]) == (str(tmp_path / "a"), "gs://b")


def test_a_finished_run_without_its_config_is_told_by_its_checkpoints(tmp_path):
    folder = RunFolder(str(tmp_path), CONFIG)
    folder.write_done("best 1.0")
    assert folder.is_known
    leave_checkpoint(tmp_path)
    assert not folder.is_known
    folder.write_config(Start().metadata())
    assert folder.is_known


def test_a_run_without_a_checkpoint_starts_anew_on_other_data(tmp_path):
    """Its first steps met a bad image, which was then removed."""
    folder = RunFolder(str(tmp_path), CONFIG)
    folder.write_config(Start().metadata())
    assert folder.refuse_another_run(grown().metadata()) == []
    leave_checkpoint(tmp_path)
    with pytest.raises(UserError, match="holds another run: 80 images"):
        folder.refuse_another_run(grown().metadata())


def test_weights_are_known_by_their_content(tmp_path):
    one, two, other = (tmp_path / name for name in ("1.pth", "2.pth", "3.pth"))
    for path, content in ((one, b"same"), (two, b"same"), (other, b"else")):
        path.write_bytes(content)
    found = [weights_identity(str(path)) for path in (one, two, other, tmp_path / "none.pth")]
    prints = [identity and identity["fingerprint"] for identity in found]
    assert prints[0] == prints[1] != prints[2]
    assert prints[3] == ""
    assert weights_identity(None) is None


def test_a_run_s_weights_are_known_by_its_best_checkpoint(tmp_path):
    for name in ("checkpoints/best", "checkpoints"):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-7"\n')
        (folder / "ckpt-7.index").write_bytes(name.encode())
    best = tmp_path / "checkpoints" / "best" / "ckpt-7"
    of_run = weights_identity(str(tmp_path))
    of_best = weights_identity(str(best))
    assert of_run and of_best
    assert of_run["fingerprint"] == of_best["fingerprint"] != ""
    (best.parent / "checkpoint").unlink()
    of_last = weights_identity(str(tmp_path))
    assert of_last and of_last["fingerprint"] not in ("", of_best["fingerprint"])
