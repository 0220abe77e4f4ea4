"""When an expert is dead and when a router has collapsed. Does not import torch."""

DEAD_BELOW = 0.01
"""An expert is dead if it gets less than this share of the mean load."""

WORKS_FROM = 0.1
"""An expert works if it gets this share of the mean load or more."""

SPARE = 0.25
"""A router has collapsed if at most K + SPARE * (E - K) of its experts work.

Its tokens then go to hardly more than the same K experts. MaxVio does not show this: with 2 of 4
experts per token, if nearly every token chooses one expert first, the other three still work.
"""
