"""A manifest and a cursor -> encoded samples: the order, where samples are, and how their bytes are fetched."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
