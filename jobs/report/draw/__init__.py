"""Charts as inline SVG: one engine (plot.py) and the charts drawn with it."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
