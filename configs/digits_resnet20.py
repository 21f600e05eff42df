"""ResNet-20 on scikit-learn's digits.

TPU slice: v5e:1x1.
"""

from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        num_epochs=25.0,
        label_smoothing=0.1,
        eval_every_epochs=5.0,
        model=ModelConfig(name="resnet20", num_classes=10),
        data=DataConfig(
            name="digits",
            image_size=12,  # resized from 8, so that a shift by one pixel is a smaller shift
            mean=(0.3056,),
            std=(0.3761,),
            global_batch_size=64,
            crop="pad",
            pad=1,
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.1,
            weight_decay=2e-3,
            warmup_epochs=2.0,
        ),
    )
