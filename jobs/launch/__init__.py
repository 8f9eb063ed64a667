"""Ranks that a launcher other than Ray has started: found from their environment, joined, and heard with one voice."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
