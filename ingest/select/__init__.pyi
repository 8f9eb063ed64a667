from .apply import (
    Config as Config,
    SelectConfig as SelectConfig,
    run as run,
    select as select,
    settings as settings,
)
from .exclude import counts as counts
