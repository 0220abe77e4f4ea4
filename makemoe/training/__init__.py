"""Training: losses, metrics, schedules, loggers, resuming, the LightningModule."""
