"""Studies: which runs and probes are missing, and doing them."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
