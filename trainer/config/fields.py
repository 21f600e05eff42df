"""What a run computes: every setting, with its default, its meaning and the values it takes.

`python -m trainer.main --help_config` prints all of this file.
"""

import dataclasses
from typing import ClassVar, Literal

from trainer.config.rules import (
    Name,
    NotEmpty,
    Section,
    above,
    among,
    at_least,
    each,
    increasing,
    setting,
    within,
)
from trainer.errors import UserError
from trainer.registry import MODELS, SOURCES

# The rollbacks that a checkpoint has room for: its shapes must not depend on the config.
MAX_ROLLBACKS = 16

_OWN_MODULE = "or a module of your own, such as"


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The network, and the weights that it starts from."""

    PATH: ClassVar[str] = "model."
    name: str = setting(
        "resnet20",
        "The network.",
        Name(MODELS, "model", f"a name in docs/models.md, {_OWN_MODULE} my_models.tinynet"),
    )
    num_classes: int | None = setting(
        10, "The number of classes; none: as many as the data have.", at_least(2)
    )
    zero_init_residual: bool = setting(
        True,
        "The last batch norm scale of each residual block starts at 0, so that a block starts as "
        "the identity (Goyal et al. 2017, section 5.1).",
    )
    blur_pool: bool = setting(
        False,
        "The stem's max pool and the blocks' strided convolutions blur before they subsample "
        "(Zhang 2019). Refused by families that don't have it.",
    )
    stochastic_depth: float = setting(
        0.0,
        "Probability that training drops the last block's residual; it falls linearly to 0 "
        "towards the first block (Huang et al. 2016). Refused by families that don't have it.",
        within(0, 1, "[)"),
    )
    dropout: float = setting(
        0.0,
        "Share of the classifier's inputs that training drops; in wide residual networks, of the "
        "activations between a block's convolutions. Refused by families that don't have it.",
        within(0, 1, "[)"),
    )
    weights: str | None = setting(
        None,
        "Initial weights: a .safetensors or .pth file of timm, torchvision or trainer.export, a "
        "run's folder, or a checkpoint. The head's rows go to the classes of the same names, and "
        "other classes start from scratch. none: random, by the seed.",
        NotEmpty(),
    )
    freeze: str | None = setting(
        None,
        "The last stage that is not trained, such as stem or stage2, with all before it. "
        "trainer.inspect lists the stages.",
    )
    batch_norm_inference: bool = setting(
        False,
        "Batch norm normalises by its moving statistics in training too, and does not update them.",
    )
    sync_batch_norm: bool = setting(
        True,
        "Batch norm's statistics are those of the global batch, not of each replica's part. Costs "
        "two all-reduces per layer and step.",
    )
    batch_norm_momentum: float = setting(
        0.9,
        "Share of the moving statistics that one step keeps (Ioffe & Szegedy 2015).",
        within(0, 1, "[)"),
    )
    batch_norm_epsilon: float = setting(
        1e-5, "Added to the variance before its square root.", above(0)
    )


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """The images, and how they reach the model."""

    PATH: ClassVar[str] = "data."
    name: str = setting(
        "digits",
        "The data set, or the format of your own: folder, tfrecord, arrays (.npz), or tfds for any "
        "TFDS data set of labelled images.",
        Name(SOURCES, "data set", f"{', '.join(sorted(SOURCES))}, {_OWN_MODULE} my_data.reader"),
    )
    path: str | None = setting(
        None,
        "For tfds, the TFDS name. For folder, tfrecord and arrays, the place of the data: a path "
        "below --data_dir, or an absolute one; none: --data_dir itself.",
    )
    train_split: str = setting(
        "train", "The split to train on; TFDS data sets take slices, such as train[:90%]."
    )
    eval_split: str | None = setting(
        "test",
        "The split to evaluate on; none: no evaluation, and the best checkpoint is the last.",
        NotEmpty("a split, or none"),
    )
    eval_fraction: float | None = setting(
        None,
        "For folder, if splits have no folders: the share of each class's images to hold out for "
        "evaluation, chosen by a hash of their paths.",
        within(0, 1, "()"),
    )
    channels: int = setting(
        3,
        "For folder and tfrecord: the channels to decode images to. For synthetic: the images' "
        "channels. For arrays and your own module, which know theirs: the channels that preflight "
        "and inspect assume, since they read no data.",
        among((1, 3), "1 or 3"),
    )
    image_field: str = setting("image/encoded", "For tfrecord: the field of the encoded image.")
    label_field: str = setting("image/class/label", "For tfrecord: the field of the label.")
    first_label: int = setting(0, "For tfrecord: the label of the first class.", at_least(0))
    shuffle: Literal["full", "blocks"] = setting(
        "full",
        "The order of an epoch: any permutation of the images, or a permutation of blocks of "
        "neighbours and within each block, for storage that is slow at random reads.",
    )
    shuffle_block_size: int = setting(1024, "Images in a block.", at_least(1))
    repeats: int = setting(
        1,
        "How often each image occurs in an epoch, close together and augmented differently (Hoffer "
        "et al. 2020).",
        at_least(1),
    )
    image_size: int = setting(
        8, "Height and width of the model's input, and in evaluation, in pixels.", at_least(1)
    )
    train_sizes: tuple[int, ...] = setting(
        (), "Image sizes to train at before image_size, in pixels.", each(at_least(1))
    )
    train_size_epochs: tuple[float, ...] = setting(
        (), "The epoch at which each of train_sizes ends.", increasing(above(0))
    )
    mean: tuple[float, ...] = setting(
        (0.5,),
        "Subtracted from pixels / 255: a value for each channel, or one for all.",
        each(within(0, 1)),
    )
    std: tuple[float, ...] = setting(
        (0.5,),
        "Divides pixels / 255 after mean is subtracted; as many values as mean.",
        each(above(0), at_least_one=True),
    )
    crop: Literal["none", "pad", "random_resized"] = setting(
        "none",
        "Cropping in training. pad: pad with black and crop back at random, for images of one "
        "size; random_resized: the Inception crop (Szegedy et al. 2015), for encoded images of any "
        "size.",
    )
    pad: int = setting(0, "Pixels on each side, for crop=pad.", at_least(0))
    flip: bool = setting(False, "Mirror half of the training images left to right.")
    eval_crop_ratio: float = setting(
        0.875,
        "In evaluation, encoded images are resized so that the central crop covers this share of "
        "the shorter side.",
        within(0, 1, "(]"),
    )
    antialias: bool = setting(
        False,
        "Antialias random crops of JPEGs that are scaled down, as evaluation and Pillow do; takes "
        "about 1 ms per image and core.",
    )
    global_batch_size: int = setting(
        128, "Images in a step, over all replicas and micro-batches.", at_least(1)
    )
    eval_batch_size: int = setting(
        256,
        "Images in a step of evaluation, over all replicas.",
        at_least(1),
        changes_results=False,
    )
    on_bad_example: Literal["fail", "skip"] = setting(
        "fail",
        "Action on an image that cannot be read, or a label outside the classes. fail: the run "
        "ends and names it; skip: another image takes its place, the same one in every epoch.",
        changes_results=False,
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Section):
    """Augmentation in training, after crop and flip, in this order."""

    PATH: ClassVar[str] = "augment."
    policy: Literal["none", "randaugment", "trivialaugment"] = setting(
        "none",
        "randaugment: num_layers of 14 operations at one magnitude (Cubuk et al. 2020); "
        "trivialaugment: one operation at a random strength of the wide ranges (Müller & Hutter "
        "2021).",
    )
    num_layers: int = setting(
        2, "Operations per image, for randaugment.", within(1, 14, text="in 1 to 14")
    )
    magnitude: float = setting(9.0, "Strength of the operations, for randaugment.", within(0, 30))
    color_jitter: float = setting(
        0.0,
        "Brightness, contrast and saturation are multiplied by random factors in 1 ± this.",
        within(0, 1),
    )
    erasing: float = setting(
        0.0, "Probability that a rectangle is erased (Zhong et al. 2020).", within(0, 1)
    )
    mixup: float = setting(
        0.0,
        "The α of mixup's Beta distribution; 0: no mixup (Zhang et al. 2018). With cutmix, each "
        "pair of images gets one of the two.",
        at_least(0),
    )
    cutmix: float = setting(
        0.0, "The α of CutMix's Beta distribution; 0: no CutMix (Yun et al. 2019).", at_least(0)
    )

    @property
    def mixes(self) -> bool:
        """Whether an image has more than one class."""
        return self.mixup > 0 or self.cutmix > 0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """The update rule, and the learning rate as a function of the epoch."""

    PATH: ClassVar[str] = "optimizer."
    name: Literal["sgd", "adamw"] = setting(
        "sgd", "Momentum SGD, or Adam with decoupled weight decay (Loshchilov & Hutter 2019)."
    )
    learning_rate: float = setting(0.1, "The peak learning rate, after the warm-up.", above(0))
    momentum: float = setting(
        0.9, "The momentum of sgd; for adamw, β1 (Kingma & Ba 2015).", within(0, 1, "[)")
    )
    nesterov: bool = setting(True, "For sgd: Nesterov's momentum (Sutskever et al. 2013).")
    beta2: float = setting(0.999, "For adamw: β2 (Kingma & Ba 2015).", within(0, 1, "[)"))
    epsilon: float = setting(1e-8, "For adamw: added to the denominator.", above(0))
    weight_decay: float = setting(
        0.0, "λ of the weight decay; never applied to batch norm and biases.", at_least(0)
    )
    decoupled_weight_decay: bool = setting(
        False,
        "For sgd: decay weights directly, times the learning rate (SGDW, Loshchilov & Hutter "
        "2019), not through the gradient (L2). adamw always does.",
    )
    clip_norm: float | None = setting(
        None,
        "Gradients with a greater global norm are scaled down to it (Pascanu et al. 2013); none: "
        "no clipping.",
        above(0),
    )
    schedule: Literal["constant", "cosine", "step"] = setting(
        "cosine",
        "After the warm-up. cosine: falls to 0 at the end (Loshchilov & Hutter 2017); step: "
        "multiplied by milestone_factor at each of milestones.",
    )
    warmup_epochs: float = setting(
        0.0, "Epochs in which the rate rises linearly to its peak.", at_least(0)
    )
    milestones: tuple[float, ...] = setting((), "For step: epochs.", increasing(above(0)))
    milestone_factor: float = setting(0.1, "For step: the factor at each milestone.", above(0))
    stage_rates: tuple[float, ...] = setting(
        (),
        "For fine-tuning: factors of the learning rate, one for each stage of the model from stem "
        "to head. trainer.inspect lists the stages. (): 1 for all.",
        each(above(0)),
    )


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """The run as a whole. Defaults are not a recipe: recipes are in configs/."""

    seed: int = setting(
        0,
        "Decides initial weights, the order of images and every random choice.",
        within(0, 2**31, "[)", "in [0, 2**31)"),
    )
    num_epochs: float = setting(
        1.0, "Length of the training, in passes over the training split.", above(0)
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = setting(
        "float32",
        "Mixed precision computes in 16 bits and keeps weights in 32; mixed_float16 scales the "
        "loss dynamically (Micikevicius et al. 2018), and is refused on TPUs.",
    )
    xla: Literal["auto", "on", "off"] = setting(
        "auto", "Compile the train step with XLA; auto: on for GPUs, off for CPUs."
    )
    deterministic: bool = setting(
        False,
        "Use deterministic kernels: on a CPU, a run that was killed and resumed then has the same "
        "bits as one that was not.",
    )
    accumulation_steps: int = setting(
        1,
        "Micro-batches per step: the same update in less memory, except that batch norm sees one "
        "micro-batch at a time.",
        at_least(1),
    )
    label_smoothing: float = setting(
        0.0,
        "Share of the target spread evenly over all classes (Szegedy et al. 2015b, section 7).",
        within(0, 1, "[)"),
    )
    ema_decay: float | None = setting(
        None,
        "Decay of a moving average of weights and batch norm statistics, which is evaluated and "
        "exported; at the t-th step at most (1 + t) / (10 + t). none: no average.",
        within(0, 1, "()"),
    )
    initial_loss_scale: float = setting(
        2.0**15, "For mixed_float16: the loss scale at the start.", at_least(1)
    )
    steps_per_loop: int | Literal["auto"] = setting(
        "auto",
        "Steps that TensorFlow runs before it returns to Python; auto: about 2 s of them.",
        at_least(1),
        changes_results=False,
    )
    eval_every_epochs: float = setting(
        1.0, "Epochs between two evaluations.", above(0), changes_results=False
    )
    on_divergence: Literal["stop", "rollback"] = setting(
        "stop",
        "Action on a loss or gradient that is not finite. stop: the run ends with exit code 43; "
        "rollback: it goes back to the last checkpoint, leaves that step's batch out, and lowers "
        "the learning rate from there on. A stopped run can resume with rollback.",
        changes_results=False,
    )
    rollback_factor: float = setting(
        0.5,
        "The factor by which a rollback multiplies the learning rate.",
        within(0, 1, "(]"),
        changes_results=False,
    )
    max_rollbacks: int = setting(
        3,
        "Rollbacks after which a divergence ends the run.",
        within(1, MAX_ROLLBACKS, text=f"in 1 to {MAX_ROLLBACKS}"),
        changes_results=False,
    )
    checkpoint_every_s: float = setting(
        60.0, "Seconds between two checkpoints.", at_least(0), changes_results=False
    )
    keep_checkpoints: int = setting(
        3,
        "Checkpoints to keep, in addition to the best one.",
        at_least(1),
        changes_results=False,
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def validate(self) -> None:
        """Checks the rules between fields; called after all overrides.

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
                f"data.mean {data.mean} and data.std {data.std} must have one value per channel, "
                f"or one for all"
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
        if data.eval_fraction is not None and data.eval_split is None:
            raise UserError(
                f"data.eval_fraction ({data.eval_fraction}): holds images out to evaluate on, but "
                f"data.eval_split is none: leave one of them out"
            )
        if data.eval_fraction is not None and data.train_split == data.eval_split:
            raise UserError(
                f"data.eval_split ({data.eval_split!r}) must differ from data.train_split, also "
                f"if data.eval_fraction ({data.eval_fraction}) divides one folder"
            )
        if len(data.train_sizes) != len(data.train_size_epochs):
            raise UserError(
                f"data.train_sizes {data.train_sizes} and data.train_size_epochs "
                f"{data.train_size_epochs} must have the same length: one epoch for each size "
                f"before data.image_size"
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
