"""Files that start a cluster, made from a few values: no template language, and checked before they are printed."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
