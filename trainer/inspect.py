"""`python -m trainer.inspect`: a model's stages and blocks, what each costs, and what each sees.

python -m trainer.inspect --model=resnet50 --image_size=224
python -m trainer.inspect --diff resnet50 resnet50d
python -m trainer.inspect --model=resnet50 --image=photo.jpg --set model.weights=resnet50.pth
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from trainer import cli, config_flags
from trainer import config as config_lib
from trainer.config import Config
from trainer.config_flags import CONFIG, SET
from trainer.errors import EXIT_DONE, UserError

# The statistics of ImageNet's pixels that most published weights were trained with.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_MODEL = flags.DEFINE_string("model", "", "Which; else that of --config.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels, each way [the config's; 224 without one].", lower_bound=1
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Classes [the config's; 1000 without one].", lower_bound=2
)
_CHANNELS = flags.DEFINE_enum("channels", "3", ["1", "3"], "Of the images.")
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "md", "json"], "What is printed.")
_MEMORY_GIB = flags.DEFINE_float(
    "memory_gib", 16.0, "How large a batch fits in this for training, in GiB.", lower_bound=0.001
)
_DIFF = flags.DEFINE_list("diff", [], "Two models to compare: --diff A B.")
_IMAGE = flags.DEFINE_string("image", "", "An image file: what its stages make of it.")
_PICTURE = flags.DEFINE_string(
    "picture", "feature_maps.png", "The file for their feature maps, for --image."
)
flags.adopt_module_key_flags(config_flags)  # so that --help lists them


def inspect() -> int:
    """Prints what the flags ask for and returns the exit code."""
    names = _DIFF.value or [_MODEL.value]
    if _DIFF.value and (len(names) != 2 or _MODEL.value or _IMAGE.value):
        raise UserError(
            f"--diff={','.join(names)}: must be two models, as --diff resnet50 resnet50d, without "
            f"--model and --image"
        )
    if not any(names) and not flags.FLAGS["config"].present:
        raise UserError("--model: must name a model, as --model=resnet50; or give --config")
    configs = [_config(name) for name in names]
    if _IMAGE.value:
        _check_files()
    cli.quiet_libraries()
    from trainer import report

    if _IMAGE.value:
        _print_activations(configs[0])
        return EXIT_DONE
    reports = [report.make_report(config, int(_CHANNELS.value)) for config in configs]
    memory = int(_MEMORY_GIB.value * 2**30)
    if len(reports) == 2:
        print(report.render_difference(reports[0], reports[1], _FORMAT.value), end="")
    else:
        print(report.render(reports[0], memory, _FORMAT.value), end="")
    return EXIT_DONE


def _config(name: str) -> Config:
    """The config that the flags say, of this model where one is named."""
    if flags.FLAGS["config"].present:
        config = config_lib.load(CONFIG.value)
    else:
        data = dataclasses.replace(
            Config().data, image_size=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD
        )
        model = dataclasses.replace(Config().model, num_classes=1000)
        config = dataclasses.replace(Config(), data=data, model=model)
    settings = [*SET.value]
    for path, value in (
        ("model.name", name or None),
        ("model.num_classes", _NUM_CLASSES.value),
        ("data.image_size", _IMAGE_SIZE.value),
    ):
        if value is not None:
            settings.append(f"{path}={value}")
    config = config_lib.override(config, settings)
    channels = int(_CHANNELS.value)
    if channels == 1 and len(config.data.mean) == 3:  # of grey, whose three channels are one
        mean, std = ((sum(values) / 3,) for values in (config.data.mean, config.data.std))
        data = dataclasses.replace(config.data, mean=mean, std=std)
        config = dataclasses.replace(config, data=data)
    return config


def _check_files() -> None:
    out = Path(_PICTURE.value).expanduser()
    if out.suffix != ".png":
        raise UserError(f"--picture={out}: must end in .png")
    if not out.parent.is_dir():
        raise UserError(f"--picture={out}: the folder {out.parent} is not there; make it first")
    if not Path(_IMAGE.value).expanduser().is_file():
        raise UserError(f"--image={_IMAGE.value}: is not a file")


def _print_activations(config: Config) -> None:
    """Statistics of the stages' outputs, and a picture of them."""
    import tensorflow as tf

    from trainer import report
    from trainer.data.images import decode_eval
    from trainer.feature_maps import activations, grid
    from trainer.models.build import build_model
    from trainer.steps import normalize
    from trainer.weights import load_weights

    channels = int(_CHANNELS.value)
    try:
        encoded = Path(_IMAGE.value).expanduser().read_bytes()
        image = decode_eval(tf.constant(encoded), config, channels)
    except OSError as error:
        raise UserError(f"--image={_IMAGE.value}: cannot be read ({error.strerror})") from None
    except tf.errors.OpError as error:
        raise UserError(f"--image={_IMAGE.value}: is no image ({error.message})") from None
    model = build_model(config, channels)
    if config.model.weights is None:
        _note("weights are random: trained ones are shown with --set model.weights=PATH")
    else:
        _note(load_weights(config, model))
    found = activations(model, normalize(image, config))
    print(report.render_activations(config, found, _FORMAT.value), end="")
    out = Path(_PICTURE.value).expanduser()
    picture = grid(found)
    try:
        out.write_bytes(tf.io.encode_png(picture[:, :, None]).numpy())
    except OSError as error:
        raise UserError(f"--picture={out}: cannot be written ({error.strerror})") from None
    maps = [one.stage for one in found if one.values.ndim == 3]
    _note(f"{out}: a row of feature maps each for {', '.join(maps)}")


def _note(text: str) -> None:
    """Beside what is printed, which may be JSON for a program."""
    print(text, file=sys.stderr)


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--diff A B` as `--diff=A,B`: absl's flags take one word."""
    rest: list[Any] = list(arguments)
    if "--diff" in rest:
        place = rest.index("--diff")
        rest[place : place + 3] = [f"--diff={','.join(rest[place + 1 : place + 3])}"]
    return rest


if __name__ == "__main__":
    cli.run(inspect, _joined(sys.argv))
