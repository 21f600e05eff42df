"""What other trainers call our settings: timm, torchvision, PyTorch's examples, Ultralytics, Keras.

One table for flags (`--epochs=3`) and for fields (`--set epochs=3`).
"""

# Names of others, and what to type here instead. If there are several forms, the first counts whose
# flag the command has and whose field takes the value, `{}`. A form begins with dashes and may end
# with a note in parentheses; all else is a sentence, for what is not a setting here.
_BATCH = "--set data.global_batch_size={} (images in a step, over all devices)"
_MACHINES = (
    "all GPUs of a machine: --strategy=mirrored; several machines: `python -m launch` "
    "(docs/distributed.md)"
)
_RESUMES = "the same command resumes its run; nothing has to be added"
_NO_EVALUATION = "evaluation is a part of training, see --set eval_every_epochs=…"

_ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # The model.
    ("arch a model architecture model_name backbone net", ("--model={}", "--set model.name={}")),
    (
        "pretrained",
        ("--set model.weights=FILE (weights of timm or torchvision, see docs/models.md)",),
    ),
    (
        "initial_checkpoint finetune pretrained_weights load_weights load_from init_weights",
        ("--set model.weights={}",),
    ),
    (
        "nc nb_classes n_classes class_num classes",
        ("--num_classes={}", "--set model.num_classes={}"),
    ),
    ("drop drop_rate drop_out dropout_rate", ("--set model.dropout={}",)),
    ("drop_path drop_path_rate drop_connect", ("--set model.stochastic_depth={}",)),
    ("sync_bn syncbn", ("--set model.sync_batch_norm={} (true by default)",)),
    ("bn_momentum", ("--set model.batch_norm_momentum=… (1 minus PyTorch's)",)),
    ("bn_eps", ("--set model.batch_norm_epsilon={}",)),
    (
        "in_chans num_channels",
        ("--channels={}", "--set data.channels={}"),
    ),
    # The data.
    ("data", ("--set data.name={}", "--data_dir={}", "--source={}")),
    (
        "data_dir data_path data_root dataroot root root_dir dataset_dir dataset_path image_dir "
        "img_dir image_folder images input input_dir dir folder src source",
        ("--data_dir={}", "--source={}"),
    ),
    (
        "train_dir val_dir test_dir train_path val_path train_data val_data",
        ("--data_dir=… (the folder that contains the splits)",),
    ),
    ("dataset d dataset_name ds", ("--set data.name={}",)),
    (
        "val_split validation_split test_split split valid_split",
        ("--set data.eval_fraction={}", "--eval_fraction={}", "--set data.eval_split={}"),
    ),
    (
        "imgsz img_size input_size size img image_sz resolution target_size crop_size "
        "train_crop_size val_crop_size",
        ("--image_size={}", "--set data.image_size={}"),
    ),
    ("crop_pct", ("--set data.eval_crop_ratio={}",)),
    (
        "val_resize_size resize_size",
        ("--set data.eval_crop_ratio=… (crop size / resize size)",),
    ),
    ("batch_size batch b bs train_batch_size", ("--global_batch_size={}", _BATCH)),
    (
        "val_batch_size vb validation_batch_size test_batch_size valid_batch_size",
        ("--set data.eval_batch_size={}",),
    ),
    (
        "workers j num_workers n_workers dataloader_num_workers threads num_threads",
        ("--threads={}", "reading and decoding run in parallel; nothing has to be set"),
    ),
    (
        "cache cache_dataset cache_images",
        ("there is no cache to set; `python -m trainer.prepare` writes files that read fast",),
    ),
    ("fraction", ("for TFDS data, a share of a split: --set data.train_split='train[:10%]'",)),
    # Augmentation.
    (
        "aa auto_augment autoaugment augment augmentation",
        ("--set augment.policy={}",),
    ),
    ("no_aug", ("--set augment.policy=none",)),
    ("randaugment rand_augment ra", ("--set augment.policy=randaugment",)),
    ("ra_magnitude", ("--set augment.magnitude={}",)),
    ("reprob random_erase random_erasing", ("--set augment.erasing={}",)),
    ("mixup_alpha", ("--set augment.mixup={}",)),
    ("cutmix_alpha", ("--set augment.cutmix={}",)),
    ("hflip fliplr horizontal_flip", ("--set data.flip=true (half of the images)",)),
    ("vflip flipud vertical_flip", ("images are not mirrored vertically; see --set data.flip=…",)),
    ("aug_repeats repeated_aug", ("--set data.repeats={}",)),
    ("smoothing ls", ("--set label_smoothing={}",)),
    ("loss criterion loss_fn", ("the loss is softmax cross-entropy; see --set label_smoothing=…",)),
    # The optimizer and its schedule.
    ("opt optimizer optim", ("--set optimizer.name={}",)),
    (
        "lr lr0 base_lr init_lr initial_lr max_lr peak_lr eta",
        ("--set optimizer.learning_rate={}",),
    ),
    ("wd l2 weightdecay", ("--set optimizer.weight_decay={}",)),
    ("beta1 beta_1 adam_beta1", ("--set optimizer.momentum={}",)),
    ("beta_2 adam_beta2", ("--set optimizer.beta2={}",)),
    (
        "opt_betas betas",
        ("--set optimizer.momentum=… (β1) --set optimizer.beta2=…",),
    ),
    ("opt_eps adam_epsilon eps", ("--set optimizer.epsilon={}",)),
    (
        "clip_grad clip_grad_norm max_grad_norm gradient_clip_val clipnorm global_clipnorm "
        "grad_clip max_norm",
        ("--set optimizer.clip_norm={}",),
    ),
    (
        "sched scheduler lr_scheduler lr_schedule lr_scheduler_type",
        ("--set optimizer.schedule={}",),
    ),
    ("cos_lr cosine", ("--set optimizer.schedule=cosine",)),
    (
        "decay_milestones lr_steps lr_milestones",
        ("--set optimizer.schedule=step --set optimizer.milestones={}",),
    ),
    (
        "decay_epochs lr_step_size step_size lr_decay_epochs",
        ("--set optimizer.schedule=step --set optimizer.milestones=30,60 (epochs)",),
    ),
    ("decay_rate dr lr_gamma gamma lr_decay", ("--set optimizer.milestone_factor={}",)),
    ("warmup lr_warmup_epochs warmup_length", ("--set optimizer.warmup_epochs={}",)),
    (
        "warmup_steps warmup_iters",
        ("--set optimizer.warmup_epochs=… (epochs; a part of one counts)",),
    ),
    (
        "min_lr lrf lr_min eta_min",
        ("a cosine schedule ends at 0; nothing has to be set",),
    ),
    # The run.
    (
        "epochs epoch n_epochs nepochs max_epochs train_epochs num_train_epochs ep",
        ("--set num_epochs={}",),
    ),
    (
        "steps max_steps steps_per_epoch iterations max_iter num_steps train_steps",
        ("--set num_epochs=… (a part of an epoch counts; an epoch is each image once)",),
    ),
    ("random_seed manual_seed rng_seed", ("--set seed={}",)),
    (
        "amp native_amp apex_amp bf16 bfloat16 mixed_precision amp_dtype autocast",
        ("--set precision=mixed_bfloat16 (or mixed_float16)",),
    ),
    ("fp16 half float16 use_fp16", ("--set precision=mixed_float16 (or mixed_bfloat16)",)),
    ("loss_scale", ("--set initial_loss_scale={}",)),
    ("torchcompile compile torchscript jit jit_compile", ("--set xla=on",)),
    ("channels_last", ("images are channels last already; nothing has to be set",)),
    (
        "use_deterministic_algorithms",
        ("--set deterministic=true",),
    ),
    (
        "grad_accum_steps gradient_accumulation_steps accum_iter accumulate_grad_batches "
        "accumulation grad_accum",
        ("--set accumulation_steps={} (data.global_batch_size is divided by it)",),
    ),
    (
        "model_ema ema use_ema",
        ("--set ema_decay=0.9999 (the average is evaluated and exported)",),
    ),
    ("model_ema_decay ema_momentum", ("--set ema_decay={}",)),
    (
        "patience early_stopping patience_epochs",
        ("there is no early stopping: a run keeps its best checkpoint, and lasts "
         "--set num_epochs=…",),
    ),
    (
        "val_interval eval_interval validation_freq eval_freq val_freq val_every eval_every "
        "check_val_every_n_epoch",
        ("--set eval_every_epochs={}",),
    ),
    (
        "save_period save_freq save_interval save_every checkpoint_freq save_steps",
        ("--set checkpoint_every_s=… (seconds)",),
    ),
    (
        "checkpoint_hist save_total_limit max_to_keep keep_last",
        ("--set keep_checkpoints={} (in addition to the best one)",),
    ),
    (
        "log_interval print_freq p log_freq log_every log_every_n_steps log_step logging_steps",
        ("--set steps_per_loop={} (after each loop, a line is logged)",),
    ),
    ("steps_per_execution", ("--set steps_per_loop={}",)),
    (
        "output output_dir o out out_dir save_dir results_dir project experiment exp run_name "
        "exp_name",
        ("--workdir={}", "--out={}"),
    ),
    (
        "workdir work_dir run_dir model_dir checkpoint_dir ckpt_dir exp_dir log_dir logdir",
        ("--workdir={}", "--run={}", "--out={}"),
    ),
    (
        "name",
        ("a run's folder: --workdir=…; fields: --set model.name=…, --set data.name=…, "
         "--set optimizer.name=…",),
    ),
    ("exist_ok overwrite force", ("a run is never overwritten; name another --workdir",)),
    ("resume auto_resume start_epoch initial_epoch resume_from continue", (_RESUMES,)),
    ("checkpoint ckpt", ("--run={}", "--set model.weights={}")),
    ("eval evaluate e test test_only eval_only validate val", (_NO_EVALUATION,)),
    (
        "wandb log_wandb tensorboard use_tensorboard",
        ("TensorBoard's files and metrics.jsonl are always written, to --workdir",),
    ),
    ("json", ("--format=json",)),
    ("cfg c cfg_file config_file recipe", ("--config={}",)),
    ("verbose quiet log_level", ("--verbosity=0 (shows the libraries' output, too)",)),
    # Devices.
    (
        "device devices gpu gpus gpu_id gpu_ids ngpus num_gpus n_gpu cuda accelerator",
        ("one device or all: --strategy; which ones: the environment, such as "
         "CUDA_VISIBLE_DEVICES=0 (-1: none)",),
    ),
    (
        "world_size dist_url dist_backend rank local_rank nnodes nproc_per_node num_nodes "
        "multiprocessing_distributed distributed master_addr master_port",
        (_MACHINES,),
    ),
    ("tpu_name tpu_type", ("--tpu={}",)),
)  # fmt: skip

FORMS: dict[str, tuple[str, ...]] = {
    name: forms for names, forms in _ROWS for name in names.split()
}
