"""Finds the file that `--config` names: the user's own, or a recipe that is installed."""

from pathlib import Path

# Next to trainer/ in a checkout and in an installed package alike.
SHIPPED = Path(__file__).parents[2] / "configs"


def find(name: str) -> Path:
    """Returns the file of a config.

    A path is taken as it is. If there is no such file, `configs/NAME.py` and NAME alone are looked
    up in `configs/` of the current folder, then among the installed recipes.

    Args:
        name: a path, or a recipe's name such as `digits_resnet20`.

    Returns:
        The file; `name` itself, which cannot be read, if there is none.
    """
    path = Path(name)
    candidates = [path]
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py"):
        file = f"{path.stem}.py"
        candidates += [Path("configs", file), SHIPPED / file]
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def known() -> list[str]:
    """Returns what `find` finds by name, sorted: own recipes as paths, installed ones as names."""
    own = {path.stem: str(path) for path in Path("configs").glob("*.py")}
    shipped = {path.stem: path.stem for path in SHIPPED.glob("*.py")}
    return sorted((shipped | own).values())
