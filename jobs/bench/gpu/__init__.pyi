from .bench import run as run
from .record import Config as Config
