"""Pictures of a run: arrays in, matplotlib figures out; needs the extra `plots`."""

from makemoe.pictures.curves import draw_curves
from makemoe.pictures.reading import draw_reading
from makemoe.pictures.routing import draw_load, draw_pairs, draw_symbols

__all__ = ["draw_curves", "draw_load", "draw_pairs", "draw_reading", "draw_symbols"]
