"""What learning needs: losses, metrics, schedules, checkpoints, the LightningModule."""
