"""A sample of a list -> what all of it would give."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
