"""The one door to pixels on the CPU: sniff, header, decode, crop, resize, hash, and decoding in a child process."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
