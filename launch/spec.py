"""What to launch: one JobSpec for all back ends, checked when it is built."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from launch.errors import LaunchError, refuse_secret

# The strictest of all: a label of DNS that leaves room for what back ends add to it.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Set by the launcher, or it would start something else than was asked for.
_OWN_ENV = {"TF_CONFIG", "TPU_NAME", "PJRT_DEVICE", "TPU_LOAD_LIBRARY", "CUDA_VISIBLE_DEVICES"}
ALONE = ("one_device", "mirrored", "tpu")  # strategies of one process


def option(default: Any, text: str) -> Any:
    """A field of a back end's options: a flag with this help. A flag without a default: `None`."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One run of the trainer on a group of processes.

    Attributes:
        name: of the run, and of all that is made for it.
        run: a random number that tells it from all others, here or elsewhere: by it what was made
            is found again. `RUN` in what is only shown.
        nodes: processes of the group, a host each.
        args: the trainer's flags but `--workdir`.
        workdir: the run's folder as the trainer sees it; "" for the back end's default.
        max_restarts: how often a run that was killed is started again.
        env: further environment of the trainer, by name.
        folder: the code's folder here: where the trainer starts, or what is uploaded.
        record_dir: where the launcher keeps what it knows of this run, an absolute path.
        options: the back end's own.
    """

    name: str
    run: str
    backend: str
    nodes: int
    args: tuple[str, ...]
    workdir: str
    max_restarts: int
    env: tuple[tuple[str, str], ...]
    folder: str
    record_dir: str
    options: Any

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LaunchError(
                f"--name={self.name}: must be lower-case letters, digits and '-', at most 40, a "
                f"letter first and no '-' last"
            )
        _at_least("--nodes", self.nodes, 1)
        _at_least("--max-restarts", self.max_restarts, 0)
        for name, value in self.env:
            if not _ENV_NAME.fullmatch(name):
                raise LaunchError(
                    f"--env={name}=…: must be NAME=VALUE, a name of letters, digits, _"
                )
            if name in _OWN_ENV or name.startswith(("LAUNCH_", "SLURM_")):
                raise LaunchError(f"--env={name}=…: is set by the launcher; leave it out")
            refuse_secret(f"{name}={value}", f"--env={name}=…")
        for arg in self.args:
            refuse_secret(arg, f"{arg.rpartition('=')[0] or arg[:20]}=…")
        for flag, text in {"--workdir": self.workdir, **self._option_texts()}.items():
            refuse_secret(text, f"{flag}=…")
        if "--" in self.args:
            raise LaunchError("--: stands among the trainer's flags, which know none; leave it out")
        for arg in (*self.args, self.workdir, *(value for _, value in self.env)):
            if "\0" in arg:
                raise LaunchError(f"{arg[:40]!r}: holds a zero byte, which no argument can")
            try:
                arg.encode()
            except UnicodeEncodeError:
                raise LaunchError(f"{arg[:40]!r}: is no text in UTF-8; rename it") from None
        if self.nodes > 1 and self.strategy in ALONE:
            raise LaunchError(
                f"--nodes={self.nodes}: --strategy={self.strategy} is of one process, and each "
                f"would train alone; use --strategy=multi_worker, or --nodes=1"
            )

    def _option_texts(self) -> dict[str, str]:
        """The back end's own flags, as far as they are text; lists as one."""
        texts = {}
        for field in dataclasses.fields(self.options):
            value = getattr(self.options, field.name)
            words = value if isinstance(value, tuple) else (value,)
            texts["--" + field.name.replace("_", "-")] = " ".join(map(str, words))
        return texts

    @property
    def strategy(self) -> str:
        """The trainer's flag, "" where it is left out."""
        found = ""
        for arg, following in zip(self.args, [*self.args[1:], ""], strict=False):
            if arg in ("--strategy", "-strategy"):
                found = following
            elif arg.startswith(("--strategy=", "-strategy=")):
                found = arg.partition("=")[2]
        return found

    @property
    def is_group(self) -> bool:
        """Whether the trainer gets a TF_CONFIG."""
        return self.nodes > 1 or self.strategy == "multi_worker"

    def trainer_args(self, workdir: str) -> tuple[str, ...]:
        """What follows `python`, where the run's folder is called `workdir`."""
        return ("-m", "trainer.main", *self.args, f"--workdir={workdir}")


def split_workdir(args: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The trainer's flags without `--workdir`, and its value, "" where there is none."""
    rest, workdir = [], ""
    words = iter(args)
    for word in words:
        if word in ("--workdir", "-workdir"):
            workdir = next(words, "")
        elif word.startswith(("--workdir=", "-workdir=")):
            workdir = word.partition("=")[2]
        else:
            rest.append(word)
            continue
        if not workdir:
            raise LaunchError("--workdir=: must name a folder; leave it out for the default")
    return tuple(rest), workdir


def to_dict(spec: JobSpec) -> dict[str, Any]:
    return dataclasses.asdict(spec)


def from_dict(values: Mapping[str, Any], options: type) -> JobSpec:
    """What `to_dict` gave, after a way through JSON.

    Args:
        options: the back end's dataclass.
    """
    own = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values["options"].items()
    }
    values = dict(values)
    values |= {"args": tuple(values["args"]), "options": options(**own)}
    values["env"] = tuple((name, value) for name, value in values["env"])
    return JobSpec(**values)


def option_types(options: type) -> dict[str, type]:
    """The type of each field: str, int, bool, or tuple (a flag that may be repeated)."""
    return {
        name: tuple if getattr(hint, "__origin__", None) is tuple else hint
        for name, hint in get_type_hints(options).items()
    }


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise LaunchError(f"{flag}={value}: must be at least {least}")


def check_word(flag: str, value: str) -> None:
    """A value that goes into a file of another language: nothing there that means something.

    Raises:
        LaunchError: where it is more than letters, digits and _.:,=/+@%-.
    """
    if value and not re.fullmatch(r"[\w.:,=/+@%-]+", value, re.ASCII):
        raise LaunchError(f"{flag}={value}: must be letters, digits and _.:,=/+@%- only")
