"""Scaling laws fitted to a ledger, with intervals; comparisons of arms from probe bits. Needs only numpy."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
