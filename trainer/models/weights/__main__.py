"""Writes known_names.py again; it builds every model, which takes minutes.

python -m trainer.models.weights > trainer/models/weights/known_names.py
"""

import gc

from trainer import config as config_lib
from trainer.config import Config
from trainer.models.build import build_model
from trainer.models.weights.names import libraries, named_variables
from trainer.models.weights.tensor_file import hash_of_names
from trainer.registry import MODELS

_HEADER = '''\
"""What each model's tensors are called in each library, as a hash of the names. Generated:

python -m trainer.models.weights > trainer/models/weights/known_names.py
"""

# (model, library): the names' `tensor_file.hash_of_names`.
KNOWN_NAMES = {'''


def known_names(name: str) -> dict[tuple[str, str], str]:
    """Returns the entries of `KNOWN_NAMES` for a model, which it builds."""
    config = config_lib.override(Config(), [f"model.name={name}", "data.image_size=32"])
    model = build_model(config, channels=3)
    return {
        (name, library): hash_of_names(named_variables(model, name_of))
        for library, name_of in libraries(name).items()
    }


def _print_all() -> None:
    print(_HEADER)
    for name in MODELS:
        for (_, library), digest in known_names(name).items():
            print(f'    ("{name}", "{library}"): "{digest}",', flush=True)
        gc.collect()  # a model's layers refer to each other
    print("}")


if __name__ == "__main__":
    _print_all()
