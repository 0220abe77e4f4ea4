"""Checkpoints: how they are written and read, and what they may contain."""
