"""ResNet-50 fine-tuned on your own photos, from ImageNet weights.

    python -m trainer.main --config=configs/photos_finetune_resnet50.py --data_dir=photos \\
        --set model.weights=resnet50.safetensors

Put photos in photos/train/CLASS/* and photos/val/CLASS/*. The weights are a file from timm or
torchvision, or a run. For a few hundred to a few thousand photos on one GPU with 16 GiB, by
`trainer.inspect`'s estimate. Not run with ResNet-50, whose weights were not available here; with
MobileNetV2 in its place, 92 % on two classes of 245 photos (docs/models.md). The values are common
ones for fine-tuning, and were not tuned.

TPU slice: v5e:1x1.
`trainer.preflight` sees no data, so give it `--set model.num_classes=N`.
"""

from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        num_epochs=20.0,
        precision="mixed_bfloat16",
        label_smoothing=0.1,
        ema_decay=0.98,  # averages about 50 steps; 200 photos are 6 steps per epoch
        model=ModelConfig(
            name="resnet50",
            num_classes=None,
            weights="resnet50.safetensors",
            freeze="stem",
        ),
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
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.01,
            weight_decay=1e-4,
            warmup_epochs=1.0,
            stage_rates=(0.1, 0.1, 0.1, 0.3, 0.3, 1.0),  # stem, four stages, head
        ),
    )
