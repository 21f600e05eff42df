"""`python -m trainer.runs`: shows how a run came to be.

    python -m trainer.runs runs/digits_resnet20-1a2b3c4d
    python -m trainer.runs

The first prints the command that repeats the run, its config, data, classes, versions and machine,
and each start and end of a process with its reason. The second lists the runs in `runs/`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from trainer.cli import command
from trainer.errors import EXIT_DONE, UserError
from trainer.run.provenance import describe_run, runs_in, summarize_run

FLAGS = flags.FlagValues()
_RUN = flags.DEFINE_multi_string(
    "run", [], "A run's folder; --run= can be left out. Default: all in runs/.", flag_values=FLAGS
)


def runs() -> int:
    """Prints what the flags ask for, and returns the exit code."""
    folders = [Path(name).expanduser() for name in _RUN.value]
    if not folders:
        folders = runs_in(Path("runs"))
        if not folders:
            raise UserError("runs/: has no runs; name the folder of one")
        for folder in folders:
            try:
                print(summarize_run(folder))
            except UserError as error:  # of one; the others are as they are
                print(error)
        return EXIT_DONE
    print("\n\n".join(map(describe_run, folders)))
    return EXIT_DONE


def _named(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `RUN` as `--run=RUN`: absl's flags have names."""
    program, *words = arguments
    before = ("", *words)
    return [
        program,
        *(
            word if word.startswith("-") or flag in ("-run", "--run") else f"--run={word}"
            for flag, word in zip(before, words, strict=False)
        ),
    ]


def main() -> None:
    """Runs the verb and exits."""
    command.run("trainer.runs", runs, FLAGS, _named(sys.argv))


if __name__ == "__main__":
    main()
