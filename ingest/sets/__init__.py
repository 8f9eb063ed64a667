"""Labelled folders, archives and tars -> the same dataset format as a crawled list."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
