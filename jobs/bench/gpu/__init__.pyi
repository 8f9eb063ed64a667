from .bench import run as run
from .bundle import FOLDER as FOLDER, LIMIT as LIMIT, environment as environment, put_croppers as put_croppers
from .record import Config as Config
