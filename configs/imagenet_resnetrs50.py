"""ResNet-RS-50 on ImageNet at 160 pixels, from Bello et al. 2021: 78.8 % there, in 350 epochs.

For 32 accelerators with 128 images each. Not run here, for lack of the data; the tests load and
validate it. Values that the paper does not give are those of imagenet_resnet50.py.

TPU slice: v5e:4x8.
"""

from trainer.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        num_epochs=350.0,
        precision="mixed_bfloat16",
        label_smoothing=0.1,
        ema_decay=0.9999,
        model=ModelConfig(name="resnetrs50", num_classes=1000, dropout=0.25, sync_batch_norm=False),
        data=DataConfig(
            name="imagenet2012",
            train_split="train",
            eval_split="validation",
            image_size=160,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop="random_resized",
            flip=True,
            global_batch_size=4096,
            eval_batch_size=1024,
        ),
        augment=AugmentConfig(policy="randaugment", num_layers=2, magnitude=10.0),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=1.6,
            nesterov=False,
            weight_decay=4e-5,
            warmup_epochs=5.0,
        ),
    )
