"""Bounded, polite fetching: tasks in, bytes or a reason out."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
