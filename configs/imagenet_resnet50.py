"""ResNet-50 on ImageNet, the recipe of Goyal et al. 2017: 76.3 % there, in 90 epochs.

For 8 accelerators with 128 images each. Not run here, for lack of the data; the tests load and
validate it. Prepare the data once (ImageNet must be downloaded by hand; TFDS explains how):
tfds build imagenet2012 --file_format=array_record

TPU slice: v5e:2x4.
"""

from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        num_epochs=90.0,
        precision="mixed_bfloat16",
        model=ModelConfig(
            name="resnet50",
            num_classes=1000,
            sync_batch_norm=False,  # statistics of each replica's 128 images, as in the paper
        ),
        data=DataConfig(
            name="imagenet2012",
            train_split="train",
            eval_split="validation",
            image_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop="random_resized",
            flip=True,
            eval_crop_ratio=0.875,
            global_batch_size=1024,
            eval_batch_size=1024,
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.4,  # 0.1 per 256 images
            nesterov=False,
            weight_decay=1e-4,
            schedule="step",
            milestones=(30.0, 60.0, 80.0),
            warmup_epochs=5.0,
        ),
    )
