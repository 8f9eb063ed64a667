"""The history of a sample: its links and verdicts, its place, and every step of every run that saw it."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
