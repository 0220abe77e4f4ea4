"""Several devices: weights in parts, and experts on different processes."""

from makemoe.parallel.strategy import Sharded

__all__ = ["Sharded"]
