"""URL lists of any format -> links with unique keys, tolerant, in constant memory."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
