"""A training run's folder: its config, attempts, metrics, checkpoints and poison samples."""

from shards.door import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
