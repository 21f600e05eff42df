"""Numbers as text, with units."""


def bytes_text(number: int, digits: int = 1) -> str:
    """Returns a size in the largest binary unit that it reaches, such as `1.5 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.{digits}f} {unit}"
    return f"{number} B"


def count_text(number: int) -> str:
    """Returns a count in the largest decimal unit that it reaches, such as `4.089 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3f} {unit}"
    return f"{number}"


def count(number: int, noun: str) -> str:
    """Returns a number of things, such as `1 image`, `1,281,167 images` or `2 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
