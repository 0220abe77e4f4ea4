"""What happens during training: saving, stopping, samples, pictures, speed, a progress bar."""

from makemoe.callbacks.conclusion import Conclusion
from makemoe.callbacks.pictures import RouterPictures
from makemoe.callbacks.progress import Introduction, StepProgress, Throughput
from makemoe.callbacks.samples import TextSample
from makemoe.callbacks.saving import BestCheckpoint, LastCheckpoint
from makemoe.callbacks.stopping import StopOnSignal

__all__ = [
    "BestCheckpoint",
    "Conclusion",
    "Introduction",
    "LastCheckpoint",
    "RouterPictures",
    "StepProgress",
    "StopOnSignal",
    "TextSample",
    "Throughput",
]
