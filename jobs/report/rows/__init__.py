"""Rows that outlived their run folders -> the same Ledger, and imports of the same data taken as one."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
