"""What --help shows: the options most used, and words for those that are Lightning's."""

DESCRIPTIONS = {
    "fit": "Train a model, or go on training one (--ckpt_path).",
    "validate": "Exact loss on the validation split: nats per token, bits per character.",
    "test": "Exact loss on --data.test_corpus or the validation split: nats per token, bits per "
    "character.",
}

CHECKPOINT_HELP = {
    "ckpt_path": "checkpoint file, a run's name, or `last` or `best` of the newest run. What it "
    "holds (model, tokenizer, data, steps) need not be said again; flags and --config overrule it",
    "trust": "modules, besides makemoe and torch.optim, whose classes a checkpoint may name",
}

UNKNOWN_HELP = (
    "`error` refuses a text with a character that the model does not know, `skip` leaves out such "
    "characters"
)

MACHINE_HELP = {
    "trainer.accelerator": "auto, cpu, gpu",
    "trainer.devices": "how many processes, one a device",
    "trainer.strategy": "auto; ddp for several processes",
    "trainer.precision": "32-true or bf16-mixed",
}

SHOWN_HELP = {
    "fit": {
        "config": "YAML file of settings; several are merged, the later wins",
        "data.": "",
        "model.": "",
        "seed": "decides weights, batches, dropout and router noise",
        "trainer.max_steps": "optimizer steps in all",
        "trainer.max_time": "or the time a run takes at most, DD:HH:MM:SS",
        "trainer.val_check_interval": "steps between two validations",
        "trainer.log_every_n_steps": "steps between two lines of metrics.csv (null: 50)",
        "trainer.accumulate_grad_batches": "batches an optimizer step",
        "trainer.gradient_clip_val": "longest gradient (L2 norm over all parameters)",
        **MACHINE_HELP,
        "run.": "",
        **CHECKPOINT_HELP,
    },
    "validate": {
        **CHECKPOINT_HELP,
        "data.corpus": "",
        "data.unknown": UNKNOWN_HELP,
        "data.eval_": "",
        **MACHINE_HELP,
        "run.root": "",
    },
    "test": {
        **CHECKPOINT_HELP,
        "data.test_corpus": "",
        "data.corpus": "",
        "data.unknown": UNKNOWN_HELP,
        "data.eval_batch": "",
        **MACHINE_HELP,
        "run.root": "",
    },
}
