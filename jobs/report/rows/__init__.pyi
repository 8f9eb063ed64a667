from .same_data import (
    SAME_DATA as SAME_DATA,
    SameData as SameData,
    as_one as as_one,
    read_same_data as read_same_data,
)
from .tables import (
    RIGHT as RIGHT,
    SETTINGS as SETTINGS,
    read_ledger as read_ledger,
    read_settings as read_settings,
)
