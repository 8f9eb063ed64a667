"""All that knows Ray: the same run() here or on a group of workers."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
