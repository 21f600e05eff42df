"""ResNet-50 fine-tuned on your own photos, from weights that were trained on ImageNet.

    python -m trainer.main --config=configs/finetune_resnet50.py --data_dir=photos \\
        --set model.weights=resnet50.safetensors --set model.num_classes=37

`photos/train/CLASS/*` and `photos/val/CLASS/*`; the weights are timm's, torchvision's or a run's.
For one accelerator with 16 GiB, by `trainer.inspect`'s estimate. Not run here, for want of such
weights: the tests load and validate it, and fine-tune smaller models.

TPU slice: v5e:1x1.
"""

from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        num_epochs=20.0,
        precision="mixed_bfloat16",
        label_smoothing=0.1,
        model=ModelConfig(
            name="resnet50",
            num_classes=37,
            weights="resnet50.safetensors",
            freeze="stem",
            batch_norm_inference=True,  # small batches of new data say less than ImageNet did
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
            global_batch_size=64,
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.02,
            weight_decay=1e-4,
            warmup_epochs=1.0,
            stage_rates=(0.1, 0.1, 0.1, 0.3, 0.3, 1.0),  # stem, four stages, head
        ),
    )
