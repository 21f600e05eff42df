"""ResNet-20 on CIFAR-10, from section 4.2 of He et al. 2015: 91.25 % there, in 64,000 steps.

Not run here, for lack of the data; the tests load and validate it. Prepare the data once, on a
machine with network access: tfds build cifar10 --file_format=array_record

TPU slice: v5e:1x1.
"""

from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        num_epochs=164.0,  # 64,000 steps of 128 images
        model=ModelConfig(name="resnet20", num_classes=10, zero_init_residual=False),
        data=DataConfig(
            name="cifar10",
            image_size=32,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            crop="pad",
            pad=4,
            flip=True,
            global_batch_size=128,
            eval_batch_size=500,
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.1,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            schedule="step",
            milestones=(82.0, 123.0),  # 32,000 and 48,000 steps
        ),
    )
