"""Compares settings for digits by 5-fold cross-validation on the 1,437 training examples.

    python -m benchmarks.digits_cv [--only=NAME,NAME] [--seeds=1]

Never reads the 360 test examples. Prints a Markdown row per setting: the accuracy after the last
step, of the averaged (EMA) weights if there are any.
"""

import os
import statistics
import sys
import tempfile
import time

from absl import app, flags

from trainer import config as config_lib
from trainer.run.folder import RunFolder

_CONFIG = "configs/digits_resnet20.py"
_FOLDS = (
    ("train[20%:]", "train[:20%]"),
    ("train[:20%]+train[40%:]", "train[20%:40%]"),
    ("train[:40%]+train[60%:]", "train[40%:60%]"),
    ("train[:60%]+train[80%:]", "train[60%:80%]"),
    ("train[:80%]", "train[80%:]"),
)
# Changes to the recipe, by the name of the setting.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "as configured": (),
    "no crop": ("data.crop=none", "data.pad=0"),
    "lr 0.05": ("optimizer.learning_rate=0.05",),
    "lr 0.2": ("optimizer.learning_rate=0.2",),
    "L2 1e-4": ("optimizer.weight_decay=1e-4",),
    "L2 5e-4": ("optimizer.weight_decay=5e-4",),
    "L2 1e-3": ("optimizer.weight_decay=1e-3",),
    "L2 5e-3": ("optimizer.weight_decay=5e-3",),
    "smoothing 0": ("label_smoothing=0",),
    "smoothing 0.2": ("label_smoothing=0.2",),
    "batch 32": ("data.global_batch_size=32",),
    "batch 128 + lr 0.2": ("data.global_batch_size=128", "optimizer.learning_rate=0.2"),
    "20 epochs": ("num_epochs=20",),
    "25 epochs": ("num_epochs=25",),
    "50 epochs": ("num_epochs=50",),
    "12x12 pixels": ("data.image_size=12",),
    "12x12 pixels + pad 2": ("data.image_size=12", "data.pad=2"),
    "EMA 0.99": ("ema_decay=0.99",),
    "no zero init": ("model.zero_init_residual=false",),
}
_ONLY = flags.DEFINE_list("only", [], "Names of the settings to compare; empty: all.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds per fold.")
_DATA_DIR = flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Folder of prepared data.")


def main(argv):
    del argv
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from trainer.run.log import read_records
    from trainer.run.train import train_and_evaluate

    strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
    print(
        "| setting | mean % | lowest fold | highest fold | seconds a run |\n|---|---|---|---|---|"
    )
    for name, changes in _SETTINGS.items():
        if _ONLY.value and name not in _ONLY.value:
            continue
        accuracies, started = [], time.monotonic()
        for train_split, eval_split in _FOLDS:
            for seed in range(_SEEDS.value):
                config = config_lib.override(
                    config_lib.load(_CONFIG),
                    (
                        *changes,
                        f"seed={seed}",
                        f"data.train_split={train_split}",
                        f"data.eval_split={eval_split}",
                        "eval_every_epochs=1000",
                        "checkpoint_every_s=1e9",
                    ),
                )
                with tempfile.TemporaryDirectory() as workdir:
                    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
                    try:
                        folder = RunFolder(workdir, config)
                        train_and_evaluate(config, strategy, folder, _DATA_DIR.value)
                    finally:
                        sys.stdout = stdout
                    last = read_records(folder.metrics, "eval")[-1]
                accuracies.append(100 * last.get("ema_top1_accuracy", last["top1_accuracy"]))
        seconds = (time.monotonic() - started) / len(accuracies)
        print(
            f"| {name} | {statistics.mean(accuracies):.2f} | {min(accuracies):.2f} | "
            f"{max(accuracies):.2f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
