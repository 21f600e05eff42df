"""What is computed: frozen dataclasses, with the range of each field and the rules between them."""

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from trainer.config.text import describe, matches, suggest
from trainer.errors import UserError
from trainer.registry import MODELS, SOURCES, missing_module

# How many a checkpoint has room for: its shapes must not depend on the config.
MAX_ROLLBACKS = 16


def _bookkeeping(default: Any) -> Any:
    """A field that says how a run is watched and kept, and does not change what it computes."""
    return dataclasses.field(default=default, metadata={"changes_results": False})


class _Section:
    """A part of the config: checks the type, then the range of each of its fields."""

    PATH: ClassVar[str] = ""

    def __post_init__(self) -> None:
        annotations = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            name, annotation = field.name, annotations[field.name]
            value = getattr(self, name)
            if annotation is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, name, value)  # 1 and 1.0 are one value, with one hash
            if not matches(value, annotation):
                raise UserError(f"{self.PATH}{name}: must be {describe(annotation)}, not {value!r}")
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Raises UserError for a field outside its range."""

    def _require(self, condition: bool, field: str, rule: str) -> None:
        if not condition:
            raise UserError(f"{self.PATH}{field}: must be {rule}, not {getattr(self, field)!r}")

    def _require_name(self, field: str, known: Iterable[str], what: str) -> None:
        value = getattr(self, field)
        known = sorted(known)
        if value in known:
            return
        if "." not in value:
            raise UserError(
                f"{self.PATH}{field}: unknown {what} {value!r}; {suggest(value, known)}"
            )
        missing = missing_module(value)
        if missing is not None:
            raise UserError(
                f"{self.PATH}{field}: unknown {what} {value!r}: a name with a dot is a Python "
                f"module, and there is no module {missing} in this folder or on Python's path"
            )


def _ascend(epochs: tuple[float, ...]) -> bool:
    return list(epochs) == sorted(set(epochs)) and all(epoch > 0 for epoch in epochs)


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Section):
    """Which network, and what it starts from.

    `zero_init_residual`: the last batch norm scale of each block starts at 0, so that a block
    starts as the identity (Goyal et al. 2017, section 5.1). `blur_pool`: the stem's max pool and
    the blocks' convolutions shrink the image by a blur (Zhang 2019). `stochastic_depth`: the
    probability that training leaves the last block's residual out, falling to 0 towards the first
    (Huang et al. 2016). `dropout`: of what the classifier reads; in wide residual networks, between
    a block's convolutions. Families that lack one of these three refuse it.

    `weights`: a file of a model's weights, `.safetensors` or `.pth`, of timm, torchvision or
    `trainer.export`; or a run's folder, or one of its checkpoints. The head starts anew where the
    classes differ. `freeze`: the last of the stages that are not trained, as `stage2`; `stem` for
    the stem alone. `batch_norm_inference`: batch norm normalises by its moving statistics in
    training too, and leaves them as they are.
    """

    PATH: ClassVar[str] = "model."
    name: str = "resnet20"
    num_classes: int | None = 10  # none: as many as the data have
    zero_init_residual: bool = True
    blur_pool: bool = False
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    weights: str | None = None
    freeze: str | None = None
    batch_norm_inference: bool = False
    sync_batch_norm: bool = True
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5

    def _check_ranges(self) -> None:
        self._require_name("name", MODELS, "model")
        self._require(
            self.num_classes is None or self.num_classes >= 2, "num_classes", "at least 2"
        )
        self._require(self.weights != "", "weights", "a path, or none")
        self._require(0 <= self.stochastic_depth < 1, "stochastic_depth", "in [0, 1)")
        self._require(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        self._require(0 <= self.batch_norm_momentum < 1, "batch_norm_momentum", "in [0, 1)")
        self._require(self.batch_norm_epsilon > 0, "batch_norm_epsilon", "above 0")


@dataclasses.dataclass(frozen=True)
class DataConfig(_Section):
    """Which images, and how they reach the model.

    `path` is what the source needs beside its name: for `tfds`, the TFDS name; for `folder`,
    `tfrecord` and `arrays`, where they lie, below `--data_dir` or from the root. `channels`: what
    encoded images of these three are decoded to. `eval_fraction`: `folder` holds this share of the
    images out for evaluation, by a hash of their paths, and has no folders of splits.
    `image_field`, `label_field` and the number of the first class, `first_label`, are those of
    `tfrecord`.

    `shuffle`: `full`, or `blocks` of `shuffle_block_size` neighbours, for storage that reads far
    slower at random. `repeats`: every epoch has each image so often, close together, differently
    augmented (Hoffer et al. 2020).

    `mean` and `std` are per channel, in units of a pixel value divided by 255. `crop`: `pad` pads
    by `pad` pixels and crops back at random; `random_resized` is the Inception crop (Szegedy et al.
    2015), for sources of encoded images; in evaluation, encoded images are resized so that the
    central crop covers `eval_crop_ratio` of the shorter side. `antialias`: random crops of JPEGs
    are filtered where they shrink, as in evaluation and by Pillow, at some 1 ms an image and core.
    `train_sizes` are image sizes to begin with, each until the epoch of `train_size_epochs`; then
    comes `image_size`.

    `on_bad_example`: what follows an image that cannot be read, or a label outside the classes:
    `fail` ends the run and names it; `skip` puts another example in its place, the same one on each
    pass.
    """

    PATH: ClassVar[str] = "data."
    name: str = "digits"
    path: str | None = None
    train_split: str = "train"
    eval_split: str = "test"
    eval_fraction: float | None = None
    channels: int = 3
    image_field: str = "image/encoded"
    label_field: str = "image/class/label"
    first_label: int = 0
    shuffle: Literal["full", "blocks"] = "full"
    shuffle_block_size: int = 1024
    repeats: int = 1
    image_size: int = 8
    train_sizes: tuple[int, ...] = ()
    train_size_epochs: tuple[float, ...] = ()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    crop: Literal["none", "pad", "random_resized"] = "none"
    pad: int = 0
    flip: bool = False
    eval_crop_ratio: float = 0.875
    antialias: bool = False
    global_batch_size: int = 128
    eval_batch_size: int = _bookkeeping(256)
    on_bad_example: Literal["fail", "skip"] = _bookkeeping("fail")

    def _check_ranges(self) -> None:
        self._require_name("name", SOURCES, "data set")
        self._require(
            self.eval_fraction is None or 0 < self.eval_fraction < 1, "eval_fraction", "in (0, 1)"
        )
        self._require(self.channels in (1, 3), "channels", "1 or 3")
        self._require(self.first_label >= 0, "first_label", "at least 0")
        self._require(self.shuffle_block_size >= 1, "shuffle_block_size", "at least 1")
        self._require(self.repeats >= 1, "repeats", "at least 1")
        self._require(self.image_size >= 1, "image_size", "at least 1")
        self._require(all(size >= 1 for size in self.train_sizes), "train_sizes", "at least 1 each")
        self._require(
            _ascend(self.train_size_epochs), "train_size_epochs", "above 0 and increasing"
        )
        self._require(all(0 <= m <= 1 for m in self.mean), "mean", "in [0, 1]")
        self._require(all(s > 0 for s in self.std) and bool(self.std), "std", "above 0")
        self._require(self.pad >= 0, "pad", "at least 0")
        self._require(0 < self.eval_crop_ratio <= 1, "eval_crop_ratio", "in (0, 1]")
        self._require(self.global_batch_size >= 1, "global_batch_size", "at least 1")
        self._require(self.eval_batch_size >= 1, "eval_batch_size", "at least 1")


@dataclasses.dataclass(frozen=True)
class AugmentConfig(_Section):
    """What training does to images beside crop and flip, in this order.

    `policy`: `randaugment` applies `num_layers` of 14 operations at `magnitude` of 30 (Cubuk et al.
    2020); `trivialaugment` one operation at a random strength, of the wide ranges (Müller & Hutter
    2021). `color_jitter`: brightness, contrast and saturation are multiplied by factors in
    `1 ± color_jitter`. `erasing`: the probability of an erased rectangle (Zhong et al. 2020).
    `mixup` and `cutmix`: the `α` of their Beta distribution, 0 for none (Zhang et al. 2018, Yun et
    al. 2019); with both, each pair of images gets one of them.
    """

    PATH: ClassVar[str] = "augment."
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    num_layers: int = 2
    magnitude: float = 9.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether an image has more than one class."""
        return self.mixup > 0 or self.cutmix > 0

    def _check_ranges(self) -> None:
        self._require(1 <= self.num_layers <= 14, "num_layers", "in 1 to 14")
        self._require(0 <= self.magnitude <= 30, "magnitude", "in [0, 30]")
        self._require(0 <= self.color_jitter <= 1, "color_jitter", "in [0, 1]")
        self._require(0 <= self.erasing <= 1, "erasing", "in [0, 1]")
        self._require(self.mixup >= 0, "mixup", "at least 0")
        self._require(self.cutmix >= 0, "cutmix", "at least 0")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Section):
    """The update rule and the schedule of its learning rate, in epochs.

    `weight_decay` never touches batch norm and biases. For `sgd`, `decoupled_weight_decay`
    chooses between SGDW (Loshchilov & Hutter 2019) and L2 in the gradient; `adamw` is decoupled.
    `stage_rates` multiply the learning rate of each stage of the model, from its stem to its head,
    for fine-tuning: `python -m trainer.inspect` lists the stages.
    """

    PATH: ClassVar[str] = "optimizer."
    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    clip_norm: float | None = None
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    milestone_factor: float = 0.1
    stage_rates: tuple[float, ...] = ()

    def _check_ranges(self) -> None:
        self._require(self.learning_rate > 0, "learning_rate", "above 0")
        self._require(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        self._require(0 <= self.beta2 < 1, "beta2", "in [0, 1)")
        self._require(self.epsilon > 0, "epsilon", "above 0")
        self._require(self.weight_decay >= 0, "weight_decay", "at least 0")
        self._require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "above 0")
        self._require(self.warmup_epochs >= 0, "warmup_epochs", "at least 0")
        self._require(_ascend(self.milestones), "milestones", "above 0 and increasing")
        self._require(self.milestone_factor > 0, "milestone_factor", "above 0")
        self._require(all(rate > 0 for rate in self.stage_rates), "stage_rates", "above 0 each")


@dataclasses.dataclass(frozen=True)
class Config(_Section):
    """Everything that a run computes. The defaults are those of no recipe: see configs/.

    `on_divergence`: what follows a loss or gradient that is not finite: `stop` ends the run with
    exit code 43; `rollback` goes back to the last checkpoint, leaves that step's batch out, and
    multiplies the learning rate by `rollback_factor` from there on, `max_rollbacks` times at most.
    A run that has stopped can go on with `rollback`: what it computed so far is the same.
    """

    seed: int = 0
    num_epochs: float = 1.0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    xla: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False
    accumulation_steps: int = 1
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    initial_loss_scale: float = 2.0**15
    steps_per_loop: int | Literal["auto"] = _bookkeeping("auto")
    eval_every_epochs: float = _bookkeeping(1.0)
    on_divergence: Literal["stop", "rollback"] = _bookkeeping("stop")
    rollback_factor: float = _bookkeeping(0.5)
    max_rollbacks: int = _bookkeeping(3)
    checkpoint_every_s: float = _bookkeeping(60.0)
    keep_checkpoints: int = _bookkeeping(3)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def _check_ranges(self) -> None:
        self._require(0 <= self.seed < 2**31, "seed", "in [0, 2**31)")
        self._require(self.num_epochs > 0, "num_epochs", "above 0")
        self._require(self.accumulation_steps >= 1, "accumulation_steps", "at least 1")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)")
        self._require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "in (0, 1)")
        self._require(self.initial_loss_scale >= 1, "initial_loss_scale", "at least 1")
        self._require(
            self.steps_per_loop == "auto" or self.steps_per_loop >= 1, "steps_per_loop", ">= 1"
        )
        self._require(self.eval_every_epochs > 0, "eval_every_epochs", "above 0")
        self._require(0 < self.rollback_factor <= 1, "rollback_factor", "in (0, 1]")
        self._require(
            1 <= self.max_rollbacks <= MAX_ROLLBACKS, "max_rollbacks", f"in 1 to {MAX_ROLLBACKS}"
        )
        self._require(self.checkpoint_every_s >= 0, "checkpoint_every_s", "at least 0")
        self._require(self.keep_checkpoints >= 1, "keep_checkpoints", "at least 1")

    def validate(self) -> None:
        """Checks the rules between fields; called when all overrides are in.

        Raises:
            UserError: naming the fields that contradict each other.
        """
        data, optimizer = self.data, self.optimizer
        if data.global_batch_size % self.accumulation_steps:
            raise UserError(
                f"data.global_batch_size ({data.global_batch_size}) must be divisible by "
                f"accumulation_steps ({self.accumulation_steps})"
            )
        if len(data.mean) != len(data.std):
            raise UserError(
                f"data.mean {data.mean} and data.std {data.std} must have one value a channel, or "
                f"one for all"
            )
        if (data.crop == "pad") != (data.pad > 0):
            raise UserError(
                f"data.pad ({data.pad}) must be above 0 exactly when data.crop is 'pad' "
                f"(it is {data.crop!r})"
            )
        if data.name == "tfds" and not data.path:
            raise UserError("data.path: must name a TFDS data set when data.name is 'tfds'")
        if data.eval_fraction is not None and data.name != "folder":
            raise UserError(
                f"data.eval_fraction ({data.eval_fraction}) is for data.name 'folder', not "
                f"{data.name!r}"
            )
        if data.eval_fraction is not None and data.train_split == data.eval_split:
            raise UserError(
                f"data.eval_split ({data.eval_split!r}) must differ from data.train_split, also "
                f"where data.eval_fraction ({data.eval_fraction}) divides one folder"
            )
        if len(data.train_sizes) != len(data.train_size_epochs):
            raise UserError(
                f"data.train_sizes {data.train_sizes} and data.train_size_epochs "
                f"{data.train_size_epochs} must have one value each for every size before "
                f"data.image_size"
            )
        if data.train_size_epochs and data.train_size_epochs[-1] >= self.num_epochs:
            raise UserError(
                f"data.train_size_epochs {data.train_size_epochs} must end before num_epochs "
                f"({self.num_epochs}): the last epochs are those of data.image_size"
            )
        if optimizer.warmup_epochs > self.num_epochs:
            raise UserError(
                f"optimizer.warmup_epochs ({optimizer.warmup_epochs}) must not exceed "
                f"num_epochs ({self.num_epochs})"
            )
        if (optimizer.schedule == "step") != bool(optimizer.milestones):
            raise UserError(
                f"optimizer.milestones {optimizer.milestones} must be given exactly when "
                f"optimizer.schedule is 'step' (it is {optimizer.schedule!r})"
            )
