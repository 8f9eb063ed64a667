"""Import and export of the official code's checkpoints, and export of ours for other libraries."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
