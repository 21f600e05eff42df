"""`python -m trainer.main` with bad input: one line that names the thing and its value, exit 2."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import strategy_of
from tests.photo_files import write_photos
from tests.verb_runs import IMPORTED, ROOT, only_line, run_main
from tests.workers import tf_configs
from trainer.config import Config, load, override
from trainer.data.source import open_source
from trainer.data.splits.find import find_splits
from trainer.errors import UserError
from trainer.run.folder import RunFolder, default_path
from trainer.run.identity import metadata_of_found
from trainer.run.train import train_and_evaluate

DIGITS = str(ROOT / "configs" / "digits_resnet20.py")
# --- without TensorFlow -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--learning_rate=0.8"],
            ["--learning_rate: not a flag of trainer.main", "--set optimizer.learning_rate=…"],
        ),
        (["--epochs=3"], ["--set num_epochs=…"]),
        (["--batch_size=64"], ["--set data.global_batch_size=…"]),
        (["--weight-decay=0.1"], ["--set optimizer.weight_decay=…"]),
        (["--lr=0.1"], ["--help lists the flags of trainer.main, --help_config what --set takes"]),
        (["--only_check_flags"], ["--only_check_flags: not a flag of trainer.main"]),
        (["--flagfile=/nope"], ["Unable to open flagfile: ", "'/nope'"]),
        (["--stategy=mirrored"], ["--stategy: not a flag of", "did you mean --strategy?"]),
        (["--out=model.safetensors"], ["--out: not a flag of trainer.main"]),
        (["--notpu=x"], ["--notpu: not a flag"]),
        (["--noprint_config=x"], ["--noprint_config=x does not take an argument"]),
        (["--virtual_devices=two"], ["--virtual_devices=two"]),
        (["--virtual_devices=-1"], ["--virtual_devices=-1"]),
        (["--set"], ["--set"]),
        (["train"], ["'train'", "flags"]),
        (["--set", "seed=1", "seed=2"], ["'seed=2'", "flags"]),
        (["--set", "seed"], ["--set seed", "FIELD=VALUE"]),
        (
            ["--set", "optimizer.learning_rte=0.8"],
            ["optimizer.learning_rte: unknown field; did you mean 'optimizer.learning_rate'?"],
        ),
        (["--set", "seed=abc"], ["seed", "a whole number", "'abc'"]),
        (["--set", "optimizer.learning_rate=-1"], ["optimizer.learning_rate", "above 0", "-1.0"]),
        (["--set", "seed=1", "--set", "num_epochs=0"], ["num_epochs", "above 0", "0.0"]),
        (["--set", "data.crop=none"], ["data.pad (1)", "data.crop", "'none'"]),
        (["--set", "model.name=resnt20"], ["model.name", "'resnt20'", "'resnet20'"]),
        (["--set", "data.name=digit"], ["data.name", "'digit'", "'digits'"]),
        (["--strategy=mirored"], ["--strategy=mirored", "mirrored", "one_device", "tpu"]),
        (["--strategy="], ["--strategy=", "mirrored"]),
        (["--strategy=tpu"], ["--strategy=tpu", "--tpu=NAME"]),
        (["--strategy=mirrored", "--tpu=local"], ["--tpu=local", "not mirrored"]),
        (["--strategy=multi_worker"], ["--strategy=multi_worker", "TF_CONFIG"]),
        (
            ["--strategy=one_device", "--virtual_devices=2"],
            ["--virtual_devices=2", "one_device", "mirrored"],
        ),
        (["--config=configs/nope.py"], ["--config=configs/nope.py", DIGITS.rpartition("/")[2]]),
        (["--config=configs"], ["--config=configs", "directory"]),
    ],
    ids=lambda value: " ".join(value[-1:]) if value and value[0].startswith("-") else None,
)
def test_bad_arguments(stubs, tmp_path, arguments, parts):
    workdir = tmp_path / "run"
    message = only_line(run_main(f"--workdir={workdir}", *arguments, pythonpath=stubs))
    assert [part for part in parts if part not in message] == []
    assert "ERROR" not in message
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("from trainer.config import Config\n\ndef get_config(\n", ["line 3", "never closed"]),
        ("learning_rate = 0.1\n", ["get_config()"]),
        ("def get_config():\n    return None\n", ["get_config()", "NoneType"]),
        ("def get_config():\n    return 1 / 0\n", ["get_config()", "division by zero"]),
        (
            "from trainer.config import Config\ndef get_config():\n    return Config(seed=-1)\n",
            ["seed", "-1"],
        ),
    ],
    ids=["syntax error", "no get_config", "returns nothing", "raises", "out of range"],
)
def test_a_bad_config_file(stubs, tmp_path, text, parts):
    path = tmp_path / "recipe.py"
    path.write_text(text)
    workdir = tmp_path / "run"
    result = run_main(f"--config={path}", f"--workdir={workdir}", pythonpath=stubs)
    message = only_line(result)
    assert [part for part in [f"--config={path}", *parts] if part not in message] == []
    assert not workdir.exists()


def cluster(index: int | str) -> str:
    """Returns the TF_CONFIG of one of two workers."""
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": task})


@pytest.mark.parametrize(
    "text",
    [
        "{broken",
        '{"cluster": {"worker": ["a:1"]}}',
        cluster("first"),
        '{"cluster":\n{broken',
        cluster(2),
        cluster(-1),
    ],
    ids=["no JSON", "no task", "index no number", "two lines", "index too high", "index below 0"],
)
@pytest.mark.parametrize("strategy", ["auto", "multi_worker"])
def test_a_bad_cluster(stubs, tmp_path, strategy, text):
    result = run_main(
        f"--strategy={strategy}",
        f"--workdir={tmp_path / 'run'}",
        pythonpath=stubs,
        environment={"TF_CONFIG": text},
    )
    message = only_line(result)
    assert "TF_CONFIG" in message
    assert "".join(text.split()) in "".join(message.split())


@pytest.mark.parametrize("as_script", [True, False], ids=["script", "python -m"])
def test_a_user_s_model_is_a_module_of_this_folder(stubs, tmp_path, as_script):
    """It is found before TensorFlow is imported, even by a script from another folder."""
    here, bin_folder = tmp_path / "here", tmp_path / "bin"
    (here / "my_models").mkdir(parents=True)
    bin_folder.mkdir()
    (here / "my_models" / "tinynet.py").write_text("raise SystemExit('not before TensorFlow')\n")
    script = bin_folder / "train"
    script.write_text("from trainer.main import main\nmain()\n")
    result = subprocess.run(
        [
            *(sys.executable, *([script] if as_script else ["-m", "trainer.main"])),
            *(f"--config={DIGITS}", "--workdir=run", "--set=model.name=my_models.tinynet"),
        ],
        cwd=here,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(stubs), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (IMPORTED, "")


def test_a_workdir_that_cannot_be_written(stubs, tmp_path):
    (tmp_path / "file").touch()
    workdir = tmp_path / "file" / "run"  # below a file: not even root can create it
    message = only_line(run_main(f"--workdir={workdir}", pythonpath=stubs))
    assert message.startswith(f"--workdir={workdir}: cannot be written (Not a directory); ")


def test_a_workdir_in_use(stubs, tmp_path):
    folder = RunFolder(str(tmp_path), load(DIGITS))  # held by this process
    message = only_line(run_main(f"--workdir={folder.path}", pythonpath=stubs))
    assert message.startswith(f"--workdir={tmp_path}: in use by process {os.getpid()};")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_a_workdir_that_is_an_address(stubs, tmp_path, address):
    result = run_main(
        f"--config={DIGITS}",
        f"--workdir={address}",
        pythonpath=os.pathsep.join([str(stubs), str(ROOT)]),
        cwd=tmp_path,
    )
    assert f"--workdir={address}" in only_line(result)
    assert list(tmp_path.iterdir()) == []


def leave_run(path: Path, config: Config, data_dir: str, done: str | None = None) -> None:
    """Writes the folder of a run that has ended, or was killed."""
    folder = RunFolder(str(path), config)
    metadata = metadata_of_found(config, find_splits(config, data_dir))
    assert metadata is not None
    folder.write_config(metadata)
    if done is not None:
        folder.write_done(done)


@pytest.mark.parametrize("done", [None, "best accuracy 0.9917"], ids=["killed", "done"])
def test_a_workdir_of_another_config(stubs, tmp_path, done, data_dir):
    leave_run(tmp_path, load(DIGITS), data_dir, done)
    arguments = ["--set", "optimizer.learning_rate=0.8", "--set", "model.name=resnet32"]
    message = only_line(run_main(f"--workdir={tmp_path}", *arguments, pythonpath=stubs))
    assert message.startswith(f"--workdir={tmp_path}: ")
    assert "model.name is 'resnet32', was 'resnet20'" in message
    assert "optimizer.learning_rate is 0.8, was 0.1" in message


def test_a_finished_run_is_reported(stubs, tmp_path, data_dir):
    leave_run(tmp_path, load(DIGITS), data_dir, "best accuracy 0.9917\nlogs: here")
    # Different logging intervals do not make it a different run.
    arguments = (f"--workdir={tmp_path}", f"--data_dir={data_dir}", "--set", "keep_checkpoints=9")
    result = run_main(*arguments, pythonpath=stubs)
    assert (result.returncode, result.stderr) == (0, "")
    first, *rest = result.stdout.splitlines()
    assert first.startswith(f"already done: {tmp_path};")
    assert rest == ["best accuracy 0.9917", "logs: here"]


def test_the_default_workdir_is_that_of_the_config(stubs, tmp_path, data_dir):
    config = override(load(DIGITS), ["seed=7"])
    leave_run(tmp_path / default_path(DIGITS, config), config, data_dir, "the one of seed 7")
    result = run_main(
        f"--config={DIGITS}",
        f"--data_dir={data_dir}",
        "--set=seed=7",
        pythonpath=os.pathsep.join([str(stubs), str(ROOT)]),
        cwd=tmp_path,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1:] == ["the one of seed 7"]


def photos_command(photos: Path, workdir: Path, *more: str) -> list[str]:
    classes = "--set=model.num_classes=none"
    config = f"--config={ROOT / 'configs' / 'photos_resnet18.py'}"
    return [config, f"--data_dir={photos}", f"--workdir={workdir}", classes, *more]


@pytest.mark.parametrize("done", [None, "best accuracy 1.0000"], ids=["killed", "done"])
def test_other_data_are_never_taken_for_the_run_s(stubs, tmp_path, photos, done):
    """Neither is a finished run's result told for them, nor an interrupted one resumed on them."""
    first = write_photos(tmp_path / "first", photos, train=4, val=2)
    workdir = tmp_path / "run"
    config = override(load(str(ROOT / "configs/photos_resnet18.py")), ["model.num_classes=none"])
    leave_run(workdir, config, str(first), done)

    def refused(data_dir: Path) -> str:
        return only_line(run_main(*photos_command(data_dir, workdir), pythonpath=stubs))

    begun = f"8 images in 2 classes at {first}/train when it began, "
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    result = run_main(*photos_command(copy, workdir), pythonpath=stubs)
    assert (result.returncode, result.stderr) == (0 if done else IMPORTED, "")
    assert result.stdout.startswith("already done") == bool(done)
    with (copy / "train" / "china" / "000.jpg").open("ab") as file:
        file.write(b"x")
    assert f"{begun}8 in 2 at {copy}/train now, with other names" in refused(copy)
    shutil.copy(first / "train" / "china" / "000.jpg", first / "train" / "china" / "new.jpg")
    assert f"{begun}9 in 2 at {first}/train now" in refused(first)
    for split in ("train", "val"):
        (copy / split / "china").rename(copy / split / "cathay")
    assert "class 0 is 'cathay', was 'china'" in refused(copy)
    assert f"{tmp_path / 'gone' / 'train'}" in refused(tmp_path / "gone")


def test_mistakes_in_the_data_leave_no_folder(stubs, tmp_path, photos):
    """They are told before TensorFlow is imported, which the stubs would report."""
    folder = write_photos(tmp_path / "photos", photos, train=4, val=2)
    command = photos_command(folder, tmp_path / "runs" / "one")
    for change, part in (
        ("--data_dir=/nope", "/nope/train: cannot be listed"),
        ("--set=data.eval_split=test", f"{folder}/test"),
        ("--set=model.num_classes=7", "model.num_classes is 7, but data set 'folder' has 2"),
        ("--set=data.crop=pad", "data.pad"),
        ("--set=data.mean=0.5,0.5", "data.mean"),
    ):
        assert part in only_line(run_main(*command, change, pythonpath=stubs))
    assert not (tmp_path / "runs").exists()
    assert run_main(*command, pythonpath=stubs).returncode == IMPORTED


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {}),
        (["--strategy=mirrored", "--virtual_devices=2", "--set", "data.path=a=b"], {}),
        (["--strategy=tpu", "--tpu=ADDRESS"], {}),
        (["--strategy=tpu"], {"TPU_NAME": "ADDRESS"}),
        (["--tpu=ADDRESS"], {"TF_CONFIG": "left over"}),
        (["--strategy=multi_worker"], {"TF_CONFIG": "a group of one"}),
    ],
)
def test_valid_arguments_reach_tensorflow(stubs, tmp_path, arguments, environment):
    """Controls the tests above: the stubs do end a process that imports TensorFlow."""
    workdir = f"--workdir={tmp_path / 'run'}"
    if environment.get("TF_CONFIG") == "a group of one":
        environment = {"TF_CONFIG": tf_configs(1)[0]}
    with socket.create_server(("127.0.0.1", 0)) as server:  # a host of a TPU
        address = f"grpc://127.0.0.1:{server.getsockname()[1]}"
        arguments = [argument.replace("ADDRESS", address) for argument in arguments]
        environment = {n: v.replace("ADDRESS", address) for n, v in environment.items()}
        result = run_main(workdir, *arguments, pythonpath=stubs, environment=environment)
    assert (result.returncode, result.stderr) == (IMPORTED, "")


def test_a_group_that_does_not_form(stubs, tmp_path):
    arguments = [
        "--strategy=multi_worker",
        "--cluster_timeout_s=1",
        f"--workdir={tmp_path / 'run'}",
    ]
    text = tf_configs(2)[0]
    missing = json.loads(text)["cluster"]["worker"][1]
    result = run_main(*arguments, pythonpath=stubs, environment={"TF_CONFIG": text})
    assert only_line(result, code=200).startswith(
        f"TF_CONFIG: the group of 2 did not form: worker 1 ({missing}) did not come; "
    )


# --- with TensorFlow --------------------------------------------------------------------------


@pytest.fixture
def signals():
    """Restores the signal handlers that a training replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("size", "accumulation_steps"), [(63, 1), (66, 1), (2, 1), (52, 2), (50, 5), (5, 5)]
)
@pytest.mark.usefixtures("signals")
def test_a_batch_that_does_not_divide_suggests_the_nearest(
    tmp_path, data_dir, size, accumulation_steps
):
    parts = [f"data.global_batch_size={size}", f"accumulation_steps={accumulation_steps}"]
    short = ["num_epochs=0.01", "optimizer.warmup_epochs=0"]  # in case it is not refused
    config = override(load(DIGITS), [*parts, *short])
    strategy = strategy_of(4)
    with pytest.raises(UserError) as caught:
        train_and_evaluate(config, strategy, RunFolder(str(tmp_path), config), data_dir)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"data.global_batch_size ({size}) must be divisible by ")
    assert "replicas (4)" in message
    assert f"accumulation_steps ({accumulation_steps})" in message
    nearest = re.search(r"--set data\.global_batch_size=(\d+)$", message)
    assert nearest is not None
    possible = range(4 * accumulation_steps, 1000, 4 * accumulation_steps)
    assert int(nearest[1]) in possible
    assert abs(int(nearest[1]) - size) == min(abs(other - size) for other in possible)
    assert not (tmp_path / "config.json").exists()


def refusal_of_data(assignments: list[str], data_dir: str, split: str = "train") -> str:
    config = override(load(DIGITS), assignments)
    with pytest.raises(UserError) as caught:
        open_source(config, split, data_dir)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("assignments", "name"),
    [
        (["data.name=cifar10"], "cifar10"),
        (["data.name=imagenet2012"], "imagenet2012"),
        (["data.name=tfds", "data.path=mnist"], "mnist"),
    ],
)
def test_an_unprepared_data_set_names_the_command(data_dir, assignments, name):
    message = refusal_of_data(assignments, data_dir)
    assert message.startswith(f"data set {name!r}: not prepared in {data_dir};")
    command = f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
    assert message.endswith(command)


@pytest.mark.parametrize(
    "path",
    [
        "no_such_data_set",
        "mnist/no_such_config",
        "not a name",
        "mnist:9.9.9",
    ],
)
def test_a_data_set_that_tfds_does_not_know(data_dir, path):
    message = refusal_of_data(["data.name=tfds", f"data.path={path}"], data_dir)
    assert message.startswith(f"data set {path!r}: TFDS does not know it (")


@pytest.mark.parametrize("split", ["validation", "", "train[:50", "train[5000:]"])
def test_an_unknown_split_lists_the_known_ones(data_dir, split):
    message = refusal_of_data([], data_dir, split)
    assert message.startswith(f"data split {split!r}: data set 'digits' has no such split (")
    assert message.endswith("it has train, test")


def test_a_split_without_examples(data_dir):
    assert "no examples" in refusal_of_data([], data_dir, "train[:0]")


@pytest.mark.parametrize("num_classes", [9, 11])
def test_a_wrong_number_of_classes_names_that_of_the_data(data_dir, num_classes):
    message = refusal_of_data([f"model.num_classes={num_classes}"], data_dir)
    assert f"model.num_classes is {num_classes}" in message
    assert message.endswith("--set model.num_classes=10")
    right = override(load(DIGITS), ["model.num_classes=10"])
    assert len(open_source(right, "train", data_dir)) == 1437


def test_a_wrong_number_of_channels(data_dir):
    recipe = load(str(ROOT / "configs" / "cifar10_resnet20.py"))  # three channels
    with pytest.raises(UserError, match=r"data\.mean .* 3 values, .*'digits' have 1 channels"):
        open_source(override(recipe, ["data.name=digits"]), "train", data_dir)


def test_a_crop_that_the_data_set_does_not_allow(data_dir):
    message = refusal_of_data(["data.crop=random_resized", "data.pad=0"], data_dir)
    assert message.startswith("data.crop is 'random_resized', ")
    assert "'digits'" in message


@pytest.mark.parametrize("below", ["file", "file/data"])
def test_a_data_dir_that_cannot_be_written(tmp_path, below):
    (tmp_path / "file").touch()
    message = refusal_of_data([], str(tmp_path / below))
    assert message.startswith(f"--data_dir={tmp_path / below}: cannot be written (")
