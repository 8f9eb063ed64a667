from .dry_run import run as run
from .forecast import KNOWN as KNOWN, Forecast as Forecast
