"""Rebuild what other objects of a dataset still say (docs/design.md, "Dataset")."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
