from .apply import (
    Config as Config,
    SelectConfig as SelectConfig,
    run as run,
    select as select,
    settings as settings,
)
from .exclude import (
    Exclusion as Exclusion,
    counts as counts,
    named_columns as named_columns,
    named_rows as named_rows,
    parse as parse,
)
