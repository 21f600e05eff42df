"""Writes known_models.py again; it builds every model, which takes minutes.

python -m trainer.models.weights > trainer/models/weights/known_models.py
"""

import gc

from trainer import config as config_lib
from trainer.config import Config
from trainer.models.build import build_model
from trainer.models.weights.names import libraries, named_variables
from trainer.models.weights.tensor_file import hash_of_model
from trainer.registry import MODELS

_HEADER = '''\
"""The tensors of each model in each library, as a hash. Generated:

python -m trainer.models.weights > trainer/models/weights/known_models.py
"""

# (model, library): `tensor_file.hash_of_model`.
KNOWN_MODELS = {'''


def known_hashes(name: str) -> dict[tuple[str, str], str]:
    """Returns the entries of `KNOWN_MODELS` for a model, which it builds."""
    config = config_lib.override(Config(), [f"model.name={name}", "data.image_size=32"])
    model = build_model(config, channels=3)
    return {
        (name, library): hash_of_model(
            {path: one.torch_shape for path, one in named_variables(model, name_of).items()}
        )
        for library, name_of in libraries(name).items()
    }


def _print_all() -> None:
    print(_HEADER)
    for name in MODELS:
        for (_, library), digest in known_hashes(name).items():
            print(f'    ("{name}", "{library}"): "{digest}",', flush=True)
        gc.collect()  # a model's layers refer to each other
    print("}")


if __name__ == "__main__":
    _print_all()
