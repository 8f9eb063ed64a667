"""Ranks started by a launcher other than Ray: found from their environment, joined, with only rank 0 printing."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
