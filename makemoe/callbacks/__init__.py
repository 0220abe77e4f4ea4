"""What goes on beside training: saving, stopping cleanly, samples, speed, a progress bar."""

from makemoe.callbacks.progress import Introduction, StepProgress, Throughput
from makemoe.callbacks.samples import TextSample
from makemoe.callbacks.saving import BestCheckpoint, LastCheckpoint
from makemoe.callbacks.stopping import StopOnSignal

__all__ = [
    "BestCheckpoint",
    "Introduction",
    "LastCheckpoint",
    "StepProgress",
    "StopOnSignal",
    "TextSample",
    "Throughput",
]
