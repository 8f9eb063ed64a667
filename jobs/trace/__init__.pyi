from .config import Config as Config
from .seen import RunSaw as RunSaw
from .text import text as text
from .trace import run as run
