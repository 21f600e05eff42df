"""`python -m trainer.inspect`: shows a model's stages and blocks, and what each costs and sees.

    python -m trainer.inspect --model=resnet50 --image_size=224
    python -m trainer.inspect --diff resnet50 resnet50d
    python -m trainer.inspect --model=resnet50 --image=photo.jpg --set model.weights=resnet50.pth

`--diff` compares two models; `--image` shows each stage's output for an image. If `model.weights`
is a run or its export, what the command does not give is as the run was trained.
"""

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from absl import flags

from trainer.cli import command
from trainer.cli.flags import ConfigFlags
from trainer.cli.quiet import quiet_start
from trainer.config import Config, DataConfig, ModelConfig, with_num_classes
from trainer.config.text import spell
from trainer.errors import EXIT_DONE, UserError
from trainer.models.weights import tensor_file
from trainer.models.weights.early import EXPECTED, check_weights, path_of
from trainer.models.weights.trained import Trained, checkpoint_places, find_trained

# The statistics of ImageNet's pixels that most published weights were trained with.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What a run decides and the command may not give.
_OF_A_RUN = (
    *("model.name", "model.num_classes", "data.image_size", "data.eval_crop_ratio"),
    *("data.mean", "data.std"),
)

FLAGS = flags.FlagValues()
_CONFIG = ConfigFlags(FLAGS)
_MODEL = flags.DEFINE_string(
    "model", "", "The model's name. Default: that of --config.", flag_values=FLAGS
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Image height and width in pixels. Default: those of --config, or 224.",
    lower_bound=1,
    flag_values=FLAGS,
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "Number of classes. Default: that of --config, or 1000.",
    lower_bound=2,
    flag_values=FLAGS,
)
_CHANNELS = flags.DEFINE_enum(
    "channels",
    None,
    ["1", "3"],
    "Image channels. Default: those of --config's data set, or 3.",
    flag_values=FLAGS,
)
_FORMAT = flags.DEFINE_enum(
    "format", "table", ["table", "md", "json"], "Output format.", flag_values=FLAGS
)
_MEMORY_GIB = flags.DEFINE_float(
    "memory_gib",
    16.0,
    "Memory in GiB, for which the largest batch in training is estimated.",
    lower_bound=0.001,
    flag_values=FLAGS,
)
_DIFF = flags.DEFINE_list("diff", [], "Two models to compare: --diff A B.", flag_values=FLAGS)
_IMAGE = flags.DEFINE_string(
    "image", "", "An image file, to show each stage's output for it.", flag_values=FLAGS
)
_PICTURE = flags.DEFINE_string(
    "picture",
    "feature_maps.png",
    "The file to write the feature maps of --image to.",
    flag_values=FLAGS,
)


def inspect() -> int:
    """Prints what the flags ask for, and returns the exit code."""
    if _DIFF.present:
        names = _DIFF.value
        if len(names) != 2 or not all(names) or _MODEL.value or _IMAGE.value:
            raise UserError(
                f"--diff {' '.join(names)}: must be two models, such as --diff resnet50 resnet50d, "
                f"without --model and --image"
            )
    else:
        names = [_MODEL.value]
    trained = None if _DIFF.present else _trained()
    configs = [_config(name, trained) for name in names]
    if not any(names) and not _CONFIG.path.present and trained is None:
        raise UserError("--model: must name a model, such as --model=resnet50; or give --config")
    if not math.isfinite(_MEMORY_GIB.value):
        raise UserError(f"--memory_gib={_MEMORY_GIB.value}: must be a finite number")
    if _PICTURE.present and not _IMAGE.value:
        raise UserError(f"--picture={_PICTURE.value}: needs --image")
    image, picture = _files() if _IMAGE.value else (None, None)
    with quiet_start():
        from trainer.insight import tables

    if image and picture:
        _print_activations(configs[0], trained, image, picture)
        return EXIT_DONE
    reports = [tables.make_report(config, _channels(config, trained)) for config in configs]
    memory = int(_MEMORY_GIB.value * 2**30)
    if len(reports) == 2:
        print(tables.render_difference(*reports, memory, _FORMAT.value), end="")
    else:
        print(tables.render(reports[0], memory, _FORMAT.value), end="")
    return EXIT_DONE


def _trained() -> Trained | None:
    """Returns what the weights that `--set` names were trained with; None if there are none, or
    another library's."""
    weights = _CONFIG.setting("model.weights")
    if not weights or weights.lower() == "none":
        return None
    path = path_of(weights)
    found = find_trained(path)
    if found is None and path.suffix.lower() not in tensor_file.SUFFIXES:
        try:
            checkpoint_places(path, EXPECTED)
            with quiet_start():
                from trainer.models.weights.saved import read_trained

            found = read_trained(path)
        except UserError as error:
            raise UserError(f"model.weights: {error}") from None
    return found


def _config(name: str, trained: Trained | None) -> Config:
    """Returns the config that the flags describe, with this model unless the name is empty.

    What they do not describe is as in `--config`, or else as the weights were trained.
    """
    default = Config(
        model=ModelConfig(num_classes=1000),
        data=DataConfig(image_size=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    )
    run = None if _CONFIG.path.present else trained
    if run is not None:
        default = run.config
        if name not in ("", default.model.name):
            raise UserError(
                f"--model={name}: model.weights are of a run of {default.model.name} "
                f"({run.origin}); leave --model out"
            )
    given = {
        "model.name": name or None,
        "model.num_classes": _NUM_CLASSES.value,
        "data.image_size": _IMAGE_SIZE.value,
    }
    settings = [f"{path}={value}" for path, value in given.items() if value is not None]
    config = _CONFIG.resolve(settings, default)
    if trained is not None:
        config = with_num_classes(config, trained.class_names)
    if config.model.num_classes is None:
        raise UserError("model.num_classes is none, and there are no data: give --num_classes")
    check_weights(config)
    if run is not None:
        _check_classes(config, run)
        _note(_as_trained(config, run))
    if _CHANNELS.value == "1" and len(config.data.mean) == 3:  # a grey image's are all alike
        mean, std = ((sum(values) / 3,) for values in (config.data.mean, config.data.std))
        data = dataclasses.replace(config.data, mean=mean, std=std)
        config = dataclasses.replace(config, data=data)
    return config


def _check_classes(config: Config, trained: Trained) -> None:
    count = len(trained.class_names)
    if config.model.num_classes != count:
        raise UserError(
            f"model.num_classes ({config.model.num_classes}): model.weights are of a run with "
            f"{count} classes ({trained.origin}); leave the number out"
        )


def _as_trained(config: Config, trained: Trained) -> str:
    """Returns a line about the fields that are the run's."""
    values = ((field, attrgetter(field)) for field in _OF_A_RUN)
    shown = [
        f"{field}={spell(value(config))}"
        for field, value in values
        if value(config) == value(trained.config)
    ]
    return f"as {trained.origin} was trained: {', '.join(shown)}"


def _channels(config: Config, trained: Trained | None) -> int:
    """Returns the number of image channels that the model is built for."""
    if _CHANNELS.value is not None:
        return int(_CHANNELS.value)
    if _CONFIG.path.present:
        from trainer.data.source import channels_of

        return channels_of(config)
    return 3 if trained is None else trained.channels


def _files() -> tuple[Path, Path]:
    """Returns the paths of the image and of the picture, checked."""
    image = Path(os.path.expanduser(_IMAGE.value))
    picture = Path(os.path.expanduser(_PICTURE.value))
    if picture.suffix != ".png":
        raise UserError(f"--picture={picture}: must end in .png")
    try:
        if not picture.parent.is_dir():
            raise UserError(f"--picture={picture}: the folder {picture.parent} does not exist")
        if picture.is_dir():
            raise UserError(f"--picture={picture}: is a folder; name a file")
        if not image.is_file():
            raise UserError(f"--image={image}: is not a file")
    except OSError as error:
        raise UserError(f"--image={image}, --picture={picture}: {error.strerror}") from None
    return image, picture


def _print_activations(config: Config, trained: Trained | None, image: Path, picture: Path) -> None:
    """Prints statistics of the stages' outputs, and writes a picture of them."""
    from trainer.insight import feature_maps, tables

    channels, count = _channels(config, trained), config.model.num_classes or 0
    names = trained.class_names if trained else ()
    if len(names) != count:
        names = tuple(map(str, range(count)))  # no data are opened, which would name the classes
    found, report = feature_maps.activations_of_file(config, channels, names, image)
    _note(report)
    print(tables.render_activations(config, found, _FORMAT.value), end="")
    _note(feature_maps.write_picture(found, picture))


def _note(text: str) -> None:
    """Prints to stderr: stdout may be JSON for a program."""
    print(text, file=sys.stderr)


def _joined(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `--diff A B` as `--diff=A,B`: absl's flags take one word."""
    words = list(arguments)
    if "--diff" in words:
        place = words.index("--diff")
        rest = itertools.takewhile(lambda word: not word.startswith("-"), words[place + 1 :])
        names = list(rest)
        words[place : place + 1 + len(names)] = [f"--diff={','.join(names)}"]
    return words


def main() -> None:
    """Runs the verb and exits."""
    command.run("trainer.inspect", inspect, FLAGS, _joined(sys.argv))


if __name__ == "__main__":
    main()
