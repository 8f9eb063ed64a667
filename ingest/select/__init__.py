"""Duplicates, placeholder images and unwanted classes across units -> a version that leaves them out."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
