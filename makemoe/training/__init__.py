"""Training: the LightningModule, losses, balancing, metrics, schedules, resuming."""
