"""ResNet-18 trained on your own photos from scratch.

    python -m trainer.main --config=configs/photos_resnet18.py --data_dir=photos

Put photos in photos/train/CLASS/* and photos/val/CLASS/*. For a few hundred to a few thousand
photos on a laptop's CPU. The values are common ones for small data sets and were not tuned. If you
have ImageNet weights, photos_finetune_resnet50.py needs fewer photos.

TPU slice: v5e:1x1.
`trainer.preflight` sees no data, so give it `--set model.num_classes=N`.
"""

from trainer.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        num_epochs=60.0,
        label_smoothing=0.1,
        ema_decay=0.98,  # averages about 50 steps; 200 photos are 6 steps per epoch
        eval_every_epochs=2.0,
        model=ModelConfig(name="resnet18", num_classes=None),
        data=DataConfig(
            name="folder",
            train_split="train",
            eval_split="val",
            image_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop="random_resized",
            flip=True,
            global_batch_size=32,
            eval_batch_size=64,
        ),
        augment=AugmentConfig(policy="trivialaugment"),  # strong, without parameters to tune
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.02,
            weight_decay=5e-4,
            warmup_epochs=3.0,
        ),
    )
