"""Measure a frozen encoder: a whole grid of heads from one pass over a labelled set."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
