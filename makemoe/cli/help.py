"""What --help shows: the most used options, and descriptions of Lightning's options."""

from makemoe.cli.configs import bundled

DESCRIPTIONS = {
    "fit": "Train a model, or resume training (--ckpt_path).",
    "validate": "Exact loss on the validation split: nats per token, bits per character and byte.",
    "test": "Exact loss on --data.test_corpus or validation split: nats per token, bits per "
    "character and byte.",
}

CHECKPOINT_HELP = {
    "ckpt_path": "checkpoint file, name of a run, or `last` or `best` of the newest run. Its "
    "settings (model, tokenizer, data, steps) need not be repeated; flags and --config override "
    "them",
    "trust": "modules whose classes a checkpoint may name, in addition to makemoe and torch.optim",
}

UNKNOWN_HELP = (
    "`error` refuses a text with a character that the model does not know, `skip` omits such "
    "characters"
)

ALLOW_CHANGED_HELP = "resume although seed, batch size, text or split have changed"

MACHINE_HELP = {
    "trainer.accelerator": "auto, cpu, gpu",
    "trainer.devices": "number of processes, one per device",
    "trainer.strategy": "auto; ddp for several processes",
    "trainer.precision": "32-true or bf16-mixed",
}

MODEL_HELP = (
    *("optimizer", "lr_scheduler", "balancers", "param_groups", "block_size", "n_", "num_experts"),
    *("top_k", "dropout", "attn_dropout", "capacity_factor", "router", "experts", "init"),
    *("dispatch", "norm", "positions", "attention", "shared_experts", "dense_layers"),
)
"""The model's options that fit shows; the others are for --help_all."""

SHOWN_HELP = {
    "fit": {
        "config": f"YAML file, or bundled config: {', '.join(bundled())}; several: later ones "
        "override",
        "data.": "",
        **{f"model.{name}": "" for name in MODEL_HELP},
        "seed": "seed of weights, batches, dropout and router noise",
        "trainer.max_steps": "total number of optimizer steps",
        "trainer.max_time": "time limit of the run, DD:HH:MM:SS",
        "trainer.val_check_interval": "steps between validations",
        "trainer.log_every_n_steps": "steps between rows of metrics.csv (null: 50)",
        "trainer.accumulate_grad_batches": "batches per optimizer step",
        "trainer.gradient_clip_val": "maximum gradient norm (L2 norm over all parameters)",
        **MACHINE_HELP,
        "run.": "",
        **CHECKPOINT_HELP,
        "allow_changed": ALLOW_CHANGED_HELP,
    },
    "validate": {
        **CHECKPOINT_HELP,
        "data.corpus": "",
        "data.text_key": "",
        "data.unknown": UNKNOWN_HELP,
        "data.eval_": "",
        **MACHINE_HELP,
        "run.root": "",
    },
    "test": {
        **CHECKPOINT_HELP,
        "data.test_corpus": "",
        "data.corpus": "",
        "data.text_key": "",
        "data.unknown": UNKNOWN_HELP,
        "data.eval_batch": "",
        **MACHINE_HELP,
        "run.root": "",
    },
}
