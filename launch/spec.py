"""What to launch: one JobSpec for all back ends, checked when it is built."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from launch.errors import LaunchError, refuse_secret

# The strictest rule of all back ends: a DNS label, with room for the suffixes they add.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Set by the launcher, or they would change what is started.
_OWN_ENV = {"TF_CONFIG", "TPU_NAME", "PJRT_DEVICE", "TPU_LOAD_LIBRARY", "CUDA_VISIBLE_DEVICES"}
ALONE = ("one_device", "mirrored", "tpu")  # strategies that run in one process


def option(default: Any, text: str) -> Any:
    """Declares a field of a back end's options: a flag with this default and help text."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One run of the trainer on a group of processes.

    Attributes:
        name: the run's name, and that of everything created for it.
        run: a random number that identifies the run everywhere: what was created for it is found
            by this number. `RUN` in a dry run.
        nodes: the number of worker processes; on a cluster, one per host.
        args: the trainer's flags except `--workdir`.
        workdir: the run's folder as the trainer sees it; "" for the back end's default.
        max_restarts: how often a run that was killed is restarted.
        env: additional environment variables of the trainer, as (name, value).
        folder: the folder with the code on this machine: the trainer starts in it, or it is
            uploaded.
        record_dir: the absolute path of the run's record.
        options: the back end's own flags, an instance of its `Options`.

    Raises:
        LaunchError: if a value cannot be launched, or looks like a secret.
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
                f"--name={self.name}: must be at most 40 lower-case letters, digits and '-'; start "
                f"with a letter, and don't end with '-'"
            )
        _at_least("--nodes", self.nodes, 1)
        _at_least("--max-restarts", self.max_restarts, 0)
        for name, value in self.env:
            if not _ENV_NAME.fullmatch(name):
                raise LaunchError(
                    f"--env={name}=…: must be NAME=VALUE, with letters, digits and _ in NAME"
                )
            if name in _OWN_ENV or name.startswith(("LAUNCH_", "SLURM_")):
                raise LaunchError(f"--env={name}=…: set by the launcher; leave it out")
            refuse_secret(f"{name}={value}", f"--env={name}=…")
        for arg in self.args:
            refuse_secret(arg, f"{arg.rpartition('=')[0] or arg[:20]}=…")
        for flag, text in {"--workdir": self.workdir, **self._option_texts()}.items():
            refuse_secret(text, f"{flag}=…")
        if "--" in self.args:
            raise LaunchError("--: not a flag of the trainer; leave out the second one")
        for arg in (*self.args, self.workdir, *(value for _, value in self.env)):
            if "\0" in arg:
                raise LaunchError(
                    f"{arg[:40]!r}: contains a zero byte, which no argument can; remove it"
                )
            try:
                arg.encode()
            except UnicodeEncodeError:
                raise LaunchError(f"{arg[:40]!r}: not valid UTF-8; rename it") from None
        if self.nodes > 1 and self.strategy in ALONE:
            raise LaunchError(
                f"--nodes={self.nodes}: --strategy={self.strategy} runs in one process, so each "
                f"node would train alone; use --strategy=multi_worker, or --nodes=1"
            )

    def _option_texts(self) -> dict[str, str]:
        """Returns the back end's flags as text, by flag; the words of a list are joined."""
        texts = {}
        for field in dataclasses.fields(self.options):
            value = getattr(self.options, field.name)
            words = value if isinstance(value, tuple) else (value,)
            texts["--" + field.name.replace("_", "-")] = " ".join(map(str, words))
        return texts

    @property
    def strategy(self) -> str:
        """The trainer's --strategy, or "" if it is left out."""
        found = ""
        for arg, following in zip(self.args, [*self.args[1:], ""], strict=False):
            if arg in ("--strategy", "-strategy"):
                found = following
            elif arg.startswith(("--strategy=", "-strategy=")):
                found = arg.partition("=")[2]
        return found

    @property
    def is_group(self) -> bool:
        """Whether the trainer needs a TF_CONFIG."""
        return self.nodes > 1 or self.strategy == "multi_worker"

    def trainer_args(self, workdir: str) -> tuple[str, ...]:
        """Returns the arguments that follow `python`, with this folder for the run."""
        return ("-m", "trainer.main", *self.args, f"--workdir={workdir}")


def split_workdir(args: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Returns the trainer's flags without `--workdir`, and its value or ""."""
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
    """Returns the spec as values for JSON; `from_dict` reads them."""
    return dataclasses.asdict(spec)


def from_dict(values: Mapping[str, Any], options: type) -> JobSpec:
    """Rebuilds a spec from the values of `to_dict`, after a round trip through JSON.

    Args:
        options: the back end's `Options` class.
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
    """Returns the type of each field: str, int, bool, or tuple (a flag that may be repeated)."""
    return {
        name: tuple if getattr(hint, "__origin__", None) is tuple else hint
        for name, hint in get_type_hints(options).items()
    }


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise LaunchError(f"{flag}={value}: must be at least {least}")


def check_word(flag: str, value: str) -> None:
    """Checks a value that goes unquoted into a file of another language.

    Raises:
        LaunchError: if it contains anything but letters, digits and _.:,=/+@%-.
    """
    if value and not re.fullmatch(r"[\w.:,=/+@%-]+", value, re.ASCII):
        raise LaunchError(f"{flag}={value}: may contain only letters, digits and _.:,=/+@%-")
