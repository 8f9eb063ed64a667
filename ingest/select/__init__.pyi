from .apply import (
    SelectConfig as SelectConfig,
    run as run,
    select as select,
    settings as settings,
)
from .config import Config as Config
from .exclude import (
    Exclusion as Exclusion,
    counts as counts,
    named_columns as named_columns,
    named_rows as named_rows,
    parse as parse,
)
