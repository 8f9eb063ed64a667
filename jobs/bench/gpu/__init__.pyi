from .bench import Config as Config, run as run
