"""Writes the files that check_exports.py reads: models as by `trainer.export`, and their logits.

python -m tests.parity.exports FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.models.test_parity import model_of
from tests.parity.cases import CASES, images
from trainer.models.weights import tensor_file
from trainer.models.weights.names import torch_tensors


def main() -> None:
    folder = Path(sys.argv[1])
    for case in CASES:
        if case.reference != "timm" or case.settings or case.name.startswith(("wrn", "resnet20")):
            continue
        if case.name.endswith("_v1"):  # timm's network has its strides in another convolution
            continue
        model = model_of(case)
        tensor_file.write(folder / f"{case.name}.safetensors", torch_tensors(case.name, model), {})
        logits = model(tf.constant(images(case)), training=False).numpy()
        np.savez(folder / f"{case.name}.npz", images=images(case), logits=logits)
        print(case.name, flush=True)


if __name__ == "__main__":
    main()
