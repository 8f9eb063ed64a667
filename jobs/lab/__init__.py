"""Studies: find the missing runs and probes, and run them."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
