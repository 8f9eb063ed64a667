"""The tools that we compare with: their environments, and the scripts that run inside them."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
