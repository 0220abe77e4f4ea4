"""What happens during training: saving, stopping, speed, a progress bar."""

from makemoe.callbacks.conclusion import Conclusion
from makemoe.callbacks.progress import Introduction, StepProgress, Throughput
from makemoe.callbacks.saving import BestCheckpoint, LastCheckpoint
from makemoe.callbacks.stopping import StopOnSignal

__all__ = [
    "BestCheckpoint",
    "Conclusion",
    "Introduction",
    "LastCheckpoint",
    "StepProgress",
    "StopOnSignal",
    "Throughput",
]
