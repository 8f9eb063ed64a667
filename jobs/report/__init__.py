"""Run folders -> a ledger of typed rows -> pages for people; and a dataset's own page."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
