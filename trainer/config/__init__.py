"""What a run computes: frozen dataclasses, loaded from a file and overridden with `--set`.

Imports no TensorFlow, so that a typo is answered in under a second.
"""

from trainer.config.fields import (
    MAX_ROLLBACKS,
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
)
from trainer.config.file import (
    HELP_FIELDS,
    differences,
    from_dict,
    hint,
    load,
    override,
    short_hash,
    to_dict,
    with_num_classes,
)

__all__ = [
    "HELP_FIELDS",
    "MAX_ROLLBACKS",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "differences",
    "from_dict",
    "hint",
    "load",
    "override",
    "short_hash",
    "to_dict",
    "with_num_classes",
]
