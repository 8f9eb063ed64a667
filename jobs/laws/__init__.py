"""Scaling laws of a ledger, with intervals; comparisons of arms from probe bits; both in numpy alone."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
