"""Measurements on one GPU: `make bench-gpu`, `xtra bench gpu`, `python -m jobs.bench.gpu`."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
