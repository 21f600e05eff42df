"""Flags and words that a verb does not take: the answer is what to type instead."""

import copy
import re
import shlex

import pytest

from tests.cli.test_flags import VERBS
from trainer.cli import command
from trainer.config import Config, hints, override, to_dict
from trainer.config.other_names import FORMS

FLAGS = {flag for module in VERBS.values() for flag in module.FLAGS} | {"verbosity"}
FIELDS = set(to_dict(Config()))


@pytest.fixture
def answer(capsys):
    """Returns a function that types a command line and returns the answer, which is one line."""

    def answer_(typed: str, verb: str = "trainer.main") -> str:
        flags = copy.deepcopy(VERBS[verb].FLAGS)
        with pytest.raises(SystemExit) as caught:
            command.run(verb, lambda: 0, flags, [verb, *shlex.split(typed)])
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("error: ").rstrip("\n")

    return answer_


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_what_the_table_names_exists(name):
    assert name == name.lower().replace("-", "_")
    assert name not in FIELDS
    for form in FORMS[name]:
        assert {*re.findall(r"--(\w+)", form)} <= FLAGS
        assert {*re.findall(r"--set ([\w.]+)", form)} <= FIELDS
        if form.startswith("--"):  # no sentence: it can be typed, but for a note at its end
            typed, _, _ = form.partition(" (")
            assert re.fullmatch(r"(--(set )?[\w.]+(=\S+)? ?)+", typed)
        else:
            assert "{}" not in form


def test_a_wrong_field_gets_flags_that_exist():
    assert {*hints._FLAGS_OF_RUNS} <= {*VERBS["trainer.main"].FLAGS}


def test_fixed_values_of_the_table_are_values_of_their_fields():
    settings = {
        setting
        for forms in FORMS.values()
        for form in forms
        for setting in re.findall(r"--set ([\w.]+=[\w.,]+)", form)
        if not setting.endswith("=FILE")
    }
    assert "precision=mixed_bfloat16" in settings
    for setting in settings - {"optimizer.schedule=step", "optimizer.milestones=30,60"}:
        override(Config(), [setting])
    override(Config(), ["optimizer.schedule=step", "optimizer.milestones=30,60"])


# --- options of timm, torchvision, PyTorch's examples, Ultralytics and Keras ---------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--epochs=3", "num_epochs=3"),
        ("--epochs 3", "num_epochs=3"),
        ("--lr 0.1", "optimizer.learning_rate=0.1"),
        ("--lr0=0.01", "optimizer.learning_rate=0.01"),
        ("--batch-size 64", "data.global_batch_size=64"),
        ("--batch_size=64", "data.global_batch_size=64"),
        ("--batch 64", "data.global_batch_size=64"),
        ("-b 64", "data.global_batch_size=64"),
        ("-b64", "data.global_batch_size=64"),
        ("--model resnet18", "model.name=resnet18"),
        ("--model resnet18 /data", "model.name=resnet18"),
        ("--arch=resnet18", "model.name=resnet18"),
        ("-a resnet18", "model.name=resnet18"),
        ("--data cifar10", "data.name=cifar10"),
        ("--dataset cifar10", "data.name=cifar10"),
        ("--imgsz 224", "data.image_size=224"),
        ("--img-size 224", "data.image_size=224"),
        ("--input-size=224", "data.image_size=224"),
        ("--opt adamw", "optimizer.name=adamw"),
        ("--optimizer adamw", "optimizer.name=adamw"),
        ("--wd 1e-4", "optimizer.weight_decay=1e-4"),
        ("--weight-decay 1e-4", "optimizer.weight_decay=1e-4"),
        ("--momentum .9", "optimizer.momentum=.9"),
        ("--sched cosine", "optimizer.schedule=cosine"),
        ("--warmup-epochs 5", "optimizer.warmup_epochs=5"),
        ("--lr-warmup-epochs 5", "optimizer.warmup_epochs=5"),
        ("--amp", "precision=mixed_bfloat16"),
        ("--weights a.pth", "model.weights=a.pth"),
        ("--num-classes 5", "model.num_classes=5"),
        ("--nc=5", "model.num_classes=5"),
        ("--seed 7", "seed=7"),
        ("--sync-bn", "model.sync_batch_norm=true"),
        ("--no-sync-bn", "model.sync_batch_norm=false"),
        ("--model-ema", "ema_decay=0.9999"),
        ("--model-ema-decay=.99", "ema_decay=.99"),
        ("--mixup 0.2", "augment.mixup=0.2"),
        ("--cutmix-alpha 1.0", "augment.cutmix=1.0"),
        ("--aa randaugment", "augment.policy=randaugment"),
        ("--reprob 0.25", "augment.erasing=0.25"),
        ("--smoothing 0.1", "label_smoothing=0.1"),
        ("--label-smoothing 0.1", "label_smoothing=0.1"),
        ("--drop-path 0.1", "model.stochastic_depth=0.1"),
        ("--dropout 0.1", "model.dropout=0.1"),
        ("--clip-grad 1", "optimizer.clip_norm=1"),
        ("--val-split validation", "data.eval_split=validation"),
        ("--train-split train", "data.train_split=train"),
        ("--checkpoint-hist 5", "keep_checkpoints=5"),
        ("--grad-accum-steps 2", "accumulation_steps=2"),
        ("--log-interval 50", "steps_per_loop=50"),
        ("--torchcompile", "xla=on"),
        ("--compile", "xla=on"),
        ("--deterministic", "deterministic=true"),
        ("--nodeterministic", "deterministic=false"),
        ("--mean 0.485 0.456 0.406", "data.mean=0.485,0.456,0.406"),
        ("--num_epochs=3", "num_epochs=3"),
        ("--NUM-EPOCHS 3", "num_epochs=3"),
        ("--optimizer.learning_rate=0.1", "optimizer.learning_rate=0.1"),
        ("--config.optimizer.learning_rate=0.1", "optimizer.learning_rate=0.1"),
        ("--data.learning-rate 0.1", "optimizer.learning_rate=0.1"),
        ("--learning_rte=0.1", "optimizer.learning_rate=0.1"),
    ],
)
def test_an_option_of_others_gets_the_setting_with_its_value(answer, typed, expected):
    flag = typed.replace("=", " ").split()[0].lstrip("-")
    start, _, hint = answer(typed).partition("; ")
    assert start == f"--{flag}: not a flag of trainer.main"
    assert re.fullmatch(rf"did you mean --set {re.escape(expected)}( \(.*\))?\?", hint)
    mean = ["data.std=1,1,1"] if "mean" in expected else []
    override(Config(), ["num_epochs=300", expected, *mean])


def test_a_share_to_evaluate_on_is_not_the_name_of_a_split(answer):
    assert "did you mean --set data.eval_fraction=0.2?" in answer("--val-split 0.2")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--data /x", "did you mean --data_dir=/x?"),
        ("--data-path=/x", "did you mean --data_dir=/x?"),
        ("--data-dir /x", "did you mean --data_dir=/x?"),
        ("--data-dir '/a b'", "did you mean --data_dir='/a b'?"),
        ("--output x", "did you mean --workdir=x?"),
        ("--log_dir=x", "did you mean --workdir=x?"),
        ("--project x --name y", "did you mean --workdir=x?"),
        ("--Print-Config", "did you mean --print_config?"),
        ("--stategy=mirrored", "did you mean --strategy=mirrored?"),
        ("-c x.py", "did you mean --config=x.py?"),
        ("--resume runs/x", "the same command resumes its run"),
        ("--device 0", "--strategy; which ones: the environment, such as CUDA_VISIBLE_DEVICES=0"),
        ("--workers 4", "reading and decoding run in parallel; nothing has to be set"),
        ("-j8", "reading and decoding run in parallel; nothing has to be set"),
        ("--pretrained", "did you mean --set model.weights=FILE ("),
        ("--pretrained true", "did you mean --set model.weights=FILE ("),
        ("--name y", "a run's folder: --workdir=…; fields: --set model.name=…"),
        ("--patience 3", "there is no early stopping"),
        ("--cache", "there is no cache to set"),
        ("--save-period 3", "did you mean --set checkpoint_every_s=… (seconds)?"),
        ("--world-size 2", "several machines: `python -m launch`"),
        ("--dist-url tcp://x", "several machines: `python -m launch`"),
        ("--eval", "evaluation is a part of training"),
        ("--evaluate", "evaluation is a part of training"),
        ("--test-only", "evaluation is a part of training"),
        ("--channels-last", "images are channels last already"),
        ("--epochs", "did you mean --set num_epochs=…?"),
    ],
)
def test_an_option_of_others_gets_a_flag_or_a_sentence(answer, typed, expected):
    assert f"; {expected}" in answer(typed).replace("; one device or all: ", "; ")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--opt rmsprop", "optimizer.name=… (must be 'sgd' or 'adamw', not 'rmsprop')?"),
        ("--input-size 3 224 224", "data.image_size=… (must be a whole number, not '3,224,224')?"),
        ("--seed=abc", "seed=… (must be a whole number, not 'abc')?"),
        ("--clip-grad -1", "optimizer.clip_norm=… (must be above 0, not -1.0)?"),
        ("--model vit", "model.name=… (unknown model 'vit')?"),
    ],
)
def test_a_value_that_does_not_fit_is_not_suggested(answer, typed, expected):
    assert answer(typed).endswith(f"; did you mean --set {expected}")


@pytest.mark.parametrize(
    ("verb", "typed", "expected"),
    [
        ("trainer.inspect", "--arch resnet50", "--model=resnet50"),
        ("trainer.inspect", "resnet50", "--model=resnet50"),
        ("trainer.inspect", "--imgsz 224", "--image_size=224"),
        ("trainer.inspect", "--epochs=3", "--set num_epochs=3"),
        ("trainer.preflight", "-b 256", "--global_batch_size=256"),
        ("trainer.prepare", "--data-dir x", "--source=x"),
        ("trainer.prepare", "--workers 4", "--threads=4"),
        ("trainer.prepare", "--output x", "--out=x"),
        ("trainer.prepare", "--val-split 0.1", "--eval_fraction=0.1"),
        ("trainer.prepare", "--splits train val", "--splits=train,val"),
        ("trainer.inspect", "--memory 8", "--memory_gib=8"),
        ("trainer.export", "--checkpoint x", "--run=x"),
        ("trainer.export", "--workdir x", "--run=x"),
        ("trainer.export", "-o x", "--out=x"),
    ],
)
def test_a_verb_suggests_what_it_has(answer, verb, typed, expected):
    assert answer(typed, verb).endswith(f"; did you mean {expected}?")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("typed", ["--xyzzy=1", "--class-weights 1", "--scale 1", "xyzzy"])
def test_what_is_like_nothing_gets_no_suggestion(answer, verb, typed):
    fields = ", --help_config the fields that --set takes" if "set" in VERBS[verb].FLAGS else ""
    assert answer(typed, verb).endswith(f"; --help lists the flags of {verb}{fields}")


# --- words that no flag takes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (
            "--set num_epochs 3",
            "a setting is one word, FIELD=VALUE; did you mean --set num_epochs=3?",
        ),
        ("--set num_epochs = 3", "did you mean --set num_epochs=3?"),
        ("--set num_epochs= 3", "did you mean --set num_epochs=3?"),
        ("--set num_epochs =3", "did you mean --set num_epochs=3?"),
        ("--set=num_epochs 3", "did you mean --set num_epochs=3?"),
        ("-set num_epochs 3 --workdir=x", "did you mean --set num_epochs=3?"),
        ("--verbosity 0 --workdir 3 seed=3 --nopdb", "did you mean --set seed=3?"),
        ("-- seed=3", "did you mean --set seed=3?"),
        ("--set lr 0.1", "did you mean --set optimizer.learning_rate=0.1?"),
        ("--set data.mean=0.5 0.4 0.3", "did you mean --set data.mean=0.5,0.4,0.3?"),
        ("--set data.mean 0.5 0.4 0.3", "did you mean --set data.mean=0.5,0.4,0.3?"),
        ("--set class_weights 3", "FIELD=VALUE; --help_config lists all fields"),
        ("--set seed=1 num_epochs=2", "did you mean --set num_epochs=2?"),
        ("num_epochs=3", "did you mean --set num_epochs=3?"),
        ("num_epochs = 3", "did you mean --set num_epochs=3?"),
        ("--workdir=x epochs=3", "did you mean --set num_epochs=3?"),
        ("+optimizer.lr=0.1", "did you mean --set optimizer.learning_rate=0.1?"),
        ("--workdir = x", "did you mean --workdir=x?"),
        ("--workdir= x", "did you mean --workdir=x?"),
        ("--print_config true", "--print_config takes no value"),
        ("--config --set seed=1", "--config has no value before --set; write --config=VALUE"),
        ("configs/digits_resnet20.py", "did you mean --config=configs/digits_resnet20.py?"),
        ("digits_resnet20", "did you mean --config=digits_resnet20?"),
        ("resnet50", "did you mean --set model.name=resnet50?"),
        ("/", "did you mean --data_dir=/?"),
        ("–epochs=3", "it begins with a long dash; type two short ones: --epochs=3"),
        ("''", "--help lists the flags of trainer.main, --help_config the fields that --set takes"),
    ],
)
def test_a_word_that_no_flag_takes(answer, typed, hint):
    message = answer(typed)
    assert "': arguments must be flags; " in message
    assert message.endswith(hint)


def test_a_setting_in_quotes(answer):
    assert answer("'--set seed=3'") == (
        "--set seed: not a flag of trainer.main; --set and its value are two words: leave out the "
        "quotes around --set seed"
    )


@pytest.mark.parametrize("line", ["--epochs=3", "--epochs 3", "num_epochs=3", "--set num_epochs 3"])
def test_a_mistake_in_a_file_of_flags(answer, tmp_path, line):
    (tmp_path / "flags").write_text("\n".join(["--workdir=x", *line.split()]))
    expected = "; did you mean --set num_epochs=3?"
    assert answer(f"--flagfile={tmp_path}/flags").endswith(expected)


@pytest.mark.parametrize(
    ("verb", "typed", "expected"),
    [
        ("trainer.main", "--config", "--config: has no value; write --config=VALUE"),
        ("trainer.main", "--virtual_devices=two", "--virtual_devices=two: must be a whole number"),
        (
            "trainer.main",
            "--virtual_devices=-1",
            "--virtual_devices=-1: must be a non-negative int",
        ),
        ("trainer.main", "--cluster_timeout_s=x", "--cluster_timeout_s=x: must be a number"),
        ("trainer.main", "--print_config=1x", "--print_config=1x: must be true or false, or have"),
        ("trainer.inspect", "--format=csv", "--format=csv: must be one of table, md, json"),
        ("trainer.prepare", "--shard_mb=0", "--shard_mb=0: must be a number >= 0.001"),
    ],
)
def test_a_value_that_a_flag_does_not_take(answer, verb, typed, expected):
    message = answer(typed, verb)
    assert message.startswith(expected)
    assert message.endswith(f" (--help lists the flags of {verb})")
