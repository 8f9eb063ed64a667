from .seen import RunSaw as RunSaw
from .text import text as text
from .trace import Config as Config, run as run
