"""Checkpoints of the official code in and out, and ours as other libraries read them."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
